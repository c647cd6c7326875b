"""Read-outs find planted signal, find nothing in noise, and never look at the test part."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, mean_absolute_error, r2_score

from consilience.core.errors import ConsilienceError
from consilience.domains import metrics, penalties
from consilience.domains.probes import (
    HEADLINE,
    bootstrap_interval,
    known_labels,
    probe,
    score_predictions,
    trivial,
)
from consilience.domains.splits import Split, grouped_split

N, D, CLASSES = 600, 20, 4
SPLIT = grouped_split(range(N), seed=0)


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """(N, D) features around the centre of their class, and the class names."""
    rng = np.random.default_rng(0)
    code = rng.integers(CLASSES, size=N)
    features = rng.normal(size=(CLASSES, D))[code] * 1.5 + rng.normal(size=(N, D))
    return features.astype(np.float32), np.array(["B", "CD4 T", "CD8 T", "NK"])[code]


@pytest.fixture(scope="module")
def line() -> tuple[np.ndarray, np.ndarray]:
    """(N, D) features and a linear function of three of them with noise of variance 0.3 against 3."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(N, D)) * np.logspace(-3, 3, D)
    target = (features / np.logspace(-3, 3, D))[:, :3].sum(1) + rng.normal(size=N) * 0.3**0.5
    return features, target


@pytest.mark.parametrize("method", ["linear", "knn", "forest", "boosted-trees"])
def test_planted_classes_are_found(blobs, method) -> None:
    result = probe(*blobs, SPLIT, "classification", method=method)
    assert min(result.metrics.values()) > 0.92
    assert (result.n_train, result.n_test) == (420, 120)
    assert (result.truth == blobs[1][result.test_index]).all()


def test_planted_line_is_found_at_any_scale_of_the_features(line) -> None:
    result = probe(*line, SPLIT, "regression")
    assert result.metrics["r2"] == pytest.approx(3 / 3.3, abs=0.04)
    assert result.metrics["mae"] == pytest.approx((2 / np.pi * 0.3) ** 0.5, abs=0.08)


@pytest.mark.parametrize("method", ["forest", "boosted-trees"])
def test_trees_read_what_no_line_can(line, method) -> None:
    features = line[0]
    bent = np.abs(features[:, 0] / features[:, 0].std()) + (features[:, -1] > 0)
    found = probe(features, bent, SPLIT, "regression", method=method)
    assert found.metrics["r2"] > 0.75 and found.penalty is None and found.method == method
    assert (found.predicted == probe(features, bent, SPLIT, "regression", method=method).predicted).all()
    assert probe(features, bent, SPLIT, "regression").metrics["r2"] < 0.6


def test_predictions_from_elsewhere_are_scored(line) -> None:
    inner = probe(*line, SPLIT, "regression")
    outer = score_predictions(inner.predicted, line[1], SPLIT, "regression", n_train=7)
    assert outer.metrics == inner.metrics and outer.n_train == 7 and outer.method == "supervised"
    with pytest.raises(ConsilienceError, match="3 predictions for 120"):
        score_predictions(inner.predicted[:3], line[1], SPLIT, "regression")


def test_neighbours_read_a_smooth_function() -> None:
    angle = np.linspace(0, 3, N)
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert probe(features, angle**2, SPLIT, "regression", method="knn").metrics["r2"] > 0.97


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_shuffled_labels_are_at_chance(blobs, line, method) -> None:
    rng = np.random.default_rng(2)
    accuracy = [
        probe(blobs[0], rng.permutation(blobs[1]), SPLIT, "classification", method=method).metrics["accuracy"]
        for _ in range(8)
    ]
    assert abs(np.mean(accuracy) - 1 / CLASSES) < 0.05
    r2 = [
        probe(line[0], rng.permutation(line[1]), SPLIT, "regression", method=method).metrics["r2"]
        for _ in range(8)
    ]
    assert -0.3 < np.mean(r2) < 0.02


