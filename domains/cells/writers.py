"""Writers: embeddings beside the cells they belong to, and generated cells, as AnnData."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.cells.readers import element_reader
from consilience.domains.tables import EmbeddedRows, EmbeddingTable, EmbeddingWriter
from consilience.tokenizers.cell_sources import unique_ids
from consilience.tokenizers.cell_table import CellTable

if TYPE_CHECKING:
    import h5py
    from anndata import AnnData

KEY = "X_consilience"
FAILURE = "consilience_failure"


class EmbeddedCopy(EmbeddingWriter):
    """A byte-for-byte copy of the source with `.obsm["X_consilience"]` added, (n, D) float32 in the file's own order.

    Nothing of the file is loaded, so memory stays flat. Cells without an embedding get NaN, never zeros, and the
    reason stands in `.obs["consilience_failure"]` ("" for the others); the column exists only where there are such
    cells.

    Args:
        path: ends in .h5ad; not the source itself.
        source: an .h5ad file.
    """

    def __init__(self, path: Path, source: Path) -> None:
        if path.exists() and os.path.samefile(source, path):
            raise ConsilienceError(f"{path} is the input itself; write the embedding to another file")
        self.path, self.source = path, source
        self.part = path.with_name(f".{path.name}.part{path.suffix}")
        self.file: h5py.File | None = None
        self.reasons: dict[int, str] = {}

    def write(self, rows: EmbeddedRows) -> None:
        """The vectors of these cells."""
        vectors = self._opened(rows.vectors.shape[1])
        places = self._rows_of(rows.ids) if rows.places is None else rows.places
        order = np.argsort(places)  # HDF5 wants places that ascend
        if len(order):
            vectors[places[order]] = rows.vectors[order]
        self.done[places] = True
        failed = [failure.index for failure in rows.failures]
        if rows.places is None:
            failed = self._rows_of([failure.id for failure in rows.failures], known=True).tolist()
        for row, failure in zip(failed, rows.failures):
            if 0 <= row < len(self.done):
                self.reasons[row] = failure.reason

    def _opened(self, width: int) -> "h5py.Dataset":
        """The vectors in the copy, NaN at first."""
        import h5py

        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source, self.part)
            self.file = h5py.File(self.part, "r+")
            n = _cells_in(self.file)
            self.done = np.zeros(n, dtype=bool)
            write_elem = _element_writer()
            if "obsm" not in self.file:
                write_elem(self.file, "obsm", {})
            write_elem(self.file["obsm"], KEY, np.zeros((1, width), np.float32))  # says how arrays are marked
            marks = dict(self.file["obsm"][KEY].attrs)
            del self.file["obsm"][KEY]
            made = self.file["obsm"].create_dataset(KEY, (n, width), np.float32, fillvalue=np.nan)
            made.attrs.update(marks)
        return self.file["obsm"][KEY]

    def _rows_of(self, ids: Sequence[str] | np.ndarray, *, known: bool = False) -> np.ndarray:
        """Rows of the cells with these ids; -1 for ids that the file lacks where `known` says so."""
        if not hasattr(self, "by_id"):
            assert self.file is not None
            index = element_reader()(self.file["obs"]).index
            self.by_id = {name: row for row, name in enumerate(unique_ids(index).tolist())}
        lost = [] if known else [name for name in map(str, ids) if name not in self.by_id]
        if lost:
            raise ConsilienceError(f"{self.source} has no cell {lost[0]!r} any more; has the file changed?")
        return np.array([self.by_id.get(str(name), -1) for name in ids], dtype=np.int64)

    def close(self) -> None:
        """Say which cells failed, and name the file."""
        assert self.file is not None, "nothing was written"
        if not self.done.all():
            obs = element_reader()(self.file["obs"])
            reasons = np.where(self.done, "", "not embedded").astype(object)
            for row, reason in self.reasons.items():
                reasons[row] = "" if self.done[row] else reason
            obs[FAILURE] = reasons
            _element_writer()(self.file, "obs", obs)
        self.file.close()
        os.replace(self.part, self.path)

    def discard(self) -> None:
        """Remove what was begun."""
        if self.file is not None:
            self.file.close()
        self.part.unlink(missing_ok=True)


class EmbeddedCells(EmbeddingWriter):
    """`.h5ad` of cells that come from another kind of file: their counts and labels, and the vectors.

    Args:
        path: ends in .h5ad.
        whole: reads the cells.
    """

    def __init__(self, path: Path, whole: Callable[[], Collection]) -> None:
        self.path, self.whole = path, whole
        self.rows: list[EmbeddedRows] = []

    def write(self, rows: EmbeddedRows) -> None:
        """Keep them."""
        self.rows.append(rows)

    def close(self) -> None:
        """Read the cells again and write all."""
        collection = self.whole()
        adata = _anndata(collection.records, collection.ids, collection.labels)
        place = {name: row for row, name in enumerate(collection.ids.tolist())}
        vectors = np.full((len(place), self.rows[0].vectors.shape[1]), np.nan, dtype=np.float32)
        reasons = np.full(len(place), "not embedded", dtype=object)
        for rows in self.rows:
            found = [place[str(name)] for name in rows.ids]
            vectors[found], reasons[found] = rows.vectors, ""
            for failure in rows.failures:
                if failure.id in place:
                    reasons[place[failure.id]] = failure.reason
        adata.obsm[KEY] = vectors
        if any(reasons):
            adata.obs[FAILURE] = reasons
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _replace(self.path, adata.write_h5ad)

    def discard(self) -> None:
        """Nothing lies on the disk."""


def embedding_writer(path: Path, source: Path | None, whole: Callable[[], Collection]) -> EmbeddingWriter:
    """The writer for an ending: `.parquet`, or `.h5ad` (a copy where the source is one).

    Raises:
        ConsilienceError: another ending, or the source itself as the target.
    """
    if path.suffix not in (".h5ad", ".parquet"):
        raise ConsilienceError(f"{path}: embeddings of cells are written as .h5ad or .parquet")
    if path.suffix == ".parquet":
        return EmbeddingTable(path)
    if source is not None and source.suffix == ".h5ad":
        return EmbeddedCopy(path, source)
    return EmbeddedCells(path, whole)


def write_records(records: CellTable, path: Path, columns: Mapping[str, Any] | None = None) -> None:
    """Write cells as `.h5ad`: counts in X, the depth in `.obs["depth"]`, and `columns` in obs.

    Raises:
        ConsilienceError: another ending, or a column whose length is not that of the records.
    """
    if path.suffix != ".h5ad":
        raise ConsilienceError(f"{path}: cells are written as .h5ad, not {path.suffix!r}")
    for name, column in (columns or {}).items():
        if len(column) != len(records):
            raise ConsilienceError(
                f"{path}: column {name!r} has {len(column)} entries for {len(records)} cells"
            )
    ids = (
        records.names if records.names is not None else [f"generated-{i}" for i in range(1, len(records) + 1)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    obs = {"depth": records.total_counts(), **(columns or {})}
    _replace(path, _anndata(records, np.asarray(ids), obs).write_h5ad)


def _anndata(records: CellTable, ids: np.ndarray, obs: Mapping[str, Any]) -> "AnnData":
    from anndata import AnnData

    frame = pd.DataFrame(
        {name: np.asarray(column) for name, column in obs.items()}, index=pd.Index(ids.astype(str))
    )
    var = pd.DataFrame(index=pd.Index(unique_ids(records.genes)))
    return AnnData(X=sp.csr_matrix(records.load().counts), obs=frame, var=var)


def _cells_in(file: "h5py.File") -> int:
    """The number of cells of an open `.h5ad`."""
    obs = file["obs"]
    if not hasattr(obs, "keys"):  # anndata < 0.7 keeps a table
        return len(obs)
    return len(obs[obs.attrs["_index"]])


def _replace(path: Path, write: Any) -> None:
    """Write beside the target and move into place, so that a broken run leaves no half file."""
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _element_writer() -> Any:
    try:
        from anndata.io import write_elem
    except ImportError:  # anndata < 0.11
        from anndata.experimental import write_elem
    return write_elem
