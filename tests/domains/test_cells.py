"""Cells as a domain: the bundled data, readers with every bad file, the baseline, writers and the figure."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.core.objectives import Masked, NextToken, Objective
from consilience.core.records import Collection, Failure
from consilience.domains.cells import data, evaluate, figure
from consilience.domains.cells.domain import DOMAIN
from consilience.domains.preparation import prepare
from consilience.tokenizers.cells import CellTable, CellTokenizer, StoredCounts

REAL = Path(os.environ.get("CONSILIENCE_TEST_DATA", "/nonexistent")) / "cells"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="CONSILIENCE_TEST_DATA has no folder `cells`")


def make_adata(n: int = 40, genes: int = 30, seed: int = 0) -> ad.AnnData:
    """Counts of two cell types in X (CSR)."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    mean = rng.lognormal(0, 1, (2, genes))
    counts = rng.poisson(mean[kind]).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(np.array(["T", "B"])[kind]), "age": rng.normal(size=n), "n_counts": 1.0},
        index=[f"bc{i}" for i in range(n)],
    )
    obs["n_counts"] = counts.sum(1)
    var = pd.DataFrame(
        {"ensembl": [f"ENSG{i:011d}.2" for i in range(genes)]}, index=[f"G{i}" for i in range(genes)]
    )
    return ad.AnnData(X=sp.csr_matrix(counts), obs=obs, var=var)


def logged(adata: ad.AnnData) -> sp.csr_matrix:
    """log1p(counts per 10,000)."""
    matrix = sp.csr_matrix(adata.X, copy=True)
    matrix.data = np.log1p(matrix.data * 1e4 / np.repeat(matrix.sum(1).A1, np.diff(matrix.indptr)))
    return matrix


def matrix_of(collection: Collection) -> np.ndarray:
    return collection.records.load().counts.toarray()


# --- bundled ---------------------------------------------------------------------------------------------


def test_bundled_counts_are_exact() -> None:
    import scanpy

    collection = DOMAIN.bundled()
    table = collection.records
    assert (len(collection), len(table.genes), collection.origin) == (700, 765, "real")
    assert len(np.unique(collection.labels["cell_type"])) == 10
    assert (table.counts.data == np.rint(table.counts.data)).all() and table.counts.data.min() >= 1
    raw = scanpy.datasets.pbmc68k_reduced().raw.X
    again = np.log1p(table.counts.toarray() / table.depth[:, None] * 1e4)
    assert np.abs(again - raw.toarray()).max() < 6e-4, "the file keeps three decimals"
    assert (table.depth > table.counts.sum(1)).all()
    assert len(set(collection.ids)) == 700
    assert collection.fingerprint == data.bundled().fingerprint


def test_tasks_start_with_cell_types() -> None:
    tasks = DOMAIN.tasks(DOMAIN.bundled())
    assert (tasks[0].name, tasks[0].label, tasks[0].kind) == ("cell type", "cell_type", "classification")
    kinds = {task.label: task.kind for task in tasks}
    assert kinds["louvain"] == "classification" and kinds["S_score"] == "regression"
    assert [task.label for task in tasks[-3:]] == ["n_genes", "percent_mito", "n_counts"]
    assert set(DOMAIN.quick.tasks) <= {task.name for task in tasks}


# --- readers ---------------------------------------------------------------------------------------------


def test_counts_in_x_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = make_adata(2000)
    adata.write_h5ad(tmp_path / "a.h5ad")
    rows: list[int] = []
    read = StoredCounts.read
    monkeypatch.setattr(
        StoredCounts, "read", lambda self, index: (rows.append(len(index)), read(self, index))[1]
    )
    collection = DOMAIN.read(tmp_path / "a.h5ad")
    assert rows == [256], "opening looks at a sample of the cells only"
    assert isinstance(collection.records.counts, StoredCounts) and collection.origin == "user"
    part = collection.take([5, 1])
    np.testing.assert_array_equal(matrix_of(part), adata.X.toarray()[[5, 1]])
    assert rows == [256, 2]
    assert part.ids.tolist() == ["bc5", "bc1"]
    assert part.labels["cell_type"].tolist() == adata.obs["cell_type"].iloc[[5, 1]].tolist()
    np.testing.assert_array_equal(part.labels["age"], adata.obs["age"].iloc[[5, 1]])


