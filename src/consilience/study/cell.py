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
from consilience.domains.preparation import Prepared
from consilience.domains.pretraining import pretrain
from consilience.study.presets import StudyPreset
from consilience.study.readout import held_out_loss, score_features, score_trivial
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
    held_out = prepared.split.test[: preset.evaluation_records]
    loss = held_out_loss(run.model, prepared, held_out, draws=preset.evaluation_draws)
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
    """(n, D) embeddings of all records of the collection; on the GPU when there is one."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.embed(prepared.collection.records, ids=prepared.collection.ids).vectors


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
