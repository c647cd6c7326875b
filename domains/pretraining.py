"""A training run: data of one or several sciences -> one trained model in one folder."""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from consilience.core.cache_plan import is_cache
from consilience.core.checkpoint import load_model, take_core
from consilience.core.conditions import Conditions
from consilience.core.context import paired
from consilience.core.distributed import writes
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source
from consilience.core.model import FoundationModel
from consilience.core.objectives import Objective
from consilience.core.pair_lengths import count_lengths
from consilience.core.tokenizer import Tokenizer
from consilience.core.training import LAST, Outcome, fit
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.base import Domain
from consilience.domains.cached import PreparedTokens
from consilience.domains.conditions import Told, Wanted, computed_names, tell
from consilience.domains.pairing import prepare_pairs
from consilience.domains.preparation import Prepared, load_collection, prepare, tell_failures
from consilience.domains.settings import check_same, save_settings

logger = logging.getLogger(__name__)

FAILURES = "failures.csv"
"""Records of a run that were set aside, with reasons."""

Data = Prepared | PreparedTokens
"""One science's data, as records or as tokens that were written before."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished (or interrupted) run."""

    model: FoundationModel
    outcome: Outcome
    prepared: Mapping[str, Data]


def pretrain(
    prepared: Mapping[str, Data],
    objective: Objective,
    *,
    core: CoreConfig,
    training: TrainingConfig,
    weights: Mapping[str, float] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    init_core: Path | None = None,
    freeze_core: bool = False,
    told: Mapping[str, Told] | None = None,
    alone: float | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainedRun:
    """Train one set of core weights on the prepared data of one or several sciences.

    Args:
        prepared: science -> its data.
        objective: what to train with.
        core: size of the transformer.
        training: how.
        weights: science -> share of the steps; default: equal.
        folder: where the model, logs and the resumable checkpoint go; None keeps nothing.
        resume: go on with the run in `folder`.
        init_core: start from the core of the model in this folder.
        freeze_core: train the embedders and heads alone; the core stays as it starts.
        told: science -> what the model is told of its records (`domains.conditions`), where it is.
        alone: the prepared data are pairs (`domains.pairing`), of which this share of the steps predicts one modality
            without the other; None = each science has objects of its own.
        settings: the resolved options, kept beside the model.
        progress: show a bar.
        on_step: called after each step.
    """
    weights, told = dict(weights or {}), dict(told or {})
    conditions = {name: known.conditions for name, known in told.items()}
    unknown = sorted(set(weights) - set(prepared))
    if unknown:
        raise ConsilienceError(
            f"weights name {', '.join(unknown)}, which is not trained on: {', '.join(prepared)}"
        )
    if resume:
        model = _resumed(folder, prepared, objective, core, conditions, training)
    else:
        torch.manual_seed(training.seed)
        tokenizers = {name: part.tokenizer for name, part in prepared.items()}
        model = FoundationModel(core, tokenizers, objective, conditions=conditions)
        if init_core is not None:
            take_core(model, init_core)
    model.core.requires_grad_(not freeze_core)
    model.provenance = {
        "data": {name: part.provenance() for name, part in prepared.items()},
        "training": asdict(training),
        "init_core": None if init_core is None else str(init_core),
        "freeze_core": freeze_core,
    }
    if alone is not None:
        records = {name: part.source("train").records for name, part in prepared.items()}
        model.provenance["pairs"] = {"alone": alone, "lengths": count_lengths(model.tokenizers, records)}
    if folder is not None and not resume and writes():
        model.save(folder)
        write_failures(prepared, folder)
    if folder is not None and settings is not None and writes():
        save_settings(folder, settings)
    if resume and folder is not None and not (folder / LAST).is_file():
        logger.info("%s was stopped before its first checkpoint: starting at its first step", folder)
        resume = False

    def source(name: str, part: str, weight: float = 1.0) -> Source:
        plain = prepared[name].source(part, weight)
        index = getattr(prepared[name].split, part) if name in told else None
        return plain if index is None else told[name].beside(plain, index)

    train: Mapping[str, Source] = {name: source(name, "train", weights.get(name, 1.0)) for name in prepared}
    validation: Mapping[str, Source] = {name: source(name, "validation") for name in prepared}
    if alone is not None:  # what is held out is measured given the other modality
        train, validation = paired(train, alone), paired(validation, 0.0)
    outcome = fit(
        model,
        train,
        validation,
        training,
        folder=folder,
        resume=resume,
        progress=progress,
        on_step=on_step,
    )
    model.provenance["outcome"] = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": round(outcome.seconds, 1),
        "interrupted": outcome.interrupted,
        "validation": {name: values[-1][1] for name, values in outcome.history.validation.items() if values},
    }
    if folder is not None and writes():
        model.save(folder)
    return TrainedRun(model=model, outcome=outcome, prepared=prepared)


