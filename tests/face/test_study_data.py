"""The study's sets: read from small files in the published layouts, and from the real ones where they are given."""

import gzip
import os
import zlib
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.base import Domain
from consilience.domains.preparation import Prepared, prepare
from consilience.domains.splits import Split
from consilience.study import data
from consilience.study.sets import cells, common, galaxies, molecules, points

REAL = os.environ.get("CONSILIENCE_TEST_DATA")
NAMES = [entry.name for entry in data.SETS]
SMILES = [
    "CCO",
    "c1ccccc1O",
    "CC(=O)Nc1ccccc1",
    "C1CCCCC1N",
    "c1ccncc1C",
    "CCCCN",
    "OC1CCCC1",
    "CC(C)O",
    "c1ccoc1CC",
]


def domain_of(entry: data.StudyData) -> Domain:
    return import_module(f"consilience.domains.{entry.domain}.domain").DOMAIN


def prepared(entry: data.StudyData, collection: Collection) -> Prepared:
    return prepare(
        domain_of(entry), collection, tokenizer=entry.tokenizer, split=entry.split_of(collection, seed=1)
    )


def contents(collection: Collection) -> list[object]:
    """Something hashable a record that two records share when they are the same."""
    records = collection.records
    if hasattr(records, "counts"):
        starts = records.counts.indptr
        return [
            (records.counts.indices[a:b].tobytes(), records.counts.data[a:b].tobytes())
            for a, b in pairwise(starts)
        ]
    if hasattr(records, "flux"):
        return [row.tobytes() for row in records.flux]
    if hasattr(records, "positions"):
        return [cloud.positions.tobytes() for cloud in records]
    from rdkit import Chem

    return [Chem.CanonSmiles(smiles) for smiles in records]


def check(entry: data.StudyData, collection: Collection) -> Prepared:
    """What holds for every set."""
    assert len(collection) and entry.name in collection.source
    assert entry.records is None or len(collection) <= entry.records
    assert len(set(collection.ids.tolist())) == len(collection)
    assert collection.origin in ("real", "computed", "model", "simulated")
    ready = prepared(entry, collection)
    parts = ready.split.parts()
    assert all(len(part) for part in parts.values())
    groups, same = ready.collection.group_of, contents(ready.collection)
    held = {name: {str(group) for group in groups[part]} for name, part in parts.items()}
    assert not held["train"] & held["test"] and not held["train"] & held["validation"]
    assert not {same[i] for i in parts["train"]} & {same[i] for i in parts["test"]}
    tasks = {task.name: task for task in domain_of(entry).tasks(ready.collection)}
    for name in entry.tasks:
        column = ready.collection.labels[tasks[name].label]
        known = column != "" if column.dtype.kind == "U" else np.isfinite(column)
        assert known.any() and known[parts["test"]].any(), name
    few = ready.collection.take(np.arange(min(300, len(ready.collection))))
    name, features = domain_of(entry).baseline(few, np.arange(len(few) // 2))
    assert name and len(features) == len(few) and np.isfinite(features).all()
    return ready


# --- small files in the published layouts --------------------------------------------------------------------


def write_cells(path: Path, genes: list[str], kinds: list[str], n: int = 60, **columns: object) -> None:
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    counts = rng.poisson(2.0, (n, len(genes))).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": (kinds * n)[:n], **columns}, index=[f"{path.stem[:5]}{i}" for i in range(n)]
    )
    adata = ad.AnnData(X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))
    if "cite" in path.name:
        adata.obsm["protein"] = rng.normal(size=(n, 4)).astype(np.float32)
        adata.uns["protein_names_inferred"] = np.array(["CD3", "CD4", "CD8", "CD19"], dtype=object)
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)


def write_spectra(folder: Path) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir()
    n, width = 60, 96
    ivar = np.full((n, width), 4.0, dtype=np.float16)
    ivar[:, 3] = 0
    labels = {f"label_{name}": rng.normal(size=n).astype(np.float32) for name in galaxies.SIMULATED_LABELS}
    np.savez(
        folder / "galaxy_sim_bagpipes_20k.npz", wave_A=np.linspace(3600, 9000, width).astype(np.float32),
        flux=(rng.normal(5, 1, (n, width)) * (ivar > 0)).astype(np.float16), ivar=ivar,
        is_test=np.arange(n) % 5 == 0, **labels,
    )  # fmt: skip
    flux = rng.normal(0, 0.3, (n, width)).astype(np.float32)
    flux[:, :10], flux[:, -20:], flux[:, 40:46], flux[:, 60] = 0, 0, 0, 0
    flux[7, 30] = 2000
    np.savez(
        folder / "sn_spectra_snid_astrodash.npz", wave=np.geomspace(2500, 10000, width).astype(np.float32),
        flux=flux, type=np.array(["Ia-norm", "Ia-91bg", "IIb", "Ib-norm", "Ic-broad"] * 12),
        age=np.arange(n, dtype=np.float32), group=np.array([f"sn{i // 3}" for i in range(n)]),
        sn=np.array([f"sn{i // 3}" for i in range(n)]),
    )  # fmt: skip


