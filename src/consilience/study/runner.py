"""Runs a study: the grid of cells, resumable, with one progress bar; then tables, figures and the report."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.progress import Progress, TaskID

from consilience import registry
from consilience.core.errors import ConsilienceError
from consilience.core.objectives import Objective
from consilience.core.progress import progress_bar
from consilience.core.records import fingerprint
from consilience.domains.preparation import Prepared, load_collection, prepare
from consilience.environment import peak_memory_mib, versions
from consilience.study.cell import run_cell, run_classical, run_random_init, run_trivial
from consilience.study.presets import PRESETS, StudyPreset
from consilience.study.results import Result

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


def cell_folder(folder: Path, domain: str, objective: str, seed: int) -> Path:
    """Where the model of a cell lies."""
    return folder / "cells" / domain / objective / f"seed-{seed}"


def run_study(
    preset: str,
    out: Path,
    *,
    seeds: int | None = None,
    domains: list[str] | None = None,
    objectives: list[str] | None = None,
    steps: int | None = None,
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
    study = compute(chosen, out, objectives=objectives, progress=progress)
    from consilience.report import write_report

    return write_report(study)


def compute(
    preset: StudyPreset, folder: Path, *, objectives: list[str] | None = None, progress: bool = True
) -> Study:
    """All cells and baselines of a study; finished ones are read from the folder."""
    begin = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    bar = progress_bar("steps", disable=not progress)
    prepared: dict[str, Prepared] = {}
    results: list[Result] = []
    with bar:
        names = {name: _objectives(name, objectives) for name in preset.domains}
        total = sum(len(chosen) for chosen in names.values()) * preset.seeds * preset.training.steps
        task = bar.add_task("study", total=total, note="reading data")
        for name, chosen in names.items():
            bar.update(task, note=f"{name}: preparing")
            prepared[name] = _prepare(name)
            results += _run_domain(prepared[name], chosen, preset, folder, bar, task)
    study = Study(
        preset=preset,
        results=tuple(results),
        prepared=prepared,
        folder=folder,
        seconds=time.perf_counter() - begin,
    )
    (folder / "study.json").write_text(
        json.dumps(
            {
                "preset": asdict(preset),
                "versions": versions(science=True),
                "seconds": study.seconds,
                "peak_memory_mib": peak_memory_mib(),
                "data": {name: part.provenance() for name, part in prepared.items()},
            },
            indent=1,
        )
    )
    return study


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


def _run_domain(
    prepared: Prepared,
    objectives: list[Objective],
    preset: StudyPreset,
    folder: Path,
    bar: Progress,
    task: TaskID,
) -> list[Result]:
    name = prepared.domain.name
    base = folder / "cells" / name

    def key_of(*parts: object) -> str:
        return fingerprint(
            [prepared.collection.fingerprint, json.dumps(prepared.tokenizer.state(), sort_keys=True)]
            + [repr(part) for part in (preset.core, preset.training, *parts)]
        )

    def keep(path: Path, key: str, compute_it: Callable[[], Result], note: str) -> Result:
        found = Result.read(path, key)
        if found is None:
            bar.update(task, note=f"{name}: {note}")
            found = compute_it()
            found.write(path)
        return found

    key = key_of("baseline")
    results = [
        keep(base / "trivial.json", key, lambda: run_trivial(prepared, key), "majority / mean"),
        keep(base / "classical.json", key, lambda: run_classical(prepared, key), "classical baseline"),
    ]
    for seed in range(preset.seeds):
        first, random_key = objectives[0], key_of("random", seed)
        results.append(
            keep(
                base / f"random-init-{seed}.json",
                random_key,
                lambda first=first, seed=seed, k=random_key: run_random_init(
                    prepared, first, seed, preset, k
                ),  # type: ignore[misc]
                "random-init core",
            )
        )
    for objective in objectives:
        for seed in range(preset.seeds):
            results.append(
                _run_one(prepared, objective, seed, preset, folder, key_of(objective, seed), bar, task)
            )
    return results


def _run_one(
    prepared: Prepared,
    objective: Objective,
    seed: int,
    preset: StudyPreset,
    folder: Path,
    key: str,
    bar: Progress,
    task: TaskID,
) -> Result:
    """A cell of the grid: read, or run; a cell that fails is reported with its reason."""
    name = prepared.domain.name
    own = cell_folder(folder, name, objective.name, seed)
    done = bar.tasks[0].completed
    found = Result.read(own / "result.json", key)
    if found is None:
        bar.update(task, note=f"{name}: {objective.name}, seed {seed}")
        try:
            found = run_cell(
                prepared,
                objective,
                seed,
                preset,
                own,
                key,
                on_step=lambda step: bar.update(task, completed=done + step),
            )
        except (ConsilienceError, RuntimeError, FloatingPointError) as error:
            logger.error("%s, %s, seed %d failed: %s", name, objective.name, seed, error)
            found = Result(
                key=key, domain=name, row=objective.name, role="pre-trained", seed=seed, error=str(error)
            )
        found.write(own / "result.json")
    bar.update(task, completed=done + preset.training.steps)
    return found