def finished(done: TrainedRun, steps: int) -> FoundationModel:
    """The model of a run that came to its end; KeyboardInterrupt for one that Ctrl-C ended in good order before.

    Scripts that go on with the model use it, so that they never go on with one that is half trained.

    Args:
        done: the run.
        steps: that it was to have.
    """
    if done.outcome.interrupted:
        raise KeyboardInterrupt(
            f"interrupted at step {done.outcome.steps} of {steps} of the training; asked for again, with --resume true "
            "where there is one, it goes on from there"
        )
    return done.model


def train_domains(
    domains: Sequence[Domain],
    objective: Objective,
    *,
    data: Mapping[str, Path] | None = None,
    read: Mapping[str, Mapping[str, Any]] | None = None,
    tokenizers: Mapping[str, Mapping[str, Any]] | None = None,
    limit: int | None = None,
    parts: Sequence[float] | None = None,
    core: CoreConfig,
    training: TrainingConfig,
    folder: Path,
    resume: bool = False,
    conditions: Wanted | None = None,
    alone: float | None = None,
    **options: Any,
) -> TrainedRun:
    """Read, prepare and train; see `pretrain` for the other options.

    Args:
        domains: the sciences.
        objective: what to train with.
        data: science -> file or token cache; bundled data where left out.
        read: science -> options of its reader.
        tokenizers: science -> options of its tokenizer.
        limit: at most this many records a science.
        parts: shares of train, validation and test, see `prepare`.
        core: size of the transformer.
        training: how.
        folder: where everything goes; must be new or empty unless `resume`.
        resume: go on with the run in `folder`, with its own tokenizers.
        conditions: what the model is told of each record, in a run of one science; None = nothing.
        alone: the sciences are modalities of the same objects; see `pretrain`.
        options: of `pretrain`.
    """
    # Of several processes the first one writes; it may have begun before the others look.
    if not resume and writes() and folder.exists() and any(folder.iterdir()):
        raise ConsilienceError(
            f"{folder} is not empty: choose another --out, --resume the run that is in it, or remove it"
        )
    if conditions is not None:
        if len(domains) > 1:
            raise ConsilienceError("conditions belong to one science: train one alone, or leave them out")
        computed_names(domains[0], conditions.computed)  # a wrong name is told before the data are read
    before = load_model(FoundationModel, folder) if resume else None
    kept: Mapping[str, Any] = {} if before is None else before.tokenizers
    prepared: dict[str, Data] = {}
    if alone is not None:
        prepared |= prepare_pairs(
            domains,
            data=data,
            read=read,
            tokenizers={**(tokenizers or {}), **kept},
            limit=limit,
            fractions=parts,
            tell=False,
        )
    for domain in domains if alone is None else ():
        path, how = (data or {}).get(domain.name), (read or {}).get(domain.name)
        wanted = (tokenizers or {}).get(domain.name)
        if path is not None and is_cache(path):
            prepared[domain.name] = _from_cache(
                domain, path, how, wanted, limit, parts, kept.get(domain.name)
            )
            continue
        chosen = kept.get(domain.name) or wanted
        prepared[domain.name] = prepare(
            domain,
            load_collection(domain, path, how),
            tokenizer=chosen,
            limit=limit,
            fractions=parts,
            tell=False,
        )
    for name, part in prepared.items() if writes() else ():
        tell_failures(name, part.failures, part.provenance()["records"], folder / FAILURES)
    told = {}
    if conditions is not None:
        name, scales = domains[0].name, {} if before is None else before.conditions
        told[name] = tell(prepared[name], conditions, scales.get(name))
    return pretrain(
        prepared,
        objective,
        core=core,
        training=training,
        folder=folder,
        resume=resume,
        told=told,
        alone=alone,
        **options,
    )


