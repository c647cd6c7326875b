"""The Python face: quick to import, the same functions as the commands, records as well as files."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import consilience
from consilience import ConsilienceError

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
