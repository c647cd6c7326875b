"""One cell of the grid: pre-train, embed, probe, measure the held-out loss."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from consilience.core.model import FoundationModel
from consilience.core.objectives import Objective
from consilience.core.objectives.base import weakened
from consilience.core.records import take_records
from consilience.core.view import Loss
from consilience.domains.preparation import Prepared
from consilience.domains.pretraining import pretrain
from consilience.study.presets import StudyPreset
from consilience.study.readout import score_features, score_trivial
from consilience.study.results import Result


def run_cell(
    prepared: Prepared,
    objective: Objective,
    seed: int,
    preset: StudyPreset,
    folder: Path,
    key: str,
    on_step: Callable[[int], None],
) -> Result:
    """Pre-train one objective on one science with one seed; the model stays in `folder`."""
    name = prepared.domain.name
    run = pretrain(
        {name: prepared},
        objective,
        core=preset.core,
        training=replace(preset.training, seed=seed),
        progress=False,
        on_step=on_step,
    )
    if run.outcome.interrupted:  # a part of a run must not stand as the result of a whole one
        raise KeyboardInterrupt
    run.model.save(folder)
    begin = time.perf_counter()
    scores = score_features(prepared, embed_all(run.model, prepared))
    loss = held_out_loss(run.model, prepared, preset)
    return Result(
        key=key,
        domain=name,
        row=objective.name,
        role="pre-trained",
        seed=seed,
        scores=scores,
        loss=loss.nats_per_token,
        kind=loss.kind,
        curve=tuple(run.outcome.history.validation.get(name, [])),
        curve_kind=weakened(objective.kind, objective.likelihoods(prepared.tokenizer.spec)),
        steps=run.outcome.steps,
        tokens=run.outcome.tokens,
        seconds=run.outcome.seconds,
        parameters=count(run.model),
        trunk=count(run.model.core),
        extra={"readout_seconds": time.perf_counter() - begin},
    )


def run_random_init(
    prepared: Prepared, objective: Objective, seed: int, preset: StudyPreset, key: str
) -> Result:
    """The same core with random weights: what the architecture and the tokenizer give for nothing."""
    torch.manual_seed(seed)
    name = prepared.domain.name
    model = FoundationModel(preset.core, {name: prepared.tokenizer}, objective)
    return Result(
        key=key,
        domain=name,
        row="random-init core",
        role="random-init",
        seed=seed,
        scores=score_features(prepared, embed_all(model, prepared)),
        parameters=count(model),
        trunk=count(model.core),
    )


def run_classical(prepared: Prepared, key: str) -> Result:
    """The science's own representation with the same probes."""
    label, features = prepared.domain.baseline(prepared.collection, prepared.split.train)
    return Result(
        key=key,
        domain=prepared.domain.name,
        row=label,
        role="classical",
        scores=score_features(prepared, np.asarray(features)),
    )


def run_trivial(prepared: Prepared, key: str) -> Result:
    """Majority class or mean."""
    return Result(
        key=key,
        domain=prepared.domain.name,
        row="majority / mean",
        role="trivial",
        scores=score_trivial(prepared),
    )


def embed_all(model: FoundationModel, prepared: Prepared) -> np.ndarray:
    """(n, D) embeddings of all records of the collection."""
    return model.embed(prepared.collection.records, ids=prepared.collection.ids).vectors


def held_out_loss(model: FoundationModel, prepared: Prepared, preset: StudyPreset) -> Loss:
    """The loss on held-out records, of the strongest kind that the objective can claim."""
    index = prepared.split.test[: preset.evaluation_records]
    # Tokenized as in training (a cell with its matched zeros), with one fixed seed for every row of the table.
    generator = torch.Generator().manual_seed(0)
    tokens = prepared.tokenizer.encode(take_records(prepared.collection.records, index), generator=generator)
    return model.evaluate(tokens, draws=preset.evaluation_draws)


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
