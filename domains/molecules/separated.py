"""Separated columns (.csv, .tsv, also .gz) as they stand in the file, beside what pandas makes of them."""

import csv
import gzip
from pathlib import Path

import pandas as pd

from consilience.core.errors import ConsilienceError


def check_there(path: Path) -> None:
    """Raise ConsilienceError for what is no file."""
    if path.is_dir():
        raise ConsilienceError(f"{path}: is a folder; name a file in it")
    if not path.is_file():
        raise ConsilienceError(f"{path}: no such file")


def separator_of(path: Path) -> str:
    """Tab, comma or semicolon, whichever the header holds."""
    return _mark(_first_line(path))


def header_of(path: Path) -> list[str]:
    """Names of the columns; pandas renames those that stand twice."""
    line = _first_line(path)
    return [name.strip() for name in next(csv.reader([line], delimiter=_mark(line)), [])]


def check_cells(frame: pd.DataFrame, path: Path) -> None:
    """Raise ConsilienceError where rows have more cells than the header: pandas would move the names of columns."""
    if not isinstance(frame.index, pd.RangeIndex):
        raise ConsilienceError(
            f"{path}: row 1 has {len(frame.columns) + frame.index.nlevels} cells, the header {len(frame.columns)}; "
            "name every column"
        )


def _first_line(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        return next((line for line in file if line.strip()), "")


def _mark(header: str) -> str:
    return next((mark for mark in ("\t", ",", ";") if mark in header), ",")
