"""`consilience tokenize` writes tokens once; training reads them as if they came from the records."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import consilience
from consilience import registry
from consilience.core.cache_plan import MANIFEST
from consilience.core.cache_writer import LOCK
from consilience.core.token_cache import TokenCache
from consilience.core.training import PreTraining


@pytest.fixture(scope="module")
def caches(files, tmp_path_factory) -> dict[str, TokenCache]:
    """A cache of each science's small file."""
    folder = tmp_path_factory.mktemp("caches")
    return {name: consilience.tokenize(name, data=path, out=folder / name) for name, path in files.items()}


def losses(run) -> list[tuple[str, str]]:
    with (run / "logs" / "csv" / "metrics.csv").open() as file:
        return [tuple(v for k, v in row.items() if k != "epoch") for row in csv.DictReader(file)]


@pytest.mark.parametrize("science", ["molecules", "galaxies"])
def test_training_from_the_cache_gives_the_losses_of_training_from_the_records(
    science, files, caches, tiny, tmp_path, command
) -> None:
    words = [word for word in tiny if "limit" not in word] + [
        "--training.steps=12",
        "--training.validations=3",
    ]
    for name, data in (("records", files[science]), ("cache", caches[science].folder)):
        done = command("train", science, f"--data={data}", f"--out={tmp_path / name}", *words)
        assert done.code == 0, done.err
    assert losses(tmp_path / "records") == losses(tmp_path / "cache") != []
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("cache", "records"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    run, other = (consilience.load(tmp_path / name).provenance for name in ("cache", "records"))
    kept = run["data"][science].pop("token_cache")
    assert kept == {"id": caches[science].id, "draws": 0} and run["data"] == other["data"]
    assert run["outcome"]["tokens"] == other["outcome"]["tokens"]


@pytest.mark.parametrize("science", ["cells", "points"])
def test_draws_are_kept_and_trained_on(science, files, write, tiny, tmp_path, command) -> None:
    counts = np.random.default_rng(0).poisson(0.2, (60, 90))  # most genes are silent: zeros are drawn
    data = write.cells(tmp_path / "c.h5ad", counts=counts) if science == "cells" else files[science]
    cache = consilience.tokenize(science, data=data, out=tmp_path / "cache")
    assert cache.plan.draws == 8
    part = cache.part("train")
    first, second = (part.tokens(np.arange(len(part)), draw) for draw in (0, 1))
    assert first.size == second.size and not torch.equal(first.values, second.values)
    words = [word for word in tiny if "limit" not in word]
    done = command("train", science, f"--data={cache.folder}", f"--out={tmp_path / 'run'}", *words)
    assert done.code == 0, done.err


def test_deterministic_tokens_are_those_of_inference(files, tmp_path) -> None:
    cache = consilience.tokenize("cells", data=files["cells"], out=tmp_path / "c", draws=0)
    table = registry.domain("cells").read(files["cells"]).records
    train = np.flatnonzero(cache.records()["part"] == "train")
    wanted = cache.plan.tokenizer.encode(table.take(train))
    found = cache.part("train").tokens(np.arange(len(train)), 0)
    for name in ("length", "values", "address", "given", "exposure"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def test_the_cache_knows_its_records(files, caches) -> None:
    columns = caches["molecules"].records()
    assert {"id", "part", "group", "label: logP"} <= columns.keys()
    counts = {name: int((columns["part"] == name).sum()) for name in ("train", "validation", "test")}
    assert counts == caches["molecules"].plan.parts
    for group in np.unique(columns["group"]):
        assert len(np.unique(columns["part"][columns["group"] == group])) == 1


def test_a_run_from_a_cache_resumes_and_is_evaluated_on_its_records(
    caches, tiny, tmp_path, command, monkeypatch
) -> None:
    words = [word for word in tiny if "limit" not in word] + ["--training.steps=8", "--training.workers=1"]
    words = ["train", "molecules", f"--data={caches['molecules'].folder}", *words]
    assert command(*words, "--out", tmp_path / "whole").code == 0
    original, done = PreTraining.training_step, []

    def acting(self, *args, **kwargs):
        if self.global_step == 3 and not done:
            done.append(os.kill(os.getpid(), signal.SIGINT))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PreTraining, "training_step", acting)
    assert command(*words, "--out", tmp_path / "run").code == 130
    assert command("train", "--out", tmp_path / "run", "--resume").code == 0
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert settings["data"] == [f"molecules={caches['molecules'].folder}"]
    shown = command("evaluate", tmp_path / "run", "--tasks", "logP")
    assert shown.code == 0, shown.err
    assert "held-out" in shown.out


def test_a_limit_reaches_the_evaluation(files, tiny, tmp_path, command) -> None:
    made = command(
        "tokenize", "molecules", "--data", files["molecules"], "--out", tmp_path / "c", "--limit=50"
    )
    assert made.code == 0 and "next: consilience train molecules --data" in made.out, made.err
    words = [word for word in tiny if "limit" not in word]
    done = command("train", "molecules", "--data", tmp_path / "c", "--out", tmp_path / "run", *words)
    assert done.code == 0, done.err
    assert command("evaluate", tmp_path / "run", "--tasks", "logP").code == 0


@pytest.mark.parametrize("cached", [False, True])
def test_shares_of_the_parts_reach_training_and_evaluation(cached, files, tiny, tmp_path, command) -> None:
    shares, data, words = ["--parts", "0.5", "0.2", "0.3"], files["molecules"], list(tiny)
    if cached:
        words = [word for word in tiny if "limit" not in word]
        data = tmp_path / "cache"
        made = command("tokenize", "molecules", f"--data={files['molecules']}", f"--out={data}", *shares)
        assert made.code == 0, made.err
    done = command(
        "train",
        "molecules",
        f"--data={data}",
        f"--out={tmp_path / 'run'}",
        *words,
        *([] if cached else shares),
    )
    assert done.code == 0, done.err
    about = consilience.load(tmp_path / "run").provenance["data"]["molecules"]
    assert abs(about["train"] / about["records"] - 0.5) < 0.05
    assert command("train", "--out", tmp_path / "run", "--resume", "--training.steps=5").code == 0
    shown = command("evaluate", tmp_path / "run", "--tasks", "logP")
    assert shown.code == 0, shown.err
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found[0]["data"]["split"] == about["split"]
    if cached:
        refusal = command("train", "molecules", f"--data={data}", f"--out={tmp_path / 'b'}", *words, *shares)
        assert refusal.code == 2 and "cannot be changed any more" in refusal.err


def test_a_run_without_test_records_says_so(files, tiny, tmp_path, command) -> None:
    train = ["train", "molecules", f"--data={files['molecules']}", *tiny]
    done = command(*train, f"--out={tmp_path / 'run'}", "--parts", "0.9", "0.1", "0")
    assert done.code == 0 and "next: consilience embed" in done.out  # there is nothing to evaluate on
    shown = command("evaluate", tmp_path / "run")
    assert shown.code == 2 and "name other data with --data" in shown.err
    shown = command(*train, f"--out={tmp_path / 'b'}", "--parts", "0.9", "0.2", "0")
    assert shown.code == 2 and "must add up to 1" in shown.err and shown.err.count("\n") == 1


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def test_a_killed_tokenize_goes_on_to_the_same_cache(files, tmp_path) -> None:
    words = [
        sys.executable,
        "-m",
        "consilience",
        "tokenize",
        "points",
        f"--data={files['points']}",
        "--draws=600",
    ]
    out = tmp_path / "killed"
    process = subprocess.Popen([*words, f"--out={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "train-0-00000.arrow").is_file() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(0.05)
    process.kill()
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*.arrow")}
    assert 0 < len(there) < 600 and not (out / MANIFEST).exists(), "killed too early or too late"
    with pytest.raises(
        consilience.ConsilienceError, match="unfinished token cache: run the same `consilience"
    ):
        consilience.train("points", data=out, out=tmp_path / "run")
    again = subprocess.run([*words, f"--out={out}"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert all((out / name).stat().st_mtime_ns == when for name, when in there.items()), "written twice"
    consilience.tokenize("points", data=files["points"], out=tmp_path / "whole", draws=600)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_cannot_be_used_is_said_in_one_line(files, caches, tiny, tmp_path, command) -> None:
    folder = caches["molecules"].folder
    words = [word for word in tiny if "limit" not in word]

    def refused(*more: object) -> str:
        shown = command(*more)
        assert shown.code == 2 and shown.err.count("\n") == 1, shown.err
        return shown.err

    train = ["train", "molecules", f"--data={folder}", f"--out={tmp_path / 'run'}", *words]
    assert "tokenizer options ({'max_length': 80}) cannot be changed any more" in refused(
        *train, "--tokenizer-options.max_length=80"
    )
    assert "a limit (20) cannot be changed any more" in refused(*train, "--limit=20")
    shown = refused("train", "points", f"--data={folder}", f"--out={tmp_path / 'run'}", *words)
    assert f"{folder} holds tokens of molecules, not of points" in shown
    tokenize = ["tokenize", "molecules", f"--data={files['molecules']}"]
    assert "with limit None, this asks for 7" in refused(*tokenize, f"--out={folder}", "--limit=7")
    assert "draws must not be negative, not -1" in refused(*tokenize, f"--out={tmp_path / 'c'}", "--draws=-1")
    assert "is not empty: choose another --out" in refused(*tokenize, f"--out={files['molecules'].parent}")
    assert "is a file: name a folder" in refused(*tokenize, f"--out={files['molecules']}")
    assert "shard_mib must be at least 1" in refused(*tokenize, f"--out={tmp_path / 'c'}", "--shard-mib=0")


def test_a_run_is_not_resumed_with_other_tokens(files, tiny, tmp_path, command) -> None:
    words = [word for word in tiny if "limit" not in word]
    for name, length in (("a", 90), ("b", 95)):
        options = {"max_length": length}
        consilience.tokenize(
            "molecules", data=files["molecules"], out=tmp_path / name, tokenizer_options=options
        )
    train = ["train", "molecules", f"--data={tmp_path / 'a'}", f"--out={tmp_path / 'run'}", *words]
    assert command(*train).code == 0
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    shown = command("train", f"--out={tmp_path / 'run'}", "--resume", "--training.steps=5")
    assert shown.code == 2 and "was written with another tokenizer than the run's" in shown.err
    (tmp_path / "a").rename(tmp_path / "b")
    options = {"max_length": 90}
    consilience.tokenize(
        "molecules", data=files["molecules"], out=tmp_path / "a", tokenizer_options=options, seed=1
    )
    shown = command("train", f"--out={tmp_path / 'run'}", "--resume", "--training.steps=5")
    assert shown.code == 2 and "resume with the same cache" in shown.err