@pytest.mark.parametrize("place", ["counts", "raw"])
def test_counts_are_found_beside_a_normalised_x(place: str, tmp_path: Path) -> None:
    adata = make_adata()
    counts = adata.X.toarray()
    if place == "raw":
        adata.raw = adata.copy()
        adata = adata[:, :20].copy()
    else:
        adata.layers["counts"] = adata.X.copy()
    adata.X = logged(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    collection = DOMAIN.read(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(matrix_of(collection), counts)
    assert len(collection.records.genes) == 30
    with pytest.raises(ConsilienceError, match=r"a\.h5ad: cell 0 \(bc0\) has .* in X, which is not a count"):
        DOMAIN.read(tmp_path / "a.h5ad", layer="X")
    with pytest.raises(ConsilienceError, match=r"a\.h5ad has no layer 'umis'; it has X, "):
        DOMAIN.read(tmp_path / "a.h5ad", layer="umis")


def test_no_counts_anywhere(tmp_path: Path) -> None:
    adata = make_adata()
    adata.X = logged(adata)
    adata.write_h5ad(tmp_path / "log.h5ad")
    with pytest.raises(
        ConsilienceError, match=r"log\.h5ad: cell 0 .* in X, .*; raw counts .* no other matrix$"
    ):
        DOMAIN.read(tmp_path / "log.h5ad")
    adata.layers["mine"] = make_adata().X
    adata.write_h5ad(tmp_path / "mine.h5ad")
    with pytest.raises(ConsilienceError, match=r"40 of 40 .*layer= \(--read-options\.layer .*\): mine$"):
        DOMAIN.read(tmp_path / "mine.h5ad")
    assert len(DOMAIN.read(tmp_path / "mine.h5ad", layer="mine")) == 40
    del adata.layers["mine"]
    adata.X = -sp.csr_matrix(make_adata().X)
    adata.write_h5ad(tmp_path / "minus.h5ad")
    with pytest.raises(ConsilienceError, match=r"minus\.h5ad: cell 0 \(bc0\) has -\d+ in X"):
        DOMAIN.read(tmp_path / "minus.h5ad")


@pytest.mark.parametrize("layout", [sp.csc_matrix, np.asarray, sp.csr_matrix])
def test_every_layout_gives_the_same_cells(layout: type, tmp_path: Path) -> None:
    adata = make_adata()
    counts = adata.X.toarray()
    adata.X = counts if layout is np.asarray else layout(counts)
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(matrix_of(DOMAIN.read(tmp_path / "a.h5ad")), counts)


def test_empty_cells_become_failures(tmp_path: Path) -> None:
    adata = make_adata()
    counts = adata.X.toarray()
    counts[[3, 17]] = 0
    adata.X = sp.csr_matrix(counts)
    adata.write_h5ad(tmp_path / "a.h5ad")
    collection = DOMAIN.read(tmp_path / "a.h5ad")
    assert len(collection) == 38 and "bc3" not in collection.ids
    assert [(f.index, f.id) for f in collection.failures] == [(3, "bc3"), (17, "bc17")]
    assert "no counts" in collection.failures[0].reason
    np.testing.assert_array_equal(matrix_of(collection), np.delete(counts, [3, 17], axis=0))
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    adata.write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(ConsilienceError, match=r"none\.h5ad: no cell has any counts"):
        DOMAIN.read(tmp_path / "none.h5ad")


@pytest.mark.parametrize("value", [np.nan, np.inf, -3, 0.5])
@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_a_bad_cell_is_set_aside_and_the_others_go_on(value: float, layout: type, tmp_path: Path) -> None:
    adata = make_adata(600)
    counts = adata.X.toarray()
    counts[[21, 599], 3] = value  # the last cell is among those that are looked at on opening
    adata.X = layout(counts)
    adata.obs["depth"] = np.nan_to_num(counts.sum(1), posinf=0) + 100
    adata.obs = adata.obs.rename(columns={"n_counts": "before", "depth": "n_counts"})
    adata.write_h5ad(tmp_path / "a.h5ad")
    whole = DOMAIN.read(tmp_path / "a.h5ad")
    assert len(whole) == 600 and (value == 0.5 or whole.records.depth is not None)
    ready = prepare(DOMAIN, whole)
    assert [(f.index, f.id) for f in ready.failures] == [(21, "bc21"), (599, "bc599")]
    shown = rf"cell bc21 has {value:g} for gene G3, which is not a count; repair or drop the cell"
    assert re.fullmatch(shown, ready.failures[0].reason)
    assert len(ready.collection) == 598 and np.isfinite(ready.tokenizer.statistics.mean).all()


def test_a_clean_matrix_goes_before_one_with_bad_cells(tmp_path: Path) -> None:
    adata = make_adata()
    counts = adata.X.toarray()
    adata.layers["counts"] = adata.X.copy()
    adata.X[0, 0] = np.nan
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(matrix_of(DOMAIN.read(tmp_path / "a.h5ad")), counts)
    assert np.isnan(matrix_of(DOMAIN.read(tmp_path / "a.h5ad", layer="X"))[0, 0])


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix])
def test_damaged_indices_are_one_line(layout: type, tmp_path: Path) -> None:
    adata = make_adata()
    adata.X = layout(adata.X)
    for name, key, value in (("far", "indices", 10**6), ("less", "indices", -1), ("order", "indptr", 10**6)):
        path = tmp_path / f"{name}.h5ad"
        adata.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file[f"X/{key}"][1:4] = value
        with pytest.raises(ConsilienceError, match=rf"{name}\.h5ad: `X` is damaged: ") as caught:
            DOMAIN.read(path)
        assert "\n" not in str(caught.value)


