"""What a command could not read, written beside its output."""

import csv
from collections.abc import Sequence
from pathlib import Path

from consilience.core.files import replacing
from consilience.core.records import Failure


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
