"""The grid of a study: what has to be computed, and where its result lies."""

import json
from dataclasses import dataclass
from pathlib import Path

from consilience.core.objectives import Objective
from consilience.core.records import fingerprint
from consilience.domains.preparation import Prepared
from consilience.study.presets import StudyPreset
from consilience.study.results import Result, Role


@dataclass(frozen=True, kw_only=True)
class Job:
    """One result to compute.

    Args:
        work: what it is.
        domain: the science.
        row: objective or baseline, for messages.
        key: hash of everything that decides the numbers.
        path: the file of the result.
        objective: what to pre-train with, or whose heads a random core gets; None for baselines without a core.
        seed: of the run.
        steps: training steps, for the progress bar.
    """

    work: Role
    domain: str
    row: str
    key: str
    path: Path
    objective: Objective | None = None
    seed: int | None = None
    steps: int = 0

    @property
    def folder(self) -> Path:
        """Where the model of a pre-trained cell lies."""
        return self.path.parent

    def finished(self) -> Result | None:
        """The result, when it was computed before and still answers the same question."""
        return Result.read(self.path, self.key)

    def failed(self, reason: str) -> Result:
        """A result that says why there is none."""
        return Result(
            key=self.key, domain=self.domain, row=self.row, role=self.work, seed=self.seed, error=reason
        )


def cell_folder(folder: Path, domain: str, objective: str, seed: int) -> Path:
    """Where the model of a pre-trained cell lies."""
    return folder / "cells" / domain / objective / f"seed-{seed}"


def jobs_of(prepared: Prepared, objectives: list[Objective], preset: StudyPreset, folder: Path) -> list[Job]:
    """All jobs of one science: baselines first."""
    name = prepared.domain.name
    base = folder / "cells" / name
    data = [prepared.collection.fingerprint, json.dumps(prepared.tokenizer.state(), sort_keys=True)]

    def key(*parts: object) -> str:
        return fingerprint([*data, *(repr(part) for part in parts)])

    core = preset.core
    jobs = [
        Job(work="trivial", domain=name, row="majority / mean", key=key(), path=base / "trivial.json"),
        Job(work="classical", domain=name, row="classical", key=key(), path=base / "classical.json"),
    ]
    for seed in range(preset.seeds):
        jobs.append(
            Job(
                work="random-init",
                domain=name,
                row="random-init core",
                key=key(core, seed),
                path=base / f"random-init-{seed}.json",
                objective=objectives[0],
                seed=seed,
            )
        )
    for objective in objectives:
        for seed in range(preset.seeds):
            jobs.append(
                Job(
                    work="pre-trained",
                    domain=name,
                    row=objective.name,
                    key=key(core, preset.training, preset.evaluation_records, objective, seed),
                    path=cell_folder(folder, name, objective.name, seed) / "result.json",
                    objective=objective,
                    seed=seed,
                    steps=preset.training.steps,
                )
            )
    return jobs