def test_options_name_columns(tmp_path: Path) -> None:
    adata = make_adata()
    adata.obs["lineage"] = pd.Categorical(["x", None] * 20)
    adata.obs["barcode"] = adata.obs_names
    adata.obs_names = ["same"] * 40
    adata.write_h5ad(tmp_path / "a.h5ad")
    collection = DOMAIN.read(tmp_path / "a.h5ad", genes="ensembl", label="lineage", groups="cell_type")
    assert collection.records.genes[2] == "ENSG00000000002.2"
    assert collection.labels["cell_type"][:2].tolist() == ["x", ""]
    assert "barcode" not in collection.labels, "an identifier is no label"
    assert set(collection.group_of) == {"T", "B"}
    assert len(set(collection.ids)) == 40
    for option in ("genes", "label", "groups", "depth"):
        with pytest.raises(ConsilienceError, match=rf"{option}='nope' is no column of (obs|var); it has "):
            DOMAIN.read(tmp_path / "a.h5ad", **{option: "nope"})


def test_groups_and_depth_are_found(tmp_path: Path) -> None:
    adata = make_adata()
    adata.obs["donor"] = [f"d{i % 6}" for i in range(40)]
    adata.obs["batch"] = ["x", "y"] * 20
    adata[:, :10].copy().write_h5ad(tmp_path / "selection.h5ad")
    collection = DOMAIN.read(tmp_path / "selection.h5ad")
    assert set(collection.group_of) == {f"d{i}" for i in range(6)}
    np.testing.assert_array_equal(collection.records.total_counts(), adata.X.toarray().sum(1))
    del adata.obs["donor"]
    adata.write_h5ad(tmp_path / "whole.h5ad")
    collection = DOMAIN.read(tmp_path / "whole.h5ad")
    assert collection.groups is None and collection.records.depth is None
    adata.obs["mine"] = 1000.0
    adata.write_h5ad(tmp_path / "mine.h5ad")
    assert (DOMAIN.read(tmp_path / "mine.h5ad", depth="mine").records.total_counts() == 1000).all()


