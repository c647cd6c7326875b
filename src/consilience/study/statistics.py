"""What a difference in a score table is worth: intervals, tests and aggregates over seeds, groups and tasks.

Shape letters: S seeds, n scored records, D draws, T tasks. Higher is better everywhere; negate an error first.
NaN stands for a number that the data cannot give (one group, one seed, a constant truth), never for a failure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from consilience.core.errors import ConsilienceError
from consilience.domains.metrics import classification_scores, redshift_scores, regression_scores
from consilience.domains.penalties import Kind
from consilience.domains.probes import HEADLINE

_FORMULAS = {
    "classification": dict.fromkeys(("accuracy", "macro_f1", "balanced_accuracy"), classification_scores),
    "regression": dict.fromkeys(("r2", "mae"), regression_scores) | {"nmad": redshift_scores},
}

# 16 MB of float64 weights a block; the metrics hold a handful of arrays of this size at once.
_BLOCK = 2_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What one row of a table (a method) predicted for the test records of one task.

    Args:
        kind: classification or regression.
        truth: (n,) labels.
        groups: (n,) the group (donor, scaffold, field) of every record.
        predicted: (S, n) a line a seed; a baseline without chance has one.
        metric: a name of `domains.metrics`; None: the headline metric of the kind.
    """

    kind: Kind
    truth: np.ndarray
    groups: np.ndarray
    predicted: np.ndarray
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FORMULAS:
            raise ConsilienceError(f"kind={self.kind!r} is not known; use one of {', '.join(_FORMULAS)}")
        metric = self.metric or HEADLINE[self.kind]
        if metric not in _FORMULAS[self.kind]:
            known = ", ".join(_FORMULAS[self.kind])
            raise ConsilienceError(f"metric={metric!r} does not score a {self.kind}; use one of {known}")
        dtype = str if self.kind == "classification" else np.float64
        truth, predicted = np.asarray(self.truth).astype(dtype), np.asarray(self.predicted).astype(dtype)
        groups = np.asarray(self.groups).astype(str)
        if not truth.size or predicted.shape != (len(predicted), *truth.shape) or groups.shape != truth.shape:
            raise ConsilienceError(
                f"truth {truth.shape}, groups {groups.shape} and predicted {predicted.shape} do not fit; "
                "give (n,), (n,) and (seeds, n), n and seeds at least 1"
            )
        if self.kind == "regression" and not (np.isfinite(truth).all() and np.isfinite(predicted).all()):
            raise ConsilienceError("a label or a prediction is not finite; leave the record out of every row")
        for name, value in (
            ("truth", truth),
            ("predicted", predicted),
            ("groups", groups),
            ("metric", metric),
        ):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, the ends of its interval, and where there is a test its p-value (else NaN)."""

    value: float
    low: float
    high: float
    p_value: float = float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalised:
    """Scores on the scale trivial = 0, supervised = 1; all NaN with a `reason` where there is no such scale."""

    values: np.ndarray
    reason: str = ""


def seed_scores(row: Predictions, weight: np.ndarray | None = None) -> np.ndarray:
    """The metric of every seed: (S,), or (S, D) when each of D weights (D, n) counts the records its own way."""
    assert row.metric is not None
    weights = np.ones((1, len(row.truth))) if weight is None else weight
    formula = _FORMULAS[row.kind][row.metric]
    scores = np.stack([formula(row.truth, line, weights)[row.metric] for line in row.predicted])
    return scores[:, 0] if weight is None else scores


def point_scores(rows: Mapping[str, Predictions]) -> dict[str, float]:
    """The mean over seeds of the metric on all test records."""
    return {name: float(seed_scores(row).mean()) for name, row in rows.items()}


def bootstrap_scores(
    rows: Mapping[str, Predictions], draws: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """(D,) scores of every row under new test groups and new seeds: hierarchical, and paired between rows.

    A draw takes G of the G test groups with replacement, the same for all rows and the same as
    `domains.metrics.bootstrap`, and in each row S - 1 of its S seeds with replacement, the same for rows with
    equal S; its score is the mean over these seeds of the metric on these groups. Groups and seeds are crossed,
    so both are resampled independently: Owen 2007 (Annals of Applied Statistics 1), the pigeonhole bootstrap,
    which is conservative where records are all the noise. S - 1 instead of S makes the variance between seeds
    unbiased (Rao & Wu 1988, JASA 83): S of S would understate it by a third at three seeds. No resampling
    invents seeds that were not run: where seeds are all the noise, a 95% interval was seen to hold the truth in
    56, 79, 84 and 91% of simulations with 2, 3, 5 and 10 seeds, so read it beside `minimal_detectable`.

    The draws depend on the seed and the set of group names, not on the order of rows or records. Tasks with
    the same test groups should share `seed`; every other science needs its own, to be independent.

    Returns:
        (D,) an entry a row; NaN where there are fewer than two groups.

    Raises:
        ConsilienceError: rows that do not score the same records, in the same order, by the same metric.
    """
    shared = _shared(rows)
    names, group_of = np.unique(shared.groups, return_inverse=True)
    if len(names) < 2:
        return {row: np.full(draws, np.nan) for row in rows}
    generator = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    parts: dict[str, list[np.ndarray]] = {row: [] for row in rows}
    block = max(1, _BLOCK // len(group_of))
    for start in range(0, draws, block):
        times = generator.multinomial(len(names), even, size=min(block, draws - start))
        weight = times[:, group_of].astype(np.float64)
        for row, predictions in rows.items():
            parts[row].append(seed_scores(predictions, weight))
    return {
        row: (np.concatenate(part, axis=1) * seed_shares(len(part[0]), draws, seed)).sum(axis=0)
        for row, part in parts.items()
    }


def _shared(rows: Mapping[str, Predictions]) -> Predictions:
    """The first row, after a look that all others score the same records."""
    if not rows:
        raise ConsilienceError("no rows to score; give at least one")
    (name, first), *others = rows.items()
    for other, row in others:
        if row.metric != first.metric:
            raise ConsilienceError(
                f"{other!r} is scored by {row.metric}, {name!r} by {first.metric}; use one"
            )
        if not (np.array_equal(row.truth, first.truth) and np.array_equal(row.groups, first.groups)):
            raise ConsilienceError(
                f"{other!r} and {name!r} score different records, or in another order; "
                "only rows with the same test records can be paired"
            )
    return first


def seed_shares(n_seeds: int, draws: int, seed: int) -> np.ndarray:
    """(S, D) share of every seed in a draw."""
    if n_seeds == 1:
        return np.ones((1, draws))
    generator = np.random.default_rng([seed, n_seeds])
    times = generator.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), size=draws)
    return times.T / (n_seeds - 1)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the finite draws (Efron & Tibshirani 1993, ch. 13); NaN twice without any."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def normalised(
    score: float | np.ndarray,
    trivial: float | np.ndarray,
    supervised: float | np.ndarray,
    *,
    gap_draws: np.ndarray | None = None,
    level: float = 0.95,
) -> Normalised:
    """(score - trivial) / (supervised - trivial): 0 is the trivial row, 1 the core trained on the labels.

    Give the references as POINT values: a ratio whose denominator is resampled too has no finite moments
    (Fieller 1954), so a few draws with a small gap would decide the interval. The interval then says how far
    the score moves on a fixed scale. Draws of the references are accepted, to see what that hides.

    Args:
        score: a score or (D,) draws of it.
        trivial: what needs no representation.
        supervised: the same core trained on the labels.
        gap_draws: (D,) paired draws of supervised - trivial, the uncertainty of the scale itself.
        level: the lower end of the gap's interval at this level must be above zero.
    """
    gap = np.asarray(supervised, dtype=np.float64) - trivial
    low = interval(np.atleast_1d(gap if gap_draws is None else gap_draws), level)[0]
    values = np.atleast_1d(np.asarray(score, dtype=np.float64))
    if not (gap.mean() > 0 and low > 0):
        reason = (
            f"the supervised core is {gap.mean():+.3g} from the trivial row (lower end {low:+.3g}): not above it "
            "by more than its own uncertainty, so there is no scale between them"
        )
        return Normalised(values=np.full_like(values, np.nan), reason=reason)
    return Normalised(values=(values - trivial) / gap)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """(D,) mean of the middle half over all tasks and runs of each draw.

    Agarwal et al. 2021 (NeurIPS), as in rliable: `scipy.stats.trim_mean(values, 0.25)`. Its interval is
    `interval(interquartile_mean(draws))`: draws of `bootstrap_scores` resample within every task, which is the
    stratified bootstrap of that paper with test groups as one more source of chance.

    Args:
        values: (T, D) or (T, runs, D). A task that is NaN throughout is left out.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1, np.shape(values)[-1])
    kept = np.sort(flat[~np.isnan(flat).all(axis=1)], axis=0)
    if not len(kept):
        return np.full(flat.shape[1], np.nan)
    cut = int(0.25 * len(kept))
    middle: np.ndarray = kept[cut : len(kept) - cut].mean(axis=0)
    # NaN sorts to the top, where it might be cut: a draw with a gap has no value.
    return np.where(np.isnan(kept).any(axis=0), np.nan, middle)


