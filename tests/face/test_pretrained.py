"""Models that come with the package are found by name, and nothing is written beside them."""

import json
import shutil

import numpy as np
import pytest
import torch

import consilience
from consilience import pretrained
from consilience.core.errors import ConsilienceError

NAMES = sorted(pretrained.shipped())


@pytest.fixture
def shipped(trained, tmp_path, monkeypatch):
    """A model of the package named `tiny`, in an empty working directory."""
    folder = tmp_path / "package" / "tiny"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md"):
        shutil.copy(trained / name, folder)
    monkeypatch.setattr(pretrained, "FOLDER", folder.parent)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_shipped_model_is_used_by_its_name(shipped, files, command, tmp_path) -> None:
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    done = command("embed", "tiny", files["molecules"], "--out", "e.parquet")
    assert done.code == 0, done.err
    done = command("generate", "tiny", "--n", 3, "--out", "new.smi")
    assert done.code == 0, done.err
    done = command("evaluate", "tiny", f"--data={files['molecules']}", "--tasks", "logP")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "work" / "runs" / "tiny" / "evaluation.json").read_text())
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == before


def test_a_folder_goes_before_a_shipped_model(shipped, trained, tmp_path) -> None:
    shutil.copytree(trained, tmp_path / "work" / "tiny")
    assert str(pretrained.model_folder("tiny")) == "tiny"
    assert pretrained.results_folder("tiny").name == "tiny"


def test_an_unknown_name_lists_what_there_is(shipped, command) -> None:
    shown = command("generate", "tinny", "--n", 3, "--out", "new.smi")
    assert (
        shown.code == 2 and "no model at tinny" in shown.err and "a model of this package: tiny" in shown.err
    )


def test_weights_in_half_precision(trained, tmp_path) -> None:
    whole = consilience.load(trained)
    whole.save(tmp_path / "half", dtype=torch.float16)
    half = consilience.load(tmp_path / "half")
    assert all(part.dtype == torch.float32 for part in half.state_dict().values())
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (trained, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    smiles = ["CCO", "c1ccccc1"]
    first, second = (consilience.embed(model, smiles).vectors for model in (whole, half))
    assert 0 < np.abs(first - second).max() < 0.02 * np.abs(first).max()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shipped_is_small_and_works(name) -> None:
    folder = pretrained.shipped()[name]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20 * 2**20
    model = consilience.load(name)
    assert model.provenance["outcome"]["interrupted"] is False
    assert len((folder / "README.md").read_text()) > 500


def test_a_core_that_ships_can_be_taken_over_by_its_name(tmp_path) -> None:
    with pytest.raises(ConsilienceError, match="molecules-small has width 192, this one 128"):
        consilience.train("molecules", out=tmp_path / "run", limit=60, init_core="molecules-small")