def _from_cache(
    domain: Domain,
    path: Path,
    read: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None,
    limit: int | None,
    parts: Sequence[float] | None,
    kept: Tokenizer[Any] | None,
) -> PreparedTokens:
    """Tokens that were written before; what was decided then cannot be asked for again."""
    asked = {"read options": read, "tokenizer options": options, "a limit": limit, "parts": parts}
    for name, value in asked.items():
        if value:
            raise ConsilienceError(
                f"{path} is a token cache: {name} ({value}) cannot be changed any more; leave it out, or give it to "
                "`consilience tokenize`"
            )
    found = PreparedTokens.open(domain, path)
    if kept is not None and kept.state() != found.tokenizer.state():
        raise ConsilienceError(
            f"{path} was written with another tokenizer than the run's: resume with the same cache"
        )
    return found


def write_failures(prepared: Mapping[str, Data], folder: Path) -> None:
    """FAILURES: every record that was set aside, with the reason; nothing is dropped in silence."""
    rows = [(name, f.index, f.id, f.reason) for name, part in prepared.items() for f in part.failures]
    with (folder / FAILURES).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("domain", "index", "id", "reason"))
        writer.writerows(rows)


def _resumed(
    folder: Path | None,
    prepared: Mapping[str, Data],
    objective: Objective,
    core: CoreConfig,
    conditions: Mapping[str, Conditions],
    training: TrainingConfig,
) -> FoundationModel:
    """The model of an interrupted run, checked to be the same run."""
    if folder is None:
        raise ConsilienceError("--resume needs the folder of the run")
    model = load_model(FoundationModel, folder)
    if model.objective != objective or model.core_config != core:
        raise ConsilienceError(
            f"{folder} holds a run with objective {model.objective} and core {model.core_config}; "
            f"resume it with the same"
        )
    if model.conditions != conditions:
        raise ConsilienceError(
            f"{folder} holds a run with the conditions {_named(model.conditions)}, this asks for "
            f"{_named(conditions)}: resume it with the same"
        )
    for name, part in prepared.items():
        before, now = model.provenance.get("data", {}).get(name, {}), part.provenance()
        if before.get("fingerprint") != part.fingerprint:
            raise ConsilienceError(
                f"{folder} was trained on {name} data with fingerprint {before.get('fingerprint')}, this is "
                f"{part.fingerprint}: resume with the same file"
            )
        if before.get("split") != now.get("split"):
            raise ConsilienceError(
                f"{folder} was trained on another split of {name} ({before.get('split')}) than this "
                f"({now.get('split')}): resume with the same"
            )
        if before.get("token_cache") != now.get("token_cache"):
            raise ConsilienceError(
                f"{folder} was trained on {name} tokens of the cache {before.get('token_cache')}, this is "
                f"{now.get('token_cache')}: resume with the same cache"
            )
    check_same(folder, {"training": asdict(training)}, {"training": model.provenance.get("training", {})})
    return model.train()


def _named(conditions: Mapping[str, Conditions]) -> str:
    """Names of all conditions, for a message."""
    return ", ".join(name for known in conditions.values() for name in known.names) or "none"
