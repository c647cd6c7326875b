"""The grid of a study: what has to be computed, in which stage, and where its result lies.

Stages: tuning (learning rates) and baselines, then seed after seed its runs and what needs them finished: a study that
is stopped has compared everything with fewer seeds.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from consilience.core.records import fingerprint
from consilience.core.training_config import TrainingConfig
from consilience.domains.preparation import Prepared
from consilience.domains.splits import split_hash
from consilience.study.bench import Bench
from consilience.study.plan import Setting, Variant
from consilience.study.results import Result, Role

PROTOCOL = 1
"""Raised when the same settings would give other numbers: results of before are then computed anew."""

TUNING_SEED = 10_000
"""The seed of trials, so that no run of the comparison was looked at when the learning rate was chosen."""

TRANSFER_SHARE = 0.5
"""Share of the budget of a run on a trunk that is not trained."""

Rates = Mapping[tuple[str, str], float]
"""(setting, variant) -> the chosen learning rate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One result to compute.

    Args:
        work: what it is.
        setting: the science and its data; the first one of a run on several.
        row: variant or baseline, for tables and messages.
        key: hash of everything that decides the numbers.
        path: the file of the result.
        variant: what is trained, or whose heads a random core gets; None for baselines without a core.
        training: how.
        seed: of the run.
        flops: cost, for the order of the work and for estimates.
        extra: what belongs to one kind of job alone.
    """

    work: Role
    setting: Setting
    row: str
    key: str
    path: Path
    variant: Variant | None = None
    training: TrainingConfig | None = None
    seed: int | None = None
    flops: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the model of a run lies."""
        return self.path.parent

    @property
    def arrays(self) -> Path:
        """Where predictions and embeddings lie."""
        return self.path.with_suffix(".npz")

    @property
    def steps(self) -> int:
        """Training steps, for the progress bar."""
        return self.training.steps if self.training else 0

    def finished(self) -> Result | None:
        """The result, when it was computed before and still answers the same question."""
        return Result.read(self.path, self.key)

    def failed(self, reason: str) -> Result:
        """A result that says why there is none."""
        return Result(
            key=self.key,
            setting=self.setting.name,
            row=self.row,
            role=self.work,
            seed=self.seed,
            error=reason,
        )


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in name.lower()).strip("-")


def run_path(folder: Path, setting: str, row: str, seed: int) -> Path:
    """The result of a pre-trained run; its model lies beside it."""
    return folder / "runs" / slug(setting) / slug(row) / f"seed-{seed}" / "result.json"


def key_of(prepared: Prepared, *parts: object) -> str:
    """Hash of the data, the split, the tokenizer and whatever else decides the numbers; the kind of work first."""
    data = [prepared.collection.fingerprint, split_hash(prepared.split), str(PROTOCOL)]
    return fingerprint(
        [*data, json.dumps(prepared.tokenizer.state(), sort_keys=True), *(repr(p) for p in parts)]
    )


def tuning_jobs(bench: Bench, settings: Sequence[Setting], folder: Path) -> list[Job]:
    """A trial of every learning rate for every variant of these settings."""
    preset = bench.preset
    jobs = []
    for setting in settings:
        for variant in setting.variants if preset.learning_rates else ():
            for rate in preset.learning_rates:
                training = replace(
                    preset.training,
                    steps=bench.steps(setting, variant, preset.trial),
                    learning_rate=rate,
                    seed=TUNING_SEED,
                )
                path = folder / "tuning" / slug(setting.name) / slug(variant.name) / f"rate-{rate:g}.json"
                jobs.append(_trained("tuning", bench, setting, variant, training, path, row=variant.name))
    return jobs


def chosen_rates(bench: Bench, trials: Iterable[Result]) -> dict[tuple[str, str], float]:
    """The learning rate with the lowest validation loss; the preset's own where there was no trial."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for trial in trials:
        if trial.error or not trial.curve or trial.learning_rate is None:
            continue
        place = (trial.setting, trial.row)
        best[place] = min(best.get(place, (float("inf"), 0.0)), (trial.curve[-1][1], trial.learning_rate))
    default = bench.preset.training.learning_rate
    return {
        (setting.name, variant.name): best.get((setting.name, variant.name), (0.0, default))[1]
        for setting in bench.preset.settings
        for variant in setting.variants
    }


def baseline_jobs(bench: Bench, settings: Sequence[Setting], folder: Path) -> list[Job]:
    """The trivial row, the science's classical ones, and the PCA of tokens."""
    return [job for setting in settings for job in _baselines(bench, setting, folder)]


