"""Rows of a CSR chunk as flat arrays and padded blocks: select, sort and rank genes of many cells at once.

Everything works on 64-bit keys whose high half sorts and whose low half says what is sorted. Keys are unique
within a cell, so that any sorting algorithm gives the same answer and ties need no stable sort.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_ZERO_ROWS = 8  # cells whose silent genes are drawn at a time: their keys stay in the processor's cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Expressed:
    """The expressed genes of n cells, laid end to end.

    Args:
        genes: (T,) int64 vocabulary indices.
        counts: (T,) float32, positive.
        length: (n,) int64, the number of expressed genes of each cell; T in all.
    """

    genes: np.ndarray
    counts: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, counts: sp.csr_array, columns: np.ndarray, *, add_up: bool) -> Self:
        """The expressed genes of a CSR chunk; `columns` maps its columns to vocabulary indices, -1 = dropped.

        Args:
            counts: n rows in memory.
            columns: see `GeneMatch.columns`.
            add_up: whether several columns may be one gene.
        """
        genes = columns.take(counts.indices)
        values = counts.data.astype(np.float32, copy=False)
        keep = (genes >= 0) & (values > 0)
        indptr = counts.indptr.astype(np.int64)
        if not keep.all():
            # Places instead of a mask: numpy finds them without branches, and gathers twice as fast by them.
            places = np.flatnonzero(keep)
            indptr = np.searchsorted(places, indptr)
            genes, values = genes.take(places), values.take(places)
        if add_up:
            # Copies: sum_duplicates works in place and must not touch the caller's arrays.
            table = sp.csr_array(
                (values.copy(), genes.copy(), indptr), shape=(len(indptr) - 1, columns.max() + 1)
            )
            table.sum_duplicates()
            genes, values, indptr = table.indices.astype(np.int64), table.data, table.indptr.astype(np.int64)
        return cls(genes=genes, counts=values, length=np.diff(indptr))

    def select(self, keep: np.ndarray) -> Self:
        """The entries where keep is True. keep: (T,) bool."""
        places = np.flatnonzero(keep)
        ends = np.searchsorted(places, np.cumsum(self.length))
        length = np.diff(ends, prepend=0).astype(np.int64)
        return type(self)(genes=self.genes.take(places), counts=self.counts.take(places), length=length)

    def join(self, other: Self) -> Self:
        """The entries of both, cell by cell."""
        place = np.concatenate(
            [np.repeat(np.arange(len(part.length)), part.length) for part in (self, other)]
        )
        order = np.argsort(place, kind="stable")
        return type(self)(
            genes=np.concatenate([self.genes, other.genes])[order],
            counts=np.concatenate([self.counts, other.counts])[order],
            length=self.length + other.length,
        )


def pad(flat: np.ndarray, length: np.ndarray, fill: np.uint64) -> np.ndarray:
    """(n, max length) block of a flat array, filled up with `fill` at the right."""
    width = int(length.max()) if len(length) else 0
    block = np.full((len(length), width), fill, dtype=flat.dtype)
    block[np.arange(width) < length[:, None]] = flat
    return block


def _ranking_keys(cells: Expressed, score: np.ndarray) -> np.ndarray:
    """Keys that ascend with the score and, among equal scores, descend with the vocabulary index.

    Bits of positive float32 numbers sort like the numbers.
    """
    keys = score.astype(np.float32, copy=False).view(np.uint32).astype(np.uint64)
    keys <<= _SHIFT
    keys |= ~cells.genes.astype(np.uint32)
    return keys


def keep_best(cells: Expressed, score: np.ndarray, limit: np.ndarray) -> Expressed:
    """The `limit` genes of each cell with the highest score; ties go to the earlier vocabulary gene.

    Args:
        cells: T expressed genes of n cells.
        score: (T,) float32, positive.
        limit: (n,) int64, at least 1.
    """
    over = np.flatnonzero(cells.length > limit)
    if not len(over):
        return cells
    keys = _ranking_keys(cells, score)
    lowest = np.zeros(len(cells.length), dtype=np.uint64)
    ends = np.cumsum(cells.length)
    # Cell by cell: the equal keys of padding would slow a partition of rows eightfold.
    for cell, end, length, most in zip(
        over.tolist(), ends[over].tolist(), cells.length[over].tolist(), limit[over].tolist()
    ):
        own = keys[end - length : end].copy()
        own.partition(length - most)
        lowest[cell] = own[length - most]
    return cells.select(keys >= np.repeat(lowest, cells.length))


def in_gene_order(cells: Expressed) -> tuple[np.ndarray, np.ndarray]:
    """(genes, counts), each (n, max length), ascending in the vocabulary index; zeros after each cell's end."""
    keys = (cells.genes.astype(np.uint64) << _SHIFT) | cells.counts.view(np.uint32)
    block = pad(keys, cells.length, _LAST)
    block.sort(axis=1)
    real = np.arange(block.shape[1]) < cells.length[:, None]
    genes = np.where(real, block >> _SHIFT, 0).astype(np.int64)
    counts = np.where(real, block & _LOW, 0).astype(np.uint32).view(np.float32)
    return genes, counts


def ranked(cells: Expressed, score: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(genes, length): the up to `limit` genes of each cell from the highest score to the lowest.

    Equal scores stand in vocabulary order. genes: (n, width) int64, zeros after each cell's end.
    """
    keys, length = _ranking_keys(cells, score), np.minimum(cells.length, limit)
    best = np.full((len(length), int(length.max(initial=0))), _LOW)  # reads as gene 0
    end = 0
    for cell, (total, kept) in enumerate(zip(cells.length.tolist(), length.tolist())):
        end += total
        own = keys[end - total : end]
        if kept < total:
            own.partition(total - kept)
        own[total - kept :].sort()
        best[cell, :kept] = own[total - kept :][::-1]
    best &= _LOW
    return (_LOW - best).astype(np.int64), length


def matched_zeros(
    cells: Expressed, number: np.ndarray, vocabulary: int, rng: np.random.Generator
) -> Expressed:
    """For each cell, `number` random vocabulary genes that it does not express, with count 0, in no order.

    Args:
        cells: every expressed gene of the n cells.
        number: (n,) int64, at most the number of genes that the cell does not express.
        vocabulary: V.
        rng: source of randomness.
    """
    starts = np.cumsum(cells.length) - cells.length
    names = np.arange(vocabulary, dtype=np.uint64)
    found = []
    for first in range(0, len(number), _ZERO_ROWS):
        length, wanted = (part[first : first + _ZERO_ROWS] for part in (cells.length, number))
        keys = rng.integers(1, 1 << 32, size=(len(wanted), vocabulary), dtype=np.uint32).astype(np.uint64)
        keys <<= _SHIFT
        keys |= names
        ends = starts[first] + np.cumsum(length)
        for own, end, total, most in zip(keys, ends.tolist(), length.tolist(), wanted.tolist()):
            own[cells.genes[end - total : end]] = 0
            if most < vocabulary:
                own.partition(vocabulary - most - 1)
            found.append(own[vocabulary - most :] & _LOW)
    genes = np.concatenate(found).astype(np.int64)
    return Expressed(genes=genes, counts=np.zeros(len(genes), dtype=np.float32), length=number)
