"""Cells with labels and groups: those that ship inside scanpy, and files of users."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, Failure, fingerprint
from consilience.domains.cells.readers import open_cells
from consilience.tokenizers.cell_checks import NO_COUNTS
from consilience.tokenizers.cell_sources import depth_of, listed, unique_ids
from consilience.tokenizers.cell_table import CellTable

log = logging.getLogger(__name__)

BUNDLED = "scanpy's pbmc68k_reduced (10x Genomics, Zheng et al. 2017)"
GROUP_COLUMNS = (
    "donor_id",
    "donor",
    "patient_id",
    "patient",
    "individual",
    "subject",
    "sample_id",
    "sample",
    "batch",
)
"""Columns of obs whose cells belong together, best first."""
FEWEST_GROUPS = 5
"""With fewer groups a split by group would be a split by luck; cells are then split one by one."""


def bundled() -> Collection:
    """scanpy's pbmc68k_reduced: 700 blood cells of one donor, 765 genes, raw counts, 10 cell types.

    The file keeps log1p(counts * 1e4 / depth) with three decimals in `.raw`, and the depth over all genes of the
    experiment in `obs.n_counts`. Undone, every number lies within 0.09 of an integer, which is the count. The
    cell types are `bulk_labels`: the most similar of ten populations sorted by surface proteins (Zheng et al.
    2017, doi:10.1038/ncomms14049).
    """
    import scanpy
    import scipy.sparse as sp

    adata = scanpy.datasets.pbmc68k_reduced()
    counts = sp.csr_array(adata.raw.X).astype(np.float64)
    depth = adata.obs["n_counts"].to_numpy(dtype=np.float64)
    exact = np.expm1(counts.data) * np.repeat(depth / 1e4, np.diff(counts.indptr))
    counts = sp.csr_array(
        (np.rint(exact).astype(np.float32), counts.indices, counts.indptr), shape=counts.shape
    )
    if np.abs(exact - counts.data).max() > 0.1:
        raise ConsilienceError("scanpy's pbmc68k_reduced has changed: its counts cannot be recovered exactly")
    names = adata.obs_names.to_numpy(dtype=str)
    labels = labels_of(adata.obs)
    return Collection(
        records=CellTable(
            counts=counts, genes=adata.raw.var_names.to_numpy(dtype=str), depth=depth, names=names
        ),
        ids=names,
        source=BUNDLED,
        origin="real",
        fingerprint=fingerprint([counts.data, counts.indices, counts.indptr, depth]),
        labels={"cell_type": labels.pop("bulk_labels"), **labels},
    )


def read(
    path: Path | str,
    *,
    layer: str | None = None,
    genes: str | None = None,
    label: str | None = None,
    groups: str | None = None,
    depth: str | None = None,
) -> Collection:
    """Cells of an `.h5ad`, a 10x `.h5`, or a 10x folder with matrix.mtx.

    Where the counts of an `.h5ad` are: in `layer` when given ("X", "raw" or the name of a layer); else in the
    first of X, layers["counts"] (or raw_counts, count, umi) and raw that holds counts in 256 evenly spaced cells, up
    to a few: cells with other numbers are set aside by the tokenizer, which looks at every cell it reads.

    Args:
        path: the file or folder.
        layer: see above.
        genes: the column of var with the gene identifiers; None = the names of the variables.
        label: the column of obs that is to be the label `cell_type`; None keeps all names as they are.
        groups: the column of obs whose cells are never split between training and test; None looks for a donor,
            patient, sample or batch column with at least five values.
        depth: the column of obs with each cell's total counts over all measured genes; None looks for one that
            exceeds the row sums, as in a file with a selection of genes; else the row sums are the depth.

    Returns:
        Cells with counts, by their names (made unique); cells without counts are `failures`. Numeric columns of
        obs are numeric labels, the others are text.

    Raises:
        ConsilienceError: naming the file, when it cannot be read, has no counts or lacks a named column.
    """
    path = Path(path)
    opened = open_cells(path, layer=layer, genes=genes)
    obs = opened.obs
    for name, column in (("label", label), ("groups", groups), ("depth", depth)):
        if column is not None and column not in obs:
            raise ConsilienceError(
                f"{path}: {name}={column!r} is no column of obs; it has {listed(obs.columns)}"
            )
    ids = unique_ids(obs.index)
    table = replace(opened.counts.table, names=ids, depth=depth_of(obs, opened.counts, depth))
    stored = np.diff(table.counts.indptr) if table.counts.indptr is not None else np.ones(len(table))
    labels = labels_of(obs, keep=label)
    if label is not None:
        labels = {"cell_type": labels[label]} | {
            k: v for k, v in labels.items() if k not in (label, "cell_type")
        }
    collection = Collection(
        records=table,
        ids=ids,
        source=str(path),
        origin="user",
        fingerprint=fingerprint(
            [stored, opened.counts.sample.counts.data, *table.genes.tolist(), *ids.tolist()]
        ),
        labels=labels,
        groups=_groups(path, obs, groups),
    )
    return _without_empty(collection, stored == 0)


def labels_of(obs: pd.DataFrame, keep: str | None = None) -> dict[str, np.ndarray]:
    """Columns of obs: numbers as float64 with NaN, the rest as text with "" where unknown.

    Text that differs in more than half of the cells is an identifier, not a label, and is left out unless it is
    the column `keep`.
    """
    labels: dict[str, np.ndarray] = {}
    for name, column in obs.items():
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            labels[str(name)] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        elif name == keep or column.nunique() <= max(2, len(obs) // 2):
            labels[str(name)] = (
                column.astype(object).where(column.notna(), "").astype(str).to_numpy(dtype=str)
            )
    return labels


def _groups(path: Path, obs: pd.DataFrame, column: str | None) -> np.ndarray | None:
    """(n,) what must stay together; None = every cell for itself."""
    if column is not None:
        return obs[column].astype(str).to_numpy(dtype=str)
    for name in GROUP_COLUMNS:
        if name not in obs or obs[name].isna().any() or not 1 < obs[name].nunique() < len(obs):
            continue
        if obs[name].nunique() >= FEWEST_GROUPS:
            log.info("%s: cells of one %s stay together when cells are split", path, name)
            return obs[name].astype(str).to_numpy(dtype=str)
        log.info(
            "%s: %s has too few values to split by; pass groups=%r to do so all the same", path, name, name
        )
    return None


def _without_empty(collection: Collection, empty: np.ndarray) -> Collection:
    """Cells without any stored count become failures."""
    if not empty.any():
        return collection
    if empty.all():
        raise ConsilienceError(f"{collection.source}: no cell has any counts")
    reason = f"the cell {NO_COUNTS}"
    failures = tuple(
        Failure(index=int(i), id=str(collection.ids[i]), reason=reason) for i in np.flatnonzero(empty)
    )
    return replace(collection.take(np.flatnonzero(~empty)), failures=failures)
