"""The commands, end to end on small files: train, embed, generate, evaluate, tokens, data, help."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

import consilience
from consilience import cli


def vectors(path) -> np.ndarray:
    frame = pd.read_parquet(path)
    return frame[[name for name in frame if name.startswith("embedding_")]].to_numpy()


def core_of(folder) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("core.")}


def test_train_writes_a_run(trained) -> None:
    assert {
        "model.safetensors",
        "config.json",
        "README.md",
        "settings.yaml",
        "failures.csv",
        "last.ckpt",
    } <= {path.name for path in trained.iterdir()}
    assert list(trained.glob("logs/csv/metrics.csv")) and list(trained.glob("logs/tensorboard/events*"))
    model = consilience.load(trained)
    assert model.objective.name == "next-token" and model.core_config.width == 16
    outcome = model.provenance["outcome"]
    assert outcome["steps"] == 3 and not outcome["interrupted"] and outcome["validation"]["molecules"] > 0


def test_settings_of_a_run_are_a_config(trained, tmp_path, command) -> None:
    settings = yaml.safe_load((trained / "settings.yaml").read_text())
    assert settings["core"]["width"] == 16 and settings["limit"] == 60
    again = command("train", "--config", trained / "settings.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert yaml.safe_load((tmp_path / "again" / "settings.yaml").read_text()) == settings
    for name, tensor in load_file(trained / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "again" / "model.safetensors")[name])


def test_options_on_the_command_line_beat_the_config(trained, tmp_path, command) -> None:
    words = ["train", "--config", trained / "settings.yaml", "--out", tmp_path / "a", "--training.seed=1"]
    assert command(*words, "--tokenizer-options.max-length", "80").code == 0
    settings = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text())
    assert settings["training"]["seed"] == 1
    assert settings["tokenizer_options"] == {"molecules": {"max_length": 80}}
    assert consilience.load(tmp_path / "a").tokenizers["molecules"].options.max_length == 80


@pytest.mark.parametrize("science", ["cells", "galaxies", "points"])
def test_each_science_trains_embeds_and_evaluates(science, files, tiny, tmp_path, command) -> None:
    run, out = tmp_path / "run", tmp_path / ("e.h5ad" if science == "cells" else "e.parquet")
    assert command("train", science, f"--data={files[science]}", f"--out={run}", *tiny).code == 0
    assert command("embed", run, files[science], "--out", out).code == 0
    if science == "cells":
        import anndata

        assert anndata.read_h5ad(out).obsm["X_consilience"].shape == (60, 16)
    else:
        assert vectors(out).shape == (60, 16)
    shown = command("evaluate", run)
    assert shown.code == 0, shown.err
    (found,) = json.loads((run / "evaluation.json").read_text())
    assert found["domain"] == science and found["trained_on"] and found["kind"] == "surrogate"
    assert "surrogate loss, not a likelihood" in shown.out
    rows = {row["features"] for row in found["rows"]}
    assert {"majority / mean", "random-init core", "this model (masked)"} < rows and len(rows) == 4


def test_evaluate_uses_the_split_of_training(trained, command) -> None:
    shown = command("evaluate", trained, "--tasks", "logP")
    assert shown.code == 0, shown.err
    (found,) = json.loads((trained / "evaluation.json").read_text())
    before = consilience.load(trained).provenance["data"]["molecules"]
    assert found["data"]["split"] == before["split"] and found["trained_on"]
    assert {row["score"]["task"] for row in found["rows"]} == {"logP"}
    assert "negative log-likelihood, exact" in shown.out and "logP" in shown.out


def test_evaluate_on_other_data_says_so(trained, write, tmp_path, command) -> None:
    lines = write.molecules(tmp_path / "other.smi").read_text().splitlines()
    (tmp_path / "other.smi").write_text("\n".join(lines[:50]))
    shown = command("evaluate", trained, "--data", tmp_path / "other.smi")
    assert shown.code == 0 and "not trained on" in shown.out
    (found,) = json.loads((trained / "evaluation.json").read_text())
    assert not found["trained_on"] and found["data"]["source"].endswith("other.smi")


def test_several_sciences_share_one_core(files, tiny, tmp_path, command, monkeypatch) -> None:
    from consilience.core.training import PreTraining

    reached: dict[str, set[str]] = {}
    step = PreTraining.training_step

    def watched(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        weights = {n: p for n, p in self.model.core.named_parameters()}
        gradients = torch.autograd.grad(
            loss["loss"], list(weights.values()), retain_graph=True, allow_unused=True
        )
        moved = {n for n, g in zip(weights, gradients) if g is not None and g.abs().sum() > 0}
        reached.setdefault(batch[0], set()).update(moved)
        return loss

    monkeypatch.setattr(PreTraining, "training_step", watched)
    run = tmp_path / "both"
    words = ["train", "molecules", "points", "--objective=masked", f"--data=molecules={files['molecules']}"]
    words += [f"--data=points={files['points']}", "--weights={points: 2}", f"--out={run}", *tiny]
    assert command(*words, "--training.steps=12").code == 0
    assert reached["molecules"] == reached["points"] and any(
        "qkv" in n or "attention" in n for n in reached["points"]
    )
    model = consilience.load(run)
    assert model.domains == ("molecules", "points")
    assert sum(name.startswith("core.") for name in load_file(run / "model.safetensors")) == len(core_of(run))
    embedded = command("embed", run, files["points"], "--out", tmp_path / "p.parquet", "--domain", "points")
    assert embedded.code == 0 and len(vectors(tmp_path / "p.parquet")) == 60
    asked = command("embed", run, files["points"], "--out", tmp_path / "q.parquet")
    assert asked.code == 2 and "domain" in asked.err


def test_core_of_one_science_starts_another(trained, files, tiny, tmp_path, command, monkeypatch) -> None:
    from consilience.domains import pretraining

    begun: dict[str, torch.Tensor] = {}
    fit = pretraining.fit

    def watched(model, *args, **kwargs):
        begun.update({f"core.{n}": p.detach().clone() for n, p in model.core.named_parameters()})
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(pretraining, "fit", watched)
    words = [
        "train",
        "points",
        f"--data={files['points']}",
        f"--out={tmp_path / 'p'}",
        "--init-core",
        trained,
    ]
    assert command(*words, *tiny).code == 0
    taken = core_of(trained)
    assert begun.keys() <= taken.keys() and all(torch.equal(begun[name], taken[name]) for name in begun)


def test_embedding_does_not_depend_on_batches_or_order(trained, files, tmp_path, command) -> None:
    def embed(name: str, source, *words: str) -> pd.DataFrame:
        shown = command("embed", trained, source, "--out", tmp_path / f"{name}.parquet", *words)
        assert shown.code == 0, shown.err
        return pd.read_parquet(tmp_path / f"{name}.parquet").set_index("id").filter(like="embedding_")

    first, second = embed("a", files["molecules"]), embed("b", files["molecules"])
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    single = embed("c", files["molecules"], "--batch-size", "1")
    np.testing.assert_allclose(single, first, atol=1e-5)
    turned = tmp_path / "turned.smi"
    turned.write_text("\n".join(reversed(files["molecules"].read_text().splitlines())))
    np.testing.assert_allclose(embed("d", turned).loc[first.index], first, atol=1e-5)
    assert np.abs(embed("e", files["molecules"], "--pool", "last") - first).to_numpy().max() > 1e-3


def test_embed_in_chunks(trained, files, tmp_path, command, monkeypatch) -> None:
    from consilience.core import embed

    whole = consilience.embed(trained, files["molecules"])
    monkeypatch.setattr(embed, "CHUNK", 7)
    parts = consilience.embed(trained, files["molecules"])
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-5)
    assert parts.ids.tolist() == whole.ids.tolist() and parts.index.tolist() == whole.index.tolist()


def test_failed_records_are_listed_and_the_others_kept(trained, files, tmp_path, command) -> None:
    good = files["molecules"].read_text().splitlines()[:5]
    (tmp_path / "mixed.smi").write_text("\n".join(["nonsense a", *good, "[Pu] b"]) + "\n")
    out = tmp_path / "mixed.parquet"
    shown = command("embed", trained, tmp_path / "mixed.smi", "--out", out)
    assert shown.code == 0 and "2 failed" in shown.out.splitlines()[-1]
    failures = pd.read_csv(tmp_path / "mixed.parquet.failures.csv")
    assert failures["index"].tolist() == [0, 6] and failures["id"].tolist() == ["a", "b"]
    assert "nonsense" in failures["reason"][0] and "[Pu]" in failures["reason"][1]
    assert len(pd.read_parquet(out)) == 5
    command("embed", trained, files["molecules"], "--out", out)
    assert not (tmp_path / "mixed.parquet.failures.csv").exists()


def test_generate(trained, tmp_path, command) -> None:
    words = ["generate", trained, "--n", "5", "--batch-size", "2", "--seed", "3", "--temperature", "0.8"]
    assert command(*words, "--out", tmp_path / "a.smi").code == 0
    assert command(*words, "--out", tmp_path / "b.smi").code == 0
    assert command(*words[:-1], "0.3", "--out", tmp_path / "c.smi").code == 0
    made = (tmp_path / "a.smi").read_text()
    assert len(made.splitlines()) == 5 and made == (tmp_path / "b.smi").read_text()
    assert made != (tmp_path / "c.smi").read_text()
    assert consilience.generate(trained, 2, seed=3) == consilience.load(trained).generate(2, seed=3)


def test_tokens(trained, files, command) -> None:
    assert "C C O <eos>" in command("tokens", "molecules", "CCO").out
    assert "C C O <eos>" in command("tokens", "molecules", "CCO", "--model", trained).out
    first, second = (command("tokens", "points", files["points"], "--row", row).out for row in (0, 1))
    assert first and second and first != second
    beyond = command("tokens", "points", files["points"], "--row", "60")
    assert beyond.code == 2 and "rows 0 to 59" in beyond.err


def test_rows_of_tokens_are_those_of_the_file(write, tmp_path, command) -> None:
    counts = np.random.default_rng(0).poisson(1.5, (30, 30))
    counts[:3] = 0
    cells = write.cells(tmp_path / "a.h5ad", counts=counts)
    assert command("tokens", "cells", cells, "--row", 3).out.startswith("cell cell-3: ")
    flux = np.random.default_rng(0).normal(5.0, 1.0, (8, 96))
    flux[1] = np.nan
    spectra = write.spectra(tmp_path / "a.npz", 8, flux=flux)
    assert command("tokens", "galaxies", spectra, "--row", 7).code == 0
    good, bad = "3\n\nC 0 0 0\nO 0 0 2\nN 0 3 0\n", "3\n\nXx 0 0 0\nO 0 0 2\nN 0 3 0\n"
    (tmp_path / "a.xyz").write_text(good + bad + good.replace("3\n\n", "4\n\nC 5 5 5\n", 1))
    assert command("tokens", "points", tmp_path / "a.xyz", "--row", 2).out.startswith("4 tokens")
    for science, name, row, why, rows in [
        ("cells", "a.h5ad", 1, "(cell-1) cannot be read: the cell has no counts", 30),
        ("galaxies", "a.npz", 1, "every flux is NaN", 8),
        ("points", "a.xyz", 1, "unknown element 'Xx'", 3),
    ]:
        shown = command("tokens", science, tmp_path / name, "--row", row)
        assert shown.code == 2 and f"{name}: row {row} (" in shown.err and why in shown.err, shown.err
        shown = command("tokens", science, tmp_path / name, "--row", rows)
        assert shown.code == 2 and f"rows 0 to {rows - 1}" in shown.err


def test_train_counts_what_it_sets_aside(files, tiny, tmp_path, command) -> None:
    good = files["molecules"].read_text().splitlines()[:12]
    (tmp_path / "a.smi").write_text(
        "\n".join(["nonsense a", *good[:6], "C" * 90 + " b", *good[6:], "( c"]) + "\n"
    )
    words = ["train", "molecules", "--out", tmp_path / "run", *tiny[:-1], "--tokenizer-options.max_length=80"]
    shown = command(*words, f"--data={tmp_path / 'a.smi'}")
    said = " ".join(shown.err.split())
    assert shown.code == 0 and said.count("set aside") == 1
    assert (
        "3 of 15 records set aside, see" in said and "failures.csv; first: line 1: RDKit cannot read" in said
    )
    assert len(pd.read_csv(tmp_path / "run" / "failures.csv")) == 3
    (tmp_path / "good.smi").write_text("\n".join(good) + "\n")
    shown = command(*words[:2], "--out", tmp_path / "whole", *words[4:], f"--data={tmp_path / 'good.smi'}")
    assert shown.code == 0 and "set aside" not in shown.err


def test_data(tmp_path, command) -> None:
    listed = command("data", "list", "--cache", tmp_path)
    assert listed.code == 0 and all(
        name in listed.out for name in ("moses", "qm9", "core-mof", "not fetched")
    )
    missing = command("data", "fetch", "qm", "--cache", tmp_path)
    assert missing.code == 2 and "did you mean 'qm9'" in missing.err
    with zipfile.ZipFile(tmp_path / "molsets-0.3.1-py3-none-any.whl", "w"):
        pass
    damaged = command("data", "fetch", "moses", "--cache", tmp_path / "cache", "--data-dir", tmp_path)
    assert damaged.code == 2 and "SHA-256" in damaged.err and damaged.err.count("\n") == 1


def test_study_passes_its_options_on(monkeypatch, tmp_path, command) -> None:
    import consilience.study

    asked = {}

    def run_study(preset, out, **options):
        asked.update(options, preset=preset, out=out)
        return out / "report.html"

    monkeypatch.setattr(consilience.study, "run_study", run_study)
    shown = command("study", "--out", tmp_path, "--seeds", 1, "--settings", "cells", "points", "--steps", 5)
    assert shown.code == 0 and str(tmp_path / "report.html") in shown.out
    assert asked["preset"] == "quick" and asked["settings"] == ["cells", "points"] and asked["steps"] == 5


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command(name, command) -> None:
    shown = command(name, "--help")
    assert shown.code == 0 and shown.out.startswith(f"usage: consilience {name}") and "None" not in shown.out
    assert name in command("--help").out


def test_script_and_version_in_a_process_of_their_own() -> None:
    words = [sys.executable, "-m", "consilience.domains.points.train", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and shown.stdout.startswith("usage: consilience train"), shown.stderr
    words = [sys.executable, "-m", "consilience", "--version"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert shown.stdout.strip() == f"consilience {consilience.__version__}"


def test_training_script(files, tiny, tmp_path) -> None:
    from consilience.domains.script import train_script

    assert train_script("points", [f"--data={files['points']}", f"--out={tmp_path / 'run'}", *tiny]) == 0
    assert consilience.load(tmp_path / "run").domains == ("points",)
