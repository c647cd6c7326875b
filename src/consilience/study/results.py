"""One row of evidence: what a cell of the grid or a baseline reached, kept as JSON in its own folder."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from consilience.core.view import Kind

Role = Literal["trivial", "classical", "random-init", "pre-trained"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One task read out of one representation.

    Args:
        task: name of the task.
        metric: name of the headline metric.
        value: on the test part.
        low: lower end of the 95% bootstrap interval over test groups.
        high: upper end.
        metrics: all metrics of the linear probe.
        knn: the headline metric of the nearest-neighbour probe; None where there is none.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    metrics: Mapping[str, float]
    knn: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was reached.

    Args:
        key: hash of everything that decides the numbers; a result with another key is computed anew.
        domain: the science.
        row: name of the row: an objective, or a baseline.
        role: of the row.
        seed: of the run; None for baselines without chance.
        scores: one a task.
        loss: held-out loss per token; None for baselines.
        kind: what the loss is; a surrogate is never a likelihood.
        curve: (step, held-out training loss) pairs.
        curve_kind: what the training loss is.
        steps: optimiser steps.
        tokens: real tokens trained on.
        seconds: of training.
        parameters: of the whole model.
        trunk: parameters of the core.
        error: why the cell failed; a failed cell is reported, never dropped.
    """

    key: str
    domain: str
    row: str
    role: Role
    seed: int | None = None
    scores: tuple[Score, ...] = ()
    loss: float | None = None
    kind: Kind | None = None
    curve: tuple[tuple[int, float], ...] = ()
    curve_kind: Kind | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    parameters: int = 0
    trunk: int = 0
    error: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as JSON, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1))
        os.replace(part, path)

    @classmethod
    def read(cls, path: Path, key: str) -> Self | None:
        """The result in a file, or None when there is none, it is cut off, or it answers another question."""
        try:
            data = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if data.get("key") != key or data.get("error"):
            return None
        data["scores"] = tuple(Score(**score) for score in data["scores"])
        data["curve"] = tuple((int(step), float(value)) for step, value in data["curve"])
        return cls(**data)
