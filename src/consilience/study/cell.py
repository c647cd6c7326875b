"""One job of the grid, computed: pre-train, read out, measure the held-out loss; or a baseline."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilience.core.embed import embed_readouts
from consilience.core.errors import ConsilienceError
from consilience.core.information import (
    erasure_profile,
    gaussian_profile,
    profiled_by,
)
from consilience.core.model import FoundationModel
from consilience.core.objectives import Objective
from consilience.core.objectives.base import weakened
from consilience.core.profiles import ErasureProfile, Estimate, GaussianProfile
from consilience.core.readouts import candidates
from consilience.core.records import take_records
from consilience.domains.preparation import Prepared
from consilience.domains.pretraining import TrainedRun, pretrain
from consilience.domains.splits import Split
from consilience.domains.supervised import fit_supervised
from consilience.domains.token_matrix import pca_of_tokens
from consilience.study.bench import Bench
from consilience.study.grid import Job
from consilience.study.readout import ReadOut, held_out_losses, read_predictions, read_tasks, read_trivial
from consilience.study.results import Result, Score, write_arrays

OnStep = Callable[[int], None]

ALIGNED = 1000
"""Test records whose embeddings are kept, to compare representations by their neighbours."""
SUPERVISED_SHARE = 1.5
"""A supervised core is the upper reference, not a contestant: it may take more than the budget, and stops early."""


def run(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """Compute a job."""
    torch.manual_seed(job.seed or 0)
    return WORK[job.work](job, bench, on_step)


def _tuning(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """A trial of a learning rate: the validation curve of a short run, nothing else."""
    assert job.variant is not None
    trained = _pretrain(job, bench, {job.setting.domain: bench.of(job.setting, job.variant)}, on_step)
    return _of_run(job, bench, trained)


def _pretrained(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """A run of the comparison; the model stays in the job's folder."""
    assert job.variant is not None
    prepared = bench.of(job.setting, job.variant)
    trained = _pretrain(job, bench, {job.setting.domain: prepared}, on_step)
    trained.model.save(job.folder)
    return _read_run(job, bench, prepared, trained.model, _of_run(job, bench, trained))


def _read_run(job: Job, bench: Bench, prepared: Prepared, model: FoundationModel, result: Result) -> Result:
    """The result of a run with probes and held-out loss."""
    begin = time.perf_counter()
    found, features = _read_model(model, prepared, bench, job)
    test = prepared.split.test
    first = next(iter(found.chosen.values()))
    kept = {"aligned/index": test[:ALIGNED], "aligned/vectors": features[first][test[:ALIGNED]]}
    write_arrays(job.arrays, {**found.arrays, **kept})
    preset = bench.preset
    draws = preset.evaluation_draws if _draws_matter(model.objective) else 1
    losses = held_out_losses(model, prepared, test[: preset.evaluation_records], draws=draws)
    return replace(
        result,
        scores=found.scores,
        nats=tuple((float(loss.nats), loss.tokens) for loss in losses),
        kind=sum(losses[1:], start=losses[0]).kind,
        extra={**result.extra, "readout_seconds": time.perf_counter() - begin},
    )