def main_jobs(bench: Bench, rates: Rates, settings: Sequence[Setting], seed: int, folder: Path) -> list[Job]:
    """All runs of one seed, with the cores that are random or trained on labels."""
    preset = bench.preset
    jobs = []
    for setting in settings:
        jobs += _seeded_baselines(bench, setting, seed, folder)
        for variant in setting.variants:
            training = training_of(bench, rates, setting, variant, seed)
            path = run_path(folder, setting.name, variant.name, seed)
            parts = (preset.evaluation_records, preset.evaluation_draws)
            jobs.append(_trained("pre-trained", bench, setting, variant, training, path, parts=parts))
    return jobs


def late_jobs(bench: Bench, rates: Rates, settings: Sequence[Setting], seed: int, folder: Path) -> list[Job]:
    """What needs finished runs of a seed: profiles, and of the main settings shared cores and carried trunks."""
    jobs = _profiles(bench, rates, settings, seed, folder)
    if tuple(settings) == bench.preset.main:
        jobs += _shared(bench, rates, seed, folder)
        jobs += _transfers(bench, rates, seed, folder)
        jobs += _crossovers(bench, rates, seed, folder)
    return jobs


def training_of(bench: Bench, rates: Rates, setting: Setting, variant: Variant, seed: int) -> TrainingConfig:
    """The run of a variant that the budget pays for, at its own learning rate."""
    return replace(
        bench.preset.training,
        steps=bench.steps(setting, variant),
        learning_rate=rates[setting.name, variant.name],
        seed=seed,
    )