@pytest.mark.parametrize("method", ["linear", "knn", "forest", "boosted-trees"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_test_labels_reach_no_choice(blobs, line, kind, method) -> None:
    features, labels = blobs if kind == "classification" else line
    changed = labels.copy()
    changed[SPLIT.test] = "something new" if kind == "classification" else -1e6
    honest = probe(features, labels.astype(changed.dtype), SPLIT, kind, method=method)
    other = probe(features, changed, SPLIT, kind, method=method)
    assert (honest.predicted == other.predicted).all()
    assert honest.penalty == other.penalty
    assert honest.metrics != other.metrics


def test_test_features_reach_no_fit(line) -> None:
    """One test record's features move no other prediction: scaling is fitted on training records."""
    features = line[0].copy()
    features[SPLIT.test[0]] *= 1e6
    honest, other = (probe(x, line[1], SPLIT, "regression").predicted for x in (line[0], features))
    assert (honest[1:] == other[1:]).all()
    assert honest[0] != other[0]


def test_validation_labels_decide_the_penalty(line) -> None:
    """Noise on the validation labels alone asks for a strong penalty; with signal a weak one wins."""
    labels = line[1].copy()
    labels[SPLIT.validation] = -labels[SPLIT.validation]
    assert probe(line[0], labels, SPLIT, "regression").penalty == penalties.RIDGE_PENALTIES[0]
    assert probe(*line, SPLIT, "regression").penalty < 1000


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_without_validation_the_penalty_comes_from_training_folds(blobs, line, kind) -> None:
    features, labels = blobs if kind == "classification" else line
    bare = Split(SPLIT.train, np.array([], dtype=int), SPLIT.test)
    result = probe(features, labels, bare, kind)
    assert result.metrics[HEADLINE[kind]] > 0.85
    again = probe(features, labels, bare, kind)
    assert (result.predicted == again.predicted).all()


def test_penalty_matters() -> None:
    """More features than records: the chosen penalty beats the weakest one of the grid on the test part."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(300, 200))
    target = features[:, 0] + rng.normal(size=300)
    split = grouped_split(range(300), seed=0)
    chosen = probe(features, target, split, "regression")
    weakest = penalties.linear_model("regression", penalties.RIDGE_PENALTIES[-1])
    weakest.fit(features[split.train], target[split.train])
    assert chosen.metrics["r2"] > r2_score(target[split.test], weakest.predict(features[split.test])) + 0.1
    assert chosen.penalty > 10


@pytest.mark.parametrize("missing", [None, float("nan"), "", "nan"])
def test_unknown_classes_are_left_out(blobs, missing) -> None:
    labels = blobs[1].astype(object)
    gone = np.concatenate([SPLIT.train[:30], SPLIT.validation[:5], SPLIT.test[:7]])
    labels[gone] = missing
    result = probe(blobs[0], labels, SPLIT, "classification")
    assert (result.n_train, result.n_test) == (390, 113)
    assert not set(result.test_index) & set(gone)
    assert set(result.predicted) <= set(blobs[1])


def test_unknown_numbers_are_left_out(line) -> None:
    labels = line[1].copy()
    labels[SPLIT.train[:30]] = np.nan
    labels[SPLIT.test[:7]] = np.nan
    result = probe(line[0], labels, SPLIT, "regression")
    assert (result.n_train, result.n_test) == (390, 113)
    assert np.isfinite(result.truth).all()


def test_numbers_may_come_as_text_and_classes_as_numbers() -> None:
    values, known = known_labels(np.array(["1.5", "", "-2"], dtype=object), "regression")
    assert values[known].tolist() == [1.5, -2.0] and known.tolist() == [True, False, True]
    values, known = known_labels(np.array([3, 1, 3]), "classification")
    assert values.tolist() == ["3", "1", "3"] and known.all()


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_rare_and_unseen_classes(blobs, method) -> None:
    """A class with one training record is kept; one that only the test part has counts as an error."""
    labels = blobs[1].astype(object)
    labels[SPLIT.train[0]] = "once"
    labels[SPLIT.validation[0]] = "validation only"
    labels[SPLIT.test[:12]] = "test only"
    result = probe(blobs[0], labels, SPLIT, "classification", method=method)
    assert result.metrics["accuracy"] == pytest.approx(0.9, abs=0.05)
    assert "test only" not in result.predicted


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_trivial_row(blobs, line, kind) -> None:
    labels = blobs[1] if kind == "classification" else line[1]
    result = trivial(labels, SPLIT, kind)
    assert len(set(result.predicted.tolist())) == 1
    if kind == "classification":
        values, counts = np.unique(labels[SPLIT.train], return_counts=True)
        assert result.predicted[0] == values[counts.argmax()]
        assert result.metrics["balanced_accuracy"] == pytest.approx(1 / CLASSES)
    else:
        assert result.predicted[0] == pytest.approx(labels[SPLIT.train].mean())
        assert -0.1 < result.metrics["r2"] <= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(N, "B")}, r"all 420 training labels are 'B'"),
        ({"labels": np.full(N, "")}, "no record of the train part has a label"),
        ({"features": np.full((N, 3), np.nan)}, f"features of record {SPLIT.train[0]} are not finite"),
        ({"features": np.zeros((N - 1, 3))}, rf"shape \({N - 1}, 3\) for {N} labels"),
        (
            {"labels": np.full(N - 1, "B")},
            rf"the test part holds position {N - 1} but there are {N - 1} labels",
        ),
        ({"kind": "ranking"}, "kind='ranking' is not known; use one of classification, regression"),
        ({"method": "tree"}, "method='tree' is not known; use linear, knn, forest or boosted-trees"),
        ({"kind": "regression"}, "label of record 0 is '(B|CD|NK).*not a finite number"),
    ],
)
def test_bad_input(blobs, change, message) -> None:
    options = {
        "features": blobs[0],
        "labels": blobs[1],
        "split": SPLIT,
        "kind": "classification",
        "method": "linear",
    }
    with pytest.raises(ConsilienceError, match=message):
        probe(**(options | change))


def test_constant_test_truth_has_no_r2() -> None:
    """Undefined is NaN, not a score."""
    labels = np.arange(N, dtype=float)
    labels[SPLIT.test] = 7.1
    result = trivial(labels, SPLIT, "regression")
    assert np.isnan(result.metrics["r2"]) and np.isfinite(result.metrics["mae"])


def test_scores_equal_sklearn() -> None:
    rng = np.random.default_rng(4)
    truth, predicted = rng.choice(list("abcd"), 200), rng.choice(list("abcdxz"), 200)
    ones = np.ones((1, 200))
    scores = metrics.classification_scores(truth, predicted, ones)
    assert scores["accuracy"][0] == pytest.approx(accuracy_score(truth, predicted))
    expected = f1_score(truth, predicted, labels=list("abcd"), average="macro")
    assert scores["macro_f1"][0] == pytest.approx(expected)
    seen = np.isin(predicted, list("abcd"))
    # sklearn warns of predictions outside the truth; recall does not depend on where an error goes.
    inside = np.where(seen, predicted, np.where(truth == "a", "b", "a"))
    assert scores["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(truth, inside))
    y = rng.normal(size=200) + 1e6
    guess = y + rng.normal(size=200)
    scores = metrics.regression_scores(y, guess, ones)
    assert scores["r2"][0] == pytest.approx(r2_score(y, guess))
    assert scores["mae"][0] == pytest.approx(mean_absolute_error(y, guess))


def test_weights_equal_repeated_records() -> None:
    """A weight of 3 is a record that occurs three times, for every metric; 0 leaves it out."""
    rng = np.random.default_rng(5)
    weight = rng.integers(0, 4, size=(6, 80)).astype(float)
    truth, predicted = rng.choice(list("abc"), 80), rng.choice(list("abc"), 80)
    z, guess = rng.uniform(0, 1, 80), rng.uniform(0, 1, 80)
    for row in range(6):
        repeat = np.repeat(np.arange(80), weight[row].astype(int))
        ones = np.ones((1, len(repeat)))
        for score, a, b in (
            (metrics.classification_scores, truth, predicted),
            (metrics.regression_scores, z, guess),
            (metrics.redshift_scores, z, guess),
        ):
            slow = score(a[repeat], b[repeat], ones)
            fast = score(a, b, weight)
            for name in slow:
                assert fast[name][row] == pytest.approx(slow[name][0]), name


def test_nmad_of_a_redshift() -> None:
    rng = np.random.default_rng(6)
    z = rng.uniform(0, 2, N)
    features = (z + 0.01 * (1 + z) * rng.standard_normal(N))[:, None]
    result = probe(features, z, SPLIT, "regression", redshift=True)
    offset = result.predicted - result.truth
    expected = 1.4826 * np.median(np.abs(offset - np.median(offset)) / (1 + result.truth))
    assert result.metrics["nmad"] == pytest.approx(expected)
    assert result.metrics["nmad"] == pytest.approx(0.01, rel=0.35)
    low, high = bootstrap_interval(result, metric="nmad")
    assert low < result.metrics["nmad"] < high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """A coin with p = 0.7 thrown 150 times: 95% intervals hold p in 88% to 99% of 200 samples."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        right = rng.random(150) < 0.7
        low, high = metrics.bootstrap(
            lambda weight, right=right: weight @ right / weight.sum(1),
            np.arange(150),
            draws=300,
            level=0.95,
            seed=0,
        )
        held += low <= 0.7 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_interval_is_wider_when_records_come_in_groups(blobs) -> None:
    """Ten copies of a record carry the information of one: the interval over groups knows it."""
    groups = np.arange(N) // 10
    labels = np.repeat(np.random.default_rng(8).choice(["a", "b"], N // 10), 10)
    features = np.repeat(np.random.default_rng(9).normal(size=(N // 10, D)), 10, axis=0)
    result = probe(features, labels, grouped_split(groups, seed=0), "classification")
    alone, grouped = bootstrap_interval(result), bootstrap_interval(result, groups)
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])
    assert grouped == bootstrap_interval(result, groups)
    assert grouped != bootstrap_interval(result, groups, seed=1)


def test_interval_needs_two_groups_and_a_known_metric(blobs) -> None:
    result = trivial(blobs[1], SPLIT, "classification")
    assert np.isnan(bootstrap_interval(result, np.zeros(N))).all()
    with pytest.raises(ConsilienceError, match="metric='r2' is not in this result; it has accuracy"):
        bootstrap_interval(result, metric="r2")
