"""Which matrix of a file, or of an AnnData in memory, holds the counts of cells, and what else belongs to them."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.cell_checks import NOT_A_COUNT, are_few, bad_entries
from consilience.tokenizers.cell_genes import genome_ranks
from consilience.tokenizers.cell_table import CellTable

log = logging.getLogger(__name__)

COUNT_LAYERS = ("counts", "raw_counts", "count", "umi")
DEPTH_COLUMNS = ("total_counts", "n_counts", "nCount_RNA", "n_umi", "nUMI")
"""Columns of obs that may hold the total counts over all measured genes."""
CHROMOSOME_COLUMNS = ("chromosome", "chrom", "chr", "seqname", "seqnames")
START_COLUMNS = ("start", "gene_start", "start_position", "chromstart")
_SAMPLED = 256  # cells whose numbers are looked at on opening; the tokenizer checks every cell it reads
IN_MEMORY = "the AnnData given"


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Cells whose numbers are counts, apart from a few that the tokenizer will name.

    Args:
        table: all cells.
        rows: (s,) evenly spaced cells that were looked at, without those that do not hold counts.
        sample: these, in memory.
        bad: how many of those looked at do not hold counts.
    """

    table: CellTable
    rows: np.ndarray
    sample: CellTable
    bad: int


class NotCountsError(ConsilienceError):
    """A matrix with numbers that are not counts."""


def looked_at(where: str, name: str, table: CellTable, cells: pd.Index) -> Counts:
    """A matrix with evenly spaced cells in memory.

    Args:
        where: the file, for messages.
        name: of the matrix.
        table: its cells.
        cells: their names.

    Raises:
        NotCountsError: more than a few of these cells do not hold counts.
    """
    if not len(table) or not len(table.genes):
        raise ConsilienceError(
            f"{where} holds {len(table)} cells and {len(table.genes)} genes: nothing to read"
        )
    rows = np.unique(np.linspace(0, len(table) - 1, _SAMPLED).astype(np.int64))
    sample = table.take(rows).load()
    bad, entries = bad_entries(sample)
    if not len(bad):
        return Counts(table=table, rows=rows, sample=sample, bad=0)
    if not are_few(len(bad), len(rows)):
        raise NotCountsError(
            f"{where}: cell {rows[bad[0]]} ({cells[rows[bad[0]]]}) has {sample.counts.data[entries[0]]:g} in {name}, "
            f"{NOT_A_COUNT} ({len(bad)} of {len(rows)} cells looked at have such numbers)"
        )
    good = np.setdiff1d(np.arange(len(rows)), bad)
    return Counts(table=table, rows=rows[good], sample=sample.take(good), bad=len(bad))


def chosen(
    where: str,
    matrices: Mapping[str, Callable[[], CellTable]],
    cells: pd.Index,
    *,
    layer: str | None,
    way_out: str,
) -> Counts:
    """The matrix that holds counts: `layer` when given, else the first of X, COUNT_LAYERS and raw.

    One in which all cells looked at hold counts goes before one in which a few do not.

    Args:
        where: the file, for messages.
        matrices: name -> what opens it.
        cells: names of the cells.
        layer: the name of a matrix.
        way_out: how another one is named, for messages.
    """
    if not matrices:
        raise ConsilienceError(
            f"{where} holds no matrix: neither X, nor layers, nor raw; write the raw counts into X"
        )
    if layer is not None and layer not in matrices:
        raise ConsilienceError(f"{where} has no layer {layer!r}; it has {listed(matrices)}")
    names = [layer] if layer is not None else [n for n in ("X", *COUNT_LAYERS, "raw") if n in matrices]
    others = [name for name in matrices if name not in names]
    refused: ConsilienceError | None = None
    nearly: Counts | None = None
    for place, name in enumerate(names):
        try:
            found = looked_at(where, name, matrices[name](), cells)
        except NotCountsError as error:
            refused = refused or error
            continue
        if found.bad:
            nearly = nearly or found
            continue
        if place:
            log.info("%s: counts are taken from %s%s", where, name, f" ({refused})" if refused else "")
        return found
    if nearly is not None:
        return nearly
    if refused is None:
        raise ConsilienceError(
            f"{where}: no matrix is named X, raw or {COUNT_LAYERS[0]}; {way_out}: {listed(others)}"
        )
    way = (
        f": if another matrix holds them, {way_out}: {listed(others)}"
        if others
        else ", and there is no other matrix"
    )
    raise NotCountsError(f"{refused}; raw counts are needed{way}")


