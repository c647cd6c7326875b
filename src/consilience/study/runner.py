"""Runs a study: the grid stage by stage, resumable, with one progress bar; then tables, figures and the report."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from consilience import registry
from consilience.core.errors import ConsilienceError
from consilience.core.options import check_whole
from consilience.core.progress import progress_bar
from consilience.domains.preparation import Prepared
from consilience.environment import peak_memory_mib, usable_cpus, versions
from consilience.study import data as sets
from consilience.study.bench import COSTS, Bench, open_bench
from consilience.study.grid import (
    Job,
    Rates,
    baseline_jobs,
    chosen_rates,
    late_jobs,
    main_jobs,
    run_path,
    tuning_jobs,
)
from consilience.study.plan import Setting, StudyPreset
from consilience.study.presets import PRESETS
from consilience.study.results import Result
from consilience.study.workers import run_jobs

logger = logging.getLogger(__name__)

FACTS = "study.json"
"""What was asked, on what machine and data; written when a study ends."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study: what was asked, what came out, on what data, and how many jobs have no result yet."""

    preset: StudyPreset
    results: tuple[Result, ...]
    jobs: tuple[Job, ...]
    unfinished: int
    bench: Bench
    folder: Path
    seconds: float

    @property
    def prepared(self) -> dict[str, Prepared]:
        """Setting -> its data."""
        return {setting.name: self.bench.of(setting) for setting in self.preset.settings}

    def run_folder(self, setting: str, variant: str, seed: int) -> Path:
        """Where the model of a run lies."""
        return run_path(self.folder, setting, variant, seed).parent

    def job_of(self, result: Result) -> Job:
        """The job that a result is of."""
        return next(job for job in self.jobs if job.key == result.key)


def run_study(
    preset: str,
    out: Path,
    *,
    data: Path | None = None,
    seeds: int | None = None,
    settings: list[str] | None = None,
    objectives: list[str] | None = None,
    steps: int | None = None,
    jobs: int | None = None,
    report_only: bool = False,
    progress: bool = True,
) -> Path:
    """Run a study and write its report; a study that was stopped goes on where it stopped.

    Args:
        preset: its name.
        out: the folder of the study.
        data: the folder of optional data sets; settings that need it are left out without.
        seeds: fewer or more seeds than the preset's.
        settings: only these settings (a science with its data), or all of these sciences.
        objectives: only these variants or objectives.
        steps: other than the preset's.
        jobs: how many runs at a time; default: one per CPU core, or one on a GPU.
        report_only: run nothing; report what is finished so far.
        progress: show a bar.

    Returns:
        The path of `report.html`.
    """
    check_asked(data, jobs)
    chosen = chosen_preset(preset, seeds=seeds, settings=settings, objectives=objectives, steps=steps)
    if report_only and not any((out / name).is_file() for name in (FACTS, COSTS)):
        raise ConsilienceError(f"{out} holds no study to report on; leave out --report-only to run one there")
    study = compute(chosen, out, data=data, processes=0 if report_only else jobs, progress=progress)
    if report_only and not study.results:
        raise ConsilienceError(
            f"{out} holds nothing finished of the study {preset} as asked for; name its preset and options, or leave "
            "out --report-only to run it"
        )
    from consilience.report import print_table, write_report

    path = write_report(study)
    if progress:
        print_table(study)
    return path


def check_asked(data: Path | None, jobs: int | None) -> None:
    """Raise ConsilienceError for a named folder of data that is none, or jobs at a time that would run nothing."""
    if data is not None:
        sets.data_folder(data)
    check_whole("jobs", jobs)
    if jobs is not None and jobs < 1:
        raise ConsilienceError(f"jobs must be at least 1 at a time, not {jobs}")


def chosen_preset(
    name: str,
    *,
    seeds: int | None = None,
    settings: list[str] | None = None,
    objectives: list[str] | None = None,
    steps: int | None = None,
) -> StudyPreset:
    """A preset with what a person changed."""
    if name not in PRESETS:
        raise ConsilienceError(f"unknown preset '{name}'; known: {', '.join(PRESETS)}")
    preset = PRESETS[name]()
    found = [_narrowed(s, objectives) for s in preset.settings if _is_asked(s, settings)]
    for asked in settings or ():
        if not any(asked in (s.name, s.domain) for s in preset.settings):
            known = dict.fromkeys(word for s in preset.settings for word in (s.domain, s.name))
            raise ConsilienceError(f"no setting '{asked}' in preset {name}; known: {', '.join(known)}")
    return replace(
        preset,
        seeds=preset.seeds if seeds is None else seeds,
        settings=tuple(s for s in found if s is not None),
        training=preset.training if steps is None else replace(preset.training, steps=steps),
    )


def _is_asked(setting: Setting, names: list[str] | None) -> bool:
    return names is None or setting.name in names or setting.domain in names


def _narrowed(setting: Setting, names: list[str] | None) -> Setting | None:
    """The setting with some of its variants; None when it has none of them."""
    if names is None:
        return setting
    known = {word for variant in setting.variants for word in (variant.name, variant.objective)}
    for name in names:
        if name not in known:
            registry.objective(name)  # an unknown name is an error, one that is not compared here is not
    kept = tuple(v for v in setting.variants if v.name in names or v.objective in names)
    return replace(setting, variants=kept) if kept else None


