"""What `consilience evaluate` measures: the held-out loss, and probes beside baselines."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from consilience.commands.choices import check_names
from consilience.commands.embed import embed_in_chunks
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.domains.base import Task
from consilience.domains.preparation import Prepared
from consilience.study.readout import held_out_loss, score_features, score_trivial
from consilience.study.results import Score

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task read out of one representation.

    Args:
        features: what the probe saw.
        score: its headline metric on the test part with a 95% interval over test groups, and all others.
    """

    features: str
    score: Score


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model on the data of one science.

    Args:
        domain: the science.
        data: source, fingerprint and split of the data.
        trained_on: whether the model was trained on the training part of these data.
        loss: per token on held-out records.
        kind: what the loss is: exact, bound or surrogate.
        loss_records: how many held-out records the loss is of.
        rows: the probes.
        skipped: tasks that could not be scored, with the reason.
    """

    domain: str
    data: Mapping[str, Any]
    trained_on: bool
    loss: float
    kind: str
    loss_records: int
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]


def read_out(
    model: FoundationModel,
    prepared: Prepared,
    wanted: Sequence[str] | None,
    *,
    loss_records: int,
    progress: bool,
) -> Evaluation:
    """Held-out loss and probes of a model on the data of one science; arguments as in `evaluate`."""
    science, collection = prepared.domain, prepared.collection
    tasks = _tasks(prepared, wanted)
    held = prepared.split.test[:loss_records]
    loss = held_out_loss(model, prepared, held)

    def features(network: FoundationModel) -> np.ndarray:
        """(n, D) embeddings of all records."""
        return embed_in_chunks(network, collection, science.name, progress).vectors

    table: dict[str, np.ndarray | None] = {"majority / mean": None}
    if tasks:
        table["random-init core"] = features(_untrained(model))
        classical, rows = science.baseline(collection, prepared.split.train)
        table[classical] = np.asarray(rows)
        table[f"this model ({model.objective.name})"] = features(model)
    found, skipped = _score(prepared, tasks, table)
    provenance = prepared.provenance()
    before = model.provenance.get("data", {}).get(science.name, {})
    return Evaluation(
        domain=science.name,
        data=provenance,
        trained_on=all(provenance[key] == before.get(key) for key in ("fingerprint", "split")),
        loss=loss.nats_per_token,
        kind=loss.kind,
        loss_records=len(held),
        rows=found,
        skipped=skipped,
    )


def _tasks(prepared: Prepared, wanted: Sequence[str] | None) -> list[Task]:
    known = {task.name: task for task in prepared.domain.tasks(prepared.collection)}
    if wanted is None:
        if len(known) > 3:
            logger.info("%s: %d tasks have labels; the first 3 are shown, --tasks names others: %s",
                        prepared.domain.name, len(known), ", ".join(known))  # fmt: skip
        return list(known.values())[:3]
    check_names(dict.fromkeys(wanted), list(known), f"tasks of {prepared.collection.source}")
    return [known[name] for name in wanted]


def _score(
    prepared: Prepared, tasks: Iterable[Task], table: Mapping[str, np.ndarray | None]
) -> tuple[tuple[Row, ...], dict[str, str]]:
    """Probes of every task on every row of features; a task without enough labels is skipped with its reason."""
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for task in tasks:
        try:
            rows += [
                Row(features=name, score=score)
                for name, values in table.items()
                for score in (
                    score_trivial(prepared, [task])
                    if values is None
                    else score_features(prepared, values, [task])
                )
            ]
        except ConsilienceError as error:
            skipped[task.name] = str(error)
    return tuple(rows), skipped


def _untrained(model: FoundationModel) -> FoundationModel:
    """The same model with random weights (seed 0): what architecture and tokenizer give for nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = FoundationModel(model.core_config, model.tokenizers, model.objective)
    return fresh.to(model.device).eval()
