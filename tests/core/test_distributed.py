"""Several processes compute what one does: same losses, same weights, one set of files, no process left hanging.

Run as a script this file is one of the processes: `test_distributed.py CASES OUT`.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.distributed import share_of
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source
from consilience.core.launch import devices_of
from consilience.core.model import FoundationModel
from consilience.core.objectives import Block, Denoising, Masked, MaskedDiffusion, NextToken, TwoPhase
from consilience.core.tokenizer import Tokenizer
from consilience.core.training import Outcome, PreTraining, fit
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig

STEPS = 8
OBJECTIVES = {
    "next-token": NextToken(),
    "masked": Masked(),
    "masked-diffusion": MaskedDiffusion(),
    "denoising": Denoising(),
    "block": Block(size=2, noise="gaussian"),
    "two-phase": TwoPhase(),
}
TIMEOUT = 120
"""Seconds after which processes count as hanging."""


class Ragged(Tokenizer[list[int]]):
    """Record r: 2 + r % 8 random tokens with a symbol and a value each; the first is given."""

    science = "ragged"

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec(name="ragged", vocabulary=5, channels=2, coordinates=1, periods=(2.0, 40.0))

    @classmethod
    def fit(cls, records: list[int], **options: Any) -> "Ragged":
        return cls()

    def encode(self, records: list[int], *, generator: torch.Generator | None = None) -> TokenBatch:
        return TokenBatch.concatenate([self.one(record) for record in records])

    def one(self, record: int) -> TokenBatch:
        n, draw = 2 + record % 8, torch.Generator().manual_seed(record)
        given = torch.zeros(1, n, dtype=torch.bool)
        given[:, 0] = True
        return TokenBatch(
            length=torch.tensor([n]),
            ids=torch.randint(5, (1, n), generator=draw),
            values=torch.randn(1, n, 2, generator=draw),
            positions=torch.arange(n).float()[None, :, None],
            given=given,
        )

    def decode(self, tokens: TokenBatch) -> list[int]:
        raise NotImplementedError

    def template(self, n: int, *, generator: torch.Generator, open_end: bool = False) -> TokenBatch:
        raise NotImplementedError


def train(name: str, folder: Path | None = None, resume: bool = False, **how: Any) -> tuple[Any, Outcome]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    core = CoreConfig(width=16, depth=2, heads=2)
    model = FoundationModel(core, {"ragged": Ragged(), "other": Ragged()}, OBJECTIVES[name])
    records = {"ragged": list(range(60)), "other": list(range(100, 140))}
    sources = {name: Source(records=held, tokenizer=Ragged()) for name, held in records.items()}
    settings = {"steps": STEPS, "tokens_per_batch": 48, "validations": 1, "learning_rate": 1e-3} | how
    outcome = fit(
        model,
        sources,
        {"ragged": Source(records=[7, 8, 9], tokenizer=Ragged())},
        TrainingConfig(**settings),
        folder=folder,
        resume=resume,
        progress=False,
    )
    return model, outcome


def found(model: FoundationModel, outcome: Outcome) -> dict[str, Any]:
    weights = torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])
    values = {name: [value for _, value in pairs] for name, pairs in outcome.history.train.items()}
    held_out = [value for _, value in outcome.history.validation["ragged"]]
    return {"train": values, "validation": held_out, "weights": weights.tolist(), "tokens": outcome.tokens}


def main(cases: list[str], out: Path) -> None:
    """One process of several: trains every case and leaves what it found, one file a process and case."""
    number = os.environ["RANK"]
    for case in cases:
        name, _, what = case.partition(":")
        if what == "resume":
            break_at(5, lambda module: setattr(module.interruption, "asked", number == "1"))
            _, outcome = train(name, out / "run")
            assert outcome.interrupted and outcome.steps == 6, (outcome.interrupted, outcome.steps)
            PreTraining.training_step = STEP  # type: ignore[method-assign]
            model, outcome = train(name, out / "run", resume=True)
        elif what == "fail":
            break_at(3, lambda module: fail(number))
            model, outcome = train(name)
        elif what == "nan":
            break_at(3, lambda module: spoil(module, number))
            model, outcome = train(name)
        elif what == "fsdp2":
            break_at(5, lambda module: setattr(module.interruption, "asked", number == "1"))
            half, outcome = train(name, out / "sharded", strategy="fsdp2")
            assert outcome.interrupted and outcome.steps == 6
            assert not any(hasattr(tensor, "full_tensor") for tensor in half.state_dict().values())
            PreTraining.training_step = STEP  # type: ignore[method-assign]
            model, outcome = train(name, out / "sharded", resume=True, strategy="fsdp2")
        elif what == "crumbs":
            model, outcome = train(name, tokens_per_batch=4)
        else:
            model, outcome = train(name)
        (out / f"{case}-{number}.json").write_text(json.dumps(found(model, outcome)))


STEP = PreTraining.training_step


def break_at(step: int, act: Any) -> None:
    def acting(self: PreTraining, batch: Any, index: int) -> Any:
        if self.global_step == step:
            act(self)
        return STEP(self, batch, index)

    PreTraining.training_step = acting  # type: ignore[method-assign]


def fail(number: str) -> None:
    if number == "1":
        raise ConsilienceError("process 1 cannot go on")


def spoil(module: PreTraining, number: str) -> None:
    if number == "1":
        with torch.no_grad():
            next(iter(module.model.core.parameters())).fill_(float("nan"))


def run(cases: list[str], out: Path, processes: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Start the processes as torchrun would, and wait for all of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, __file__, *cases, str(out)]
    started = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    done = []
    try:
        for process in started:
            written, errors = process.communicate(timeout=TIMEOUT)
            done.append(subprocess.CompletedProcess(command, process.returncode, written, errors))
    finally:
        for process in started:
            process.kill()
    return done


def same(here: dict[str, Any], there: dict[str, Any]) -> None:
    """Losses to 1e-5 and weights to 2e-5 after 8 steps: what other orders of float32 sums come to."""
    assert here["tokens"] == there["tokens"]
    assert here["train"].keys() == there["train"].keys()
    for name, values in here["train"].items():
        np.testing.assert_allclose(values, there["train"][name], rtol=1e-5)
    np.testing.assert_allclose(here["validation"], there["validation"], rtol=1e-5)
    np.testing.assert_allclose(here["weights"], there["weights"], atol=2e-5)


CASES = [*OBJECTIVES, "masked:resume", "next-token:crumbs", "next-token:fsdp2"]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found in all cases."""
    out = tmp_path_factory.mktemp("together")
    for process in run(CASES, out):
        assert process.returncode == 0, process.stderr[-3000:]
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_like_one(case: str, together: Path) -> None:
    parts = [json.loads((together / f"{case}-{number}.json").read_text()) for number in range(2)]
    assert parts[0] == parts[1], "all processes end with the same weights and know the same losses"
    name, _, what = case.partition(":")
    model, outcome = train(name, tokens_per_batch=4 if what == "crumbs" else 48)
    alone = found(model, outcome)
    if what in ("resume", "fsdp2"):  # the history is that of the second sitting
        alone |= {name: parts[0][name] for name in ("train", "tokens", "validation")}
    same(alone, parts[0])


