"""CellTable: cells as a sparse table of counts, in memory or on disk, never densified.

Counts on disk (`StoredCounts`) are read by rows only when they are needed; `take` of such a table reads nothing
and `load` reads exactly its rows, so that memory stays flat in the number of cells of the file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.cell_store import StoredCounts

__all__ = ["CellTable", "StoredCounts"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CellTable:
    """n cells by G genes of raw counts.

    Args:
        counts: scipy sparse matrix (made CSR), or StoredCounts. Values are checked where they are used.
        genes: (G,) identifiers of the columns, symbols or Ensembl ids.
        depth: (n,) total counts of each cell over all genes that were measured; None = the row sums. Needed
            where the columns are a selection of the genes.
        names: (n,) barcodes, for messages; may be None.
        rows: (n,) rows of stored counts that this table stands for; None = all of them, in order.
        genome_rank: (G,) place of every gene when they are sorted by chromosome and start; None = not known.
    """

    counts: Any
    genes: np.ndarray
    depth: np.ndarray | None = None
    names: np.ndarray | None = None
    rows: np.ndarray | None = None
    genome_rank: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.counts, StoredCounts) and not isinstance(self.counts, sp.csr_array):
            object.__setattr__(self, "counts", sp.csr_array(self.counts))
        object.__setattr__(self, "genes", np.asarray(self.genes))
        if self.rows is not None and self.in_memory:
            raise ConsilienceError(
                "CellTable: `rows` belongs to stored counts; slice counts in memory instead"
            )
        if len(self.genes) != self.counts.shape[1]:
            raise ConsilienceError(
                f"CellTable: {len(self.genes)} gene names for {self.counts.shape[1]} columns"
            )
        if self.genome_rank is not None and len(self.genome_rank) != len(self.genes):
            raise ConsilienceError(
                f"CellTable: `genome_rank` has {len(self.genome_rank)} entries for {len(self.genes)} genes"
            )
        for name in ("depth", "names"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self):
                raise ConsilienceError(f"CellTable: `{name}` has {len(column)} entries for {len(self)} cells")

    @property
    def in_memory(self) -> bool:
        """Whether the counts are in memory."""
        return not isinstance(self.counts, StoredCounts)

    def __len__(self) -> int:
        return int(self.counts.shape[0]) if self.rows is None else len(self.rows)

    def __getitem__(self, index: int) -> Self:
        """One cell, as a table of one row."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"cell {index} of a table of {len(self)}")
        return self.take(np.array([index % len(self)]))

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The cells at these indices, in this order; stored counts stay on disk until `load`."""
        index = np.asarray(indices, dtype=np.int64)
        rows = None
        if not self.in_memory:
            rows = index if self.rows is None else self.rows[index]
        return type(self)(
            counts=self.counts[index] if self.in_memory else self.counts,
            genes=self.genes,
            depth=None if self.depth is None else self.depth[index],
            names=None if self.names is None else self.names[index],
            rows=rows,
            genome_rank=self.genome_rank,
        )

    def load(self) -> Self:
        """The same cells with their counts in memory."""
        if self.in_memory:
            return self
        rows = np.arange(self.counts.shape[0]) if self.rows is None else self.rows
        return type(self)(
            counts=self.counts.read(rows),
            genes=self.genes,
            depth=self.depth,
            names=self.names,
            genome_rank=self.genome_rank,
        )

    def chunks(self, size: int) -> Iterator[tuple[int, Self]]:
        """(first index, table in memory) for every `size` cells, in order."""
        if self.in_memory and len(self) <= size:
            yield 0, self
            return
        for start in range(0, len(self), size):
            yield start, self.take(np.arange(start, min(start + size, len(self)))).load()

    def total_counts(self) -> np.ndarray:
        """(n,) float64 depth of the cells: `depth` when given, else row sums (read in chunks)."""
        if self.depth is not None:
            return np.asarray(self.depth, dtype=np.float64)
        ones = np.ones(len(self.genes))
        parts = [chunk.counts @ ones for _, chunk in self.chunks(4096)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def widest(self) -> int:
        """The largest number of stored entries of any cell: no cell expresses more genes."""
        if not len(self):
            return 0
        indptr = self.counts.indptr
        if indptr is None:
            return len(self.genes)
        return int(
            np.diff(indptr).max() if self.rows is None else (indptr[self.rows + 1] - indptr[self.rows]).max()
        )

    def name_of(self, index: int) -> str:
        """The barcode of a cell, for messages."""
        return "the cell" if self.names is None else f"cell {self.names[index]}"
