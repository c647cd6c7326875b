"""Linear read-outs and the choice of their L2 penalty, without a look at the test part."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold

Kind = Literal["classification", "regression"]

# From strong to weak, so that each logistic fit starts near its solution.
RIDGE_PENALTIES = np.logspace(6, -3, 10)
LOGISTIC_PENALTIES = np.logspace(5, -2, 8)

MIN_VALIDATION = 10
"""With fewer labelled validation records the penalty comes from cross-validation inside the training part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One fit whose loss on other records judges a penalty: (n, d) features and (n,) labels of both."""

    fit_features: np.ndarray
    fit_labels: np.ndarray
    held_features: np.ndarray
    held_labels: np.ndarray


def trials(
    train: np.ndarray, train_labels: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray
) -> list[Trial]:
    """The validation part as one trial, or up to three folds of the training part when that is too small."""
    if len(validation) >= MIN_VALIDATION:
        halves = [(train, train_labels, validation, validation_labels)]
    else:
        folds = KFold(min(3, len(train)), shuffle=True, random_state=0).split(train)
        halves = [(train[fit], train_labels[fit], train[held], train_labels[held]) for fit, held in folds]
    return [
        Trial(fit_features=fit_x, fit_labels=fit_y, held_features=held_x, held_labels=held_y)
        for fit_x, fit_y, held_x, held_y in halves
    ]


def linear_model(kind: Kind, penalty: float) -> LogisticRegression | Ridge:
    """Ridge or (multinomial) logistic regression; both minimise a sum of losses + penalty |w|^2 (/ 2)."""
    if kind == "regression":
        return Ridge(alpha=penalty)
    return LogisticRegression(C=1 / penalty, max_iter=300, warm_start=True)


def best_penalty(attempts: list[Trial], kind: Kind) -> float:
    """The penalty with the smallest mean held-out loss (squared error, or cross-entropy); ties: the stronger.

    The grid is walked from strong to weak and left after three steps without a gain: the weak end is the slow
    one, and the loss falls, then rises.
    """
    grid = RIDGE_PENALTIES if kind == "regression" else LOGISTIC_PENALTIES
    # One model a trial, kept along the grid, so that warm starts work.
    usable = [a for a in attempts if (a.fit_labels != a.fit_labels[0]).any()]
    models = [linear_model(kind, grid[0]) for _ in usable]
    best, lowest, worse = float(grid[len(grid) // 2]), np.inf, 0
    for penalty in grid:
        losses = []
        for model, attempt in zip(models, usable, strict=True):
            model.set_params(**({"alpha": penalty} if kind == "regression" else {"C": 1 / penalty}))
            model.fit(attempt.fit_features, attempt.fit_labels)
            losses.append(_held_out_loss(model, attempt, kind))
        loss = float(np.mean(losses)) if losses else np.inf
        if loss < lowest:
            best, lowest, worse = float(penalty), loss, 0
        else:
            worse += 1
        if worse == 3:
            break
    return best


def _held_out_loss(model: LogisticRegression | Ridge, attempt: Trial, kind: Kind) -> float:
    """Mean squared error, or cross-entropy in nats over the records whose class was in the fit."""
    if kind == "regression":
        return float(np.mean((attempt.held_labels - model.predict(attempt.held_features)) ** 2))
    classes = model.classes_
    place = np.searchsorted(classes, attempt.held_labels).clip(max=len(classes) - 1)
    seen = classes[place] == attempt.held_labels
    if not seen.any():
        return 0.0
    probability = model.predict_proba(attempt.held_features[seen])[np.arange(seen.sum()), place[seen]]
    return float(-np.log(np.maximum(probability, 1e-12)).mean())
