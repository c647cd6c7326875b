"""The figure a single-cell scientist looks at: UMAPs by cell type, and whether generated cells look real."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consilience.core.records import Collection
from consilience.domains.cells import evaluate
from consilience.tokenizers.cell_genes import match_genes
from consilience.tokenizers.cell_table import CellTable

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel

MOST_SHOWN = 2000
GENERATED = 100
STEPS = 16
"""Passes of the samplers that fill many tokens at once; one gene at a time would take a pass for each."""
NEIGHBOURS = 10
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#393b79", "#ad494a", "#637939", "#8c6d31", "#7b4173", "#3182bd", "#e6550d", "#31a354", "#756bb1", "#000000",
)  # fmt: skip


def figure(models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray) -> Figure:
    """One column per objective and one for the classical baseline; only held-out cells are shown.

    Above: a UMAP of each representation of the test cells, coloured by the first classification task; the
    number is the share of a cell's 10 nearest neighbours (Euclidean, in the representation itself) of its type.
    Below: for every gene that the model generates, the share of cells that express it, among generated cells
    against test cells; the baseline's column has the training cells there, which is as close as one can come.
    """
    test = np.sort(np.asarray(test))
    train = np.setdiff1d(np.arange(len(collection)), test)
    title, features = evaluate.baseline(collection, train)
    shown = test[np.linspace(0, len(test) - 1, min(len(test), MOST_SHOWN)).astype(np.int64)]
    cells, real = collection.take(shown), collection.records.take(test)
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    generated: dict[str, CellTable] = {}
    for name, model in models.items():
        embedding = model.embed(cells.records, domain="cells")
        columns[name] = (embedding.vectors, embedding.index)
        steps = STEPS if model.objective.has_steps else None
        generated[name] = model.generate(min(len(test), GENERATED), domain="cells", seed=0, steps=steps)
    columns[title] = (features[shown], np.arange(len(shown)))
    sample = np.linspace(0, len(train) - 1, min(len(train), MOST_SHOWN)).astype(np.int64)
    generated[title] = collection.records.take(train[sample])
    genes = next(iter(generated.values())).genes
    return draw(columns, generated, real, genes, _types(cells))


def draw(
    columns: Mapping[str, tuple[np.ndarray, np.ndarray]],
    generated: Mapping[str, CellTable],
    real: CellTable,
    genes: np.ndarray,
    types: np.ndarray,
) -> Figure:
    """The figure for results at hand.

    Args:
        columns: title -> ((m, d) vectors, (m,) places of these cells among `types`).
        generated: title -> cells to compare with the real ones.
        real: held-out cells.
        genes: the genes compared.
        types: (n,) cell types of the cells shown.
    """
    drawn = Figure(figsize=(3.1 * len(columns) + 2.2, 6.4), layout="constrained")
    axes = drawn.subplots(2, len(columns), squeeze=False)
    names, counts = np.unique(types, return_counts=True)
    names = names[np.argsort(-counts, kind="stable")]
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names.tolist())}
    for axis, (title, (vectors, index)) in zip(axes[0], columns.items()):
        _draw_map(axis, title, vectors, types[index], colour)
    for axis, (title, cells) in zip(axes[1], generated.items()):
        what = "training cells" if title == list(generated)[-1] else "generated cells"
        _draw_detection(axis, what, detection(cells, genes), detection(real, genes))
    axes[1, 0].set_ylabel("cells that express a gene")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    order = [labels.index(name) for name in names.tolist() if name in labels]
    drawn.legend(
        [handles[i] for i in order], [labels[i] for i in order],
        loc="outside right upper", frameon=False, fontsize=8, markerscale=2,
    )  # fmt: skip
    drawn.suptitle(
        f"{len(types):,} held-out cells: UMAP of frozen representations (above), detection of genes (below)",
        fontsize=11,
    )
    return drawn


def detection(cells: CellTable, genes: np.ndarray) -> np.ndarray:
    """(G,) the share of cells that express each of these genes."""
    match = match_genes(cells.genes, genes.tolist())
    number = np.zeros(len(genes))
    for _, part in cells.chunks(4096):
        seen = match.columns[part.counts.indices[part.counts.data > 0]]
        number += np.bincount(seen[seen >= 0], minlength=len(genes))
    return number / len(cells)


def purity(vectors: np.ndarray, types: np.ndarray) -> float:
    """The mean share of a cell's nearest neighbours that have its type."""
    from sklearn.neighbors import NearestNeighbors

    k = min(NEIGHBOURS, len(vectors) - 1)
    near = NearestNeighbors(n_neighbors=k + 1).fit(vectors).kneighbors(vectors, return_distance=False)[:, 1:]
    return float((types[near] == types[:, None]).mean())


def _types(cells: Collection) -> np.ndarray:
    """The labels of the first classification task; one name for all where there is none."""
    for task in evaluate.tasks(cells):
        if task.kind == "classification":
            labels = cells.labels[task.label].astype(str)
            return np.where(labels == "", "unknown", labels)
    return np.full(len(cells), "cells")


def _umap(vectors: np.ndarray) -> np.ndarray:
    """(n, 2) UMAP (McInnes et al. 2018, arXiv:1802.03426) through scanpy, from a fixed seed."""
    import scanpy
    import torch
    from anndata import AnnData

    threads = torch.get_num_threads()
    adata = AnnData(np.ascontiguousarray(vectors, dtype=np.float32))
    scanpy.pp.neighbors(adata, n_neighbors=min(15, len(vectors) - 1), use_rep="X", random_state=0)
    scanpy.tl.umap(adata, random_state=0)
    torch.set_num_threads(threads)  # UMAP's compiler changes it for the whole process
    return np.asarray(adata.obsm["X_umap"])


def _draw_map(
    axis: Axes, title: str, vectors: np.ndarray, types: np.ndarray, colour: Mapping[str, str]
) -> None:
    # UMAP's spectral start needs a few points more than its two components.
    places = _umap(vectors) if len(vectors) > 15 else np.pad(vectors, ((0, 0), (0, 2)))[:, :2]
    for name in colour:
        inside = types == name
        if inside.any():
            axis.scatter(
                places[inside, 0], places[inside, 1], s=9, color=colour[name], label=name, linewidths=0
            )
    share = f"same type among neighbours: {purity(vectors, types):.0%}" if len(vectors) > 1 else ""
    axis.set_title(f"{title}\n{share}", fontsize=9)
    axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_detection(axis: Axes, what: str, shares: np.ndarray, real: np.ndarray) -> None:
    axis.plot([0, 1], [0, 1], color="0.7", lw=0.8, zorder=0)
    axis.scatter(real, shares, s=7, color="#0072b2", alpha=0.6, linewidths=0)
    axis.set_title(f"{what}: mean difference {np.abs(shares - real).mean():.3f}", fontsize=9)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="among held-out cells", aspect="equal")
    axis.spines[["top", "right"]].set_visible(False)
