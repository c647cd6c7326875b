"""Files of generated strings: unlike a file of data, nothing in them may be skipped, or validity would be too good."""

import gzip
from collections.abc import Iterator
from pathlib import Path

from consilience.domains.molecules.readers import read_table


def generated_strings(path: Path, *, column: str | None = None) -> list[str]:
    """The strings of a file, as `readers.read_table` reads it, those that it skips as empty ones.

    In .smi and .txt every line after a header counts as a string: an empty line, or one that begins with `#`, is a
    string that is no molecule. Empty lines at the end count as nothing.

    Args:
        path: .smi, .txt, .csv, .tsv (also .gz), .parquet or .sdf.
        column: the SMILES column of a table; default: the first of the usual names.

    Raises:
        ConsilienceError: as `read_table`.
    """
    table = read_table(path, column=column)
    # Where the empty ones stand makes no difference: only the order of valid strings counts.
    return table.smiles + [""] * _skipped(path)


def _skipped(path: Path) -> int:
    """Lines that the reader of this kind of file passes over, up to the last that it does not."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    marks = {".smi": "#", ".txt": "#", ".csv": "", ".tsv": ""}.get(kind.lower())
    if marks is None:
        return 0
    total = waiting = 0
    for line in _lines(path):
        if not line.strip():
            waiting += 1
        elif marks and line.startswith(marks):
            total, waiting = total + waiting + 1, 0
        else:
            total, waiting = total + waiting, 0
    return total


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        yield from file
