"""Cells of the study: sorted blood cells, two studies for transfer, CITE-seq, Tabula Muris."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, fingerprint
from consilience.domains.cells import data
from consilience.domains.cells.readers import element_reader
from consilience.domains.splits import Split
from consilience.study.sets.common import COARSE_CELL_TYPE, OFFICIAL, STUDY, study_split
from consilience.tokenizers.cell_table import CellTable

SORTED_COARSE: Mapping[str, str] = {
    "bcells": "B",
    "nk": "NK",
    "monocytes": "CD14+ monocyte",
    "memoryt": "CD4 T",
    "naivet": "CD4 T",
    "regulatoryt": "CD4 T",
    "thelper": "CD4 T",
    "cytotoxict": "CD8 T",
    "naivecytotoxic": "CD8 T",
}
"""Populations of Zheng et al. 2017 by the antibodies they were sorted with."""

PBMC3K_COARSE: Mapping[str, str] = {
    "B": "B",
    "NK": "NK",
    "CD14+ Mono": "CD14+ monocyte",
    "Naive CD4 T": "CD4 T",
    "Memory CD4 T": "CD4 T",
    "CD8 T": "CD8 T",
}
"""Clusters of 10x PBMC3k; FCGR3A+ monocytes, dendritic cells and platelets have no sorted counterpart."""

SORTED, PBMC3K = "sorted", "pbmc3k"
"""Names of the two studies."""

NOT_CELLS = ("Mouse", "T/Mono doublets", "Multiplets")
"""Labels of the CITE-seq file that are no single human cells."""


def pbmc_sorted(path: Path) -> Collection:
    """Blood cells sorted by surface proteins before sequencing; `cell_type` is the sort."""
    return _coarse(_read(path), SORTED_COARSE)


def pbmc3k(path: Path) -> Collection:
    """10x PBMC3k; `cell_type` names clusters of the same counts."""
    return _coarse(_read(path), PBMC3K_COARSE)


def cite_cbmc(path: Path) -> Collection:
    """Cord blood with ten surface proteins (z-scores, origin: antibody counts) as labels "CD4 protein" and so on.

    Mouse cells, doublets and multiplets are dropped.
    """
    import h5py

    collection = _read(path)
    with h5py.File(path, "r") as file:
        if "obsm/protein" not in file or "uns/protein_names_inferred" not in file:
            raise ConsilienceError(f"{path}: it needs obsm['protein'] and uns['protein_names_inferred']")
        protein = np.asarray(element_reader()(file["obsm/protein"]), dtype=np.float64)
        names = [str(name) for name in element_reader()(file["uns/protein_names_inferred"])]
        index = {name: row for row, name in enumerate(data.unique_ids(element_reader()(file["obs"]).index))}
    rows = np.array([index[name] for name in collection.ids])  # cells without counts are gone
    labels = {"cell_type": collection.labels["cell_type"]}
    labels |= {f"{name} protein": protein[rows, column] for column, name in enumerate(names)}
    kept = np.flatnonzero(~np.isin(labels["cell_type"], NOT_CELLS))
    return replace(collection, labels=labels).take(kept)


def tabula_muris(path: Path) -> Collection:
    """Mouse cells of twelve kinds with the published split; cells with equal counts are kept once, training first."""
    collection = _read(path)
    split = collection.labels["split"]
    if set(split.tolist()) != {"train", "test"}:
        raise ConsilienceError(f"{path}: obs.split must hold train and test, not {sorted(set(split))}")
    labels = {"cell_type": collection.labels["cell_type"], OFFICIAL: split}
    seen: set[bytes] = set()
    kept = []
    counts = collection.records.counts
    for row in np.argsort(split != "train", kind="stable").tolist():
        places = slice(counts.indptr[row], counts.indptr[row + 1])
        content = counts.indices[places].tobytes() + counts.data[places].tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(row)
    return replace(collection, labels=labels).take(np.sort(kept))


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Two studies in one collection, and what is trained where.

    Args:
        collection: cells of both over the genes that both measured.
        to_sorted: training and validation on PBMC3k, test on the sorted cells.
        to_pbmc3k: the other direction.
    """

    collection: Collection
    to_sorted: Split
    to_pbmc3k: Split


def transfer_pair(sorted_path: Path, pbmc3k_path: Path, seed: int = 0) -> Transfer:
    """Both blood studies with their labels in one vocabulary, and splits in both directions.

    Args:
        sorted_path: file of the sorted cells.
        pbmc3k_path: file of PBMC3k.
        seed: of the draw of validation cells.
    """
    collection = blood_pair(sorted_path, pbmc3k_path)
    return Transfer(
        collection=collection,
        to_sorted=study_split(collection, seed, test=SORTED),
        to_pbmc3k=study_split(collection, seed, test=PBMC3K),
    )


def blood_pair(sorted_path: Path, pbmc3k_path: Path) -> Collection:
    """Cells of both studies that have a coarse type, over the genes that both measured, in PBMC3k's order.

    The depth of a cell is its sum over these genes, so that it means the same in both.
    """
    both = {SORTED: pbmc_sorted(sorted_path), PBMC3K: pbmc3k(pbmc3k_path)}
    tables = {name: part.records for name, part in both.items()}
    shared = set(tables[SORTED].genes.tolist())
    genes = [gene for gene in tables[PBMC3K].genes.tolist() if gene in shared]
    if not genes:
        raise ConsilienceError(f"{sorted_path} and {pbmc3k_path} have no gene in common")
    counts, ids, coarse, fine, study = [], [], [], [], []
    for name, part in both.items():
        place = {gene: column for column, gene in enumerate(tables[name].genes.tolist())}
        chosen = tables[name].counts[:, [place[gene] for gene in genes]]
        kept = np.flatnonzero(
            (part.labels[COARSE_CELL_TYPE] != "") & (np.asarray(chosen.sum(axis=1)).ravel() > 0)
        )
        counts.append(sp.csr_array(chosen[kept]).astype(np.float32))
        ids += [f"{name}:{one}" for one in part.ids[kept]]
        coarse.append(part.labels[COARSE_CELL_TYPE][kept])
        fine.append(part.labels["cell_type"][kept])
        study += [name] * len(kept)
    stacked = sp.vstack(counts, format="csr")
    return Collection(
        records=CellTable(counts=stacked, genes=np.array(genes, dtype=object), names=np.array(ids)),
        ids=np.array(ids),
        source=f"{sorted_path} and {pbmc3k_path}",
        origin="real",
        fingerprint=fingerprint([*(part.fingerprint for part in both.values()), *genes, *ids]),
        labels={
            COARSE_CELL_TYPE: np.concatenate(coarse),
            "cell_type": np.concatenate(fine),
            STUDY: np.array(study),
        },
    )


def _read(path: Path) -> Collection:
    """A file of real cells with its counts in memory."""
    collection = data.read(path)
    if "cell_type" not in collection.labels:
        raise ConsilienceError(f"{path}: obs has no column `cell_type`")
    return replace(collection, records=collection.records.load(), origin="real")


def _coarse(collection: Collection, names: Mapping[str, str]) -> Collection:
    """The cell type as it stands in the file, and its coarse name ("" where it has none)."""
    fine = collection.labels["cell_type"]
    coarse = np.array([names.get(name, "") for name in fine.tolist()], dtype=str)
    return replace(collection, labels={"cell_type": fine, COARSE_CELL_TYPE: coarse})
