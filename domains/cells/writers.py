"""Writers: embeddings beside the cells they belong to, and generated cells, as AnnData."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.cells.data import unique_ids
from consilience.domains.cells.readers import element_reader
from consilience.domains.tables import write_embedding_table
from consilience.tokenizers.cell_table import CellTable

if TYPE_CHECKING:
    from anndata import AnnData

    from consilience.core.model import Embedding

KEY = "X_consilience"
FAILURE = "consilience_failure"


def write_embedding(collection: Collection, embedding: "Embedding", path: Path) -> None:
    """Write an embedding as `.h5ad` or `.parquet`.

    `.h5ad`: where the collection came from an `.h5ad`, a byte-for-byte copy of it with `.obsm["X_consilience"]`
    added (n, D float32, in the file's own order; nothing is loaded, so memory stays flat); else the counts and
    labels of the collection with it. Cells without an embedding get NaN, never zeros, and the reason stands in
    `.obs["consilience_failure"]` ("" for the others); the column exists only where there are such cells.

    `.parquet`: `id` and `embedding_0` ..., one row per embedded cell.

    Raises:
        ConsilienceError: another ending, the source itself as the target, or cells that the source lacks.
    """
    if path.suffix not in (".h5ad", ".parquet"):
        raise ConsilienceError(f"{path}: embeddings of cells are written as .h5ad or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    source = Path(collection.source)
    if path.suffix == ".parquet":
        write_embedding_table(collection, embedding, path)
    elif source.suffix == ".h5ad" and source.is_file():
        if path.exists() and os.path.samefile(source, path):
            raise ConsilienceError(f"{path} is the input itself; write the embedding to another file")
        _write_copy(collection, embedding, source, path)
    else:
        adata = _anndata(collection.records, collection.ids, collection.labels)
        vectors, reasons = _aligned(collection, embedding, collection.ids)
        adata.obsm[KEY] = vectors
        if any(reasons):
            adata.obs[FAILURE] = reasons
        _replace(path, adata.write_h5ad)


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


def _aligned(collection: Collection, embedding: "Embedding", ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(vectors with NaN, reasons) for cells with these ids, in their order."""
    place = {name: row for row, name in enumerate(ids.tolist())}
    vectors = np.full((len(ids), embedding.vectors.shape[1]), np.nan, dtype=np.float32)
    reasons = ["not embedded"] * len(ids)
    names = [str(collection.ids[i]) for i in embedding.index]
    lost = [name for name in names if name not in place]
    if lost:
        raise ConsilienceError(f"{collection.source} has no cell {lost[0]!r} any more; has the file changed?")
    rows = [place[name] for name in names]
    vectors[rows] = embedding.vectors
    failed = {str(collection.ids[f.index]): f.reason for f in embedding.failures}
    failed |= {f.id: f.reason for f in collection.failures}
    for name, reason in failed.items():
        if name in place:
            reasons[place[name]] = reason
    for row in rows:
        reasons[row] = ""
    return vectors, reasons


def _write_copy(collection: Collection, embedding: "Embedding", source: Path, path: Path) -> None:
    import h5py

    read_elem, write_elem = element_reader(), _element_writer()

    def write(target: Path) -> None:
        shutil.copyfile(source, target)
        with h5py.File(target, "r+") as file:
            obs = read_elem(file["obs"])
            vectors, reasons = _aligned(collection, embedding, unique_ids(obs.index))
            if "obsm" not in file:
                write_elem(file, "obsm", {})
            write_elem(file["obsm"], KEY, vectors)
            if any(reasons):
                obs[FAILURE] = reasons
                write_elem(file, "obs", obs)

    _replace(path, write)


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
