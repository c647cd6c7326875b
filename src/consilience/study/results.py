"""What one job of a study reached: numbers as JSON, predictions and embeddings of test records as npz beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from consilience.core.files import replace_text, replacing
from consilience.core.view import Kind

Role = Literal[
    "trivial", "classical", "random-init", "pre-trained", "supervised", "tuning", "profile", "shared", "transfer",
    "crossover",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Score:
    """One task read out of one representation.

    Args:
        task: name of the task.
        metric: name of the headline metric.
        value: of the linear probe on the test part, all labels.
        low: lower end of the 95% bootstrap interval over test groups.
        high: upper end.
        metrics: all metrics of the linear probe.
        knn: the headline metric of the nearest-neighbour probe; None where there is none.
        fractions: share of the training labels ("0.1", "0.01") -> headline metric of the linear probe.
        readout: which layer, pooling and time was chosen on validation; "" where there was no choice.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    metrics: Mapping[str, float]
    knn: float | None = None
    fractions: Mapping[str, float] = field(default_factory=dict)
    readout: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was reached.

    Args:
        key: hash of everything that decides the numbers; a result with another key is computed anew.
        setting: the science and its data.
        row: name of the row: a variant, or a baseline.
        role: of the row.
        seed: of the run; None for baselines without chance.
        scores: one a task.
        nats: (held-out nats, tokens) of each small group of held-out records, in a fixed order; empty without.
        kind: what the loss is; a surrogate is never a likelihood.
        curve: (step, held-out training loss) pairs.
        curve_kind: what the training loss is.
        steps: optimiser steps.
        samples: records seen.
        tokens: real tokens seen.
        scored: tokens that carried loss.
        flops: floating-point operations of all steps, measured.
        learning_rate: of the run.
        seconds: of training.
        parameters: of the whole model.
        trunk: parameters of the core.
        error: why the job failed; a failed one is reported, never dropped.
        extra: what belongs to one kind of job alone.
    """

    key: str
    setting: str
    row: str
    role: Role
    seed: int | None = None
    scores: tuple[Score, ...] = ()
    nats: tuple[tuple[float, int], ...] = ()
    kind: Kind | None = None
    curve: tuple[tuple[int, float], ...] = ()
    curve_kind: Kind | None = None
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    scored: int = 0
    flops: float = 0.0
    learning_rate: float | None = None
    seconds: float = 0.0
    parameters: int = 0
    trunk: int = 0
    error: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Held-out loss per token; None for rows without one."""
        return sum(nats for nats, _ in self.nats) / sum(n for _, n in self.nats) if self.nats else None

    def write(self, path: Path) -> None:
        """Write as JSON, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path, key: str) -> Self | None:
        """The result in a file, or None when there is none, it is cut off, or it answers another question."""
        try:
            data = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if not isinstance(data, dict) or data.get("key") != key or data.get("error"):
            return None
        data["scores"] = tuple(Score(**score) for score in data["scores"])
        data["nats"] = tuple((float(nats), int(count)) for nats, count in data["nats"])
        data["curve"] = tuple((int(step), float(value)) for step, value in data["curve"])
        return cls(**data)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Predictions and embeddings of a job, beside its JSON, in one step."""
    with replacing(path) as part:
        np.savez_compressed(part, allow_pickle=False, **dict(arrays))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote; nothing where it wrote nothing."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}
