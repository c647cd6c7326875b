"""StoredCounts: a matrix of cells by genes inside an HDF5 file, read by any rows in any order.

What random rows cost, and what is done about it:

* A call of h5py costs as much as copying 10,000 numbers: neighbouring rows, and rows that lie closer together than
  that, are read in one go, in the order of the file, straight to their places in the result.
* In an uncompressed file, HDF5 would read whole chunks into its own cache to copy one row out of them; with that
  cache switched off it reads the bytes of the row.
* In a compressed file a whole chunk has to be decoded for any row of it. Decoded chunks of which only a part was
  wanted are kept, in narrow integers, and the least recently used are dropped beyond `keep_bytes`: batches drawn at
  random from a region of the file decode each of its chunks once. Chunks that were wanted as a whole are not kept,
  so that reading in order does not push them out.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError

_READ_THROUGH = 8_192  # rows closer together than this many stored numbers are read in one go
_AT_ONCE = 1 << 20  # at most about so many numbers are held beside the result
_DENSE_NUMBERS = 1 << 22  # at most so many numbers of a matrix stored dense are in memory in that form
KEEP_BYTES = 128 << 20
"""Memory for decoded chunks of a compressed matrix, per matrix and process: 10,000 cells of 4,000 genes each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranges:
    """Ranges of a stored vector in ascending order, and their places in the result; (R,) int64 each."""

    begin: np.ndarray
    end: np.ndarray
    place: np.ndarray

    @classmethod
    def joined(cls, begin: np.ndarray, end: np.ndarray, place: np.ndarray) -> Self:
        """Without empty ranges; those that continue another in the file and in the result are one with it."""
        some = end > begin
        begin, end, place = begin[some], end[some], place[some]
        new = np.ones(len(begin), dtype=bool)
        new[1:] = (begin[1:] != end[:-1]) | (place[1:] - place[:-1] != end[:-1] - begin[:-1])
        last = np.append(np.flatnonzero(new)[1:] - 1, len(begin) - 1)[: int(new.sum())]
        return cls(begin=begin[new], end=end[last], place=place[new])

    def cut(self, size: int) -> tuple[Self, np.ndarray]:
        """The ranges cut at multiples of `size`, and the multiple in which each part lies, counted from 0."""
        first = self.begin // size
        number = (self.end - 1) // size - first + 1
        ends = np.cumsum(number)
        step = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - number, number)
        block = np.repeat(first, number) + step
        start = np.repeat(self.begin, number)
        begin = np.maximum(start, block * size)
        end = np.minimum(np.repeat(self.end, number), (block + 1) * size)
        return type(self)(begin=begin, end=end, place=np.repeat(self.place, number) + begin - start), block


