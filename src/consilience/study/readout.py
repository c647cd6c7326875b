"""Reading tasks out of a representation: one search on validation and the same probes for every row of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.records import take_records
from consilience.core.view import Loss
from consilience.domains.base import Reading, Task
from consilience.domains.preparation import Prepared
from consilience.domains.probes import HEADLINE, ProbeResult, bootstrap_interval, probe, trivial
from consilience.domains.readout_search import final_scores, search
from consilience.study.results import Score

LOSS_RECORDS = 16
"""Held-out records whose loss is kept as one number: small groups are resampled for intervals."""


@dataclass(frozen=True, kw_only=True)
class ReadOut:
    """What a representation knows of the tasks of a setting.

    Args:
        scores: one a task.
        arrays: "task/index", "task/truth" and "task/predicted" of the test records.
        chosen: task -> name of the chosen features.
    """

    scores: tuple[Score, ...]
    arrays: Mapping[str, np.ndarray]
    chosen: Mapping[str, str]


def read_tasks(
    prepared: Prepared,
    features: Mapping[Any, np.ndarray],
    tasks: Sequence[Task],
    *,
    method: Reading = "linear",
) -> ReadOut:
    """Choose among candidate features on the validation part, then probe the test part.

    Args:
        prepared: data and split.
        features: name of a candidate -> (n, d) features of all records.
        tasks: what to read out.
        method: of the probe: linear, or the trees of a classical baseline.
    """
    scores: list[Score] = []
    arrays: dict[str, np.ndarray] = {}
    chosen: dict[str, str] = {}
    for task in tasks:
        labels = prepared.collection.labels[task.label]
        name = next(iter(features))
        if len(features) > 1:
            name = search(features, labels, prepared.split, task.kind).name
        redshift = task.label == "redshift"
        chosen[task.name] = str(name)
        final = final_scores(
            features[name], labels, prepared.split, task.kind, method=method, redshift=redshift
        )
        scores.append(
            _score(
                prepared,
                task,
                final.full,
                None if final.knn is None else float(final.knn.metrics[HEADLINE[task.kind]]),
                fractions={f"{part.fraction:g}": part.value for part in final.fractions if part.fraction < 1},
                readout=str(name) if len(features) > 1 else "",
            )
        )
        arrays.update(_arrays(task, final.full))
    return ReadOut(scores=tuple(scores), arrays=arrays, chosen=chosen)


def read_trivial(prepared: Prepared, tasks: Sequence[Task]) -> ReadOut:
    """Majority class or mean."""
    scores: list[Score] = []
    arrays: dict[str, np.ndarray] = {}
    for task in tasks:
        labels = prepared.collection.labels[task.label]
        found = trivial(labels, prepared.split, task.kind, redshift=task.label == "redshift")
        scores.append(_score(prepared, task, found, None))
        arrays.update(_arrays(task, found))
    return ReadOut(scores=tuple(scores), arrays=arrays, chosen={})


def read_predictions(prepared: Prepared, task: Task, result: ProbeResult) -> ReadOut:
    """Predictions that were made without a probe, as of a supervised core."""
    return ReadOut(scores=(_score(prepared, task, result, None),), arrays=_arrays(task, result), chosen={})


def _arrays(task: Task, result: ProbeResult) -> dict[str, np.ndarray]:
    return {
        f"{task.name}/index": result.test_index,
        f"{task.name}/truth": np.asarray(result.truth),
        f"{task.name}/predicted": np.asarray(result.predicted),
    }


def score_features(prepared: Prepared, features: np.ndarray, tasks: Sequence[Task]) -> tuple[Score, ...]:
    """Linear and nearest-neighbour probes of the tasks on (n, d) features of all records."""
    scores = []
    for task in tasks:
        labels = prepared.collection.labels[task.label]
        linear = probe(features, labels, prepared.split, task.kind, redshift=task.label == "redshift")
        neighbours = probe(features, labels, prepared.split, task.kind, method="knn")
        scores.append(_score(prepared, task, linear, float(neighbours.metrics[HEADLINE[task.kind]])))
    return tuple(scores)


def score_trivial(prepared: Prepared, tasks: Sequence[Task]) -> tuple[Score, ...]:
    """Majority class or mean."""
    return read_trivial(prepared, tasks).scores


def _score(
    prepared: Prepared,
    task: Task,
    result: ProbeResult,
    knn: float | None,
    *,
    fractions: Mapping[str, float] | None = None,
    readout: str = "",
) -> Score:
    metric = HEADLINE[task.kind]
    low, high = bootstrap_interval(result, prepared.collection.group_of)
    return Score(
        task=task.name,
        metric=metric,
        value=float(result.metrics[metric]),
        low=low,
        high=high,
        metrics={name: float(value) for name, value in result.metrics.items()},
        knn=knn,
        fractions=dict(fractions or {}),
        readout=readout,
    )


def held_out_losses(
    model: FoundationModel, prepared: Prepared, index: np.ndarray, *, draws: int = 4, size: int = LOSS_RECORDS
) -> list[Loss]:
    """The loss of every `size` held-out records, of the strongest kind that the objective can claim.

    Counts are tokenized as in training, with their matched zeros (fixed seeds: every objective is scored on the same
    tokens). Anything else as for embeddings: another spelling or a turn of the same object is for training alone.
    """
    if not len(index):
        raise ConsilienceError(f"{prepared.collection.source}: no record is held out; give more records")
    losses = []
    for first in range(0, len(index), size):
        records = take_records(prepared.collection.records, index[first : first + size])
        counts = prepared.tokenizer.spec.counts
        generator = torch.Generator().manual_seed(first) if counts else None
        tokens = prepared.tokenizer.encode(records, generator=generator)
        losses.append(model.evaluate(tokens, domain=prepared.domain.name, seed=first, draws=draws))
    return losses


def held_out_loss(model: FoundationModel, prepared: Prepared, index: np.ndarray, *, draws: int = 4) -> Loss:
    """The sum of `held_out_losses`."""
    first, *others = held_out_losses(model, prepared, index, draws=draws, size=64)
    return sum(others, start=first)