def test_one_process_writes(together: Path) -> None:
    folder = together / "run"
    assert (folder / "last.ckpt").is_file() and not list(folder.glob("*.part"))
    assert sorted(path.name for path in (folder / "logs").iterdir()) == ["csv", "csv-2", "tensorboard"]
    rows = (folder / "logs/csv/metrics.csv").read_text().splitlines()
    steps = [row for row in rows[1:] if row]
    assert len(steps) == len(set(steps)), "a line a step, not one a process"


def test_a_checkpoint_of_two_processes_goes_on_in_one(together: Path, tmp_path: Path) -> None:
    _, outcome = train("masked", together / "run", resume=True, steps=STEPS + 2)
    assert outcome.steps == STEPS + 2


def test_a_sharded_checkpoint_is_told_apart(together: Path) -> None:
    with pytest.raises(
        ConsilienceError, match=r"was written with training\.strategy fsdp2: resume with the same"
    ):
        train("next-token", together / "sharded", resume=True, steps=STEPS + 2)


@pytest.mark.parametrize(
    ("what", "said"), [("fail", "process 1 cannot go on"), ("nan", "the loss became nan")]
)
def test_an_error_in_one_process_ends_all(what: str, said: str, tmp_path: Path) -> None:
    first, second = run([f"masked:{what}"], tmp_path)
    assert first.returncode and second.returncode
    assert said in second.stderr
    assert (said if what == "nan" else "lost touch with another process") in first.stderr


def test_shares_are_balanced_and_complete() -> None:
    lengths = torch.from_numpy(np.random.default_rng(0).integers(1, 60, 200))
    shares = [share_of(lengths, number, 7) for number in range(7)]
    assert sorted(torch.cat([share.samples for share in shares]).tolist()) == list(range(200))
    sizes = [int(lengths[share.samples].sum()) for share in shares]
    assert max(sizes) - min(sizes) <= int(lengths.max())
    assert all(share.counts for share in shares)
    few = [share_of(torch.tensor([3, 5]), number, 3) for number in range(3)]
    assert [share.counts for share in few] == [True, True, False] and few[2].samples.tolist() == [0]


def test_training_goes_through_the_phases_of_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase is a function of the step, so that a resumed run is in the right one."""
    seen: list[float] = []
    plain = TwoPhase.at
    monkeypatch.setattr(
        TwoPhase, "at", lambda self, progress: (seen.append(progress), plain(self, progress))[1]
    )
    train("two-phase", steps=4)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_launches_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices_of(TrainingConfig()).processes == 1
    assert devices_of(TrainingConfig(devices=2, nodes=3)).processes == 6
    with monkeypatch.context() as patch:
        for name, value in (("TORCHELASTIC_RUN_ID", "a"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
            patch.setenv(name, value)
        found = devices_of(TrainingConfig())
        assert (found.devices, found.nodes) == (4, 2)
        with pytest.raises(ConsilienceError, match="the launcher started 4 processes on each of 2 machines"):
            devices_of(TrainingConfig(devices=2))
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_NTASKS", "8")
        with pytest.raises(ConsilienceError, match="ntasks-per-node"):
            devices_of(TrainingConfig())
        patch.setenv("SLURM_NTASKS_PER_NODE", "4")
        patch.setenv("SLURM_NNODES", "2")
        assert devices_of(TrainingConfig()).processes == 8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices_of(TrainingConfig(devices=0)).devices == 4
    with pytest.raises(ConsilienceError, match=r"training\.devices is 5, and this machine has 4 GPUs"):
        devices_of(TrainingConfig(devices=5))


def test_muon_needs_whole_matrices() -> None:
    with pytest.raises(ConsilienceError, match="muon works on whole matrices and fsdp2 cuts them up"):
        TrainingConfig(strategy="fsdp2", optimizer="muon")


if __name__ == "__main__":
    main(sys.argv[1:-1], Path(sys.argv[-1]))
