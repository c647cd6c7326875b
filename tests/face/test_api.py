"""The Python face: quick to import, the same functions as the commands, records as well as files."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import consilience
from consilience import ConsilienceError, CoreConfig, FoundationModel
from consilience.core.objectives import Masked

HEAVY = (
    "torch",
    "scanpy",
    "anndata",
    "rdkit",
    "astropy",
    "ase",
    "kcorrect",
    "sklearn",
    "pandas",
    "jsonargparse",
)


def test_import_is_quick_and_light() -> None:
    code = (
        "import sys, time; begin = time.process_time(); import consilience, consilience.cli;"
        "print(time.process_time() - begin); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    seconds, modules = shown.stdout.splitlines()
    assert float(seconds) < 0.5
    assert not set(HEAVY) & set(modules.split())


def test_names() -> None:
    assert set(consilience.__all__) <= set(dir(consilience))
    for name in consilience.__all__:
        assert getattr(consilience, name) is not None
    assert consilience.study.run_study is consilience.run_study
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        consilience.trian  # noqa: B018


def test_train_load_embed_generate(files, tmp_path) -> None:
    run = consilience.train(
        "molecules",
        objective="next-token",
        data=files["molecules"],
        out=tmp_path / "run",
        core={"width": 16, "depth": 1, "heads": 2},
        training=consilience.TrainingConfig(steps=2, tokens_per_batch=256, validations=0),
        limit=60,
        progress=False,
    )
    assert run.outcome.steps == 2 and len(run.prepared["molecules"].collection) == 60
    model = consilience.load(tmp_path / "run")
    found = model.embed(["CCO", "c1ccccc1"])
    assert found.vectors.shape == (2, 16)
    np.testing.assert_array_equal(consilience.embed(model, ["CCO", "c1ccccc1"]).vectors, found.vectors)
    made = consilience.generate(model, 3)
    assert len(made) == 3 and all(isinstance(text, str) for text in made)
    assert "<eos>" in consilience.tokens("molecules", "CCO", model=tmp_path / "run")


def test_embed_reports_failures_in_place(trained) -> None:
    found = consilience.embed(trained, ["CCO", "[Pu]", "CC"])
    assert found.index.tolist() == [0, 2] and [failure.index for failure in found.failures] == [1]
    assert found.vectors.shape == (2, 16) and np.isfinite(found.vectors).all()


def test_embed_counts_rows_of_the_file(trained, tmp_path) -> None:
    (tmp_path / "a.smi").write_text("nonsense a\nCCO b\n[Pu] c\nCC d\n")
    found = consilience.embed(trained, tmp_path / "a.smi", out=tmp_path / "a.parquet")
    assert found.index.tolist() == [1, 3] and found.ids.tolist() == ["b", "d"]
    assert [failure.index for failure in found.failures] == [0, 2]
    assert pd.read_parquet(tmp_path / "a.parquet")["id"].tolist() == ["b", "d"]


def test_embed_a_collection_and_layers(trained, files) -> None:
    from consilience import registry

    collection = registry.domain("molecules").read(files["molecules"])
    whole = consilience.embed(trained, files["molecules"])
    np.testing.assert_array_equal(consilience.embed(trained, collection).vectors, whole.vectors)
    assert not np.allclose(consilience.embed(trained, collection, layer=0).vectors, whole.vectors)
    with pytest.raises(ConsilienceError, match="layer must be -1"):
        consilience.embed(trained, collection, layer=2)
    with pytest.raises(ConsilienceError, match="unknown pool"):
        consilience.embed(trained, collection, pool="median")


def untrained(science: str, records, **options) -> FoundationModel:
    """A small model of any objective, to be given records."""
    tokenizer = consilience.registry.domain(science).tokenizer.fit(records, **options)
    return FoundationModel(CoreConfig(width=16, depth=1, heads=2), {science: tokenizer}, Masked())


def test_an_anndata_is_read_as_its_file(files, tmp_path) -> None:
    import anndata

    adata = anndata.read_h5ad(files["cells"])
    model = untrained("cells", consilience.registry.domain("cells").read(files["cells"]).records)
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    adata.obs["total_counts"] = np.asarray(adata.layers["counts"].sum(1)).ravel() + 7
    adata.layers["counts"][3] = 0
    adata.write_h5ad(tmp_path / "a.h5ad")
    whole = consilience.embed(model, tmp_path / "a.h5ad")
    for found in (consilience.embed(model, adata), model.embed(adata), model.embed(adata[:, :])):
        np.testing.assert_array_equal(found.vectors, whole.vectors)
        assert found.ids.tolist() == whole.ids.tolist() and found.ids[0] == "cell-0"
        assert [(f.index, f.id) for f in found.failures] == [(3, "cell-3")]
    consilience.embed(model, adata, out=tmp_path / "b.h5ad")
    back = anndata.read_h5ad(tmp_path / "b.h5ad")
    assert (
        back.obs_names.tolist() == adata.obs_names.tolist() and np.isnan(back.obsm["X_consilience"][3]).all()
    )
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_array_equal(model.embed(backed).vectors, whole.vectors)
    assert (
        model.embed(adata[:0]).vectors.shape == consilience.embed(model, adata[:0]).vectors.shape == (0, 16)
    )
    with pytest.raises(ConsilienceError, match="AnnData given holds no matrix"):
        model.embed(anndata.AnnData(obs=adata.obs, var=adata.var))
    normalised = anndata.AnnData(X=adata.X, obs=adata.obs, var=adata.var, layers={"mine": adata.X})
    with pytest.raises(
        ConsilienceError, match=r"raw counts are needed: .*copy the right one to layers.*: mine$"
    ):
        model.embed(normalised)


@pytest.mark.parametrize("science", ["cells", "galaxies", "molecules", "points"])
def test_what_is_no_record_is_told_in_one_line(science, files) -> None:
    import anndata

    records = consilience.registry.domain(science).read(files[science]).records
    model = untrained(science, records)
    other = ["CCO"] if science != "molecules" else [np.ones(3)]
    wrong = [
        other,
        {"a": 1},
        pd.DataFrame({"a": [1.0]}),
        [{"flux": [1.0]}],
        3,
        (text for text in ["C"]),
        [None],
    ]
    wrong += [] if science == "cells" else [anndata.AnnData(np.ones((2, 3)))]
    for given in wrong:
        for embed in (model.embed, lambda given: consilience.embed(model, given)):
            with pytest.raises(ConsilienceError, match=f"^{science}: pass an? .*, not ") as caught:
                embed(given)
            assert "\n" not in str(caught.value)
    for given in (None, "CCO"):
        with pytest.raises(ConsilienceError, match=f"^{science}: pass "):
            model.embed(given)
    assert model.embed([]).vectors.shape == consilience.embed(model, []).vectors.shape == (0, 16)
    if science != "cells":
        mixed = [None, records[0], {"flux": 1}]
        for found in (model.embed(mixed), consilience.embed(model, mixed)):
            assert found.index.tolist() == [1] and [failure.index for failure in found.failures] == [0, 2]


def test_records_that_are_all_bad_give_no_vectors(trained) -> None:
    model = consilience.load(trained)
    for found in (model.embed(["nonsense", "[Pu]"]), consilience.embed(model, ["nonsense", "[Pu]"])):
        assert found.vectors.shape == (0, 16) and [failure.index for failure in found.failures] == [0, 1]


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("embed", {"layer": "a"}),
        ("embed", {"layer": 0.5}),
        ("embed", {"batch_size": "a"}),
        ("embed", {"ids": 3}),
        ("generate", {"n": 2.5}),
        ("generate", {"n": "a"}),
        ("generate", {"n": 2, "temperature": "a"}),
        ("generate", {"n": 2, "top_k": 1.5}),
        ("generate", {"n": 2, "top_p": "a"}),
        ("generate", {"n": 2, "guidance": "a"}),
        ("generate", {"n": 2, "seed": 1.5}),
        ("generate", {"n": 2, "batch_size": 1.5}),
    ],
)
def test_options_of_another_type(how, options, trained) -> None:
    model = consilience.load(trained)
    with pytest.raises(ConsilienceError, match=list(options)[-1]):
        model.embed(["CCO"], **options) if how == "embed" else model.generate(**options)


def test_resume_must_be_asked_with_the_same_settings(trained, files) -> None:
    with pytest.raises(ConsilienceError, match="was trained with objective next-token"):
        consilience.train("molecules", data=files["molecules"], out=trained, resume=True)
    with pytest.raises(ConsilienceError, match="nothing to resume"):
        consilience.resume("nowhere")


def test_wrong_options(tmp_path) -> None:
    with pytest.raises(ConsilienceError, match="did you mean 'width'"):
        consilience.train("molecules", out=tmp_path / "x", core={"widht": 16})
    with pytest.raises(ConsilienceError, match="several sciences"):
        consilience.train(["molecules", "points"], out=tmp_path / "x", data="a.smi")
    with pytest.raises(ConsilienceError, match="several sciences"):
        consilience.train(["molecules", "points"], out=tmp_path / "x", tokenizer_options={"max_length": 9})
    assert not (tmp_path / "x").exists()


def test_options_and_files_by_science() -> None:
    from consilience.commands.choices import file_words, options_by_science, parse_files

    assert parse_files(["cells=a", "points=b", "cells=c"]) == {"cells": "c", "points": "b"}
    assert parse_files(["cells=a", "b"]) == "b" and parse_files(["./x=1.smi"]) == "./x=1.smi"
    assert parse_files(file_words({"cells": "a"})) == {"cells": "a"} and file_words(None) == []
    nested = {"cells": {"view": "ranks"}}
    assert options_by_science(nested, ["cells", "points"], "o") == nested
    assert options_by_science(nested | {"zeros": "none"}, ["cells"], "o") == {
        "cells": {"view": "ranks", "zeros": "none"}
    }


def test_a_science_of_ones_own(trained, tmp_path, monkeypatch) -> None:
    """A dotted path is found again when the model is used, from the settings beside it."""
    import types

    from consilience.domains.molecules.domain import MoleculesDomain

    plugin = types.ModuleType("my_science")
    plugin.DOMAIN = type("Mine", (MoleculesDomain,), {"name": "mine"})()
    monkeypatch.setitem(sys.modules, "my_science", plugin)
    (tmp_path / "a.smi").write_text("\n".join(f"{'C' * n}O m{n}" for n in range(1, 21)))
    tiny = {"width": 16, "depth": 1, "heads": 2}
    consilience.train(
        "my_science:DOMAIN",
        data=tmp_path / "a.smi",
        out=tmp_path / "run",
        core=tiny,
        training={"steps": 1, "validations": 0},
        progress=False,
    )
    assert consilience.load(tmp_path / "run").domains == ("mine",)
    assert len(consilience.embed(tmp_path / "run", tmp_path / "a.smi").vectors) == 20
    (found,) = consilience.evaluate(tmp_path / "run")
    assert found.domain == "mine" and found.trained_on
    model = consilience.load(tmp_path / "run")
    assert len(consilience.embed(model, tmp_path / "a.smi", domain="my_science:DOMAIN").vectors) == 20
