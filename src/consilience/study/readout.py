"""Reading tasks out of a representation: the same probes for pre-trained cores and for baselines."""

from collections.abc import Sequence

import numpy as np
import torch

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.records import take_records
from consilience.core.view import Loss
from consilience.domains.base import Task
from consilience.domains.preparation import Prepared
from consilience.domains.probes import HEADLINE, ProbeResult, bootstrap_interval, probe, trivial
from consilience.study.results import Score


def tasks_of(prepared: Prepared) -> list[Task]:
    """The tasks that the study shows for a science: those its preset names, else the first."""
    tasks = prepared.domain.tasks(prepared.collection)
    named = prepared.domain.quick.tasks
    chosen = [task for task in tasks if task.name in named] if named else tasks[:1]
    return chosen or tasks[:1]


def score_features(
    prepared: Prepared, features: np.ndarray, tasks: Sequence[Task] | None = None
) -> tuple[Score, ...]:
    """Linear and nearest-neighbour probes of the tasks (default: `tasks_of`) on (n, d) features of all records."""
    scores = []
    for task in tasks_of(prepared) if tasks is None else tasks:
        labels = prepared.collection.labels[task.label]
        linear = probe(features, labels, prepared.split, task.kind, redshift=task.label == "redshift")
        neighbours = probe(features, labels, prepared.split, task.kind, method="knn")
        scores.append(_score(prepared, task, linear, neighbours))
    return tuple(scores)


def score_trivial(prepared: Prepared, tasks: Sequence[Task] | None = None) -> tuple[Score, ...]:
    """Majority class or mean."""
    return tuple(
        _score(
            prepared, task, trivial(prepared.collection.labels[task.label], prepared.split, task.kind), None
        )
        for task in (tasks_of(prepared) if tasks is None else tasks)
    )


def _trivial(prepared: Prepared, task: Task) -> ProbeResult:
    labels = prepared.collection.labels[task.label]
    return trivial(labels, prepared.split, task.kind, redshift=task.label == "redshift")


def _score(prepared: Prepared, task: Task, result: ProbeResult, neighbours: ProbeResult | None) -> Score:
    metric = HEADLINE[task.kind]
    low, high = bootstrap_interval(result, prepared.collection.group_of)
    return Score(
        task=task.name,
        metric=metric,
        value=float(result.metrics[metric]),
        low=low,
        high=high,
        metrics={name: float(value) for name, value in result.metrics.items()},
        knn=None if neighbours is None else float(neighbours.metrics[metric]),
    )


def held_out_loss(model: FoundationModel, prepared: Prepared, index: np.ndarray, *, draws: int = 4) -> Loss:
    """The loss on these held-out records, of the strongest kind that the objective can claim.

    Records are tokenized as in training (a cell with its matched zeros), with fixed seeds, so that every
    objective is scored on the same tokens.
    """
    if not len(index):
        raise ConsilienceError(f"{prepared.collection.source}: no record is held out; give more records")
    total: Loss | None = None
    for first in range(0, len(index), 64):
        records = take_records(prepared.collection.records, index[first : first + 64])
        tokens = prepared.tokenizer.encode(records, generator=torch.Generator().manual_seed(first))
        part = model.evaluate(tokens, domain=prepared.domain.name, seed=first, draws=draws)
        total = part if total is None else total + part
    assert total is not None
    return total
