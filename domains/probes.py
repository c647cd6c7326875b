"""Read-outs on frozen features: linear (ridge, logistic regression), neighbours, trees, and the trivial row.

- Features are standardised with the mean and scale of training records.
- The penalty is chosen on the validation part (by cross-validation inside the training part when
  hardly any validation record has a label); the model is fitted on the training part alone.
- Labels of the test part are read once, to score; no choice depends on them.
- Records without a label (NaN, None, "" or "nan") are left out everywhere.
- A test record of a class that training never saw counts as an error.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from consilience.core.errors import ConsilienceError
from consilience.domains.metrics import (
    Scores,
    bootstrap,
    classification_scores,
    redshift_scores,
    regression_scores,
)
from consilience.domains.penalties import Kind, best_penalty, linear_model, trials
from consilience.domains.splits import Split

FeatureMethod = Literal["linear", "knn", "forest", "boosted-trees"]
Method = FeatureMethod | Literal["trivial", "supervised"]

HEADLINE: dict[Kind, str] = {"classification": "macro_f1", "regression": "r2"}
"""The metric that stands for each kind of task in a table."""

NEIGHBOURS = 10
TREES = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeResult:
    """What a read-out reaches on the test part.

    Args:
        kind: classification or regression.
        method: linear, knn, forest, boosted-trees, trivial or supervised.
        metrics: accuracy, macro_f1, balanced_accuracy; or r2, mae (unit of the label) and, asked for, nmad.
        n_train: labelled training records.
        n_test: scored test records.
        penalty: the chosen L2 penalty (sum of squares for ridge, 1/C for logistic); None without one.
        test_index: (n_test,) positions of the scored records.
        truth: (n_test,) their labels: strings for classes, float64 for numbers.
        predicted: (n_test,) predictions of the same type.
    """

    kind: Kind
    method: Method
    metrics: Mapping[str, float]
    n_train: int
    n_test: int
    penalty: float | None
    test_index: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


def known_labels(labels: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Labels in the type of the task, and which are known (not NaN, None, "" or "nan").

    Returns:
        (n,) strings for classes or float64 for numbers, and (n,) bool.

    Raises:
        ConsilienceError: a regression label that is no finite number, named with its place.
    """
    column = pd.Series(np.asarray(labels))
    known = column.notna().to_numpy()
    if column.dtype.kind not in "fiub":
        known &= ~column.astype(str).isin(["", "nan"]).to_numpy()
    if kind == "classification":
        return np.where(known, column.astype(str).to_numpy().astype(str), ""), known
    values = pd.to_numeric(column.where(known), errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(known & ~np.isfinite(values))
    if len(bad):
        raise ConsilienceError(
            f"label of record {bad[0]} is {column[bad[0]]!r}, not a finite number; "
            "correct it, leave it empty, or use a classification task"
        )
    return values, known


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Labelled positions of the three parts and all labels."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def _rows(labels: np.ndarray, split: Split, kind: Kind) -> _Rows:
    """The labelled records of each part; raises ConsilienceError when training or test part has none."""
    if kind not in HEADLINE:
        raise ConsilienceError(f"kind={kind!r} is not known; use one of {', '.join(HEADLINE)}")
    values, known = known_labels(labels, kind)
    parts = {}
    for name, index in split.parts().items():
        if len(index) and index[-1] >= len(values):
            raise ConsilienceError(
                f"the {name} part holds position {index[-1]} but there are {len(values)} labels"
            )
        parts[name] = index[known[index]]
    for name in ("train", "test"):
        if not len(parts[name]):
            raise ConsilienceError(f"no record of the {name} part has a label; give labels or another split")
    return _Rows(labels=values, **parts)


def _score(
    kind: Kind, redshift: bool, truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray
) -> Scores:
    """All metrics of a task for (D, n) weights."""
    if kind == "classification":
        return classification_scores(truth, predicted, weight)
    scores = regression_scores(truth, predicted, weight)
    return scores | redshift_scores(truth, predicted, weight) if redshift else scores


def _result(
    rows: _Rows, predicted: np.ndarray, *, kind: Kind, method: Method, penalty: float | None, redshift: bool
) -> ProbeResult:
    """Score predictions of the test records."""
    truth = rows.labels[rows.test]
    scores = _score(kind, redshift, truth, predicted, np.ones((1, len(truth))))
    return ProbeResult(
        kind=kind,
        method=method,
        metrics={name: float(value[0]) for name, value in scores.items()},
        n_train=len(rows.train),
        n_test=len(rows.test),
        penalty=penalty,
        test_index=rows.test,
        truth=truth,
        predicted=predicted,
    )


def _check_features(features: np.ndarray, n: int) -> np.ndarray:
    """(n, d) features; raises ConsilienceError when they are no matrix with one row a label."""
    matrix = np.asarray(features)
    if matrix.ndim != 2 or len(matrix) != n or not matrix.shape[1]:
        raise ConsilienceError(
            f"features of shape {matrix.shape} for {n} labels; give (n, d), a row a record"
        )
    return matrix


def _take(matrix: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of the features as float64; raises ConsilienceError naming the first row that is not finite."""
    rows = matrix[index].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ConsilienceError(f"features of record {index[bad[0]]} are not finite; leave the record out")
    return rows


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    split: Split,
    kind: Kind,
    *,
    method: FeatureMethod = "linear",
    redshift: bool = False,
    scaled_by: np.ndarray | None = None,
) -> ProbeResult:
    """Fit a read-out on the training part and score it on the test part.

    Args:
        features: (n, d) frozen features of all records.
        labels: (n,) truth; NaN, "" or None where unknown.
        split: the parts.
        kind: classification or regression.
        method: linear (logistic / ridge regression), knn (10 neighbours, cosine, even votes), forest (200 random
            trees; numbers from a third of the features a split) or boosted-trees (200 steps); trees have a fixed
            seed, and nothing of them is chosen on the validation part.
        redshift: also give `nmad`, for regression of a redshift.
        scaled_by: positions of the records whose mean and scale standardise the features; default: the labelled
            training records. With few labels, a rare feature may be all but constant among these.

    Raises:
        ConsilienceError: features that are not finite or of another length; a training part without labels
            or with a single value; a test part without labels; an unknown kind or method.
    """
    rows = _rows(labels, split, kind)
    matrix = _check_features(features, len(rows.labels))
    train, validation, test = (_take(matrix, index) for index in (rows.train, rows.validation, rows.test))
    target = rows.labels[rows.train]
    if (target == target[0]).all():
        raise ConsilienceError(
            f"all {len(target)} training labels are {str(target[0])!r}; a probe needs at least two values"
        )
    scaler = StandardScaler().fit(train if scaled_by is None else _take(matrix, scaled_by))
    train, validation, test = (scaler.transform(x) if len(x) else x for x in (train, validation, test))
    penalty = None
    # One thread: the matrices are small, and results then do not depend on the machine's core count.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # A weak penalty that has not converged is an early-stopped fit; validation judges it like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if method == "linear":
            penalty = best_penalty(trials(train, target, validation, rows.labels[rows.validation]), kind)
            predicted = linear_model(kind, penalty).fit(train, target).predict(test)
        else:
            predicted = _reader(method, kind, len(train)).fit(train, target).predict(test)
    return _result(rows, predicted, kind=kind, method=method, penalty=penalty, redshift=redshift)


def _reader(method: str, kind: Kind, n_train: int) -> Any:
    """An unfitted model without anything to choose."""
    classes = kind == "classification"
    if method == "knn":
        model = KNeighborsClassifier if classes else KNeighborsRegressor
        return model(min(NEIGHBOURS, n_train), metric="cosine", algorithm="brute")
    if method == "forest":
        forest = RandomForestClassifier if classes else RandomForestRegressor
        return forest(TREES, max_features="sqrt" if classes else 1 / 3, n_jobs=1, random_state=0)
    if method == "boosted-trees":
        boosting = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
        return boosting(max_iter=TREES, early_stopping=False, random_state=0)
    raise ConsilienceError(f"method={method!r} is not known; use linear, knn, forest or boosted-trees")


def score_predictions(
    predicted: np.ndarray,
    labels: np.ndarray,
    split: Split,
    kind: Kind,
    *,
    method: Method = "supervised",
    n_train: int | None = None,
    redshift: bool = False,
) -> ProbeResult:
    """The result of predictions that were made elsewhere.

    Args:
        predicted: (n_test,) for the labelled test records in the order of the split, in the type of the task.
        labels: (n,) truth; NaN, "" or None where unknown.
        split: the parts.
        kind: classification or regression.
        method: how they were made.
        n_train: labels that were learned from; default: all of the training part.
        redshift: also give `nmad`.
    """
    rows = _rows(labels, split, kind)
    if len(predicted) != len(rows.test):
        raise ConsilienceError(f"{len(predicted)} predictions for {len(rows.test)} labelled test records")
    found = _result(rows, predicted, kind=kind, method=method, penalty=None, redshift=redshift)
    return found if n_train is None else replace(found, n_train=n_train)


def trivial(labels: np.ndarray, split: Split, kind: Kind, *, redshift: bool = False) -> ProbeResult:
    """The row any read-out must beat: the commonest class (ties by name) or mean of the training labels."""
    rows = _rows(labels, split, kind)
    target = rows.labels[rows.train]
    if kind == "classification":
        classes, counts = np.unique(target, return_counts=True)
        guess = classes[np.argmax(counts)]
    else:
        guess = target.mean()
    predicted = np.full(len(rows.test), guess)
    return _result(rows, predicted, kind=kind, method="trivial", penalty=None, redshift=redshift)


def bootstrap_interval(
    result: ProbeResult,
    groups: np.ndarray | None = None,
    *,
    metric: str | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of a test metric under resampling of test groups; says nothing of the spread over seeds.

    Args:
        result: of `probe` or `trivial`.
        groups: (n,) the group of every record of the collection, as given to `grouped_split`; None: each
            record is its own group.
        metric: one of `result.metrics`; None: the headline metric of the kind.
        draws: resamples.
        level: 0.95 for a 95% interval.
        seed: of the resampling; the same seed pairs the draws of two results on the same test records.
    """
    name = metric or HEADLINE[result.kind]
    if name not in result.metrics:
        raise ConsilienceError(f"metric={name!r} is not in this result; it has {', '.join(result.metrics)}")
    scored = result.test_index if groups is None else np.asarray(groups)[result.test_index]

    def score(weight: np.ndarray) -> np.ndarray:
        return _score(result.kind, name == "nmad", result.truth, result.predicted, weight)[name]

    return bootstrap(score, scored, draws=draws, level=level, seed=seed)
