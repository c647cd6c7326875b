"""Files read in pieces give the ids, labels, failures and vectors of files read as a whole, to the bit."""

import gzip
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import consilience
from consilience import registry
from consilience.core import embed as core_embed
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked
from consilience.core.transformer import CoreConfig


def smiles(path: Path, lines: list[str]) -> Path:
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


STRINGS = [
    "CCO",
    "nonsense",
    "c1ccccc1",
    "CC(=O)O",
    "CCN",
    "",
    "CCCC",
    "C1CC1",
    "OCC",
    "N",
    "CCCCCO",
    "ClCCBr",
]


def molecules(folder: Path, kind: str) -> Path:
    good = [text for text in STRINGS if text]
    if kind == "smi":
        return smiles(folder / "a.smi", [f"{text} m{i}" for i, text in enumerate(good)])
    if kind == "same-names":
        return smiles(folder / "a.smi.gz", [f"{text} m{i // 2}" for i, text in enumerate(good)])
    if kind == "header":
        rows = [f"{text}\t{i}\t{'x' if i == 9 else i}" for i, text in enumerate(good)]
        return smiles(folder / "a.txt", ["# made by hand", "smiles\tlogD\tmixed", *rows])
    frame = pd.DataFrame(
        {
            "smiles": STRINGS,
            "name": [f"m{i}" for i in range(12)],
            "late": [None] * 8 + [1.5] * 4,
            "pIC50": np.arange(12) / 3,
            "mixed": ["1"] * 9 + ["a", "b", "c"],
            "never": [None] * 12,
        }
    )
    path = folder / f"a.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    return path


def points(folder: Path, kind: str) -> Path:
    rng = np.random.default_rng(0)
    frames = []
    for i in range(14):
        n = 1 if i in (3, 4, 5, 6) else 3 + i % 3  # one atom is no cloud
        atoms = [
            f"{'CNO'[j % 3]} {x:.3f} {y:.3f} {z:.3f}" for j, (x, y, z) in enumerate(rng.normal(size=(n, 3)))
        ]
        name = "same" if kind == "same-names" and i > 10 else f"p{i}"
        said = f"name={name} energy={i / 7} note={'a' if i == 12 else i}"
        frames += [str(n), said, *(["C x y z"] if i == 9 else atoms[:1]), *atoms[1:]]
    path = folder / "a.xyz"
    path.write_text("\n".join(frames) + "\n")
    return path


def galaxies(folder: Path, kind: str) -> Path:
    rng = np.random.default_rng(0)
    flux = rng.normal(5, 1, (14, 64)).astype(np.float32)
    weight = np.ones((14, 64), np.float32)
    weight[[4, 9]] = 0
    frame = pd.DataFrame(
        {
            "flux": list(flux),
            "wavelength": [np.linspace(4000, 8000, 64)] * 14,
            "ivar": list(weight),
            "redshift": rng.uniform(0.1, 0.2, 14),
            "constant": 1.0,
            "class": ["a"] * 10 + ["b"] * 4,
            "odd": [None] * 13 + ["x"],
        }
    )
    if kind == "named":
        frame["id"] = [f"g{i}" for i in range(14)]
    frame.to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def cells(folder: Path, kind: str) -> Path:
    import scipy.sparse as sp

    counts = np.random.default_rng(0).poisson(1.5, (14, 30)).astype(np.float32)
    counts[[3, 8]] = 0
    counts[:, 29] = 0
    if kind == "spoiled":  # a cell that expresses no gene of the vocabulary
        counts[5], counts[5, 29] = 0, 3
    obs = pd.DataFrame(
        {"cell_type": np.array(["T", "B"])[np.arange(14) % 2]}, index=[f"c{i}" for i in range(14)]
    )
    made = anndata.AnnData(
        X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{j}" for j in range(30)])
    )
    made.write_h5ad(folder / "a.h5ad")
    return folder / "a.h5ad"


CASES = [
    *((molecules, kind) for kind in ("smi", "same-names", "header", "csv", "parquet")),
    *((points, kind) for kind in ("plain", "same-names")),
    *((galaxies, kind) for kind in ("plain", "named")),
    (cells, "plain"),
]