def compute(
    preset: StudyPreset,
    folder: Path,
    *,
    data: Path | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Study:
    """All jobs of a study, stage by stage; finished ones are read from the folder.

    Args:
        preset: what is asked.
        folder: of the study.
        data: the folder of optional data sets.
        processes: how many at a time; 0 runs nothing and gives what is finished.
        progress: show a bar.
    """
    begin = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    workers = processes if processes is not None else default_processes()
    with progress_bar("steps", disable=not progress) as bar:
        task = bar.add_task("study", total=None, note="reading data")
        bench, preset = open_bench(preset, folder, data=data, tell=lambda note: bar.update(task, note=note))
        stages = _Stages(bench, folder, workers, bar, task)
        for settings in preset.tiers:
            trials = stages.run("learning rates", tuning_jobs(bench, settings, folder))
            rates = chosen_rates(bench, trials)
            stages.run("baselines", baseline_jobs(bench, settings, folder))
            for seed in range(preset.seeds):
                stages.run(f"seed {seed}", main_jobs(bench, rates, settings, seed, folder))
                stages.run(f"seed {seed}, what follows", late_jobs(bench, rates, settings, seed, folder))
        bar.update(task, note="done")
    study = Study(
        preset=preset,
        results=tuple(stages.results),
        jobs=tuple(stages.jobs),
        unfinished=len(stages.jobs) - len(stages.results),
        bench=bench,
        folder=folder,
        seconds=time.perf_counter() - begin,
    )
    (folder / FACTS).write_text(json.dumps(_facts(study), indent=1, default=str))
    return study


class _Stages:
    """Runs lists of jobs one after another and keeps their results in the order of the grid."""

    def __init__(self, bench: Bench, folder: Path, workers: int, bar: Any, task: Any) -> None:
        self.bench, self.folder, self.workers, self.bar, self.task = bench, folder, workers, bar, task
        self.results: list[Result] = []
        self.jobs: list[Job] = []

    def run(self, name: str, jobs: Sequence[Job]) -> list[Result]:
        """The results of a stage, finished or computed now."""
        found: dict[Path, Result | None] = {job.path: job.finished() for job in jobs}
        waiting = [job for job in jobs if found[job.path] is None]
        done = {job.path: job.steps for job in jobs if found[job.path] is not None}
        total = sum(job.steps for job in jobs)
        self.bar.update(
            self.task, total=total, completed=sum(done.values()),
            note=f"{name}: {len(waiting)} of {len(jobs)} to do",
        )  # fmt: skip

        def on_step(job: Job, step: int) -> None:
            done[job.path] = step
            note = f"{name}: {job.setting.name}, {job.row}, seed {job.seed}"
            self.bar.update(self.task, completed=sum(done.values()), note=note)

        places = {job.key: job.path for job in jobs}
        todo = waiting if self.workers else []
        for computed in run_jobs(todo, self.bench, processes=self.workers, on_step=on_step):
            found[places[computed.key]] = computed
        self.jobs += jobs
        results = [result for job in jobs if (result := found[job.path]) is not None]
        self.results += results
        return results


def estimate(preset: StudyPreset, folder: Path, *, data: Path | None = None) -> list[dict[str, Any]]:
    """The grid with its cost, without running it: one line per (stage, setting, row).

    Seconds are those of training alone, from the measured speed of finished runs in the folder where there are any,
    else from three timed steps of the first variant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bench, preset = open_bench(preset, folder, data=data, tell=lambda _: None)
    rates = chosen_rates(bench, [])
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    speed = _speed(bench)
    jobs = [job for settings in preset.tiers for job in all_jobs(bench, rates, settings, folder)]
    for job in jobs:
        line = lines.setdefault(
            (job.work, job.setting.name, job.row),
            {"work": job.work, "setting": job.setting.name, "row": job.row, "runs": 0, "steps": job.steps,
             "flops": 0.0, "seconds": 0.0, "finished": 0},
        )  # fmt: skip
        line["runs"] += 1
        line["flops"] += job.flops
        line["seconds"] += job.flops / speed
        line["finished"] += job.finished() is not None
    return list(lines.values())


def all_jobs(bench: Bench, rates: Rates, settings: Sequence[Setting], folder: Path) -> list[Job]:
    """Every job of these settings, in the order in which they are done."""
    return [
        *tuning_jobs(bench, settings, folder),
        *baseline_jobs(bench, settings, folder),
        *(
            job
            for seed in range(bench.preset.seeds)
            for jobs in (main_jobs, late_jobs)
            for job in jobs(bench, rates, settings, seed, folder)
        ),
    ]


def _speed(bench: Bench) -> float:
    """Floating-point operations a second of one process, from a short run of the first variant."""
    from consilience.domains.pretraining import pretrain

    setting = bench.preset.settings[0]
    variant = setting.variants[0]
    training = replace(bench.preset.training, steps=6, validations=0)
    run = pretrain(
        {setting.domain: bench.of(setting, variant)}, variant.build(), core=bench.preset.core, training=training,
        progress=False,
    )  # fmt: skip
    return 6 * bench.costs[setting.name, variant.name].flops / run.outcome.seconds


def default_processes() -> int:
    """One process per GPU, or without any per CPU core, at most four.

    A single one where Python was started without a file (a script piped in): new processes could not start.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not Path(script).exists():
        return 1
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(usable_cpus(), 4)


def _facts(study: Study) -> dict[str, Any]:
    return {
        "preset": asdict(study.preset),
        "versions": versions(science=True),
        "seconds": study.seconds,
        "peak_memory_mib": peak_memory_mib(),
        "data": {name: part.provenance() for name, part in study.prepared.items()},
        "costs": {f"{s}, {v}": vars(cost) for (s, v), cost in study.bench.costs.items()},
    }
