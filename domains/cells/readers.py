"""Opening single-cell files: where the counts are, what the genes are called, and clear errors.

Counts of `.h5ad` files stay on disk and are read by rows, so that memory does not grow with the number of cells.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.cell_sources import Counts, chosen, genome_of, listed, sound
from consilience.tokenizers.cell_table import CellTable, StoredCounts

log = logging.getLogger(__name__)

SUFFIXES = (".h5ad", ".h5")
TEN_X = (("matrix.mtx", "genes.tsv", "barcodes.tsv"), ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"))
"""Files of a 10x folder: of Cell Ranger 2, and of later ones."""
MATRIX = "the matrix"
"""What the one matrix of 10x files is called in messages."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A file: its counts, and the table of its cells (obs)."""

    counts: Counts
    obs: pd.DataFrame


def open_cells(path: Path, *, layer: str | None = None, genes: str | None = None) -> Opened:
    """Open an `.h5ad`, a 10x `.h5` or a 10x folder with matrix.mtx; arguments as in `data.read`.

    Raises:
        ConsilienceError: naming the file: missing, empty, damaged, another kind, or without counts.
    """
    if not path.exists():
        raise ConsilienceError(f"{path} does not exist")
    if path.is_file() and path.stat().st_size == 0:
        raise ConsilienceError(f"{path} is empty (0 bytes)")
    if path.suffix == ".h5ad":
        if path.is_dir():
            raise ConsilienceError(f"{path} is a folder, not an .h5ad file; name the file in it")
        return _open_h5ad(path, layer, genes)
    if path.suffix != ".h5" and not path.is_dir() and not path.name.startswith("matrix.mtx"):
        raise ConsilienceError(f"{path}: cells are read from .h5ad, 10x .h5, or a 10x folder with matrix.mtx")
    if layer is not None:
        raise ConsilienceError(f"{path}: layer={layer!r} is for .h5ad files; 10x files hold one matrix")
    return _open_10x(path, genes)


def _open_10x(path: Path, genes: str | None) -> Opened:
    import scanpy

    folder = path if path.is_dir() else path.parent
    tabled = path.suffix == ".h5" and path.is_file()
    if not tabled:
        _require_10x(path, folder)
    try:
        adata = scanpy.read_10x_h5(path) if tabled else scanpy.read_10x_mtx(folder)
    except Exception as error:  # scanpy lets errors of five libraries through
        what = "10x .h5 file" if tabled else "10x folder (matrix.mtx, features.tsv, barcodes.tsv)"
        raise ConsilienceError(f"{path} cannot be read as a {what}: {_first_line(error)}") from error
    names = _gene_names(path, adata.var, genes)

    def opened() -> CellTable:
        return CellTable(counts=sound(str(path), "matrix", adata.X), genes=names)

    found = chosen(str(path), {MATRIX: opened}, adata.obs_names, layer=MATRIX, way_out="")
    return Opened(counts=found, obs=adata.obs)


def _require_10x(path: Path, folder: Path) -> None:
    """Raise ConsilienceError for a folder that lacks a file of its kind, naming the file."""
    old, new = TEN_X
    here = {name for name in (*old, *new) if (folder / name).is_file()}
    # scanpy takes a folder with genes.tsv for an old one.
    kind = old if "genes.tsv" in here or not here & set(new) else new
    lost = [name for name in kind if name not in here]
    if not lost:
        return
    pressed = [name for name in lost if (folder / name.removesuffix(".gz")).is_file()]
    loose = [name for name in ("features.tsv",) if "genes.tsv" in lost and (folder / name).is_file()]
    if loose or pressed:
        raise ConsilienceError(
            f"{path}: a 10x folder with features.tsv holds {', '.join(new)}: compress its files with gzip"
        )
    raise ConsilienceError(
        f"{path} cannot be read as a 10x folder: it lacks {' and '.join(lost)} (a folder of Cell Ranger holds "
        f"{', '.join(new)}, an old one {', '.join(old)})"
    )


def _open_h5ad(path: Path, layer: str | None, genes: str | None) -> Opened:
    import h5py

    read_elem = element_reader()
    try:
        with h5py.File(path, "r") as file:
            obs, var = read_elem(file["obs"]), read_elem(file["var"])
            raw_var = read_elem(file["raw/var"]) if "raw/X" in file else None
            places = {"X": "X"} if "X" in file else {}
            places |= {name: f"layers/{name}" for name in file.get("layers", ())}
    except Exception as error:  # damaged HDF5 files fail in many ways
        raise ConsilienceError(f"{path} cannot be read as an .h5ad file: {_first_line(error)}") from error
    if raw_var is not None:
        places["raw"] = "raw/X"

    def opener(name: str) -> Callable[[], CellTable]:
        used = raw_var if name == "raw" and raw_var is not None else var
        return lambda: CellTable(
            counts=_matrix(path, places[name]),
            genes=_gene_names(path, used, genes),
            genome_rank=genome_of(used),
        )

    found = chosen(
        str(path),
        {name: opener(name) for name in places},
        obs.index,
        layer=layer,
        way_out="name it with layer= (--read-options.layer on the command line)",
    )
    return Opened(counts=found, obs=obs)


def _matrix(path: Path, key: str) -> Any:
    """Counts on disk where they are stored by rows, else in memory."""
    import h5py

    with h5py.File(path, "r") as file:
        node = file[key]
        if StoredCounts.by_rows(node):
            return StoredCounts(path, key)
        log.warning("%s: `%s` is stored by columns and is read into memory as a whole", path, key)
        try:
            matrix = element_reader()(node)
        except Exception as error:  # damaged HDF5 files fail in many ways
            raise ConsilienceError(f"{path}: `{key}` cannot be read: {_first_line(error)}") from error
    return sound(str(path), key, matrix)


def element_reader() -> Any:
    """anndata's `read_elem`, wherever this version keeps it."""
    try:
        from anndata.io import read_elem
    except ImportError:  # anndata < 0.11
        from anndata.experimental import read_elem
    return read_elem


def _gene_names(path: Path, var: pd.DataFrame, column: str | None) -> np.ndarray:
    """Identifiers of the genes: the index of var, or one of its columns."""
    if column is None:
        return var.index.to_numpy(dtype=str)
    if column not in var:
        raise ConsilienceError(f"{path}: genes={column!r} is no column of var; it has {listed(var.columns)}")
    return var[column].astype(str).to_numpy(dtype=str)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
