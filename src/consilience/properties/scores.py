"""Metrics of the rows of a table with their intervals: over test scaffolds and seeds, paired between rows.

Shape letters: D draws, S seeds, m test records, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from consilience.domains.metrics import (
    Scores,
    ranking_scores,
    regression_scores,
    squared_error_scores,
)
from consilience.domains.penalties import Kind
from consilience.study.statistics import interval, seed_shares

METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("roc_auc", "average_precision"),
    "regression": ("rmse", "mae", "r2"),
}
"""The first stands for its kind in a table."""
LOWER_IS_BETTER = ("rmse", "mae")
DRAWS = 1000
_BLOCK = 2_000_000
"""Weights of one block of draws: 16 MB of float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The metrics of one row.

    Args:
        seeds: metric -> (S, T); NaN where the test part of a target has one class or one value.
        draws: metric -> (D,) mean over targets and resampled seeds, under resampled test groups.
    """

    seeds: Mapping[str, np.ndarray]
    draws: Mapping[str, np.ndarray]

    def value(self, metric: str) -> float:
        """The mean over seeds and targets."""
        return float(_mean(self.seeds[metric].mean(axis=0)[:, None], 0)[0])

    def interval(self, metric: str) -> tuple[float, float]:
        """95% interval of `value`."""
        return interval(self.draws[metric])

    def per_target(self, metric: str) -> np.ndarray:
        """(T,) means over seeds."""
        return self.seeds[metric].mean(axis=0)


def score(
    kind: Kind, truth: np.ndarray, groups: np.ndarray, predicted: np.ndarray, draws: int = DRAWS
) -> Scored:
    """Score one row.

    A draw takes as many test groups as there are with replacement, the same for all rows and targets, and S - 1 of
    the S seeds; see `study.statistics.bootstrap_scores`, whose scheme this is. Where a draw leaves a target with one
    class, the mean is over the others.

    Args:
        kind: of all targets.
        truth: (m, T), NaN where unknown.
        groups: (m,) scaffold of every record.
        predicted: (S, m, T).
        draws: D.
    """
    whole = _measured(kind, truth, predicted, np.ones((1, len(truth))))
    names, group_of = np.unique(groups.astype(str), return_inverse=True)
    generator = np.random.default_rng(0)
    even = np.full(len(names), 1 / len(names))
    parts: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS[kind]}
    block = max(1, _BLOCK // len(truth))
    for start in range(0, draws, block):
        times = generator.multinomial(len(names), even, size=min(block, draws - start))
        found = _measured(kind, truth, predicted, times[:, group_of].astype(np.float64))
        for metric, values in found.items():
            parts[metric].append(_mean(values, 1))
    shares = seed_shares(len(predicted), draws, 0)
    alone = len(names) < 2  # one group says nothing of the spread
    return Scored(
        seeds={metric: values[:, :, 0] for metric, values in whole.items()},
        draws={
            metric: np.full(draws, np.nan) if alone else (np.concatenate(part, axis=1) * shares).sum(axis=0)
            for metric, part in parts.items()
        },
    )


def _measured(kind: Kind, truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> Scores:
    """Metric -> (S, T, D)."""
    shape = (len(predicted), truth.shape[1], len(weight))
    found = {metric: np.full(shape, np.nan) for metric in METRICS[kind]}
    for target in range(truth.shape[1]):
        known = ~np.isnan(truth[:, target])
        if not known.any():
            continue
        own, weights = truth[known, target], weight[:, known]
        drawn = weights.sum(axis=1) > 0
        for seed, scores in enumerate(predicted[:, known, target]):
            if kind == "classification":
                values = ranking_scores(own == 1, scores, weights[drawn])
            else:
                values = regression_scores(own, scores, weights[drawn])
                values |= squared_error_scores(own, scores, weights[drawn])
            for metric in found:
                found[metric][seed, target, drawn] = values[metric]
    return found


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean over an axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.divide(total, count, where=count > 0, out=np.full(count.shape, np.nan))
