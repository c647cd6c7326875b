"""Agreement of representations: one for identical, none by chance whatever the width, rising with shared signal."""

import time

import numpy as np
import pytest

from consilience.core.errors import ConsilienceError
from consilience.study.alignment import (
    Alignment,
    alignment_matrix,
    calibrated_cka,
    calibrated_mutual_knn,
    mutual_knn,
)

N, D = 300, 16


def gaussian(seed: int, d: int = D, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def noisy(seed: int, noise: float, n: int = N) -> np.ndarray:
    """(n, 64) a random linear image of eight shared factors with noise of its own."""
    rng = np.random.default_rng(seed)
    return gaussian(0, 8, n) @ rng.normal(size=(8, 64)) + noise * rng.normal(size=(n, 64))


def biased_cka(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / scale)


def slow_mutual_knn(a: np.ndarray, b: np.ndarray, k: int) -> float:
    near = []
    for x in (a, b):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosine = unit @ unit.T - 9 * np.eye(len(x))
        near.append([set(np.argsort(-line)[:k]) for line in cosine])
    return float(np.mean([len(i & j) / k for i, j in zip(*near)]))


def test_equals_a_slow_reference() -> None:
    a, b = noisy(1, 1.0), noisy(2, 1.0)
    assert mutual_knn(a, b, 7) == pytest.approx(slow_mutual_knn(a, b, 7))
    assert mutual_knn(a, b) == mutual_knn(b, a) == calibrated_mutual_knn(a, b).raw


@pytest.mark.parametrize("score", [calibrated_mutual_knn, calibrated_cka])
def test_identical_and_rotated_agree_fully(score) -> None:
    a = gaussian(0)
    rotation = np.linalg.qr(gaussian(1, n=D))[0]
    for b in (a, 3 * a @ rotation):
        found = score(a, b)
        assert found.raw == pytest.approx(1) and found.calibrated == pytest.approx(1)
        assert found.calibrated <= 1 + 1e-12
        assert found.p_value == pytest.approx(1 / 201)


@pytest.mark.parametrize("width", [16, 1024])
def test_independent_representations_agree_by_chance_only(width) -> None:
    a, b = gaussian(1, width), gaussian(2, width)
    for found in (calibrated_mutual_knn(a, b), calibrated_cka(a, b)):
        assert abs(found.calibrated) < 0.02
        assert abs(found.raw - found.null_mean) < 4 * found.null_sd
        assert found.p_value > 0.01
    if width == 1024:
        assert biased_cka(a, b) > 0.6


def test_p_values_are_uniform_by_chance() -> None:
    for score in (calibrated_mutual_knn, calibrated_cka):
        p = [
            score(gaussian(2 * i, 4, 60), gaussian(2 * i + 1, 4, 60), permutations=99).p_value
            for i in range(100)
        ]
        assert np.mean(np.array(p) <= 0.1) <= 0.19
        assert 0.4 < np.mean(p) < 0.6


def test_the_null_is_that_of_permuted_rows() -> None:
    """Mean and spread over permutations of the rows themselves, neighbours found anew each time."""
    a, b = noisy(1, 1.0, 80), noisy(2, 1.0, 80)
    rng = np.random.default_rng(0)
    slow = [slow_mutual_knn(a, b[rng.permutation(80)], 5) for _ in range(300)]
    found = calibrated_mutual_knn(a, b, 5, permutations=1000)
    assert found.null_mean == pytest.approx(5 / 79)
    assert np.mean(slow) == pytest.approx(found.null_mean, abs=4 * np.std(slow) / np.sqrt(300))
    assert found.null_sd == pytest.approx(np.std(slow), rel=0.2)
    assert found.calibrated == pytest.approx((found.raw - 5 / 79) / (1 - 5 / 79))


def test_cka_without_bias() -> None:
    """The unbiased HSIC of Song et al. 2012, written out."""
    a, b = noisy(1, 2.0, 40), noisy(2, 2.0, 40)
    n = 40

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        k, l = (z @ z.T * (1 - np.eye(n)) for z in (x, y))  # noqa: E741
        mixed = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l).sum() / (n - 2)
        return float((np.trace(k @ l) + mixed) / (n * (n - 3)))

    expected = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    assert calibrated_cka(a, b).calibrated == pytest.approx(expected)
    assert calibrated_cka(a + 50, b - 7).calibrated == pytest.approx(expected)


def test_more_noise_less_agreement() -> None:
    levels = (0.3, 1.0, 2.0, 4.0, 8.0)
    for score in (calibrated_mutual_knn, calibrated_cka):
        values = [score(noisy(1, noise), noisy(2, noise)).calibrated for noise in levels]
        assert (np.diff(values) < 0).all()


