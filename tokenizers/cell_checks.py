"""What may be tokenized: cells whose numbers are counts and that have some."""

from dataclasses import dataclass

import numpy as np

from consilience.core.errors import UnreadableRecordError
from consilience.tokenizers.cell_table import CellTable

NO_COUNTS = "has no counts; drop it"
NOT_A_COUNT = "which is not a count"
FEW = 0.05
"""Beyond this share of cells with numbers that are not counts the whole matrix is taken for something else."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A cell that cannot be tokenized.

    Args:
        index: its place in the table.
        reason: for people.
        empty: it has no counts; False = it has numbers that are not counts.
    """

    index: int
    reason: str
    empty: bool


def all_counts(data: np.ndarray) -> bool:
    """Whether no number is negative, fractional, infinite or NaN."""
    if not len(data) or data.dtype.kind == "u":
        return True
    # Cheap passes first: almost every table is clean.
    return bool(
        data.min() >= 0
        and np.isfinite(data.max())
        and (data.dtype.kind == "i" or (data == np.rint(data)).all())
    )


def bad_entries(table: CellTable) -> tuple[np.ndarray, np.ndarray]:
    """The cells with numbers that are not counts, and the first such entry of each; table in memory."""
    data = table.counts.data
    if all_counts(data):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    entries = np.flatnonzero(~((data >= 0) & np.isfinite(data) & (data == np.rint(data))))
    cells, first = np.unique(
        np.searchsorted(table.counts.indptr, entries, side="right") - 1, return_index=True
    )
    return cells, entries[first]


def are_few(bad: int, cells: int) -> bool:
    """Whether bad cells are exceptions among so many cells: one, or a small share, and not all of them."""
    return bad < cells and bad <= max(1, int(FEW * cells))


def unreadable(table: CellTable, totals: np.ndarray) -> list[Unreadable]:
    """The cells that have no counts, or numbers that are not counts, in order; table in memory."""
    found = {
        int(i): Unreadable(index=int(i), reason=f"{table.name_of(int(i))} {NO_COUNTS}", empty=True)
        for i in np.flatnonzero(~(totals > 0))
    }
    for cell, entry in zip(*bad_entries(table)):
        shown, gene = table.counts.data[entry], table.genes[table.counts.indices[entry]]
        reason = f"{table.name_of(int(cell))} has {shown:g} for gene {gene}, {NOT_A_COUNT}; repair or drop the cell"
        found[int(cell)] = Unreadable(index=int(cell), reason=reason, empty=False)
    return [found[index] for index in sorted(found)]


def is_readable(table: CellTable, totals: np.ndarray) -> bool:
    """Whether every cell can be tokenized; table in memory."""
    return bool((totals > 0).all()) and all_counts(table.counts.data)


def require_counts(table: CellTable, totals: np.ndarray, first: int = 0) -> None:
    """Raise UnreadableRecordError for the first unreadable cell; `first` is the index of the table's cell 0."""
    if not is_readable(table, totals):
        cell = unreadable(table, totals)[0]
        raise UnreadableRecordError(first + cell.index, cell.reason)
