"""What the jobs of a study left behind, paired: predictions and nats of all rows on the same test records."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from consilience.domains.base import Task
from consilience.study.plan import Setting, Variant
from consilience.study.results import Result, Role, read_arrays
from consilience.study.statistics import Predictions

if TYPE_CHECKING:
    from consilience.study.runner import Study

ROWS: tuple[Role, ...] = ("trivial", "classical", "random-init", "supervised", "pre-trained")
"""Rows of the table of scores, in its order."""


@dataclass(frozen=True)
class Evidence:
    """The results of a study by setting and row."""

    study: "Study"

    @cached_property
    def rows(self) -> dict[str, dict[str, list[Result]]]:
        """setting -> row -> its results that did not fail, one a seed, baselines first."""
        found: dict[str, dict[str, list[Result]]] = {s.name: {} for s in self.study.preset.settings}
        for role in ROWS:
            for result in self.study.results:
                if result.role == role and not result.error:
                    found[result.setting].setdefault(result.row, []).append(result)
        return found

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Key -> where the arrays of a result lie."""
        return {job.key: job.arrays for job in self.study.jobs}

    def variant(self, setting: Setting, row: str) -> Variant | None:
        """The variant of a row; None for baselines."""
        return next((variant for variant in setting.variants if variant.name == row), None)

    def arrays(self, result: Result) -> dict[str, np.ndarray]:
        """Predictions and embeddings of a result."""
        return read_arrays(self.paths[result.key])

    def ids(self, setting: Setting, row: str, index: np.ndarray) -> np.ndarray:
        """Ids of the records at these places, as the tokenizer of the row kept them."""
        return self.study.bench.of(setting, self.variant(setting, row)).collection.ids[index]

    def predictions(self, setting: Setting, task: Task) -> dict[str, Predictions]:
        """Row -> its predictions of the test records that every row predicts, in one order."""
        loaded: dict[str, list[dict[str, np.ndarray]]] = {}
        for row, results in self.rows[setting.name].items():
            arrays = [self.arrays(result) for result in results]
            kept = [a for a in arrays if f"{task.name}/index" in a]
            if kept:
                loaded[row] = kept
        if not loaded:
            return {}
        places = {
            row: {
                name: i for i, name in enumerate(self.ids(setting, row, a[0][f"{task.name}/index"]).tolist())
            }
            for row, a in loaded.items()
        }
        common = sorted(set.intersection(*(set(place) for place in places.values())))
        collection = self.study.bench.of(setting).collection
        group = dict(zip(collection.ids.tolist(), np.asarray(collection.group_of).astype(str).tolist()))
        groups = np.array([group[name] for name in common])
        found = {}
        for row, arrays in loaded.items():
            pick = np.array([places[row][name] for name in common])
            found[row] = Predictions(
                kind=task.kind,
                truth=arrays[0][f"{task.name}/truth"][pick],
                groups=groups,
                predicted=np.stack([a[f"{task.name}/predicted"][pick] for a in arrays]),
            )
        return found


def nats_of(results: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """(S, C) held-out nats and tokens of every small group of records, a line a seed."""
    table = np.array([result.nats for result in results], dtype=np.float64)
    return table[..., 0], table[..., 1]


def family(variant: Variant) -> str:
    """The likelihood of a variant's values: captured dependence is counted within one."""
    return str(variant.options.get("head", "gaussian"))


def floor_of(setting: Setting, variant: Variant) -> Variant | None:
    """The address-only variant with the same tokens and likelihood; None where the study has none."""
    families = {family(variant), "mixture" if family(variant) == "flow" else family(variant)}
    for other in setting.variants:
        same_tokens = dict(other.tokenizer) == dict(_layout(variant))
        if other.objective == "address-only" and same_tokens and family(other) in families:
            return other
    return None


def _layout(variant: Variant) -> Mapping[str, object]:
    """Options of the tokenizer that change what the tokens are; the order of the same tokens does not."""
    return {name: value for name, value in variant.tokenizer.items() if name not in ("order", "form")}