def _random_init(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """The same core with random weights: what the architecture and the tokenizer give for nothing."""
    assert job.variant is not None
    prepared = bench.of(job.setting)
    model = FoundationModel(bench.preset.core, {job.setting.domain: prepared.tokenizer}, job.variant.build())
    found, _ = _read_model(model, prepared, bench, job)
    write_arrays(job.arrays, found.arrays)
    return _empty(job, scores=found.scores, parameters=count(model), trunk=count(model.core))


def _classical(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """The science's own representations, and the PCA of what the tokenizer gives, with the same probes."""
    prepared = bench.of(job.setting)
    collection, train = prepared.collection, prepared.split.train
    place = int(job.extra["place"])
    if place < 0:
        baseline = replace(pca_of_tokens(prepared.tokenizer, collection, train), name=job.row)
    else:
        baseline = prepared.domain.baselines(collection, train)[place]
    tasks = bench.tasks(job.setting)
    found = read_tasks(prepared, {baseline.name: baseline.features}, tasks, method=baseline.method)
    write_arrays(job.arrays, found.arrays)
    return replace(_empty(job, scores=found.scores), row=baseline.name)


def _trivial(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """Majority class or mean."""
    found = read_trivial(bench.of(job.setting), bench.tasks(job.setting))
    write_arrays(job.arrays, found.arrays)
    return _empty(job, scores=found.scores)


def _supervised(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """The same core trained on the labels from scratch, at the learning rate that validation prefers."""
    assert job.variant is not None and job.training is not None
    prepared = bench.of(job.setting)
    begin, steps = time.perf_counter(), 0
    scores: list[Score] = []
    arrays: dict[str, np.ndarray] = {}
    rates: dict[str, float] = {}
    chosen = replace(job.training, steps=max(1, round(SUPERVISED_SHARE * job.training.steps)))
    for task in bench.tasks(job.setting):
        trials = []
        for rate in bench.preset.learning_rates or (chosen.learning_rate,):
            short = len(bench.preset.learning_rates) > 1
            share = bench.preset.trial if short else SUPERVISED_SHARE
            training = replace(chosen, learning_rate=rate, steps=max(1, round(share * job.training.steps)))
            fitted = fit_supervised(
                prepared, task, core=bench.preset.core, training=training, objective=job.variant.build(),
                seed=training.seed,
            )  # fmt: skip
            trials.append((min(loss for _, loss in fitted.curve), rate, fitted))
        _, rate, fitted = min(trials, key=lambda trial: trial[0])
        if len(trials) > 1:
            fitted = fit_supervised(
                prepared, task, core=bench.preset.core, training=replace(chosen, learning_rate=rate),
                objective=job.variant.build(), seed=chosen.seed,
            )  # fmt: skip
        found = read_predictions(prepared, task, fitted.result)
        scores += found.scores
        arrays.update(found.arrays)
        rates[task.name], steps = rate, steps + fitted.steps
        on_step(min(steps, job.training.steps))
    write_arrays(job.arrays, arrays)
    return _empty(
        job, scores=tuple(scores), steps=steps, seconds=time.perf_counter() - begin, extra={"rates": rates}
    )


def _profile(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """The information profile of the test records, as a finished run sees it."""
    assert job.variant is not None
    prepared = bench.of(job.setting, job.variant)
    model = _finished_model(job.extra["run"])
    held = prepared.split.test[: bench.preset.evaluation_records]
    records = take_records(prepared.collection.records, held)
    tokens = prepared.tokenizer.encode(
        records, generator=torch.Generator().manual_seed(0) if prepared.tokenizer.spec.counts else None
    )
    predict = model.predictor(job.setting.domain)
    with torch.no_grad():
        if profiled_by(model.objective) == "gaussian":
            return _empty(job, extra=_plain(_gaussian(gaussian_profile(predict, tokens))))
        return _empty(job, extra=_plain(_erasure(erasure_profile(predict, tokens))))


def _erasure(found: ErasureProfile) -> dict[str, Any]:
    """Curve and areas of a profile."""
    numbers = {
        "entropy": found.entropy, "marginal": found.marginal, "leave_one_out": found.leave_one_out,
        "total_correlation": found.total_correlation_per_token,
        "dual_total_correlation": found.dual_total_correlation_per_token,
    }  # fmt: skip
    return {
        "rates": found.rates, "nats": found.curve, "nats_error": found.curve_error, "kind": found.kind,
        "tokens_per_record": float(found.tokens.mean()), **_estimates(numbers),
    }  # fmt: skip


def _gaussian(found: GaussianProfile) -> dict[str, Any]:
    """Curve and area of a profile."""
    return {
        "log_snr": found.log_snr, "mmse": found.mmse, "mmse_error": found.mmse_error, "kind": found.kind,
        "tokens_per_record": float(found.tokens.mean()), **_estimates({"entropy": found.entropy}),
    }  # fmt: skip


def _estimates(numbers: Mapping[str, Estimate]) -> dict[str, float]:
    return {
        **{name: estimate.value for name, estimate in numbers.items()},
        **{f"{name}_error": estimate.error for name, estimate in numbers.items()},
    }


def _transfer(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """A frozen trunk from another science (or a random one); only tokenizer embedding and heads are trained."""
    assert job.variant is not None
    prepared = bench.of(job.setting, job.variant)
    source = job.extra["run"]
    trained = _pretrain(
        job, bench, {job.setting.domain: prepared}, on_step, freeze_core=True,
        init_core=None if source is None else _folder_of(source),
    )  # fmt: skip
    result = _read_run(job, bench, prepared, trained.model, _of_run(job, bench, trained))
    return replace(result, extra={**result.extra, "source": job.extra["source"]})


def _shared(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """One core on several sciences; every science is read out as in its own run."""
    assert job.variant is not None
    settings = [bench.preset.setting(name) for name in job.extra["settings"]]
    there = {s.domain: bench.of(s, job.variant) for s in settings}
    weights = dict(zip(there, (float(share) for share in job.extra["shares"])))
    trained = _pretrain(job, bench, there, on_step, weights=weights)
    trained.model.save(job.folder)
    whole = _of_run(job, bench, trained)
    parts = {}
    for setting in settings:
        own = replace(job, setting=setting, path=job.folder / f"{setting.domain}.json")
        part = _read_run(
            own, bench, there[setting.domain], trained.model, replace(whole, setting=setting.name)
        )
        parts[setting.name] = _plain({
            "scores": [asdict(score) for score in part.scores], "nats": part.nats, "kind": part.kind,
            "arrays": str(own.arrays.relative_to(job.folder)),
        })  # fmt: skip
    return replace(whole, setting="all sciences", extra={"parts": parts, "shares": weights})


def _crossover(job: Job, bench: Bench, on_step: OnStep) -> Result:
    """The validation curve of a long run on few training records."""
    assert job.variant is not None
    prepared = bench.of(job.setting, job.variant)
    wanted = int(job.extra["records"])
    if wanted > len(prepared.split.train):
        raise ConsilienceError(
            f"{job.setting.name} has {len(prepared.split.train)} training records, not {wanted}: leave that size out"
        )
    drawn = np.random.default_rng(job.seed).permutation(prepared.split.train)[:wanted]
    part = Split(train=drawn, validation=prepared.split.validation, test=prepared.split.test)
    few = replace(prepared, split=part)
    trained = _pretrain(job, bench, {job.setting.domain: few}, on_step)
    per_epoch = int(prepared.tokenizer.lengths(few.records("train")).sum())
    return replace(
        _of_run(job, bench, trained), extra={"records": wanted, "epochs": trained.outcome.tokens / per_epoch}
    )


WORK: Mapping[str, Callable[[Job, Bench, OnStep], Result]] = {
    "tuning": _tuning,
    "trivial": _trivial,
    "classical": _classical,
    "random-init": _random_init,
    "supervised": _supervised,
    "pre-trained": _pretrained,
    "profile": _profile,
    "transfer": _transfer,
    "shared": _shared,
    "crossover": _crossover,
}


def _pretrain(
    job: Job, bench: Bench, prepared: Mapping[str, Prepared], on_step: OnStep, **options: Any
) -> TrainedRun:
    assert job.variant is not None and job.training is not None
    run = pretrain(
        prepared, job.variant.build(), core=bench.preset.core, training=job.training, progress=False,
        on_step=on_step, **options,
    )  # fmt: skip
    if run.outcome.interrupted:  # a part of a run must not stand as the result of a whole one
        raise KeyboardInterrupt
    return run


def _of_run(job: Job, bench: Bench, trained: TrainedRun) -> Result:
    """The part of a result that training itself gives."""
    assert job.variant is not None and job.training is not None
    outcome, objective = trained.outcome, job.variant.build()
    cost = bench.costs[job.setting.name, job.variant.name]
    curve = outcome.history.validation.get(job.setting.domain, [])
    spec = bench.of(job.setting, job.variant).tokenizer.spec
    return _empty(
        job,
        curve=tuple(curve),
        curve_kind=weakened(objective.kind, objective.likelihoods(spec)),
        steps=outcome.steps,
        samples=round(outcome.steps * cost.samples),
        tokens=outcome.tokens,
        scored=round(outcome.steps * cost.scored),
        flops=outcome.steps * cost.flops,
        learning_rate=job.training.learning_rate,
        seconds=outcome.seconds,
        parameters=count(trained.model),
        trunk=count(trained.model.core),
    )


def _empty(job: Job, **parts: Any) -> Result:
    return Result(key=job.key, setting=job.setting.name, row=job.row, role=job.work, seed=job.seed, **parts)


def _read_model(
    model: FoundationModel, prepared: Prepared, bench: Bench, job: Job
) -> tuple[ReadOut, dict[str, np.ndarray]]:
    """The same search of layer, pooling and time for every core."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    asked = candidates(model.objective, bench.preset.core.depth)
    found = embed_readouts(model, prepared.collection.records, prepared.domain.name, asked)
    features = {str(readout): embedding.vectors for readout, embedding in found.items()}
    return read_tasks(prepared, features, bench.tasks(job.setting)), features


def _draws_matter(objective: Objective) -> bool:
    """Whether two views of one sample differ: not for an autoregression in a fixed order."""
    return objective.kind != "exact" or objective.name == "any-order"


def _finished_model(folder: str) -> FoundationModel:
    return FoundationModel.load(_folder_of(folder), device="cuda" if torch.cuda.is_available() else "cpu")


def _folder_of(run: str) -> Path:
    """The folder of a run that this job needs; ConsilienceError when that run failed."""
    folder = Path(run)
    if not (folder / "model.safetensors").is_file():
        raise ConsilienceError(f"needs the run in {folder}, which failed or is missing")
    return folder


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists, for JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
