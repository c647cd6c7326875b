"""What may be tokenized: cells whose numbers are counts and that have some."""

import numpy as np

from consilience.core.errors import UnreadableRecordError
from consilience.tokenizers.cell_table import CellTable

NO_COUNTS = "has no counts; drop it"
WAY_OUT = (
    "which is not a count; raw counts are often kept in adata.layers['counts'] or adata.raw: read the file with "
    "layer='counts' or layer='raw'"
)


def first_bad_entry(data: np.ndarray) -> int | None:
    """The place of the first negative, fractional, infinite or NaN number; None when all are counts."""
    if not len(data) or data.dtype.kind == "u":
        return None
    # Cheap passes first: almost every table is clean.
    if (
        data.min() >= 0
        and np.isfinite(data.max())
        and (data.dtype.kind == "i" or (data == np.rint(data)).all())
    ):
        return None
    return int(np.flatnonzero(_bad(data))[0])


def _bad(data: np.ndarray) -> np.ndarray:
    return ~((data >= 0) & np.isfinite(data) & (data == np.rint(data)))


def unreadable(table: CellTable, totals: np.ndarray) -> list[tuple[int, str]]:
    """(index, reason) of the cells that have no counts, or numbers that are not counts; table in memory."""
    found = {int(i): f"{table.name_of(int(i))} {NO_COUNTS}" for i in np.flatnonzero(~(totals > 0))}
    data = table.counts.data
    if first_bad_entry(data) is not None:
        entries = np.flatnonzero(_bad(data))
        rows = np.searchsorted(table.counts.indptr, entries, side="right") - 1
        for row, first in zip(*np.unique(rows, return_index=True)):
            entry = entries[first]
            gene = table.genes[table.counts.indices[entry]]
            found[int(row)] = f"{table.name_of(int(row))} has {data[entry]:g} for gene {gene}, {WAY_OUT}"
    return sorted(found.items())


def require_counts(table: CellTable, totals: np.ndarray, first: int = 0) -> None:
    """Raise UnreadableRecordError for the first unreadable cell; `first` is the index of the table's cell 0."""
    if (totals > 0).all() and first_bad_entry(table.counts.data) is None:
        return
    index, reason = unreadable(table, totals)[0]
    raise UnreadableRecordError(first + index, reason)