def depth_of(obs: pd.DataFrame, counts: Counts, column: str | None = None) -> np.ndarray | None:
    """(n,) total counts over all measured genes from a column of obs; None where the row sums are the depth.

    Args:
        obs: the table of the cells.
        counts: theirs.
        column: None = the first of DEPTH_COLUMNS that exceeds the row sums.
    """
    sums, rows = counts.sample.total_counts(), counts.rows
    for name in DEPTH_COLUMNS if column is None else (column,):
        if name not in obs or not pd.api.types.is_numeric_dtype(obs[name]):
            continue
        known = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
        if column is not None:
            return known
        whole = np.isfinite(known).all() and (known == np.rint(known)).all()
        if whole and (known[rows] >= sums).all() and (known[rows] > sums).any():
            log.info("obs.%s exceeds the row sums and is taken as the depth of the cells", name)
            return known
    return None


def genome_of(var: pd.DataFrame) -> np.ndarray | None:
    """(G,) order of the genes along the genome, where var has columns for chromosome and start."""
    known = {str(name).lower(): name for name in var.columns}
    chromosome = next((known[name] for name in CHROMOSOME_COLUMNS if name in known), None)
    start = next((known[name] for name in START_COLUMNS if name in known), None)
    if chromosome is None or start is None:
        return None
    return genome_ranks(var[chromosome], pd.to_numeric(var[start], errors="coerce").to_numpy(np.float64))


def sound(where: str, name: str, matrix: Any) -> Any:
    """A matrix in memory; ConsilienceError for a sparse one whose indices point outside."""
    if sp.issparse(matrix) and hasattr(matrix, "check_format"):
        try:
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise ConsilienceError(f"{where}: `{name}` is damaged: {error}") from error
    return matrix


def is_anndata(records: Any) -> bool:
    """Whether records are an AnnData, without importing anndata."""
    return any(
        cls.__name__ == "AnnData" and cls.__module__.startswith("anndata") for cls in type(records).__mro__
    )


def of_anndata(adata: Any) -> CellTable:
    """The cells of an AnnData in memory, with the counts, depths and names that its file would give."""
    adata = adata.to_memory() if adata.isbacked else adata
    places: dict[str, tuple[Any, pd.DataFrame]] = {} if adata.X is None else {"X": (adata.X, adata.var)}
    places |= {str(name): (adata.layers[name], adata.var) for name in adata.layers}
    if adata.raw is not None:
        places["raw"] = adata.raw.X, adata.raw.var

    def opener(name: str) -> Callable[[], CellTable]:
        matrix, var = places[name]
        return lambda: CellTable(
            counts=sound(IN_MEMORY, name, matrix),
            genes=var.index.to_numpy(dtype=str),
            genome_rank=genome_of(var),
        )

    found = chosen(
        IN_MEMORY,
        {name: opener(name) for name in places},
        adata.obs_names,
        layer=None,
        way_out="copy the right one to layers['counts']",
    )
    return replace(found.table, names=unique_ids(adata.obs_names), depth=depth_of(adata.obs, found))


def unique_ids(names: Iterable[object]) -> np.ndarray:
    """Names of cells as strings; repeated ones get "-1", "-2", ... as in anndata."""
    from anndata.utils import make_index_unique

    return make_index_unique(pd.Index([str(name) for name in names])).to_numpy(dtype=str)


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names for a message."""
    shown = [str(name) for name in names]
    return (", ".join(shown[:most]) + (", ..." if len(shown) > most else "")) or "none"
