"""Scores of predictions, with weights, so that one formula serves the estimate and its bootstrap.

Shape letters: D draws (rows of weights), n scored records, C classes. A row of ones gives the plain score.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

Scores = dict[str, np.ndarray]
"""Name of the metric -> (D,) values."""

# Memory of one block of bootstrap weights: 4 million float64 = 32 MB.
_BLOCK = 4_000_000


def classification_scores(truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> Scores:
    """Accuracy, macro F1 and balanced accuracy.

    Macro averages run over the classes that occur in the truth (of a draw), so a class that no test record
    has counts neither for nor against; predicting it costs recall of the true class.

    Args:
        truth: (n,) classes.
        predicted: (n,) classes.
        weight: (D, n) how often each record counts.
    """
    classes, true_code = np.unique(truth, return_inverse=True)
    place = np.searchsorted(classes, predicted).clip(max=len(classes) - 1)
    # Classes outside the truth share one extra column that is then left out.
    predicted_code = np.where(classes[place] == predicted, place, len(classes))
    correct = true_code == predicted_code
    n_true = _class_sums(weight, true_code, len(classes))
    n_predicted = _class_sums(weight, predicted_code, len(classes))
    n_correct = _class_sums(weight * correct, true_code, len(classes))
    present = n_true > 0
    n_present = present.sum(axis=1)
    recall = np.divide(n_correct, n_true, where=present, out=np.zeros_like(n_true))
    f1 = np.divide(2 * n_correct, n_true + n_predicted, where=present, out=np.zeros_like(n_true))
    return {
        "accuracy": (weight * correct).sum(axis=1) / weight.sum(axis=1),
        "macro_f1": f1.sum(axis=1) / n_present,
        "balanced_accuracy": recall.sum(axis=1) / n_present,
    }


def _class_sums(weight: np.ndarray, code: np.ndarray, n_classes: int) -> np.ndarray:
    """(D, C) weight of the records of each class; codes from `n_classes` on are dropped."""
    shape = (len(code), n_classes + 1)
    membership = sparse.csr_array((np.ones(len(code)), (np.arange(len(code)), code)), shape=shape)
    return np.asarray((membership.T @ weight.T).T)[:, :n_classes]


def regression_scores(truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> Scores:
    """R2 (1 - residual / total sum of squares; NaN where the truth is constant) and mean absolute error.

    The error is in the unit of the labels. Shapes as in `classification_scores`.
    """
    total = weight.sum(axis=1)
    # Centred first: squares of labels far from zero (energies) would cancel in float64.
    centred = truth - truth.mean()
    residual = truth - predicted
    mean = weight @ centred / total
    spread = weight @ centred**2 - total * mean**2
    floor = 1e-12 * np.square(np.abs(truth).max()) * total
    varies = spread > floor
    lost = np.divide(weight @ residual**2, spread, where=varies, out=np.full_like(spread, np.nan))
    return {"r2": 1 - lost, "mae": weight @ np.abs(residual) / total}


def squared_error_scores(truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> Scores:
    """Root mean squared error, in the unit of the labels. Shapes as in `classification_scores`."""
    return {"rmse": np.sqrt(weight @ (truth - predicted) ** 2 / weight.sum(axis=1))}


def ranking_scores(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> Scores:
    """Area under the ROC curve (ties count half) and average precision; NaN where a draw lacks one of the two classes.

    Average precision is the sum over thresholds of the gain in recall times the precision there, without
    interpolation, as in scikit-learn.

    Args:
        positive: (n,) bool.
        score: (n,) higher for what is likelier positive.
        weight: (D, n) how often each record counts.
    """
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of every distinct score
    hits = np.add.reduceat(weight[:, order] * positive[order], first, axis=1)
    misses = np.add.reduceat(weight[:, order] * ~positive[order], first, axis=1)
    n_hits, n_misses = hits.sum(axis=1), misses.sum(axis=1)
    below = np.cumsum(misses, axis=1) - misses / 2
    both = (n_hits > 0) & (n_misses > 0)
    nowhere = np.full(len(weight), np.nan)
    area = np.divide((hits * below).sum(axis=1), n_hits * n_misses, where=both, out=nowhere.copy())
    above = hits[:, ::-1].cumsum(axis=1)
    chosen = above + misses[:, ::-1].cumsum(axis=1)
    precision = np.divide(above, chosen, where=chosen > 0, out=np.zeros_like(above))
    gained = (hits[:, ::-1] * precision).sum(axis=1)
    average = np.divide(gained, n_hits, where=both, out=nowhere)
    return {"roc_auc": area, "average_precision": average}


def redshift_scores(truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> Scores:
    """Normalised median absolute deviation of a redshift: 1.4826 median(|dz - median(dz)| / (1 + z)).

    Ilbert et al. 2006, with the offset removed as in Brammer et al. 2008.
    """
    offset = predicted - truth
    middle = _weighted_median(offset[None, :], weight)
    deviation = np.abs(offset[None, :] - middle[:, None]) / (1 + truth)
    return {"nmad": 1.4826 * _weighted_median(deviation, weight)}


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(D,) medians of (D or 1, n) values that each count `weight` (D, n) times, as if repeated."""
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    mass = np.cumsum(np.take_along_axis(weight, np.broadcast_to(order, weight.shape), axis=1), axis=1)
    half = mass[:, -1:] / 2
    ordered = np.broadcast_to(ordered, mass.shape)
    lower = np.take_along_axis(ordered, (mass < half).sum(axis=1)[:, None], axis=1)
    upper = np.take_along_axis(ordered, (mass <= half).sum(axis=1)[:, None], axis=1)
    return (lower + upper)[:, 0] / 2


def bootstrap(
    score: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, *, draws: int, level: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of a score when whole groups are drawn again with replacement.

    Args:
        score: (D, n) weights -> (D,) scores.
        groups: (n,) the group of every scored record.
        draws: number of resamples.
        level: of the interval, 0.95 for 95%.
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN both when there are fewer than two groups (no spread can be seen).
    """
    names, group_of = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    block = max(1, _BLOCK // len(group_of))
    values = []
    for start in range(0, draws, block):
        times = generator.multinomial(len(names), even, size=min(block, draws - start))
        values.append(score(times[:, group_of].astype(np.float64)))
    scores = np.concatenate(values)
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return float("nan"), float("nan")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