def write_points(folder: Path) -> None:
    rng = np.random.default_rng(2)
    folder.mkdir(exist_ok=True)
    sizes = rng.integers(4, 9, 90)
    np.savez(
        folder / "qm9_3d_130831.npz", index=np.arange(1, 91), n_atoms=sizes.astype(np.uint8),
        z=rng.choice([1, 6, 8], sizes.sum()).astype(np.uint8),
        xyz_1e4A=rng.integers(-40000, 40000, (sizes.sum(), 3)).astype(np.int32),
        props=rng.normal(size=(90, 4)),
        prop_names=np.array(["HOMO_LUMO_gap_au", "HOMO_au", "LUMO_au", "Dipole_debye"]),
        smiles=np.array([(("C" * (i // 9)) + SMILES[i % 9]).encode() for i in range(90)]),
    )  # fmt: skip
    shapes = rng.random((70, 24, 24, 24)) < 0.05
    shapes[3], shapes[4], shapes[5] = False, shapes[0], False  # two empty ones, one double
    shapes[60], shapes[61] = shapes[1], True  # in the test part: one of the training part; one full cube
    packed = np.packbits(shapes.reshape(70, -1), axis=1)
    kinds = (np.arange(70) % 2).astype(np.uint8)
    np.savez(
        folder / "modelnet10_vox24_packed.npz", classes=np.array(["bed", "chair"]),
        vox_train=packed[:50], y_train=kinds[:50], vox_test=packed[50:], y_test=kinds[50:],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("data")
    genes = [f"G{i}" for i in range(30)]
    write_cells(top / data.SORTED_FILE, genes[4:], ["nk", "bcells", "monocytes", "memoryt", "cytotoxict"])
    write_cells(top / data.PBMC3K_FILE, genes[:28], ["NK", "B", "CD14+ Mono", "Memory CD4 T", "CD8 T", "DC"])
    write_cells(top / data.get("cite-cbmc").files[0], genes, ["B", "NK", "Mouse", "Multiplets"])
    split = ["test" if i % 5 == 0 else "train" for i in range(60)]
    write_cells(top / data.get("tabula-muris").files[0], genes, ["T cell", "B cell"], split=split)
    write_spectra(top / "galaxies")
    (top / "molecules" / "moleculenet").mkdir(parents=True)
    (top / "molecules" / "moses").mkdir()
    texts = [("C" * (i // 9)) + SMILES[i % 9] for i in range(90)]
    tables = {
        "moses/train.csv.gz": "SMILES\n" + "\n".join(texts) + "\n",
        "moleculenet/lipo.csv.gz": "smiles,lipo\n" + "".join(f"{s},{i / 9}\n" for i, s in enumerate(texts)),
        "moleculenet/bace.csv.gz": "mol,Class\n" + "".join(f"{s},{i % 2}\n" for i, s in enumerate(texts)),
    }
    for name, text in tables.items():
        (top / "molecules" / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    write_points(top / "points")
    return top


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIENCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONSILIENCE_DATA", raising=False)


@pytest.mark.parametrize("name", [name for name in NAMES if data.get(name).needs != "bundled"])
def test_every_set_is_read_from_its_layout(name: str, folder: Path) -> None:
    entry = data.get(name)
    ready = check(entry, entry.load(folder))
    if entry.split is not None:
        labels = ready.collection.labels
        held = labels.get(common.OFFICIAL, labels.get(common.STUDY))
        assert held is not None
        assert not set(held[ready.split.test]) & set(held[ready.split.train])


def test_the_folder_of_the_environment_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [entry.name for entry in data.available()] == ["photometry"]
    monkeypatch.setenv("CONSILIENCE_DATA", str(folder))
    assert [entry.name for entry in data.available()] == NAMES
    assert len(data.get("moses-slice").load()) == 90


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConsilienceError, match=r"lipo\.csv\.gz.*CONSILIENCE_DATA.*columns smiles and lipo"):
        data.get("moleculenet-lipo").load()
    with pytest.raises(ConsilienceError, match=r"modelnet10_vox24_packed\.npz is missing.*VoxNet"):
        data.get("modelnet10").load(tmp_path)
    with pytest.raises(ConsilienceError, match=r"consilience data fetch qm9.*points/qm9_3d_130831\.npz"):
        data.get("qm9").load(tmp_path)
    with pytest.raises(ConsilienceError, match="no folder"):
        data.available(tmp_path / "nowhere")
    with pytest.raises(ConsilienceError, match=r"unknown study data 'x'.*pbmc-sorted"):
        data.get("x")


def test_every_set_is_described() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for entry in data.SETS:
        assert entry.note and entry.tasks and entry.tokenizer and entry.licence
        assert (entry.fetch is not None) == (entry.needs == "fetched")
        assert bool(entry.files) == (entry.needs != "bundled")
        assert bool(entry.get) == (entry.needs == "folder")


# --- cells ---------------------------------------------------------------------------------------------------


def test_transfer_holds_the_shared_genes_and_one_vocabulary_of_labels(folder: Path) -> None:
    pair = cells.transfer_pair(folder / data.SORTED_FILE, folder / data.PBMC3K_FILE, seed=3)
    labels = pair.collection.labels
    assert pair.collection.records.genes.tolist() == [f"G{i}" for i in range(4, 28)]
    names = set(labels[common.COARSE_CELL_TYPE])
    assert names == {"B", "NK", "CD14+ monocyte", "CD4 T", "CD8 T"}
    assert "DC" not in set(labels["cell_type"])
    for split, test in ((pair.to_sorted, cells.SORTED), (pair.to_pbmc3k, cells.PBMC3K)):
        assert set(labels["study"][split.test]) == {test}
        rest = np.concatenate([split.train, split.validation])
        assert set(labels["study"][rest]) == {cells.SORTED, cells.PBMC3K} - {test}
        assert len(rest) + len(split.test) == len(pair.collection)
    row = np.flatnonzero(labels["study"] == cells.SORTED)[5]
    own = ad.read_h5ad(folder / data.SORTED_FILE)
    name = pair.collection.ids[row].removeprefix("sorted:")
    expected = own[name, [f"G{i}" for i in range(4, 28)]].X.toarray()
    assert np.array_equal(pair.collection.records.take([row]).counts.toarray(), expected)


def test_cite_drops_what_is_no_cell_and_keeps_proteins_beside_their_cells(folder: Path) -> None:
    path = folder / data.get("cite-cbmc").files[0]
    found, own = cells.cite_cbmc(path), ad.read_h5ad(path)
    assert set(found.labels["cell_type"]) == {"B", "NK"} and len(found) == 30
    protein = pd.DataFrame(own.obsm["protein"], index=own.obs_names)
    assert np.allclose(found.labels["CD8 protein"], protein.loc[found.ids, 2])


def test_cells_with_equal_counts_are_kept_once_for_training(tmp_path: Path) -> None:
    path = tmp_path / "muris.h5ad"
    write_cells(path, list("ABCDEF"), ["T cell", "B cell"], n=12, split=["test"] * 4 + ["train"] * 8)
    adata = ad.read_h5ad(path)
    dense = adata.X.toarray()
    dense[0] = dense[9]
    adata.X = sp.csr_matrix(dense)
    adata.write_h5ad(path)
    found = cells.tabula_muris(path)
    assert len(found) == 11 and found.ids[0] == adata.obs_names[1]
    adata.obs["split"] = "train"
    adata.write_h5ad(path)
    with pytest.raises(ConsilienceError, match=r"obs\.split must hold train and test"):
        cells.tabula_muris(path)


def test_genes_can_be_ordered_along_the_genome(tmp_path: Path) -> None:
    from consilience.domains.cells.data import read
    from consilience.tokenizers.cells import CellTokenizer

    path = tmp_path / "cells.h5ad"
    write_cells(path, list("ABCDEFG"), ["T"])
    with pytest.raises(ConsilienceError, match="order='genome' needs columns"):
        CellTokenizer.fit(read(path).records, order="genome")
    adata = ad.read_h5ad(path)
    adata.var["Chromosome"] = ["chrX", "10", "2", "2", "MT", "1", "Y"]
    adata.var["Start"] = [5, 1, 90, 10, 3, 1000, np.nan]
    adata.write_h5ad(path)
    records = read(path).records
    assert CellTokenizer.fit(records, order="genome").vocabulary == tuple("FDCBAEG")
    fitted = CellTokenizer.fit(records.load().take([3, 4, 5]), order="genome", max_vocabulary=4)
    assert [gene for gene in "FDCBAEG" if gene in fitted.vocabulary] == list(fitted.vocabulary)
    again = CellTokenizer.from_state(fitted.state())
    assert again.vocabulary == fitted.vocabulary and again.options.order == "genome"


# --- spectra -------------------------------------------------------------------------------------------------


def test_supernovae_zeros_are_not_measured_and_artefacts_are_cut(folder: Path) -> None:
    found = galaxies.supernovae(folder / "galaxies" / "sn_spectra_snid_astrodash.npz")
    measured = found.records.inverse_variance > 0
    assert not measured[:, :10].any() and not measured[:, -20:].any() and not measured[:, 40:46].any()
    assert measured[:, 60].all(), "a single zero inside is a measured flux"
    assert not measured[7, 30] and found.records.flux.max() <= galaxies.ARTEFACT
    sigma = 1 / np.sqrt(found.records.inverse_variance[measured])
    assert 0.15 < np.median(sigma) < 0.5, "the noise put in is 0.3"
    assert set(found.labels["broad_type"]) == {"Ia", "Ib", "Ic", "II"}
    assert len(set(found.group_of)) == 20


def test_simulated_galaxies_keep_the_published_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "galaxies" / "galaxy_sim_bagpipes_20k.npz"
    monkeypatch.setattr(galaxies, "SIMULATED_RECORDS", 30)
    found = galaxies.galaxies_simulated(path)
    rows = np.array([int(name.rsplit("-", 1)[1]) for name in found.ids])
    assert found.origin == "simulated" and len(found) == 30
    assert np.array_equal(found.labels[common.OFFICIAL] == "test", rows % 5 == 0)
    with np.load(path) as held:
        assert np.allclose(found.labels["redshift"], held["label_z"][rows])
    assert (found.records.inverse_variance[:, 3] == 0).all()


def test_photometry_is_a_spectrum_of_eight_bands() -> None:
    entry = data.get("photometry")
    found = entry.load()
    ready = check(entry, found)
    tokens = ready.tokenizer.encode(found.records.take(np.arange(4)))
    assert tokens.length.tolist() == [9] * 4
    back = ready.tokenizer.decode(tokens)[0]
    measured = found.records.inverse_variance[0] > 0
    assert np.array_equal(back.wavelength_angstrom, galaxies.BAND_ANGSTROM)
    assert np.allclose(back.flux[measured], found.records.flux[0][measured], rtol=1e-4)
    # r - J of galaxies (AB) lies near 1: optical and infrared fluxes are on one scale.
    per_hertz = found.records.flux * galaxies.BAND_ANGSTROM**2
    assert 10**0.2 < np.median(per_hertz[:, 5] / per_hertz[:, 2]) < 10**0.6


# --- molecules and points --------------------------------------------------------------------------------------


def test_slices_are_drawn_with_a_fixed_seed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molecules, "MOSES_RECORDS", 20)
    monkeypatch.setattr(points, "QM9_RECORDS", 20)
    read: dict[str, Callable[[], Collection]] = {
        "moses": lambda: molecules.moses_slice(folder / "molecules" / "moses"),
        "qm9": lambda: points.qm9(folder / "points" / "qm9_3d_130831.npz"),
    }
    for name, again in read.items():
        first, second = again(), again()
        assert len(first) == 20 and first.fingerprint == second.fingerprint, name
        assert first.ids.tolist() == second.ids.tolist(), name
    assert np.array_equal(common.draw(5, None), np.arange(5)) and np.array_equal(
        common.draw(5, 9), np.arange(5)
    )


def test_molecules_of_one_scaffold_are_one_group(folder: Path) -> None:
    for name in ("qm9", "moleculenet-lipo", "moses-slice"):
        groups = data.get(name).load(folder).group_of
        assert (groups == "c1ccccc1").sum() == 20, name


def test_shapes_are_surfaces_kept_once(folder: Path) -> None:
    found = points.modelnet10(folder / "points" / "modelnet10_vox24_packed.npz")
    kept = {int(name.rsplit("-", 1)[1]) for name in found.ids}
    assert kept == set(range(70)) - {3, 4, 5, 60}
    assert found.failures[0].id == "modelnet10-0003" and "no points" in found.failures[0].reason
    cube = found.records[int(np.flatnonzero(found.ids == "modelnet10-0061")[0])].positions
    assert len(cube) == points.SURFACE_POINTS
    assert (((cube == 0) | (cube == points.SIDE - 1)).any(axis=1)).all()
    assert len(np.unique(cube, axis=0)) == len(cube)


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    table, arrays = tmp_path / "lipo.csv.gz", tmp_path / "x.npz"
    table.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    np.savez(arrays, flux=np.ones((2, 3)))
    with pytest.raises(ConsilienceError, match=r"lipo\.csv\.gz: needs the columns smiles, lipo"):
        molecules.lipophilicity(table)
    with pytest.raises(ConsilienceError, match=r"x\.npz: no array `wave`"):
        galaxies.supernovae(arrays)
    with pytest.raises(ConsilienceError, match=r"x\.npz: no array `classes`"):
        points.modelnet10(arrays)


# --- a given split -------------------------------------------------------------------------------------------


def test_prepare_takes_a_given_split(folder: Path) -> None:
    entry = data.get("moleculenet-lipo")
    found = entry.load(folder)
    alone = prepare(domain_of(entry), found, split_seed=5)
    ready = prepare(domain_of(entry), found, split=alone.split)
    assert ready.tokenizer.state() == alone.tokenizer.state(), "the tokenizer is fitted on its training rows"
    part = Split(train=alone.split.train[1:], validation=[], test=alone.split.test)
    ready = prepare(domain_of(entry), found, split=part)
    assert len(ready.collection) == len(part.train) + len(part.test)
    assert ready.collection.ids[ready.split.test].tolist() == found.ids[part.test].tolist()
    assert ready.collection.ids[ready.split.train].tolist() == found.ids[part.train].tolist()


def test_prepare_removes_refused_records_from_a_given_split(folder: Path) -> None:
    entry = data.get("moleculenet-lipo")
    found = entry.load(folder)
    split = prepare(domain_of(entry), found).split
    ready = prepare(domain_of(entry), found, tokenizer={"max_length": 14}, split=split)
    assert ready.failures and len(ready.collection) + len(ready.failures) == len(found)
    kept = set(ready.collection.ids)
    expected = [name for name in found.ids[split.test] if name in kept]
    assert ready.collection.ids[ready.split.test].tolist() == expected


def test_prepare_refuses_a_split_that_does_not_fit(folder: Path) -> None:
    entry = data.get("supernovae")
    found = entry.load(folder)
    with pytest.raises(ConsilienceError, match="group 'sn0' in train and in test"):
        prepare(domain_of(entry), found, split=Split(train=[0], validation=[], test=[1]))
    with pytest.raises(ConsilienceError, match="names record 99, but there are 60"):
        prepare(domain_of(entry), found, split=Split(train=[0], validation=[], test=[99]))
    with pytest.raises(ConsilienceError, match="no training record"):
        prepare(domain_of(entry), found, split=Split(train=[], validation=[], test=[1]))
    with pytest.raises(ConsilienceError, match="leave out limit"):
        prepare(domain_of(entry), found, limit=3, split=Split(train=[0], validation=[], test=[5]))


# --- the real files ------------------------------------------------------------------------------------------

REAL_SIZES = {
    "pbmc-sorted": 2140,
    "pbmc3k-to-sorted": 4570,
    "sorted-to-pbmc3k": 4570,
    "cite-cbmc": 7713,
    "tabula-muris": 5000,
    "galaxies-simulated": 8000,
    "supernovae": 5341,
    "moses-slice": 1500,
    "moleculenet-lipo": 4200,
    "moleculenet-bace": 1513,
    "qm9": 6000,
    "modelnet10": 4628,
}


@pytest.mark.skipif(REAL is None, reason="set CONSILIENCE_TEST_DATA to a folder of data")
@pytest.mark.parametrize("name", REAL_SIZES)
def test_real_sets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molecules, "MOSES_RECORDS", 1500)  # scaffolds and QED take their time
    entry = data.get(name)
    assert REAL is not None
    try:
        entry.paths(Path(REAL))
    except ConsilienceError as error:
        pytest.skip(str(error))
    found = entry.load(Path(REAL))
    assert len(found) == REAL_SIZES[name]
    ready = check(entry, found)
    assert len(ready.failures) <= 6
    lengths = ready.tokenizer.lengths(ready.collection.records)
    assert lengths.max() <= 257
