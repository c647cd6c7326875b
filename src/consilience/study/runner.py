"""Runs a study: the grid of cells, resumable, with one progress bar; then tables, figures and the report."""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from consilience import registry
from consilience.core.errors import ConsilienceError
from consilience.core.objectives import Objective
from consilience.core.progress import progress_bar
from consilience.domains.preparation import Prepared, load_collection, prepare
from consilience.environment import peak_memory_mib, usable_cpus, versions
from consilience.study.grid import Job, cell_folder, jobs_of
from consilience.study.presets import PRESETS, StudyPreset
from consilience.study.results import Result
from consilience.study.workers import run_jobs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished study: what was asked, what came out, and on what data."""

    preset: StudyPreset
    results: tuple[Result, ...]
    prepared: dict[str, Prepared]
    folder: Path
    seconds: float

    def cell_folder(self, domain: str, objective: str, seed: int) -> Path:
        """Where the model of a cell lies."""
        return cell_folder(self.folder, domain, objective, seed)


def run_study(
    preset: str,
    out: Path,
    *,
    seeds: int | None = None,
    domains: list[str] | None = None,
    objectives: list[str] | None = None,
    steps: int | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Run a study and write its report; a study that was stopped goes on where it stopped.

    Args:
        preset: its name.
        out: the folder of the study.
        seeds: fewer or more seeds than the preset's.
        domains: only these sciences.
        objectives: only these objectives.
        steps: other than the preset's.
        processes: how many runs at a time; default: one per CPU core, or one on a GPU.
        progress: show a bar.

    Returns:
        The path of `report.html`.
    """
    if preset not in PRESETS:
        raise ConsilienceError(f"unknown preset '{preset}'; known: {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    chosen = replace(
        chosen,
        seeds=chosen.seeds if seeds is None else seeds,
        domains=chosen.domains if domains is None else tuple(domains),
        training=chosen.training if steps is None else replace(chosen.training, steps=steps),
    )
    study = compute(chosen, out, objectives=objectives, processes=processes, progress=progress)
    from consilience.report import print_table, write_report

    path = write_report(study)
    if progress:
        print_table(study.results)
    return path


def compute(
    preset: StudyPreset,
    folder: Path,
    *,
    objectives: list[str] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Study:
    """All cells and baselines of a study; finished ones are read from the folder."""
    begin = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: _objectives(name, objectives) for name in preset.domains}
    with progress_bar("steps", disable=not progress) as bar:
        total = sum(len(some) for some in chosen.values()) * preset.seeds * preset.training.steps
        task = bar.add_task("study", total=total, note="reading data")
        prepared: dict[str, Prepared] = {}
        for name in chosen:
            bar.update(task, note=f"{name}: reading and tokenizing")
            prepared[name] = _prepare(name)
        jobs = [job for name, some in chosen.items() for job in jobs_of(prepared[name], some, preset, folder)]
        found = {job: job.finished() for job in jobs}
        open_jobs = [job for job, result in found.items() if result is None]
        done = {job.path: job.steps for job in jobs if found[job] is not None}
        bar.update(task, completed=sum(done.values()), note=f"{len(open_jobs)} of {len(jobs)} runs to do")

        def on_step(job: Job, step: int) -> None:
            done[job.path] = step
            bar.update(task, completed=sum(done.values()), note=f"{job.domain}: {job.row}, seed {job.seed}")

        results = [result for result in found.values() if result is not None]
        workers = processes if processes is not None else default_processes()
        for result in run_jobs(open_jobs, prepared, preset, processes=workers, on_step=on_step):
            results.append(result)
        bar.update(task, completed=total, note="done")
    study = Study(
        preset=preset,
        results=tuple(sorted(results, key=_place(jobs))),
        prepared=prepared,
        folder=folder,
        seconds=time.perf_counter() - begin,
    )
    (folder / "study.json").write_text(json.dumps(_facts(study), indent=1))
    return study


def default_processes() -> int:
    """One process per CPU core, at most four; a single one where a GPU does the work.

    Also a single one where Python was started without a file (a script piped in): new processes could not start.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if torch.cuda.is_available() or (script is not None and not Path(script).exists()):
        return 1
    return min(usable_cpus(), 4)


def _place(jobs: list[Job]) -> Callable[[Result], int]:
    """Results in the order of the grid, whatever finished first."""
    places = {(job.domain, job.work, job.row if job.work == "pre-trained" else "", job.seed): i
              for i, job in enumerate(jobs)}  # fmt: skip
    return lambda r: places[(r.domain, r.role, r.row if r.role == "pre-trained" else "", r.seed)]


def _facts(study: Study) -> dict[str, Any]:
    return {
        "preset": asdict(study.preset),
        "versions": versions(science=True),
        "seconds": study.seconds,
        "peak_memory_mib": peak_memory_mib(),
        "data": {name: part.provenance() for name, part in study.prepared.items()},
    }


def _objectives(domain: str, wanted: list[str] | None) -> list[Objective]:
    names = registry.domain(domain).quick.objectives
    if wanted is not None:
        for name in wanted:
            registry.objective(name)
        names = tuple(name for name in names if name in wanted)
        if not names:
            raise ConsilienceError(f"none of {', '.join(wanted)} is compared on {domain}")
    return [registry.objective(name)() for name in names]


def _prepare(name: str) -> Prepared:
    domain = registry.domain(name)
    return prepare(
        domain, load_collection(domain, None), tokenizer=domain.quick.tokenizer, limit=domain.quick.records
    )