def _trained(
    work: Role,
    bench: Bench,
    setting: Setting,
    variant: Variant,
    training: TrainingConfig,
    path: Path,
    *,
    row: str | None = None,
    parts: tuple[object, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> Job:
    prepared = bench.of(setting, variant)
    tasks = tuple(task.name for task in bench.tasks(setting)) if work != "tuning" else ()
    return Job(
        work=work,
        setting=setting,
        row=row or variant.name,
        key=key_of(prepared, work, bench.preset.core, training, variant.identity, tasks, *parts),
        path=path,
        variant=variant,
        training=training,
        seed=training.seed,
        flops=training.steps * bench.costs[setting.name, variant.name].flops,
        extra=extra or {},
    )


def _baselines(bench: Bench, setting: Setting, folder: Path) -> list[Job]:
    prepared = bench.of(setting)
    base = folder / "baselines" / slug(setting.name)
    tasks = tuple(task.name for task in bench.tasks(setting))
    found = [
        Job(work="trivial", setting=setting, row="majority / mean", key=key_of(prepared, "trivial", tasks),
            path=base / "trivial.json"),
        Job(work="classical", setting=setting, row="PCA of tokens", key=key_of(prepared, "pca", tasks),
            path=base / "pca-of-tokens.json", extra={"place": -1}),
    ]  # fmt: skip
    for place in range(prepared.domain.classical):
        found.append(
            Job(work="classical", setting=setting, row=f"classical {place}", path=base / f"classical-{place}.json",
                key=key_of(prepared, "classical", tasks, place), extra={"place": place})
        )  # fmt: skip
    return found


def _seeded_baselines(bench: Bench, setting: Setting, seed: int, folder: Path) -> list[Job]:
    preset, prepared = bench.preset, bench.of(setting)
    base = folder / "baselines" / slug(setting.name)
    tasks = tuple(task.name for task in bench.tasks(setting))
    first = setting.variants[0]
    jobs = [
        Job(work="random-init", setting=setting, row="random-init core", seed=seed, variant=first,
            key=key_of(prepared, "random-init", preset.core, tasks, first.identity, seed),
            path=base / f"random-init-{seed}.json")
    ]  # fmt: skip
    if preset.supervised:
        training = replace(preset.training, seed=seed)
        jobs.append(
            Job(work="supervised", setting=setting, row="supervised core", seed=seed, variant=first, training=training,
                key=key_of(prepared, "supervised", preset.core, tasks, training, preset.learning_rates),
                path=base / f"supervised-{seed}.json", flops=len(tasks) * bench.budget(setting))
        )  # fmt: skip
    return jobs


def _profiles(bench: Bench, rates: Rates, settings: Sequence[Setting], seed: int, folder: Path) -> list[Job]:
    jobs = []
    for setting in settings:
        for variant in setting.variants:
            if variant.name not in bench.preset.profile:
                continue
            training = training_of(bench, rates, setting, variant, seed)
            path = folder / "profiles" / slug(setting.name) / f"{slug(variant.name)}-{seed}.json"
            parts = (bench.preset.evaluation_records, bench.preset.evaluation_draws, "profile")
            run = run_path(folder, setting.name, variant.name, seed).parent
            job = _trained(
                "profile", bench, setting, variant, training, path, parts=parts, extra={"run": str(run)}
            )
            jobs.append(replace(job, training=None, flops=0.0))
    return jobs


def _transfers(bench: Bench, rates: Rates, seed: int, folder: Path) -> list[Job]:
    name = bench.preset.transfer
    if name is None:
        return []
    settings = [s for s in bench.preset.main if name in [v.name for v in s.variants]]
    jobs = []
    for target in settings:
        variant = next(v for v in target.variants if v.name == name)
        training = replace(
            training_of(bench, rates, target, variant, seed),
            steps=bench.steps(target, variant, TRANSFER_SHARE),
        )
        for source in (None, *settings):
            label = "random trunk" if source is None else source.name
            path = folder / "transfer" / slug(target.name) / f"from-{slug(label)}-{seed}.json"
            run = None if source is None else str(run_path(folder, source.name, name, seed).parent)
            origin = None if source is None else key_of(bench.of(source, variant), rates[source.name, name])
            jobs.append(
                _trained(
                    "transfer", bench, target, variant, training, path, row=f"trunk of {label}",
                    parts=("frozen trunk", origin), extra={"run": run, "source": label},
                )
            )  # fmt: skip
    return jobs


def _shared(bench: Bench, rates: Rates, seed: int, folder: Path) -> list[Job]:
    """One core on all sciences for the sum of their budgets; every science's steps are those of its own run."""
    jobs = []
    settings = bench.preset.main
    for name in bench.preset.sharing:
        there = [(s, v) for s in settings for v in s.variants if v.name == name]
        if len(there) < 2:
            continue
        own = [training_of(bench, rates, s, v, seed) for s, v in there]
        rate = float(sorted(t.learning_rate for t in own)[len(own) // 2])
        training = replace(own[0], steps=sum(t.steps for t in own), learning_rate=rate)
        path = folder / "shared" / slug(name) / f"seed-{seed}" / "result.json"
        keys = [key_of(bench.of(s, v), t) for (s, v), t in zip(there, own)]
        job = _trained(
            "shared", bench, *there[0], training, path, parts=(*keys, bench.preset.evaluation_records),
            extra={"settings": [s.name for s, _ in there], "shares": [t.steps for t in own]},
        )  # fmt: skip
        jobs.append(replace(job, flops=sum(bench.budget(s) for s, _ in there)))
    return jobs


def _crossovers(bench: Bench, rates: Rates, seed: int, folder: Path) -> list[Job]:
    asked = bench.preset.crossover
    if asked is None or seed >= asked.seeds or asked.setting not in [s.name for s in bench.preset.settings]:
        return []
    setting = bench.preset.setting(asked.setting)
    jobs = []
    for variant in setting.variants:
        if variant.name not in asked.variants:
            continue
        prepared = bench.of(setting, variant)
        mean = float(prepared.tokenizer.lengths(prepared.records("train")).mean())
        seen = asked.epochs * min(asked.records) * mean
        steps = max(1, round(seen / bench.costs[setting.name, variant.name].tokens))
        for records in asked.records:
            training = replace(
                training_of(bench, rates, setting, variant, seed), steps=steps, decay=0.0, validations=40
            )
            path = folder / "crossover" / slug(variant.name) / f"records-{records}-{seed}.json"
            jobs.append(
                _trained("crossover", bench, setting, variant, training, path, parts=(records,),
                         extra={"records": records})
            )  # fmt: skip
    return jobs
