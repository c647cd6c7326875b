"""Opening single-cell files: where the counts are, what the genes are called, and clear errors.

Counts of `.h5ad` files stay on disk and are read by rows, so that memory does not grow with the number of cells.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.cell_checks import WAY_OUT, first_bad_entry
from consilience.tokenizers.cell_genes import genome_ranks
from consilience.tokenizers.cell_table import CellTable, StoredCounts

log = logging.getLogger(__name__)

SUFFIXES = (".h5ad", ".h5")
COUNT_LAYERS = ("counts", "raw_counts", "count", "umi")
CHROMOSOME_COLUMNS = ("chromosome", "chrom", "chr", "seqname", "seqnames")
START_COLUMNS = ("start", "gene_start", "start_position", "chromstart")
_SAMPLED = 256  # cells whose numbers are looked at on opening; the tokenizer checks every cell it reads


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A file: its counts, the table of its cells (obs) and a few cells in memory (their rows and counts)."""

    table: CellTable
    obs: pd.DataFrame
    sample_rows: np.ndarray
    sample: CellTable


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
        return _open_h5ad(path, layer, genes)
    if path.suffix != ".h5" and not path.is_dir() and not path.name.startswith("matrix.mtx"):
        raise ConsilienceError(f"{path}: cells are read from .h5ad, 10x .h5, or a 10x folder with matrix.mtx")
    if layer is not None:
        raise ConsilienceError(f"{path}: layer={layer!r} is for .h5ad files; 10x files hold one matrix")
    return _open_10x(path, genes)


def _open_10x(path: Path, genes: str | None) -> Opened:
    import scanpy

    folder = path if path.is_dir() else path.parent
    try:
        adata = scanpy.read_10x_h5(path) if path.suffix == ".h5" else scanpy.read_10x_mtx(folder)
    except Exception as error:  # scanpy lets errors of five libraries through
        what = (
            "10x .h5 file" if path.suffix == ".h5" else "10x folder (matrix.mtx, features.tsv, barcodes.tsv)"
        )
        raise ConsilienceError(f"{path} cannot be read as a {what}: {_first_line(error)}") from error
    table = CellTable(counts=adata.X, genes=_gene_names(path, adata.var, genes))
    return _sampled(path, "the matrix", table, adata.obs)


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
    if layer is not None and layer not in places:
        raise ConsilienceError(f"{path} has no layer {layer!r}; it has {listed(places)}")
    candidates = [layer] if layer is not None else [n for n in ("X", *COUNT_LAYERS, "raw") if n in places]
    refused = ConsilienceError(
        f"{path}: no matrix is named X, raw or counts; pass layer=, one of {listed(places)}"
    )
    for place, name in enumerate(candidates):
        used = raw_var if name == "raw" and raw_var is not None else var
        table = CellTable(
            counts=_matrix(path, places[name]),
            genes=_gene_names(path, used, genes),
            genome_rank=_genome(used),
        )
        try:
            opened = _sampled(path, name, table, obs)
        except NotCountsError as error:
            refused = refused if place else error
            continue
        if place:
            log.info("%s: counts are taken from %s (%s)", path, name, refused)
        return opened
    raise refused


class NotCountsError(ConsilienceError):
    """A matrix with numbers that are not counts."""


def _sampled(path: Path, name: str, table: CellTable, obs: pd.DataFrame) -> Opened:
    """The opened file with evenly spaced cells in memory; raises NotCountsError when they do not hold counts."""
    if not len(table) or not len(table.genes):
        raise ConsilienceError(
            f"{path} holds {len(table)} cells and {len(table.genes)} genes: nothing to read"
        )
    rows = np.unique(np.linspace(0, len(table) - 1, _SAMPLED).astype(np.int64))
    sample = table.take(rows).load()
    entry = first_bad_entry(sample.counts.data)
    if entry is not None:
        cell = int(np.searchsorted(sample.counts.indptr, entry, side="right") - 1)
        where = f"{path}: cell {rows[cell]} ({obs.index[rows[cell]]})"
        raise NotCountsError(f"{where} has {sample.counts.data[entry]:g} in {name}, {WAY_OUT}")
    return Opened(table=table, obs=obs, sample_rows=rows, sample=sample)


def _matrix(path: Path, key: str) -> Any:
    """Counts on disk where they are stored by rows, else in memory."""
    import h5py

    with h5py.File(path, "r") as file:
        node = file[key]
        if StoredCounts.by_rows(node):
            return StoredCounts(path, key)
        log.warning("%s: `%s` is stored by columns and is read into memory as a whole", path, key)
        return element_reader()(node)


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


def _genome(var: pd.DataFrame) -> np.ndarray | None:
    """(G,) order of the genes along the genome, where var has columns for chromosome and start."""
    known = {str(name).lower(): name for name in var.columns}
    chromosome = next((known[name] for name in CHROMOSOME_COLUMNS if name in known), None)
    start = next((known[name] for name in START_COLUMNS if name in known), None)
    if chromosome is None or start is None:
        return None
    return genome_ranks(var[chromosome], pd.to_numeric(var[start], errors="coerce").to_numpy(np.float64))


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names for a message."""
    shown = [str(name) for name in names]
    return (", ".join(shown[:most]) + (", ..." if len(shown) > most else "")) or "none"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