@pytest.mark.parametrize(("make", "kind"), CASES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("size", [1, 3, 100])
def test_pieces_are_the_whole(make: Any, kind: str, size: int, tmp_path: Path) -> None:
    path = make(tmp_path, kind)
    science = registry.domain(make.__name__)
    whole = science.read(path)
    pieces = list(science.stream(path, size))
    assert [len(piece.collection) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert np.concatenate([piece.collection.ids for piece in pieces]).tolist() == whole.ids.tolist()
    failures = [failure for piece in pieces for failure in piece.collection.failures]
    assert failures == list(whole.failures)
    total = len(whole) + len(failures)
    places = np.concatenate([piece.places for piece in pieces])
    assert sorted([*places.tolist(), *(failure.index for failure in failures)]) == list(range(total))
    for piece in pieces:
        assert list(piece.collection.labels) == list(whole.labels)
    for name, column in whole.labels.items():
        np.testing.assert_array_equal(np.concatenate([p.collection.labels[name] for p in pieces]), column)


def model_of(science: Any, records: Any) -> FoundationModel:
    torch.manual_seed(0)
    options = {"max_vocabulary": 29} if science.name == "cells" else {}
    tokenizer = science.tokenizer.fit(records, **options)
    return FoundationModel(CoreConfig(width=16, depth=1, heads=2), {science.name: tokenizer}, Masked()).eval()


@pytest.mark.parametrize(("make", "kind"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_vectors_of_a_stream(make: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_embed, "CHUNK", 4)
    path = make(tmp_path, kind)
    science = registry.domain(make.__name__)
    whole = science.read(path)
    model = model_of(science, whole.records)
    expected = consilience.embed(model, whole)
    out = tmp_path / "out.parquet"
    found = consilience.embed(model, path, out=out)
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    np.testing.assert_array_equal(model.embed(whole.records).vectors, expected.vectors)
    assert found.ids.tolist() == expected.ids.tolist()
    frame = pd.read_parquet(out)
    assert frame["id"].tolist() == found.ids.tolist()
    np.testing.assert_array_equal(frame.filter(like="embedding_").to_numpy(), found.vectors)
    at_once = tmp_path / "whole.parquet"
    science.write_embedding(whole, expected, at_once)
    pd.testing.assert_frame_equal(frame, pd.read_parquet(at_once), check_exact=True)


def test_vectors_in_a_copy_of_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stand where the file has their cells, NaN where a cell failed, and nothing else changes."""
    monkeypatch.setattr(core_embed, "CHUNK", 4)
    path = cells(tmp_path, "spoiled")
    science = registry.domain("cells")
    model = model_of(science, science.read(cells(tmp_path, "plain")).records)
    cells(tmp_path, "spoiled")
    (tmp_path / "b").mkdir()
    whole, streamed = tmp_path / "whole.h5ad", tmp_path / "b" / "streamed.h5ad"
    found = consilience.embed(model, path, out=streamed)
    assert [failure.index for failure in found.failures] == [3, 5, 8]
    back, before = anndata.read_h5ad(streamed), anndata.read_h5ad(path)
    np.testing.assert_array_equal(back.obsm["X_consilience"][found.index], found.vectors)
    assert np.isnan(back.obsm["X_consilience"][[3, 5, 8]]).all()
    reasons = back.obs["consilience_failure"].astype(str)
    assert (reasons.iloc[found.index] == "").all() and all(reasons.iloc[[3, 5, 8]])
    np.testing.assert_array_equal(back.X.toarray(), before.X.toarray())
    collection = science.read(path)
    science.write_embedding(collection, model.embed(collection.records, ids=collection.ids), whole)
    np.testing.assert_array_equal(anndata.read_h5ad(whole).obsm["X_consilience"], back.obsm["X_consilience"])
    assert anndata.read_h5ad(whole).obs.equals(back.obs)
    assert sorted(held.name for held in (tmp_path / "b").iterdir()) == [
        "streamed.h5ad",
        "streamed.h5ad.failures.csv",
    ]


def test_a_stream_of_nothing_readable(tmp_path: Path) -> None:
    science = registry.domain("molecules")
    model = model_of(science, ["CCO", "CCN"])
    path = smiles(tmp_path / "a.smi", ["nonsense", "worse"])
    with pytest.raises(ConsilienceError, match="holds no readable record"):
        consilience.embed(model, path, out=tmp_path / "b.parquet")
    assert [held.name for held in tmp_path.iterdir()] == ["a.smi"]


def test_precision(tmp_path: Path) -> None:
    science = registry.domain("molecules")
    model = model_of(science, ["CCO", "CCN", "CCCCCCCCO"])
    exact = model.embed(["CCO", "CCN"]).vectors
    rough = model.embed(["CCO", "CCN"], precision="bf16-mixed").vectors
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(exact, rough, atol=0.05)
    with pytest.raises(ConsilienceError, match="known: 32-true, bf16-mixed"):
        model.embed(["CCO"], precision="fp8")  # type: ignore[arg-type]