class StoredCounts:
    """A matrix of cells by genes inside an HDF5 file (CSR, or dense rows), read by rows.

    The file is opened for each read and closed again: handles survive neither pickling nor a fork, and an open
    one would keep others from writing the file. What opening costs (0.2 ms) is small beside reading a batch.

    Args:
        path: the HDF5 file, for example an `.h5ad`.
        key: the place of the matrix in it: "X", "raw/X", "layers/counts".
        keep_bytes: memory for decoded chunks of a compressed CSR matrix; see the module docstring.

    Raises:
        ConsilienceError: the matrix is stored by columns, or damaged.
    """

    _kept: OrderedDict[tuple[str, int], np.ndarray]
    _kept_bytes: int
    _stamp: tuple[int, int] | None

    def __init__(self, path: Path | str, key: str, *, keep_bytes: int = KEEP_BYTES) -> None:
        import h5py

        self.path, self.key, self.keep_bytes = Path(path), key, keep_bytes
        with h5py.File(path, "r") as file:
            node = file[key]
            if not self.by_rows(node):
                raise ConsilienceError(f"{path}: `{key}` is not stored by rows (CSR or dense)")
            sparse = hasattr(node, "keys")
            shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape")) if sparse else node.shape
            self.indptr: np.ndarray | None = node["indptr"][:].astype(np.int64) if sparse else None
            stored = (node["data"].shape[0], node["indices"].shape[0]) if sparse else (0, 0)
        self.shape = (int(shape[0]), int(shape[1]))
        self._require_rows(stored)
        self._forget()

    def _require_rows(self, stored: tuple[int, int]) -> None:
        """Raise where the rows of a sparse matrix do not lie one after the other within what is stored."""
        if self.indptr is None:
            return
        rows, ends = self.shape[0], self.indptr
        if len(ends) != rows + 1 or ends[0] != 0 or (np.diff(ends) < 0).any() or ends[-1] > min(stored):
            raise self._damaged(f"its index pointers do not describe {rows:,} cells")

    def _damaged(self, why: str) -> ConsilienceError:
        return ConsilienceError(f"{self.path}: `{self.key}` is damaged: {why}; write the file again")

    @staticmethod
    def by_rows(node: Any) -> bool:
        """Whether an HDF5 group or dataset holds a matrix by rows."""
        if not hasattr(node, "keys"):
            return len(node.shape) == 2
        layout = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
        return str(layout).startswith("csr")

    def read(self, rows: np.ndarray) -> sp.csr_array:
        """These rows, in this order (repeats allowed), as a CSR array in memory.

        Raises:
            ConsilienceError: the file holds another number of counts than when it was opened, or is damaged.
        """
        import h5py

        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows):
            return sp.csr_array((0, self.shape[1]), dtype=np.float32)
        with h5py.File(self.path, "r", rdcc_nbytes=0) as file:
            node = file[self.key]
            return self._read_dense(node, rows) if self.indptr is None else self._read_sparse(node, rows)

    def _read_sparse(self, node: Any, rows: np.ndarray) -> sp.csr_array:
        assert self.indptr is not None
        self._check(node)
        order = np.argsort(rows, kind="stable")
        length = self.indptr[rows + 1] - self.indptr[rows]
        ends = np.cumsum(length)
        ranges = _Ranges.joined(
            self.indptr[rows[order]], self.indptr[rows[order] + 1], (ends - length)[order]
        )
        index = np.int32 if max(int(ends[-1]), self.shape[1]) < 2**31 else np.int64
        data, indices = np.empty(ends[-1], dtype=node["data"].dtype), np.empty(ends[-1], dtype=index)
        for name, result in (("data", data), ("indices", indices)):
            if node[name].id.get_create_plist().get_nfilters():
                self._read_compressed(name, node[name], ranges, result)
            else:
                _read_plain(node[name], ranges, result)
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.shape[1]):
            wrong = indices[(indices < 0) | (indices >= self.shape[1])][0]
            raise self._damaged(f"it names gene {wrong:,} of {self.shape[1]:,}")
        indptr = np.concatenate([[0], ends]).astype(index)
        return sp.csr_array((data, indices, indptr), shape=(len(rows), self.shape[1]))

    def _read_compressed(self, name: str, dataset: Any, ranges: _Ranges, result: np.ndarray) -> None:
        """Copy ranges out of decoded chunks, those kept from earlier reads and those read now."""
        size = dataset.chunks[0]
        ranges, chunk = ranges.cut(size)
        if not len(chunk):
            return
        firsts = np.flatnonzero(np.diff(chunk, prepend=-1))
        partly = np.add.reduceat(ranges.end - ranges.begin, firsts) < size
        wanted, partial = chunk[firsts].tolist(), dict(zip(chunk[firsts].tolist(), partly.tolist()))
        together = max(1, _AT_ONCE // size)
        at = {number: i for i, number in enumerate(wanted)}
        blocks: dict[int, np.ndarray] = {}
        parts = zip(chunk.tolist(), ranges.begin.tolist(), ranges.end.tolist(), ranges.place.tolist())
        for number, begin, end, place in parts:
            if number not in blocks:
                kept = self._kept.pop((name, number), None)
                if kept is not None:
                    self._kept[name, number] = kept  # now the most recently used
                    blocks = {number: kept}
                else:
                    following = wanted[at[number] : at[number] + together]
                    blocks = self._decode(name, dataset, following, partial)
            start = number * size
            result[place : place + end - begin] = blocks[number][begin - start : end - start]
        while self._kept_bytes > self.keep_bytes and len(self._kept) > 2:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes

    def _decode(
        self, name: str, dataset: Any, wanted: list[int], partial: dict[int, bool]
    ) -> dict[int, np.ndarray]:
        """The first of the wanted chunks and those that follow it without a gap and are not kept, in one read."""
        number = 1
        while (
            number < len(wanted)
            and wanted[number] == wanted[0] + number
            and (name, wanted[number]) not in self._kept
        ):
            number += 1
        size = dataset.chunks[0]
        block = dataset[wanted[0] * size : (wanted[0] + number) * size]
        blocks = {wanted[0] + i: block[i * size : (i + 1) * size] for i in range(number)}
        for chunk, decoded in blocks.items():
            if partial[chunk]:
                packed = _packed(decoded)
                self._kept_bytes += packed.nbytes
                self._kept[name, chunk] = packed
        return blocks

    def _read_dense(self, node: Any, rows: np.ndarray) -> sp.csr_array:
        """Rows of a dense dataset; not more than a few MB of it are in memory at a time."""
        wanted, place = np.unique(rows, return_inverse=True)
        most = max(1, _DENSE_NUMBERS // max(1, self.shape[1]))
        apart = (np.diff(wanted) - 1) * self.shape[1] > _READ_THROUGH
        parts = []
        for run in np.split(wanted, np.flatnonzero(apart) + 1):
            for start in range(int(run[0]), int(run[-1]) + 1, most):
                inside = run[(run >= start) & (run < start + most)]
                if len(inside):
                    block = node[int(inside[0]) : int(inside[-1]) + 1]
                    parts.append(sp.csr_array(block[inside - inside[0]]))
        block = parts[0] if len(parts) == 1 else sp.csr_array(sp.vstack(parts, format="csr"))
        return block if np.array_equal(place, np.arange(len(wanted))) else block[place]

    def _check(self, node: Any) -> None:
        """Forget decoded chunks of a file that was written since; raise where it cannot be the same matrix."""
        assert self.indptr is not None
        status = self.path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._forget()
            self._stamp = stamp
            if node["data"].shape[0] < self.indptr[-1]:
                raise ConsilienceError(
                    f"{self.path}: `{self.key}` holds {node['data'].shape[0]:,} counts, and held "
                    f"{self.indptr[-1]:,} when it was opened; the file has changed: read it again"
                )

    def _forget(self) -> None:
        self._kept = OrderedDict()
        self._kept_bytes = 0
        self._stamp = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _read_plain(dataset: Any, ranges: _Ranges, result: np.ndarray) -> None:
    """Copy ranges of a dataset without filters; close ones are read in one go, long ones in parts."""
    ranges, _ = ranges.cut(_AT_ONCE)
    if not len(ranges.begin):
        return
    reached = np.maximum.accumulate(ranges.end)
    apart = ranges.begin[1:] - reached[:-1] > _READ_THROUGH
    apart |= ranges.begin[1:] // _AT_ONCE != ranges.begin[:-1] // _AT_ONCE
    firsts = np.concatenate([[0], np.flatnonzero(apart) + 1])
    lasts = np.append(firsts[1:], len(ranges.begin))
    begins, ends, places = ranges.begin.tolist(), ranges.end.tolist(), ranges.place.tolist()
    for first, last in zip(firsts.tolist(), lasts.tolist()):
        start = begins[first]
        block = dataset[start : int(reached[last - 1])]
        for begin, end, place in zip(begins[first:last], ends[first:last], places[first:last]):
            result[place : place + end - begin] = block[begin - start : end - start]


def _packed(decoded: np.ndarray) -> np.ndarray:
    """A copy in the narrowest of uint8, uint16 and its own type that holds every number exactly."""
    for narrow in (np.uint8, np.uint16):
        if np.dtype(narrow).itemsize >= decoded.dtype.itemsize:
            break
        with np.errstate(invalid="ignore"):  # NaN and numbers out of range, which the comparison finds
            packed = decoded.astype(narrow)
        if np.array_equal(packed, decoded):
            return packed
    return decoded.copy()
