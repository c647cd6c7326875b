"""StoredCounts: every layout, any rows, the memory of what it keeps, and files that change under it."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.core.errors import ConsilienceError
from consilience.tokenizers import cell_store
from consilience.tokenizers.cell_store import StoredCounts, _packed
from consilience.tokenizers.cells import CellTable, CellTokenizer

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"chunks": (64,)},
    "contiguous": {},
    "gzip": {"chunks": (64,), "compression": "gzip"},
    "lzf": {"chunks": (50,), "compression": "lzf", "shuffle": True},
    "one chunk": {"chunks": True, "compression": "gzip"},
}


def matrix(n: int = 200, genes: int = 300, dtype: Any = np.float32, high: int = 5000) -> sp.csr_array:
    """Counts whose rows have 0 to about 60 entries; one row in ten is empty."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, high, (n, genes)) * (rng.random((n, genes)) < 0.2 * rng.random((n, 1)))
    counts[::10] = 0
    return sp.csr_array(counts.astype(dtype))


def write(path: Path, counts: sp.csr_array, layout: dict[str, Any]) -> StoredCounts:
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", counts.shape
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(counts, name), **layout)
    return StoredCounts(path, "X")


def assert_equal(first: sp.csr_array, second: sp.csr_array) -> None:
    """Equal in every stored number, their order and the type of the counts."""
    assert first.shape == second.shape and first.dtype == second.dtype
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("read_through", [0, 8192])
def test_any_rows_of_any_layout(
    layout: str, read_through: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_store, "_READ_THROUGH", read_through)
    counts = matrix()
    stored = write(tmp_path / "x.h5", counts, LAYOUTS[layout])
    stored.keep_bytes = 4000  # less than the file: chunks are dropped and read again
    rows = st.lists(st.integers(0, 199), min_size=1, max_size=40)

    @settings(max_examples=40, deadline=None, database=None)
    @given(rows | rows.map(sorted) | rows.map(lambda chosen: list(range(min(chosen), max(chosen) + 1))))
    def any_rows(chosen: list[int]) -> None:
        assert_equal(stored.read(np.array(chosen)), counts[chosen])

    any_rows()
    assert_equal(stored.read(np.arange(200)), counts)
    assert stored.read(np.array([], dtype=np.int64)).shape == (0, 300)
    assert_equal(stored.read(np.array([0, 10])), counts[[0, 10]])  # nothing but empty rows


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, np.float64])
def test_kept_chunks_give_the_same_numbers(dtype: Any, tmp_path: Path) -> None:
    counts = matrix(dtype=dtype, high=250)
    counts.data[7] = 251 if np.dtype(dtype).itemsize == 1 else 70_000
    stored = write(tmp_path / "x.h5", counts, LAYOUTS["gzip"])
    for _ in range(2):
        for start in range(200):
            assert_equal(stored.read(np.array([199 - start, start])), counts[[199 - start, start]])


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf, 256.0, 65536.0, 1e30])
def test_packing_is_exact(value: float) -> None:
    np.testing.assert_array_equal(_packed(np.array([1, value, 2], dtype=np.float32))[1], np.float32(value))
    assert _packed(np.array([1, 2, 255], dtype=np.float32)).dtype == np.uint8
    assert _packed(np.array([1, 2, 256], dtype=np.int64)).dtype == np.uint16


def test_random_batches_decode_each_chunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = matrix()
    stored = write(tmp_path / "x.h5", counts, LAYOUTS["gzip"])
    decoded: list[tuple[str, int]] = []
    decode = StoredCounts._decode

    def spy(self: StoredCounts, name: str, *rest: Any) -> dict[int, np.ndarray]:
        blocks = decode(self, name, *rest)
        decoded.extend((name, number) for number in blocks)
        return blocks

    monkeypatch.setattr(StoredCounts, "_decode", spy)
    order = np.random.default_rng(1).permutation(200)
    for start in range(0, 200, 8):
        rows = order[start : start + 8]
        assert_equal(stored.read(rows), counts[rows])
    assert sorted(decoded) == sorted(set(decoded)) and len(decoded) == 2 * -(-counts.nnz // 64)
    assert 0 < stored._kept_bytes == sum(part.nbytes for part in stored._kept.values())
    held = len(stored._kept)
    stored.read(np.arange(200))
    assert len(stored._kept) == held, "reading everything keeps nothing more"
    for keep_bytes in (1000, 0):
        stored.keep_bytes = keep_bytes
        stored.read(order[:8])
        assert stored._kept_bytes <= keep_bytes or len(stored._kept) == 2


def test_pickles_carry_no_counts(tmp_path: Path) -> None:
    stored = write(tmp_path / "x.h5", matrix(), LAYOUTS["gzip"])
    stored.read(np.arange(0, 200, 7))
    assert stored._kept
    copy = pickle.loads(pickle.dumps(stored))
    assert not copy._kept and len(pickle.dumps(stored)) < 4000
    assert_equal(copy.read(np.array([5, 3])), matrix()[[5, 3]])


def test_file_that_changes(tmp_path: Path) -> None:
    stored = write(tmp_path / "x.h5", matrix(), LAYOUTS["gzip"])
    rows = np.array([5, 3])
    stored.read(rows)
    changed = matrix()
    changed.data += 1
    write(tmp_path / "x.h5", changed, LAYOUTS["gzip"])
    assert_equal(stored.read(rows), changed[rows])
    write(tmp_path / "x.h5", matrix(100), LAYOUTS["gzip"])
    with pytest.raises(ConsilienceError, match=r"x\.h5: `X` holds .* the file has changed: read it again"):
        stored.read(rows)


def test_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.h5", matrix(), {})
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["X"].attrs["encoding-type"] = "csc_matrix"
    with pytest.raises(ConsilienceError, match=r"`X` is not stored by rows"):
        StoredCounts(tmp_path / "x.h5", "X")


def test_dense_rows_are_read_in_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_store, "_DENSE_NUMBERS", 1500)
    monkeypatch.setattr(cell_store, "_READ_THROUGH", 600)
    counts = matrix()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("X", data=counts.toarray(), compression="gzip")
    stored = StoredCounts(tmp_path / "x.h5", "X")
    rng = np.random.default_rng(0)
    for rows in (np.arange(200), rng.permutation(200), rng.integers(0, 200, 50), np.array([0, 2, 4, 199])):
        assert_equal(stored.read(rows), counts[rows])


@pytest.mark.parametrize("view", ["counts", "ranks"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_the_table_in_memory(layout: str, view: str, tmp_path: Path) -> None:
    counts = matrix()[np.arange(200) % 10 != 0]
    filled = np.flatnonzero(np.diff(counts.indptr) > 0)
    genes = np.array([f"G{i}" for i in range(300)])
    stored = write(tmp_path / "x.h5", counts, LAYOUTS[layout])
    disk = CellTable(counts=stored, genes=genes, rows=filled)
    table = CellTable(counts=counts[filled], genes=genes)
    tokenizer = CellTokenizer.fit(table, view=view, max_genes=16)
    order = np.random.default_rng(0).permutation(len(filled))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        first, second = tokenizer.encode(disk.take(rows)), tokenizer.encode(table.take(rows))
        for name in ("length", "ids", "values", "address"):
            a, b = getattr(first, name), getattr(second, name)
            assert (a is None and b is None) or bool((a == b).all()), name
