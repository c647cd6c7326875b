"""Ctrl-C leaves a usable checkpoint, and a resumed run ends with the weights of one that was never stopped."""

import csv
import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

import consilience
import consilience.cli
from consilience.core.training import LAST, PreTraining

STEPS = 8


@pytest.fixture(scope="module")
def words(files, tiny) -> list[str]:
    return ["train", "molecules", f"--data={files['molecules']}", *tiny, f"--training.steps={STEPS}"]


@pytest.fixture(scope="module")
def uninterrupted(words, tmp_path_factory) -> tuple[dict[str, torch.Tensor], int]:
    """Weights, and the number of tokens they were trained on."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert consilience.cli.main([*words, f"--out={folder}"]) == 0
    return trained_in(folder)


def trained_in(folder) -> tuple[dict[str, torch.Tensor], int]:
    return load_file(folder / "model.safetensors"), consilience.load(folder).provenance["outcome"]["tokens"]


def at_step(step: int, act, monkeypatch, where: str = "training_step") -> None:
    """Act once, when `step` steps are done and the next one is under way."""
    original, done = getattr(PreTraining, where), []

    def acting(self, *args, **kwargs):
        if self.global_step == step and not done:
            done.append(True)
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PreTraining, where, acting)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stop() -> None:
    raise KeyboardInterrupt


def check_resumed(command, folder, uninterrupted) -> None:
    resumed = command("train", "--out", folder, "--resume")
    assert resumed.code == 0, resumed.err
    weights, tokens = uninterrupted
    found, counted = trained_in(folder)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in found)
    outcome = consilience.load(folder).provenance["outcome"]
    assert outcome["steps"] == STEPS and not outcome["interrupted"]
    assert counted == tokens, "of all sittings"


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_and_resume(workers, words, uninterrupted, tmp_path, command, monkeypatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    at_step(3, ctrl_c, monkeypatch)
    stopped = command(*words, "--out", tmp_path / "run", f"--training.workers={workers}")
    assert stopped.code == 130 and "Traceback" not in stopped.err
    message = stopped.err.splitlines()[-1]
    assert str(tmp_path / "run" / LAST) in message and f"--out {tmp_path / 'run'} --resume" in message
    assert "step 4 of 8" in message  # the step under way was finished
    assert signal.getsignal(signal.SIGINT) is before  # Ctrl-C works again afterwards
    state = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert state["global_step"] == 4
    half = consilience.load(tmp_path / "run")
    assert half.embed(["CCO"]).vectors.shape == (1, 16) and half.provenance["outcome"]["interrupted"]
    check_resumed(command, tmp_path / "run", uninterrupted)


def held_out(folder) -> dict[int, float]:
    """Step -> held-out loss, over all sittings."""
    found = {}
    for path in sorted((folder / "logs").glob("csv*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row.get("validation/molecules"):
                    found[int(row["step"])] = float(row["validation/molecules"])
    return found


def test_held_out_losses_do_not_depend_on_an_interrupt(words, tmp_path, command, monkeypatch) -> None:
    """They are measured at the same steps: a step that was cut short is not counted twice."""
    often = [*words, "--training.validations=4"]
    assert command(*often, "--out", tmp_path / "whole").code == 0
    at_step(5, stop, monkeypatch)
    assert command(*often, "--out", tmp_path / "run").code == 130
    assert command("train", "--out", tmp_path / "run", "--resume").code == 0
    expected = held_out(tmp_path / "whole")
    assert len(expected) == 4
    assert held_out(tmp_path / "run") == expected


def test_interrupt_within_a_step(words, uninterrupted, tmp_path, command, monkeypatch) -> None:
    at_step(5, stop, monkeypatch)
    assert command(*words, "--out", tmp_path / "run").code == 130
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["global_step"] == 5
    check_resumed(command, tmp_path / "run", uninterrupted)


def test_half_an_update_is_not_saved(words, uninterrupted, tmp_path, command, monkeypatch) -> None:
    def tear(self, optimizer, *args, **kwargs):
        if self.global_step == 5 and not torn:
            torn.append(True)
            with torch.no_grad():
                next(iter(self.model.core.parameters())).add_(1)
            raise KeyboardInterrupt

    torn: list[bool] = []
    monkeypatch.setattr(PreTraining, "on_before_optimizer_step", tear)
    assert command(*words, "--out", tmp_path / "run", "--training.save_every=2").code == 130 and torn
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["global_step"] == 4
    check_resumed(command, tmp_path / "run", uninterrupted)


def test_interrupt_before_the_first_step(words, uninterrupted, tmp_path, command, monkeypatch) -> None:
    import consilience.domains.pretraining as pretraining

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "fit", lambda *args, **kwargs: stop())
        stopped = command(*words, "--out", tmp_path / "run")
    assert stopped.code == 130 and not (tmp_path / "run" / LAST).exists() and "--resume" in stopped.err
    check_resumed(command, tmp_path / "run", uninterrupted)


def test_resume_from_python(words, uninterrupted, tmp_path, command, monkeypatch) -> None:
    at_step(2, ctrl_c, monkeypatch)
    assert command(*words, "--out", tmp_path / "run").code == 130
    done = consilience.resume(tmp_path / "run", progress=False)
    assert not done.outcome.interrupted
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(found[name], uninterrupted[0][name]) for name in found)


def test_several_sciences_resume(files, tiny, tmp_path, command, monkeypatch) -> None:
    words = ["train", "molecules", "points", f"--data=molecules={files['molecules']}", *tiny]
    words += [f"--data=points={files['points']}", "--training.steps=8", "--training.optimizer=muon"]
    assert command(*words, "--out", tmp_path / "whole").code == 0
    at_step(4, ctrl_c, monkeypatch)
    assert command(*words, "--out", tmp_path / "run").code == 130
    check_resumed(command, tmp_path / "run", trained_in(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--training.seed=7"], "training.seed"),
        (["--core.width=32"], "core.width"),
        (["--limit=50"], "limit"),
        (["--objective=masked-diffusion"], "objective"),
        (["--tokenizer-options.max_length=90"], "max_length"),
    ],
)
def test_another_run_cannot_be_resumed(changed, named, trained, command) -> None:
    refused = command("train", "--out", trained, "--resume", *changed)
    assert refused.code == 2 and named in refused.err and refused.err.startswith("error: ")


def test_a_finished_run_can_go_on_longer(words, tmp_path, command) -> None:
    assert command(*words, "--out", tmp_path / "run").code == 0
    assert command("train", "--out", tmp_path / "run", "--resume", "--training.steps=10").code == 0
    assert consilience.load(tmp_path / "run").provenance["outcome"]["steps"] == 10
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["training"]["steps"] == 10
    again = command("train", "--out", tmp_path / "run", "--resume")
    assert again.code == 0 and "10 steps" in again.out


def test_a_stopped_run_of_a_study_leaves_no_result(tmp_path, monkeypatch) -> None:
    from consilience.core.training_config import TrainingConfig
    from consilience.core.transformer import CoreConfig
    from consilience.study import Setting, StudyPreset
    from consilience.study.runner import compute
    from consilience.study.variants import variants

    setting = Setting(
        name="galaxies",
        domain="galaxies",
        variants=variants("masked"),
        tokenizer={"patch_size": 64},
        records=60,
    )
    preset = StudyPreset(
        name="small",
        core=CoreConfig(width=16, depth=1, heads=2),
        training=TrainingConfig(steps=4, tokens_per_batch=256, validations=0, save_every=0),
        settings=(setting,),
        seeds=1,
        supervised=False,
    )
    at_step(2, ctrl_c, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        compute(preset, tmp_path, processes=1, progress=False)
    assert list((tmp_path / "baselines").rglob("*.json")), "what was finished before stays"
    assert not (tmp_path / "runs").exists()