def test_order_of_records_changes_nothing_when_both_are_moved() -> None:
    a, b = noisy(1, 1.0), noisy(2, 1.0)
    order = np.random.default_rng(0).permutation(N)
    assert mutual_knn(a[order], b[order]) == pytest.approx(mutual_knn(a, b))
    assert mutual_knn(a, b[order]) < 0.1


def test_ties_do_not_pass_for_agreement() -> None:
    """A collapsed representation has every record for a neighbour; so has another."""
    collapsed = np.ones((N, 4))
    assert abs(calibrated_mutual_knn(collapsed, 2 * collapsed).calibrated) < 0.03
    with pytest.raises(ConsilienceError, match="'a' is the same for all records"):
        calibrated_cka(collapsed, gaussian(0))


def test_matrix() -> None:
    models = {
        "clear": noisy(1, 0.5),
        "noisy": noisy(2, 2.0),
        "other": gaussian(7),
        "like clear": noisy(3, 0.5),
    }
    table = alignment_matrix(models, subsamples=60).set_index(["first", "second"])
    assert len(table) == 6
    assert list(table) == ["raw", "calibrated", "low", "high", "p", "significant"]
    assert ((table["low"] < table["calibrated"]) & (table["calibrated"] < table["high"])).all()
    assert table["calibrated"].idxmax() == ("clear", "like clear")
    unrelated = [pair for pair in table.index if "other" in pair]
    assert not table.loc[unrelated, "significant"].any()
    assert table.drop(unrelated)["significant"].all()
    for first, second in table.index:
        alone = calibrated_mutual_knn(models[first], models[second])
        assert table.loc[(first, second), "calibrated"] == pytest.approx(alone.calibrated)


def test_interval_is_as_wide_as_the_estimate_varies() -> None:
    """Spread over fresh collections of the same two models, against the intervals' claim."""
    estimates, claimed = [], []
    images = np.random.default_rng(5).normal(size=(2, 8, 32))
    rng = np.random.default_rng(6)
    for _ in range(40):
        shared = rng.normal(size=(200, 8))
        models = {str(i): shared @ images[i] + 2 * rng.normal(size=(200, 32)) for i in range(2)}
        row = alignment_matrix(models, subsamples=60).iloc[0]
        estimates.append(row["calibrated"])
        claimed.append((row["high"] - row["low"]) / (2 * 1.96))
    assert 0.8 < np.mean(claimed) / np.std(estimates) < 1.8


def test_two_thousand_records_take_seconds() -> None:
    a, b = noisy(1, 1.0, 2000), noisy(2, 1.0, 2000)
    start = time.perf_counter()
    found = calibrated_mutual_knn(a, b)
    assert time.perf_counter() - start < 5
    assert isinstance(found, Alignment) and found.p_value < 0.01


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (gaussian(0), gaussian(0, n=200), "unpaired sciences cannot be aligned by neighbours"),
        (gaussian(0)[0], gaussian(0), r"'a' has shape \(16,\)"),
        (
            gaussian(0),
            np.where(np.arange(N)[:, None] == 3, 0.0, gaussian(0)),
            "record 3 of 'b' is .* all zeros",
        ),
        (
            gaussian(0),
            np.where(np.arange(N)[:, None] == 4, np.nan, gaussian(0)),
            "record 4 of 'b' is not finite",
        ),
        (gaussian(0)[:3], gaussian(0)[:3], "3 records are too few"),
        (np.ones((10_001, 1)), np.ones((10_001, 1)), "draw at most 10000"),
    ],
)
def test_bad_input(a, b, message) -> None:
    for score in (mutual_knn, calibrated_mutual_knn, calibrated_cka):
        with pytest.raises(ConsilienceError, match=message):
            score(a, b)
    with pytest.raises(ConsilienceError, match=message):
        alignment_matrix({"a": a, "b": b})


def test_bad_options() -> None:
    a = gaussian(0)
    with pytest.raises(ConsilienceError, match="k=0 neighbours"):
        mutual_knn(a, a, 0)
    with pytest.raises(ConsilienceError, match="permutations=0 show no null"):
        calibrated_mutual_knn(a, a, permutations=0)
    with pytest.raises(ConsilienceError, match="1 representations; give at least two"):
        alignment_matrix({"a": a})
    with pytest.raises(ConsilienceError, match="k=0, subsamples=200"):
        alignment_matrix({"a": a, "b": a}, k=0)
