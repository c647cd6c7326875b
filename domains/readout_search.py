"""The search over read-outs and their final scores: what was chosen, chosen on the validation part alone.

- `search` compares candidates (layer, pool, time) by a ridge regression in closed form, on one-hot classes for
  classification. Its penalty comes from the training part (leave-one-out), the score from the validation part.
- `final_scores` reads the chosen one with the probes of `domains.probes`, and again with 10% and 1% of the training
  labels, where the penalty is chosen inside that part of the labels. The scale of features, which needs no labels, is
  that of the whole training part.
- Labels of the test part are not read by the search at all, and by the scores only to score.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from consilience.core.errors import ConsilienceError
from consilience.domains.base import Reading
from consilience.domains.metrics import classification_scores, ranking_scores, regression_scores
from consilience.domains.penalties import MIN_VALIDATION, RIDGE_PENALTIES, Kind
from consilience.domains.probes import HEADLINE, ProbeResult, known_labels, probe
from consilience.domains.splits import Split

Name = TypeVar("Name", bound=Hashable)

FRACTIONS = (1.0, 0.1, 0.01)
"""Parts of the training labels that `final_scores` reads with."""
DRAWS = 3
"""Draws of the labels that a smaller part is averaged over."""
LEAST_OF_CLASS, LEAST = 2, 10
"""No part has fewer labels of a class, or fewer numbers in all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice(Generic[Name]):
    """The read-out that was chosen.

    Args:
        name: of the candidate.
        validation_score: its headline metric (macro F1 or R2) on the validation part.
        all_scores: candidate -> score, in the order given.
    """

    name: Name
    validation_score: float
    all_scores: Mapping[Name, float]


def search(
    features: Mapping[Name, np.ndarray],
    labels: np.ndarray,
    split: Split,
    kind: Kind,
    *,
    ranking: bool = False,
) -> Choice[Name]:
    """The candidate with the best validation score; ties go to the first.

    With fewer than ten labelled validation records, the score is that of leave-one-out predictions of the training
    part.

    Args:
        features: candidate -> (n, d) features of all records.
        labels: (n,) truth; NaN, "" or None where unknown. Those of the test part are not read.
        split: the parts.
        kind: classification or regression.
        ranking: judge two classes by the area under the ROC curve instead of macro F1, which says little where one
            of them is rare.

    Raises:
        ConsilienceError: no candidates, features that are not finite or of another length, or a training part without
            two different labels.
    """
    if not features:
        raise ConsilienceError("there is no read-out to choose from; give at least one candidate")
    train, target = _labelled(labels, split.train, kind)
    held, truth = _labelled(labels, split.validation, kind)
    if len(target) < 2 or (target == target[0]).all():
        raise ConsilienceError(
            f"the training part has {len(np.unique(target))} different label(s) in {len(target)}; a search needs two"
        )
    scores = {}
    with threadpool_limits(limits=1):
        for name, matrix in features.items():
            if matrix.ndim != 2 or len(matrix) != len(labels) or not np.isfinite(matrix).all():
                raise ConsilienceError(
                    f"features of candidate {name} have shape {matrix.shape} for {len(labels)} labels, or are not "
                    "all finite; give (n, d) finite numbers"
                )
            scores[name] = _validation_score(
                matrix[train], target, matrix[held], truth, kind, ranking=ranking
            )
    best = max(scores, key=scores.__getitem__)  # the first of equal ones
    return Choice(name=best, validation_score=scores[best], all_scores=scores)


