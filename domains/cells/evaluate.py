"""Tasks of a collection of cells, and the classical representation they are compared with."""

import numpy as np
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.base import Task
from consilience.tokenizers.cell_table import CellTable

CELL_TYPES = (
    "cell_type", "celltype", "cell_types", "cell_ontology_class", "cell_type_label", "bulk_labels", "annotation",
    "cell_annotation", "labels", "label", "condition", "perturbation",
)  # fmt: skip
"""Columns that name what a biologist asks for first, best known first."""
TECHNICAL = (
    "n_genes",
    "n_counts",
    "total_counts",
    "n_genes_by_counts",
    "percent_mito",
    "percent_mt",
    "pct_counts_mt",
)
"""Numbers that describe the measurement, not the cell: tasks of last resort."""
MOST_CLASSES = 200
HVG, COMPONENTS = 2000, 50
_CHUNK = 4096


def tasks(collection: Collection) -> list[Task]:
    """Cell types first, then other groupings, then numbers, then technical numbers.

    A column is a task when at least two of its values are known; text with more than 200 values is not.
    """
    found: list[tuple[int, int, Task]] = []
    for place, (name, column) in enumerate(collection.labels.items()):
        number = column.dtype.kind == "f"
        values = np.unique(column[~np.isnan(column)] if number else column[column != ""])
        if len(values) < 2 or (not number and len(values) > MOST_CLASSES):
            continue
        if name.lower() in CELL_TYPES:
            rank = CELL_TYPES.index(name.lower())
        else:
            rank = len(CELL_TYPES) + (2 if name in TECHNICAL else 1 if number else 0)
        shown = name.replace("_", " ") if name.lower() in CELL_TYPES else name
        task = Task(name=shown, label=name, kind="regression" if number else "classification")
        found.append((rank, place, task))
    return [task for _, _, task in sorted(found, key=lambda item: item[:2])]


def baseline(collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
    """PCA of log1p(counts per 10,000): what scanpy's tutorials do, fitted on the training cells alone.

    Tables of more than 2,000 genes are reduced to the 2,000 with the highest variance in the training cells.
    Sparse all the way; at most 50 components (Arnoldi iteration from a fixed start).

    Returns:
        name and (n, at most 50) float32.
    """
    from sklearn.decomposition import PCA

    table: CellTable = collection.records
    train = np.asarray(train)
    genes, name = np.arange(len(table.genes)), "log1p"
    if len(genes) > HVG:
        genes, name = _most_variable(table.take(train), HVG), f"log1p, {HVG:,} variable genes"
    values = sp.vstack([log_normalised(part)[:, genes] for _, part in table.chunks(_CHUNK)], format="csr")
    size = min(COMPONENTS, len(train) - 1, len(genes) - 1)
    if size < 1:
        raise ConsilienceError(
            f"{collection.source}: a PCA needs two training cells and two genes, not {len(train)} and {len(genes)}"
        )
    pca = PCA(size, svd_solver="arpack", random_state=0).fit(values[train])
    return f"{name} + PCA({size})", pca.transform(values).astype(np.float32)


def log_normalised(table: CellTable) -> sp.csr_array:
    """log1p(counts per 10,000 of the depth), float32, as sparse as the counts; table in memory."""
    totals = np.maximum(table.total_counts(), 1.0)
    counts = table.counts
    values = np.log1p(counts.data * np.repeat(1e4 / totals, np.diff(counts.indptr))).astype(np.float32)
    return sp.csr_array((values, counts.indices, counts.indptr), shape=counts.shape)


def _most_variable(table: CellTable, number: int) -> np.ndarray:
    """Ascending columns of the genes with the highest variance of log1p values; ties to the earlier column."""
    total, square = np.zeros(len(table.genes)), np.zeros(len(table.genes))
    for _, part in table.chunks(_CHUNK):
        values = log_normalised(part)
        total += np.bincount(values.indices, weights=values.data, minlength=len(total))
        square += np.bincount(
            values.indices, weights=values.data.astype(np.float64) ** 2, minlength=len(total)
        )
    variance = square / len(table) - (total / len(table)) ** 2
    return np.sort(np.argsort(-variance, kind="stable")[:number])