def _resampled(runs: Sequence[np.ndarray], draws: int, generator: np.random.Generator) -> list[np.ndarray]:
    """For every task (runs,) -> (runs, D) with replacement; the first column is the data itself."""
    out = []
    for task in runs:
        task = np.asarray(task, dtype=np.float64)
        if task.ndim != 1 or not len(task):
            raise ConsilienceError(f"scores of shape {task.shape} for a task; give (runs,), at least one run")
        out.append(np.column_stack([task, task[generator.integers(len(task), size=(len(task), draws))]]))
    return out


def interquartile_mean_of_runs(
    runs: Sequence[np.ndarray], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Interquartile mean over all runs of all tasks; interval from resampling the runs within each task.

    Agarwal et al. 2021. For scores that exist only as one number a run.

    Args:
        runs: a (runs,) array a task.
        draws: resamples.
        level: of the interval.
        seed: of the resampling.
    """
    means = interquartile_mean(np.concatenate(_resampled(runs, draws, np.random.default_rng(seed))))
    low, high = interval(means[1:], level)
    return Estimate(value=float(means[0]), low=low, high=high)


def probability_of_improvement(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """How often a run of `first` beats a run of `second`: P(X > Y) + P(X = Y) / 2, averaged over tasks.

    The Mann-Whitney statistic U / (runs of X * runs of Y) of each task (Agarwal et al. 2021, eq. 2), with an
    interval from resampling the runs within each task. Arguments as in `interquartile_mean_of_runs`.
    """
    if len(first) != len(second):
        raise ConsilienceError(f"{len(first)} tasks against {len(second)}; give both methods the same tasks")
    generator = np.random.default_rng(seed)
    pairs = zip(_resampled(first, draws, generator), _resampled(second, draws, generator), strict=True)
    wins = [((1 + np.sign(x[:, None] - y[None])) / 2).mean(axis=(0, 1)) for x, y in pairs]
    mean = np.mean(wins, axis=0)
    low, high = interval(mean[1:], level)
    return Estimate(value=float(mean[0]), low=low, high=high)


def probability_best(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How often each row has the highest interquartile mean over tasks; a tie is split evenly, the sum is 1.

    Args:
        draws: (T, D) an entry a row, paired: the same tasks and the same draws for all rows. A task without a
            value in any one row is left out of all; so is a draw.
    """
    shapes = {np.shape(values) for values in draws.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ConsilienceError(f"draws of shapes {sorted(shapes)}; give every row the same (tasks, draws)")
    stacked = np.stack(list(draws.values())).astype(np.float64)
    stacked = stacked[:, ~np.isnan(stacked).all(axis=2).any(axis=0)]
    means = np.stack([interquartile_mean(values) for values in stacked])
    means = means[:, ~np.isnan(means).any(axis=0)]
    if not means.size:
        return dict.fromkeys(draws, float("nan"))
    best = means == means.max(axis=0)
    return dict(zip(draws, (best / best.sum(axis=0)).mean(axis=1).tolist(), strict=True))


def compare(
    rows: Mapping[str, Predictions],
    reference: str,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Every row against one of them: the paired difference, its interval, and a test corrected by Holm.

    p = 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + D), at most 1, over the paired draws d of the difference: the
    level at which the percentile interval would just touch zero (Efron & Tibshirani 1993, ch. 13), with the
    + 1 of Davison & Hinkley 1997 (eq. 4.11), so that no p-value is zero.

    Returns:
        row, score, low, high, difference, difference_low, difference_high, p, p_holm, significant; a line a row
        other than the reference. p and ends are NaN, and `significant` False, with fewer than two groups.

    Raises:
        ConsilienceError: an unknown reference; too few draws for any result to survive the correction.
    """
    if reference not in rows:
        raise ConsilienceError(
            f"reference={reference!r} is no row; it is one of {', '.join(map(repr, rows))}"
        )
    needed = int(np.ceil(2 * (len(rows) - 1) / (1 - level))) - 1
    if draws < needed:
        raise ConsilienceError(
            f"{draws} draws cannot make {len(rows) - 1} comparisons significant; use at least {needed}"
        )
    scores, drawn = point_scores(rows), bootstrap_scores(rows, draws, seed)
    lines = []
    for row in rows:
        if row == reference:
            continue
        gap = drawn[row] - drawn[reference]
        gap = gap[np.isfinite(gap)]
        tail = min((gap <= 0).sum(), (gap >= 0).sum())
        (low, high), (gap_low, gap_high) = interval(drawn[row], level), interval(gap, level)
        lines.append(
            {
                "row": row,
                "score": scores[row],
                "low": low,
                "high": high,
                "difference": scores[row] - scores[reference],
                "difference_low": gap_low,
                "difference_high": gap_high,
                "p": min(1.0, 2 * (1 + tail) / (1 + len(gap))) if len(gap) else np.nan,
            }
        )
    columns = ["row", "score", "low", "high", "difference", "difference_low", "difference_high", "p"]
    table = pd.DataFrame(lines, columns=columns)
    table["p_holm"] = holm(table["p"].to_numpy(np.float64))
    return table.assign(significant=table["p_holm"] <= 1 - level)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values: reject those at most alpha and the chance of any false rejection is at most alpha.

    Sorted, p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)) (Holm 1979). NaN stays NaN, uncounted.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    adjusted = np.full(p_values.shape, np.nan)
    steps = np.arange(len(order), 0, -1) * p_values[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def minimal_detectable(seed_values: np.ndarray, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest difference of two means that a t-test with this many seeds each would find.

    (t_[1 - alpha/2] + t_[power]) s sqrt(2 / S) with 2 (S - 1) degrees of freedom (Bloom 1995, Evaluation Review
    19) and s pooled over rows. A difference below it that was not found says nothing.

    Args:
        seed_values: (S,) or (rows, S) one score a seed. NaN with one seed.
        level: 1 - alpha, two-sided.
        power: chance to find it.
    """
    values = np.atleast_2d(np.asarray(seed_values, dtype=np.float64))
    seeds = values.shape[1]
    if seeds < 2:
        return float("nan")
    quantile = partial(stats.t.ppf, df=2 * (seeds - 1))
    spread = np.sqrt(values.var(axis=1, ddof=1).mean())
    return float((quantile((1 + level) / 2) + quantile(power)) * spread * np.sqrt(2 / seeds))
