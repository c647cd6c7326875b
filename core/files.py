"""Files that are there whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consilience.core.errors import ConsilienceError

LINE = 400
"""Characters that a list of lists may have on one line."""


def cache_folder(cache_dir: Path | str | None = None) -> Path:
    """Where fetched and computed data lie: the argument, else $CONSILIENCE_CACHE, else the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consilience"
    return Path(cache_dir or os.environ.get("CONSILIENCE_CACHE") or home).expanduser()


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader, and a machine that stops, sees the old content or the new."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # there still where Ctrl-C or a full disk came between


def readable_json(value: Any, indent: int = 0) -> str:
    """JSON with one entry a line, but short lists, and those of plain values (a vocabulary, lengths), on one line."""
    closing, opening = "\n" + " " * indent, "\n" + " " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = [f"{json.dumps(str(key))}: {readable_json(entry, indent + 1)}" for key, entry in value.items()]
        return f"{{{opening}{f',{opening}'.join(rows)}{closing}}}"
    line = json.dumps(value)
    nested = isinstance(value, list | tuple) and any(
        isinstance(entry, dict | list | tuple) for entry in value
    )
    if not nested or len(line) <= LINE:
        return line
    rows = [readable_json(entry, indent + 1) for entry in value]
    return f"[{opening}{f',{opening}'.join(rows)}{closing}]"


def without_nan(value: Any) -> Any:
    """The same with NaN as None: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what was written there takes the place of `path` when the block ends well.

    The block works in a folder beside the target, so that writers see the right file name and may write several
    files, or a folder where `path` is none yet. Messages name the target.
    """
    with _beside(path) as folder:
        yield folder / path.name
        for written in sorted(folder.iterdir()):
            os.replace(written, path.parent / written.name)


def try_writing(path: Path, write: Callable[[Path], None]) -> None:
    """Write something small in the way `path` will be written, and throw it away.

    A wrong file ending, a full disk or a folder without permission then stop a command before its work.
    """
    if path.is_dir():
        raise ConsilienceError(f"{path} is a folder: name a file to write")
    with _beside(path) as folder:
        write(folder / path.name)


def new_folder(path: Path) -> None:
    """Raise ConsilienceError where a folder is to be written that is there already, or cannot be there."""
    if path.exists() and not path.is_dir():
        raise ConsilienceError(f"{path} is a file: name a folder to write")
    if path.is_dir() and any(path.iterdir()):
        raise ConsilienceError(f"{path} is not empty: choose another --out, or remove it")
    with _beside(path):
        pass


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder beside a target, gone after the block."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        above = next((place for place in path.parents if place.exists()), Path())
        why = f"{above} is no folder" if not above.is_dir() else error.strerror or str(error)
        raise ConsilienceError(f"{path} cannot be written ({why}): name another place") from error
    with held as folder:
        try:
            yield Path(folder)
        except ConsilienceError as error:
            inner = Path(folder)  # without the ./ that the name of a folder may begin with
            told = str(error).replace(str(inner / path.name), str(path)).replace(str(inner), str(path.parent))
            raise ConsilienceError(told) from error
