"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consilience.core.errors import ConsilienceError


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader, and a machine that stops, sees the old content or the new."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what was written there takes the place of `path` when the block ends well.

    The block works in a folder beside the target, so that writers see the right file name and may write several
    files. Messages name the target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        try:
            yield Path(folder) / path.name
        except ConsilienceError as error:
            raise ConsilienceError(str(error).replace(folder, str(path.parent))) from error
        for written in sorted(Path(folder).iterdir()):
            os.replace(written, path.parent / written.name)
