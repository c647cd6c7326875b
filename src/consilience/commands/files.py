"""Files that a command writes: whole or not at all, and known to be writable before the work begins."""

import csv
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing
from consilience.core.records import Failure


def try_writing(path: Path, write: Callable[[Path], None]) -> None:
    """Write something small in the way `path` will be written, and throw it away.

    A wrong file ending, a full disk or a folder without permission then stop the command before its work.
    """
    if path.is_dir():
        raise ConsilienceError(f"{path} is a folder: name a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        try:
            write(Path(folder) / path.name)
        except ConsilienceError as error:
            raise ConsilienceError(str(error).replace(folder, str(path.parent))) from error


def failures_path(path: Path) -> Path:
    """Where the failures of an output stand."""
    return path.with_name(path.name + ".failures.csv")


def write_failures(failures: Sequence[Failure], path: Path) -> Path | None:
    """The failures of an output beside it, as CSV (index, id, reason); no failures, no file."""
    beside = failures_path(path)
    if not failures:
        beside.unlink(missing_ok=True)  # of an earlier run
        return None
    with replacing(beside) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "id", "reason"))
        writer.writerows((f.index, f.id, f.reason) for f in failures)
    return beside
