"""How two columns go together: rank correlation inside groups, and where two curves cross."""

from itertools import pairwise

import numpy as np
from scipy import stats

from consilience.core.errors import ConsilienceError
from consilience.study.statistics import Estimate, interval


def rank_correlation(
    x: np.ndarray,
    y: np.ndarray,
    *,
    draws: int = 1000,
    groups: np.ndarray | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Spearman's rank correlation, inside groups where there are some, with interval and permutation test.

    With groups (sciences) the ranks are those inside each group, centred and divided by its size, and pooled:
    sum(r_x r_y) / sqrt(sum(r_x^2) sum(r_y^2)). Nats of one science are not comparable with those of another, and
    a trend between sciences must not pass for one inside them. One group is Spearman's own. The interval
    resamples groups, then pairs inside them; p = (1 + #{|r*| >= |r|}) / (1 + D) permutes y inside groups.

    Args:
        x: (n,) values.
        y: (n,) their partners.
        draws: resamples, and permutations.
        groups: (n,) None: all pairs in one.
        level: of the interval.
        seed: of both.

    Raises:
        ConsilienceError: fewer than three pairs, different lengths, or values that are not finite.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    labels = np.zeros(x.shape, dtype=int) if groups is None else np.asarray(groups).astype(str)
    if x.ndim != 1 or len(x) < 3 or not x.shape == y.shape == labels.shape:
        raise ConsilienceError(f"x {x.shape}, y {y.shape}, groups {labels.shape}; give three (n,), n >= 3")
    if not np.isfinite(x + y).all():
        raise ConsilienceError(f"pair {np.flatnonzero(~np.isfinite(x + y))[0]} is not finite; leave it out")
    members = [np.flatnonzero(labels == name) for name in np.unique(labels)]
    generator = np.random.default_rng(seed)
    value = _correlation(np.sum([_rank_products(x[None, part], y[None, part]) for part in members], axis=0))[
        0
    ]
    resampled, permuted = np.zeros((3, draws)), np.zeros((3, draws))
    for chosen in generator.integers(len(members), size=(len(members), draws)):
        for group, part in enumerate(members):
            here = np.flatnonzero(chosen == group)
            pick = part[generator.integers(len(part), size=(len(here), len(part)))]
            resampled[:, here] += _rank_products(x[pick], y[pick])
    for part in members:
        shuffled = generator.permuted(np.tile(y[part], (draws, 1)), axis=1)
        permuted += _rank_products(np.broadcast_to(x[part], shuffled.shape), shuffled)
    low, high = interval(_correlation(resampled), level)
    as_far = np.abs(_correlation(permuted)) >= np.abs(value) - 1e-12
    p_value = (1 + as_far.sum()) / (1 + draws) if np.isfinite(value) else np.nan
    return Estimate(value=float(value), low=low, high=high, p_value=float(p_value))


def _rank_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(3, D) sums of r_x r_y, r_x^2 and r_y^2 over the lines of (D, m)."""
    m = x.shape[1]
    if not len(x):
        return np.zeros((3, 0))
    rank_x, rank_y = ((stats.rankdata(values, axis=1) - (m + 1) / 2) / m for values in (x, y))
    return np.stack([(rank_x * rank_y).sum(1), (rank_x**2).sum(1), (rank_y**2).sum(1)])


def _correlation(products: np.ndarray) -> np.ndarray:
    """(D,) correlations; NaN where one side is constant."""
    scale = np.sqrt(products[1] * products[2])
    return np.divide(products[0], scale, where=scale > 0, out=np.full_like(scale, np.nan))


def crossover(x: np.ndarray, y_a: np.ndarray, y_b: np.ndarray) -> float | None:
    """The first x at which the better curve changes, straight in log x between points; None without a change.

    With d = y_a - y_b of opposite signs at x_0 < x_1: log x = (d_1 log x_0 - d_0 log x_1) / (d_1 - d_0). Curves
    that touch and part again on the same side do not cross; where they are equal for a while, the start counts.

    Raises:
        ConsilienceError: different lengths, or an x that is not positive or occurs twice.
    """
    x, y_a, y_b = (np.asarray(values, dtype=np.float64) for values in (x, y_a, y_b))
    if x.ndim != 1 or not x.shape == y_a.shape == y_b.shape:
        raise ConsilienceError(f"curves of shapes {x.shape}, {y_a.shape}, {y_b.shape}; give three (n,)")
    if not (x > 0).all() or len(np.unique(x)) < len(x):
        raise ConsilienceError("x must be positive and without repeats for a logarithmic axis; leave 0 out")
    order = np.argsort(x)
    order = order[np.isfinite((y_a - y_b)[order])]
    place, gap = np.log(x[order]), (y_a - y_b)[order]
    apart = np.flatnonzero(gap)
    for before, after in pairwise(apart):
        if gap[before] * gap[after] < 0:
            if after > before + 1:
                return float(x[order][before + 1])
            weighted = gap[after] * place[before] - gap[before] * place[after]
            return float(np.exp(weighted / (gap[after] - gap[before])))
    return None
