"""Scores of test records from fixed features, for any number of label columns: what a ranking needs, not classes alone.

A prediction is the probability of class 1, or a number in the unit of the label. Every target is fitted on the training
records that have its label; the penalty of a linear model is chosen on the validation part. Shape letters: n records,
m test records, T targets.
"""

import warnings

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from consilience.core.errors import ConsilienceError
from consilience.domains.penalties import Kind, best_penalty, linear_model, trials
from consilience.domains.splits import Split

TREES = 500


def check_labels(labels: np.ndarray, targets: tuple[str, ...], split: Split, kind: Kind) -> None:
    """Raise ConsilienceError for a target that cannot be learned or chosen on, or where no target can be scored.

    A ranking needs both classes in the test part; of several targets some may lack one, and have no score.
    """
    for number, name in enumerate(targets):
        for part, index, least in (("training", split.train, 2), ("validation", split.validation, 1)):
            count = _different(labels[index, number])
            if count < least:
                raise ConsilienceError(
                    f"target {name!r} has {count} different label(s) in the {part} part, at least {least} needed; "
                    "leave it out, or give more labels or another split"
                )
    least = 2 if kind == "classification" else 1
    if all(_different(own) < least for own in labels[split.test].T):
        raise ConsilienceError(
            f"the test part ({len(split.test)} molecule(s)) has less than {least} different label(s) of "
            f"{', '.join(targets)}: nothing can be scored; give more molecules, or another split with --split"
        )


def _different(labels: np.ndarray) -> int:
    """How many different known labels there are."""
    return len(np.unique(labels[~np.isnan(labels)]))


def trivial_scores(labels: np.ndarray, split: Split) -> np.ndarray:
    """(m, T): the mean of the training labels, which for classes is the share of class 1."""
    return np.tile(np.nanmean(labels[split.train], axis=0), (len(split.test), 1))


def forest_scores(
    features: np.ndarray, labels: np.ndarray, split: Split, kind: Kind, *, seed: int
) -> np.ndarray:
    """(m, T) from random forests of 500 trees, nothing of which is chosen.

    Classes are weighted to balance; numbers see a third of the features at every cut.

    Args:
        features: (n, d) of all records.
        labels: (n, T), NaN where unknown.
        split: the parts.
        kind: of the labels.
        seed: of the trees.
    """
    seen = features[split.train].min(0) < features[split.train].max(0)  # others cannot be cut on
    columns = []
    for own in labels.T:
        known = split.train[~np.isnan(own[split.train])]
        train, test = features[np.ix_(known, seen)], features[np.ix_(split.test, seen)]
        if kind == "classification":
            trees = RandomForestClassifier(TREES, class_weight="balanced", n_jobs=1, random_state=seed)
            columns.append(trees.fit(train, own[known]).predict_proba(test)[:, 1])
        else:
            numbers = RandomForestRegressor(TREES, max_features=1 / 3, n_jobs=1, random_state=seed)
            columns.append(numbers.fit(train, own[known]).predict(test))
    return np.column_stack(columns)


def linear_scores(features: np.ndarray, labels: np.ndarray, split: Split, kind: Kind) -> np.ndarray:
    """(m,) of one target from ridge or logistic regression on standardised features.

    Args:
        features: (n, d) of all records.
        labels: (n,), NaN where unknown.
        split: the parts.
        kind: of the labels.
    """
    train, validation = (part[~np.isnan(labels[part])] for part in (split.train, split.validation))
    scaler = StandardScaler().fit(features[train].astype(np.float64))
    fit_x, held_x, test_x = (
        scaler.transform(features[part].astype(np.float64)) if len(part) else np.zeros((0, features.shape[1]))
        for part in (train, validation, split.test)
    )
    # One thread: the matrices are small, and results then do not depend on the machine's core count.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # an early stop is judged on validation like any other
        penalty = best_penalty(trials(fit_x, labels[train], held_x, labels[validation]), kind)
        model = linear_model(kind, penalty).fit(fit_x, labels[train])
        return model.predict(test_x) if kind == "regression" else model.predict_proba(test_x)[:, 1]