def _labelled(labels: np.ndarray, part: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the labelled records of one part and their labels; no other label is looked at."""
    values, known = known_labels(np.asarray(labels)[part], kind)
    return part[known], values[known]


def _validation_score(
    train: np.ndarray,
    target: np.ndarray,
    held: np.ndarray,
    truth: np.ndarray,
    kind: Kind,
    *,
    ranking: bool,
) -> float:
    """Headline metric of a ridge regression whose penalty has the least leave-one-out error on the training part."""
    mean, spread = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    spread = np.where(spread > 0, spread, 1.0)
    x = (train - mean) / spread
    classes, code = np.unique(target, return_inverse=True) if kind == "classification" else (None, None)
    y = np.eye(len(classes))[code] if classes is not None else target[:, None]
    centre = y.mean(0)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    projected = u.T @ (y - centre)
    best = np.inf, None, np.zeros(0)
    for penalty in RIDGE_PENALTIES:
        shrink = s**2 / (s**2 + penalty)
        residual = (y - centre) - (u * shrink) @ projected
        # Leave-one-out of a linear smoother: the residual over what the record does not explain of itself.
        own = (u**2) @ shrink + 1 / len(y)
        left_out = residual / np.maximum(1 - own, 1e-6)[:, None]
        error = float(np.square(left_out).mean())
        if error < best[0]:
            best = error, penalty, y - left_out
    _, penalty, predicted = best
    if len(truth) >= MIN_VALIDATION:
        weights = vt.T @ ((s / (s**2 + penalty))[:, None] * projected)
        predicted = (held - mean) / spread @ weights + centre
    else:
        truth = target
    ones = np.ones((1, len(truth)))
    if classes is not None and ranking:
        area = ranking_scores(truth == classes[1], predicted[:, 1], ones)["roc_auc"][0]
        return float(area) if np.isfinite(area) else -np.inf
    if classes is not None:
        found = classification_scores(truth, classes[predicted.argmax(1)], ones)
    else:
        found = regression_scores(truth, predicted[:, 0], ones)
    score = float(found[HEADLINE[kind]][0])
    return score if np.isfinite(score) else -np.inf


@dataclass(frozen=True, kw_only=True)
class FractionScore:
    """The headline metric of the linear probe with a part of the training labels.

    Args:
        fraction: of the training labels.
        labels: how many that is.
        scores: one a draw of the labels; a single one for all labels.
    """

    fraction: float
    labels: int
    scores: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean over draws."""
        return float(np.mean(self.scores))


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalScores:
    """What a representation reaches on the test part.

    Args:
        full: the probe (linear unless asked otherwise) with all labels, with its predictions.
        knn: the nearest-neighbour probe with all labels; None beside trees, which see no distances.
        fractions: the probe by part of the labels, in the order asked for.
    """

    full: ProbeResult
    knn: ProbeResult | None
    fractions: tuple[FractionScore, ...]

    def at(self, fraction: float) -> FractionScore:
        """The score with this part of the labels."""
        return next(score for score in self.fractions if score.fraction == fraction)


def final_scores(
    features: np.ndarray,
    labels: np.ndarray,
    split: Split,
    kind: Kind,
    *,
    method: Reading = "linear",
    fractions: Sequence[float] = FRACTIONS,
    draws: int = DRAWS,
    seed: int = 0,
    redshift: bool = False,
) -> FinalScores:
    """Probes of one representation on the test part.

    Args:
        features: (n, d) of all records.
        labels: (n,) truth; NaN, "" or None where unknown.
        split: the parts.
        kind: classification or regression.
        method: of the probe; see `Baseline`.
        fractions: of the training labels, in (0, 1].
        draws: of the labels for each fraction below 1; see `label_subset`.
        seed: of the first draw.
        redshift: also give `nmad`.

    Raises:
        ConsilienceError: as `probe`, and for a fraction out of bounds.
    """
    full = probe(features, labels, split, kind, method=method, redshift=redshift)
    knn = None
    if method == "linear":
        knn = probe(features, labels, split, kind, method="knn", redshift=redshift)
    metric, none, found = HEADLINE[kind], np.zeros(0, np.int64), []
    for fraction in fractions:
        scores, count = [full.metrics[metric]], full.n_train
        if fraction != 1:
            parts = [label_subset(labels, split.train, kind, fraction, seed + draw) for draw in range(draws)]
            count = len(parts[0])
            smaller = [
                probe(
                    features,
                    labels,
                    Split(part, none, split.test),
                    kind,
                    method=method,
                    scaled_by=split.train,
                )
                for part in parts
            ]
            scores = [result.metrics[metric] for result in smaller]
        found.append(
            FractionScore(fraction=fraction, labels=count, scores=tuple(float(score) for score in scores))
        )
    return FinalScores(full=full, knn=knn, fractions=tuple(found))


def label_subset(labels: np.ndarray, part: np.ndarray, kind: Kind, fraction: float, seed: int) -> np.ndarray:
    """Sorted positions of a part of the labelled records; with the same seed, smaller fractions lie in larger ones.

    Args:
        labels: (n,) of all records; only those of the part are read.
        part: positions to draw from.
        kind: classes are drawn each by the fraction, at least two records of each; numbers at least ten in all.
        fraction: in (0, 1].
        seed: of the draw.
    """
    if not 0 < fraction <= 1:
        raise ConsilienceError(f"a fraction of the labels must lie in (0, 1], not {fraction}")
    index, target = _labelled(labels, part, kind)
    order = np.random.default_rng([seed, 11]).permutation(len(index))
    index, target = index[order], target[order]
    if kind == "regression":
        return np.sort(index[: max(LEAST, round(fraction * len(index)))])
    chosen = []
    for name in np.unique(target):
        own = index[target == name]
        chosen.append(own[: max(LEAST_OF_CLASS, round(fraction * len(own)))])
    return np.sort(np.concatenate(chosen)) if chosen else index