def test_files_that_are_none(tmp_path: Path) -> None:
    make_adata().write_h5ad(tmp_path / "good.h5ad")
    content = (tmp_path / "good.h5ad").read_bytes()
    (tmp_path / "empty.h5ad").touch()
    (tmp_path / "cut.h5ad").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5ad").write_text("gene,cell\n")
    make_adata()[:0].copy().write_h5ad(tmp_path / "nobody.h5ad")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["spectrum"] = np.ones(3)
    (tmp_path / "cells.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    ad.AnnData(obs=make_adata().obs, var=make_adata().var).write_h5ad(tmp_path / "nothing.h5ad")
    unnamed = ad.AnnData(obs=make_adata().obs, var=make_adata().var, layers={"spliced": make_adata().X})
    unnamed.write_h5ad(tmp_path / "unnamed.h5ad")
    (tmp_path / "folder.h5ad").mkdir()
    for folder, names in {
        "bare": ["matrix.mtx"],
        "plain": ["matrix.mtx", "features.tsv", "barcodes.tsv"],
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    shutil.copy(tmp_path / "good.h5ad", tmp_path / "no10x.h5")
    for name, message in {
        "missing.h5ad": "does not exist",
        "empty.h5ad": "is empty",
        "cut.h5ad": "cannot be read as an .h5ad file",
        "text.h5ad": "cannot be read as an .h5ad file",
        "other.h5ad": "cannot be read as an .h5ad file",
        "nobody.h5ad": "holds 0 cells",
        "nothing.h5ad": "holds no matrix: neither X, nor layers, nor raw",
        "unnamed.h5ad": r"no matrix is named X, raw or counts; name it with layer= .*: spliced$",
        "folder.h5ad": "folder.h5ad is a folder, not an .h5ad file",
        "bare": r"bare cannot be read as a 10x folder: it lacks genes\.tsv and barcodes\.tsv",
        "plain": "compress its files with gzip",
        "cells.csv": "cells are read from .h5ad, 10x .h5",
        "folder": "cannot be read as a 10x folder",
        "no10x.h5": "cannot be read as a 10x .h5 file",
    }.items():
        with pytest.raises(ConsilienceError, match=message) as caught:
            DOMAIN.read(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_10x_folder_and_h5(tmp_path: Path) -> None:
    adata = make_adata()
    counts = adata.X.toarray().astype(int)
    genes, barcodes = adata.var_names.tolist(), adata.obs_names.tolist()
    folder = tmp_path / "mtx"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(counts.T))
    (folder / "genes.tsv").write_text("".join(f"{e}\t{g}\n" for e, g in zip(adata.var["ensembl"], genes)))
    (folder / "barcodes.tsv").write_text("".join(f"{barcode}\n" for barcode in barcodes))
    by_row = sp.csr_matrix(counts)
    with h5py.File(tmp_path / "tenx.h5", "w") as file:
        group = file.create_group("matrix")
        group["shape"] = np.array(counts.T.shape)
        group["barcodes"] = np.array(barcodes, dtype="S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(by_row, name)
        features = {"id": adata.var["ensembl"], "name": genes, "feature_type": ["Gene Expression"] * 30}
        features["genome"] = ["x"] * 30
        for name, column in features.items():
            group[f"features/{name}"] = np.array(list(column), dtype="S")
    for path in (folder, tmp_path / "tenx.h5"):
        collection = DOMAIN.read(path)
        np.testing.assert_array_equal(matrix_of(collection), counts)
        assert collection.records.genes.tolist() == genes and collection.ids.tolist() == barcodes
        assert DOMAIN.read(path, genes="gene_ids").records.genes[0] == "ENSG00000000000.2"
        with pytest.raises(ConsilienceError, match=r"layer='counts' is for \.h5ad"):
            DOMAIN.read(path, layer="counts")
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(-counts.T))
    with pytest.raises(ConsilienceError, match=r"cell 0 \(bc0\) has -\d+ in the matrix, .* no other matrix$"):
        DOMAIN.read(folder)


# --- baseline --------------------------------------------------------------------------------------------


def test_baseline_is_fitted_on_training_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "HVG", 20)
    adata = make_adata(60)
    train = np.arange(40)

    def collection(counts: np.ndarray) -> Collection:
        table = CellTable(counts=sp.csr_array(counts), genes=adata.var_names.to_numpy(dtype=str))
        ids = np.arange(60).astype(str)
        return Collection(records=table, ids=ids, source="x", origin="simulated", fingerprint="")

    counts = adata.X.toarray()
    name, features = evaluate.baseline(collection(counts), train)
    assert name == "log1p, 20 variable genes + PCA(19)" and features.shape == (60, 19)
    changed = counts.copy()
    changed[40:] *= np.arange(1, 31)
    _, other = evaluate.baseline(collection(changed), train)
    np.testing.assert_allclose(features[:40], other[:40], atol=1e-5)
    assert np.abs(features[40:] - other[40:]).max() > 0.1
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    kept = np.sort(np.argsort(-values[:40].var(0))[:20])
    centred = values[:, kept] - values[:40, kept].mean(0)
    scores = np.abs(centred @ np.linalg.svd(centred[:40], full_matrices=False)[2][:5].T)
    np.testing.assert_allclose(np.abs(features[:, :5]), scores, atol=1e-3)
    with pytest.raises(ConsilienceError, match="a PCA needs two training cells"):
        evaluate.baseline(collection(counts), train[:1])


def test_baseline_stays_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_adata(80).write_h5ad(tmp_path / "a.h5ad")
    collection = DOMAIN.read(tmp_path / "a.h5ad")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a sparse matrix was made dense")

    for kind in (sp.csr_array, sp.csr_matrix, sp.csc_array, sp.csc_matrix):
        monkeypatch.setattr(kind, "toarray", refuse)
    assert evaluate.baseline(collection, np.arange(60))[1].shape == (80, 29)


# --- writers ---------------------------------------------------------------------------------------------


def embedding_of(
    collection: Collection, index: list[int], failures: tuple[Failure, ...] = ()
) -> SimpleNamespace:
    vectors = np.arange(len(index) * 3, dtype=np.float32).reshape(-1, 3) + 1
    return SimpleNamespace(
        vectors=vectors, ids=collection.ids[index], index=np.array(index, dtype=np.int64), failures=failures
    )


def test_embedding_goes_into_a_copy_of_the_file(tmp_path: Path) -> None:
    adata = make_adata()
    counts = adata.X.toarray()
    counts[3] = 0
    adata.X = sp.csr_matrix(counts)
    adata.layers["other"], adata.uns["note"], adata.obsm["X_pca"] = adata.X.copy(), "kept", np.ones((40, 2))
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    collection = DOMAIN.read(tmp_path / "a.h5ad").take(np.arange(39)[::-1])
    failed = Failure(index=6, id=str(collection.ids[6]), reason="it broke")
    embedding = embedding_of(collection, [i for i in range(39) if i != 6], (failed,))
    DOMAIN.write_embedding(collection, embedding, tmp_path / "new" / "b.h5ad")
    back = ad.read_h5ad(tmp_path / "new" / "b.h5ad")
    assert (tmp_path / "a.h5ad").read_bytes() == before
    place = {name: row for row, name in enumerate(back.obs_names)}
    rows = [place[name] for name in embedding.ids]
    np.testing.assert_array_equal(back.obsm["X_consilience"][rows], embedding.vectors)
    lost = np.setdiff1d(np.arange(40), rows)
    assert np.isnan(back.obsm["X_consilience"][lost]).all() and back.obsm["X_consilience"].dtype == np.float32
    reasons = back.obs["consilience_failure"].astype(str)
    assert reasons[failed.id] == "it broke" and (reasons.iloc[rows] == "").all()
    assert back.uns["note"] == "kept" and back.obs["cell_type"].tolist() == adata.obs["cell_type"].tolist()
    np.testing.assert_array_equal(back.layers["other"].toarray(), counts)
    assert list(back.obsm) == ["X_consilience", "X_pca"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.h5ad"]


def test_complete_embedding_adds_no_column(tmp_path: Path) -> None:
    make_adata().write_h5ad(tmp_path / "a.h5ad")
    collection = DOMAIN.read(tmp_path / "a.h5ad")
    DOMAIN.write_embedding(collection, embedding_of(collection, list(range(40))), tmp_path / "b.h5ad")
    back = ad.read_h5ad(tmp_path / "b.h5ad")
    assert "consilience_failure" not in back.obs and np.isfinite(back.obsm["X_consilience"]).all()
    with pytest.raises(ConsilienceError, match="is the input itself"):
        DOMAIN.write_embedding(collection, embedding_of(collection, [0]), tmp_path / "a.h5ad")
    with pytest.raises(ConsilienceError, match=r"written as \.h5ad or \.parquet"):
        DOMAIN.write_embedding(collection, embedding_of(collection, [0]), tmp_path / "b.csv")
    make_adata(10).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ConsilienceError, match="has no cell 'bc10' any more"):
        DOMAIN.write_embedding(collection, embedding_of(collection, list(range(40))), tmp_path / "c.h5ad")
    assert not (tmp_path / "c.h5ad").exists() and not list(tmp_path.glob(".*"))


def test_embedding_of_other_sources(tmp_path: Path) -> None:
    collection = DOMAIN.bundled().take(np.arange(20))
    embedding = embedding_of(collection, list(range(1, 20)))
    DOMAIN.write_embedding(collection, embedding, tmp_path / "b.h5ad")
    back = ad.read_h5ad(tmp_path / "b.h5ad")
    assert back.obs["cell_type"].tolist() == collection.labels["cell_type"].tolist()
    assert np.isnan(back.obsm["X_consilience"][0]).all() and back.obs["consilience_failure"].iloc[0] != ""
    DOMAIN.write_embedding(collection, embedding, tmp_path / "b.parquet")
    frame = pd.read_parquet(tmp_path / "b.parquet")
    numbers = ["embedding_0", "embedding_1", "embedding_2"]
    assert frame.columns.tolist() == ["id", *collection.labels, *numbers]
    assert frame["id"].tolist() == collection.ids[1:].tolist()
    assert frame["cell_type"].tolist() == collection.labels["cell_type"][1:].tolist()
    np.testing.assert_array_equal(frame[numbers].to_numpy(), embedding.vectors)


def test_generated_cells_can_be_read_again(tmp_path: Path) -> None:
    table = DOMAIN.bundled().records.take(np.arange(30))
    tokenizer = CellTokenizer.fit(table, max_genes=50)
    cells = tokenizer.decode(tokenizer.encode(table))
    DOMAIN.write_records(cells, tmp_path / "new.h5ad", columns={"seed": np.zeros(30)})
    back = DOMAIN.read(tmp_path / "new.h5ad", depth="depth")
    np.testing.assert_array_equal(matrix_of(back), cells.counts.toarray())
    np.testing.assert_array_equal(back.records.total_counts(), table.depth)
    assert back.ids[0] == "generated-1" and (back.labels["seed"] == 0).all()
    with pytest.raises(ConsilienceError, match="column 'seed' has 2 entries for 30 cells"):
        DOMAIN.write_records(cells, tmp_path / "new.h5ad", columns={"seed": [1, 2]})
    with pytest.raises(ConsilienceError, match=r"written as \.h5ad, not '\.csv'"):
        DOMAIN.write_records(cells, tmp_path / "new.csv")


# --- figure ----------------------------------------------------------------------------------------------


def test_figure_shows_held_out_cells_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    collection = DOMAIN.bundled()
    test = np.arange(0, 700, 10)
    monkeypatch.setattr(figure, "_umap", lambda vectors: np.asarray(vectors)[:, :2])
    tokenizer = CellTokenizer.fit(
        collection.records.take(np.setdiff1d(np.arange(700), test)), max_vocabulary=40
    )
    embedded: list[list[str]] = []

    class Fake:
        def __init__(self, objective: Objective) -> None:
            self.objective = objective

        def embed(self, records: CellTable, *, domain: str) -> SimpleNamespace:
            embedded.append(records.names.tolist())
            vectors = np.random.default_rng(0).normal(size=(len(records), 4))
            return SimpleNamespace(vectors=vectors, index=np.arange(len(records)))

        def generate(self, n: int, *, domain: str, seed: int, steps: int | None) -> CellTable:
            assert (steps is not None) == isinstance(self.objective, Masked)
            return tokenizer.decode(tokenizer.encode(collection.records.take(np.arange(n))))

    drawn = DOMAIN.figure({"masked": Fake(Masked()), "next-token": Fake(NextToken())}, collection, test)
    assert embedded == [collection.ids[test].tolist()] * 2
    titles = [axis.get_title() for axis in drawn.axes]
    assert titles[0].startswith("masked") and titles[2].startswith("log1p + PCA(50)")
    assert len(drawn.legends[0].get_texts()) == len(np.unique(collection.labels["cell_type"][test]))
    assert sum(len(points.get_offsets()) for points in drawn.axes[0].collections) == 70
    drawn.savefig(tmp_path / "figure.png")


def test_purity_and_detection() -> None:
    types = np.array(["a"] * 20 + ["b"] * 20)
    apart = np.r_[
        np.random.default_rng(0).normal(size=(20, 2)), 100 + np.random.default_rng(1).normal(size=(20, 2))
    ]
    assert figure.purity(apart, types) == 1
    assert figure.purity(apart, np.random.default_rng(0).permutation(types)) < 0.8
    table = CellTable(counts=sp.csr_array([[1, 0, 3], [0, 0, 2]]), genes=np.array(["x", "y", "z"]))
    assert figure.detection(table, np.array(["z", "x", "w"])).tolist() == [1.0, 0.5, 0.0]


# --- real files ------------------------------------------------------------------------------------------


@needs_real
def test_pbmc3k_from_disk() -> None:
    collection = DOMAIN.read(REAL / "pbmc3k_2638x13714_counts_celltypes.h5ad")
    assert len(collection) == 2638 and isinstance(collection.records.counts, StoredCounts)
    assert len(np.unique(collection.labels["cell_type"])) == 9
    tokenizer = CellTokenizer.fit(collection.records.take(np.arange(0, 2638, 5)), max_vocabulary=2000)
    tokens = tokenizer.encode(collection.records.take(np.arange(100)))
    markers = {"CD3D", "LYZ", "CD79A", "NKG7"}
    assert markers <= set(tokenizer.vocabulary) and int(tokens.length.min()) > 50
    np.testing.assert_array_equal(
        collection.records.take(np.arange(100)).total_counts(), collection.labels["n_counts"][:100]
    )


@needs_real
def test_mouse_and_human_do_not_match_in_silence() -> None:
    human = DOMAIN.read(REAL / "zheng2017_sorted_pbmc_2140x8863_counts_facslabels.h5ad")
    mouse = DOMAIN.read(REAL / "tabula_muris_facs_deepchem_5000x2000_counts_celltypes.h5ad")
    tokenizer = CellTokenizer.fit(human.records.take(np.arange(200)))
    report = tokenizer.match(mouse.records)
    assert report.by_case > 0.9 * report.matched and "another species" in report.report()


@needs_real
def test_fractional_counts_are_refused() -> None:
    with pytest.raises(ConsilienceError, match=r"panc8.*is not a count"):
        DOMAIN.read(REAL / "panc8_sample_1000x1000_counts_celltypes_5tech.h5ad")
