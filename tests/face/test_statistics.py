"""Intervals cover, pairing helps, corrections equal hand-computed values, and order changes nothing."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from consilience.core.errors import ConsilienceError
from consilience.domains.metrics import bootstrap
from consilience.study.relations import crossover, rank_correlation
from consilience.study.statistics import (
    Predictions,
    bootstrap_scores,
    compare,
    holm,
    interquartile_mean,
    interquartile_mean_of_runs,
    interval,
    minimal_detectable,
    normalised,
    point_scores,
    probability_best,
    probability_of_improvement,
    seed_scores,
)

GROUPS = np.repeat(np.arange(30), 4)
N = len(GROUPS)


def regression(predicted: np.ndarray, metric: str = "mae", truth: np.ndarray | None = None) -> Predictions:
    """Predictions of a constant truth, so that the error of every record is known."""
    truth = np.zeros(predicted.shape[1]) if truth is None else truth
    groups = np.repeat(np.arange(predicted.shape[1] // 4), 4)
    return Predictions(kind="regression", metric=metric, truth=truth, groups=groups, predicted=predicted)


def errors(rng: np.random.Generator, seeds: int, *, group_sd: float = 0.5, mean: float = 5.0) -> np.ndarray:
    """(seeds, N) positive errors with a part for the seed, one for the group and one for the record."""
    of_group = rng.normal(scale=group_sd, size=30)[GROUPS]
    return mean + rng.normal(scale=0.1, size=(seeds, 1)) + of_group + rng.normal(scale=0.3, size=(seeds, N))


def classified(seed: int, seeds: int = 3, right: float = 0.7) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).choice(list("abc"), N)
    predicted = np.where(rng.random((seeds, N)) < right, truth, rng.choice(list("abc"), (seeds, N)))
    return Predictions(kind="classification", truth=truth, groups=GROUPS, predicted=predicted)


@pytest.mark.parametrize("seeds", [1, 5])
def test_interval_covers_the_truth_as_often_as_it_says(seeds) -> None:
    """Mean absolute error with noise of seeds, groups and records; with one seed, no noise of seeds."""
    rng = np.random.default_rng(seeds)
    held = 0
    for repeat in range(150):
        values = errors(rng, seeds)
        if seeds == 1:
            values = 5 + rng.normal(scale=0.5, size=30)[GROUPS] + rng.normal(scale=0.3, size=(1, N))
        low, high = interval(bootstrap_scores({"a": regression(values)}, 300, repeat)["a"])
        held += low <= 5 <= high
    assert 0.88 <= held / 150 <= 0.99


def test_one_seed_equals_the_interval_of_the_probes() -> None:
    row = classified(0, seeds=1)

    def score(weight: np.ndarray) -> np.ndarray:
        return seed_scores(row, weight)[0]

    expected = bootstrap(score, GROUPS, draws=400, level=0.95, seed=3)
    assert interval(bootstrap_scores({"a": row}, 400, 3)["a"]) == pytest.approx(expected)


def test_a_draw_is_the_mean_over_seeds_of_the_metric_on_repeated_records() -> None:
    """The draws equal a slow loop: groups repeated as often as drawn, seeds averaged as often as drawn."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=N)
    row = regression(truth + rng.normal(size=(3, N)), "r2", truth)
    fast = bootstrap_scores({"a": row}, 20, 7)["a"]
    times = np.random.default_rng(7).multinomial(30, np.full(30, 1 / 30), size=20)
    chosen = np.random.default_rng([7, 3]).multinomial(2, np.full(3, 1 / 3), size=20)
    names = np.unique(GROUPS.astype(str))
    for draw in range(20):
        index = np.concatenate(
            [np.tile(np.flatnonzero(GROUPS.astype(str) == n), t) for n, t in zip(names, times[draw])]
        )
        y = truth[index]
        each = [1 - ((y - p[index]) ** 2).sum() / ((y - y.mean()) ** 2).sum() for p in row.predicted]
        assert fast[draw] == pytest.approx(np.dot(chosen[draw], each) / 2)


def test_variance_between_seeds_is_not_understated() -> None:
    """Errors that differ by seed alone: the draws vary as the squared standard error s^2 / S."""
    offsets = np.array([4.0, 5.0, 7.0])
    draws = bootstrap_scores({"a": regression(np.repeat(offsets[:, None], N, axis=1))}, 20_000)["a"]
    assert draws.var() == pytest.approx(offsets.var(ddof=1) / 3, rel=0.05)


def test_more_seeds_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    values = 5 + rng.normal(size=(12, 1)) + rng.normal(scale=0.1, size=(12, N))
    few, many = (np.ptp(interval(bootstrap_scores({"a": regression(v)})["a"])) for v in (values[:4], values))
    assert many < few


def test_pairing_shrinks_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(2)
    first = errors(rng, 3, group_sd=1.0)
    rows = {"a": regression(first), "b": regression(first + 0.1 + rng.normal(scale=0.1, size=(3, N)))}
    paired = bootstrap_scores(rows)
    apart = bootstrap_scores({"b": rows["b"]}, seed=1)["b"]
    assert np.ptp(interval(paired["b"] - paired["a"])) < 0.3 * np.ptp(interval(apart - paired["a"]))


def test_equal_rows_differ_by_nothing() -> None:
    """Rows with equal seeds stay paired: the same predictions give the same draws."""
    table = compare({"a": classified(0), "b": classified(0)}, "a", draws=200)
    assert table.loc[0, ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    assert table.loc[0, "p"] == 1 and not table.loc[0, "significant"]


@settings(max_examples=15, deadline=None)
@given(st.permutations(["a", "b", "c", "one seed"]), st.randoms(use_true_random=False))
def test_order_of_rows_and_records_changes_nothing(names, random) -> None:
    rows = {name: classified(place, 3) for place, name in enumerate("abc")}
    rows["one seed"] = classified(9, 1)
    index = list(range(N))
    random.shuffle(index)
    moved = {
        name: Predictions(
            kind="classification",
            truth=rows[name].truth[index],
            groups=rows[name].groups[index],
            predicted=rows[name].predicted[:, index],
        )
        for name in names
    }
    here, there = bootstrap_scores(rows, 40, 5), bootstrap_scores(moved, 40, 5)
    alone = bootstrap_scores({"b": rows["b"]}, 40, 5)["b"]
    for name in rows:
        assert there[name] == pytest.approx(here[name], abs=1e-12)
    assert (alone == here["b"]).all()
    assert point_scores(moved) == pytest.approx(point_scores(rows))


def test_memory_is_bounded_at_ten_thousand_records() -> None:
    rng = np.random.default_rng(3)
    truth = rng.choice(list("abcd"), 10_000)
    row = Predictions(
        kind="classification", truth=truth, groups=np.arange(10_000), predicted=truth[None].repeat(2, axis=0)
    )
    tracemalloc.start()
    draws = bootstrap_scores({"a": row}, 450)["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert draws == pytest.approx(np.ones(450))


def test_one_group_shows_no_spread() -> None:
    rng = np.random.default_rng(4)
    rows = {
        name: Predictions(
            kind="regression", truth=np.arange(9.0), groups=np.zeros(9), predicted=rng.normal(size=(2, 9))
        )
        for name in "ab"
    }
    assert np.isnan(bootstrap_scores(rows, 10)["a"]).all()
    table = compare(rows, "a")
    assert table[["low", "difference_low", "p", "p_holm"]].isna().all(axis=None)
    assert np.isfinite(table[["score", "difference"]]).all(axis=None) and not table["significant"].any()


def test_compare_finds_what_is_there() -> None:
    rows = {"weak": classified(1, right=0.4), "like": classified(2, right=0.7), "reference": classified(3)}
    table = compare(rows, "reference").set_index("row")
    assert table.index.tolist() == ["weak", "like"]
    assert table["significant"].tolist() == [True, False]
    assert table.loc["weak", "difference_high"] < 0 < table.loc["like", "difference_high"]
    assert (table["p_holm"] >= table["p"]).all()
    scores = point_scores(rows)
    assert table.loc["weak", "difference"] == pytest.approx(scores["weak"] - scores["reference"])
    assert compare({"reference": rows["reference"]}, "reference").empty


def test_p_values_of_compare_are_uniform_under_the_null() -> None:
    """Two rows of equal quality: p <= 0.1 about one time in ten."""
    rng = np.random.default_rng(5)
    p = []
    for repeat in range(200):
        rows = {name: regression(5 + rng.normal(size=(1, N))) for name in "ab"}
        p.append(compare(rows, "a", draws=199, seed=repeat)["p"][0])
    assert 0.05 <= np.mean(np.array(p) <= 0.1) <= 0.17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ranking"}, "kind='ranking' is not known"),
        ({"metric": "r2"}, "metric='r2' does not score a classification; use one of accuracy"),
        ({"predicted": np.zeros((2, 3))}, r"predicted \(2, 3\) do not fit"),
        ({"predicted": np.zeros(N)}, r"predicted \(120,\) do not fit"),
        ({"groups": np.zeros(3)}, r"groups \(3,\)"),
        ({"kind": "regression", "truth": np.full(N, np.nan)}, "not finite; leave the record out"),
    ],
)
def test_bad_predictions(change, message) -> None:
    fields = {"kind": "classification", "truth": GROUPS, "groups": GROUPS, "predicted": np.zeros((2, N))}
    with pytest.raises(ConsilienceError, match=message):
        Predictions(**(fields | change))


def test_rows_that_cannot_be_paired() -> None:
    a, values = classified(0), np.ones((1, N))
    with pytest.raises(ConsilienceError, match="'b' and 'a' score different records"):
        bootstrap_scores(
            {"a": a, "b": Predictions(kind=a.kind, truth=a.truth[::-1], groups=GROUPS, predicted=a.predicted)}
        )
    with pytest.raises(ConsilienceError, match="'b' is scored by r2, 'a' by mae"):
        bootstrap_scores({"a": regression(values), "b": regression(values, "r2")})
    with pytest.raises(ConsilienceError, match="no rows"):
        bootstrap_scores({})
    with pytest.raises(ConsilienceError, match="reference='c' is no row; it is one of 'a'"):
        compare({"a": a}, "c")
    with pytest.raises(
        ConsilienceError, match="20 draws cannot make 2 comparisons significant; use at least 79"
    ):
        compare({name: a for name in "abc"}, "a", draws=20)


def test_normalised() -> None:
    assert normalised(np.array([0.2, 0.5, 0.8]), 0.2, 0.8).values == pytest.approx([0, 0.5, 1])
    assert normalised(0.1, 0.2, 0.7).values == pytest.approx([-0.2])
    rng = np.random.default_rng(6)
    sure, unsure = 0.1 + 0.01 * rng.normal(size=200), 0.1 + 0.1 * rng.normal(size=200)
    assert not normalised(0.5, 0.4, 0.5, gap_draws=sure).reason
    for bad in (
        normalised(0.5, 0.4, 0.5, gap_draws=unsure),
        normalised(np.full(3, 0.5), 0.4, 0.4),
        normalised(0.5, 0.4, np.nan),
        normalised(0.5, 0.0, unsure),
    ):
        assert np.isnan(bad.values).all() and "no scale between them" in bad.reason


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_interquartile_mean_equals_scipy(tasks, draws, seed) -> None:
    values = np.random.default_rng(seed).normal(size=(tasks, draws))
    expected = stats.trim_mean(values, 0.25, axis=0)
    assert interquartile_mean(values) == pytest.approx(expected)
    assert interquartile_mean(values[::-1]) == pytest.approx(expected)
    assert interquartile_mean(values[:, None]) == pytest.approx(expected)


def test_interquartile_mean_and_gaps() -> None:
    values = np.array([[1.0, 1], [2, 2], [3, np.nan], [np.nan, np.nan], [9, 9], [0, 0]])
    assert interquartile_mean(values) == pytest.approx([2, np.nan], nan_ok=True)
    assert np.isnan(interquartile_mean(values[3:4])).all()


def test_interquartile_mean_of_runs() -> None:
    rng = np.random.default_rng(7)
    runs = [rng.normal(size=5) + task for task in range(6)]
    found = interquartile_mean_of_runs(runs)
    assert found.value == pytest.approx(stats.trim_mean(np.concatenate(runs), 0.25))
    assert found.low < found.value < found.high
    assert interquartile_mean_of_runs([np.ones(1)]).high == 1
    with pytest.raises(ConsilienceError, match="at least one run"):
        interquartile_mean_of_runs([np.array([])])


def test_probability_of_improvement_is_mann_whitney() -> None:
    rng = np.random.default_rng(8)
    first, second = ([rng.integers(0, 6, 7).astype(float) for _ in range(3)] for _ in range(2))
    expected = np.mean([stats.mannwhitneyu(x, y).statistic / 49 for x, y in zip(first, second)])
    there, back = probability_of_improvement(first, second), probability_of_improvement(second, first)
    assert there.value == pytest.approx(expected) and there.low <= there.value <= there.high
    assert there.value + back.value == pytest.approx(1)
    assert probability_of_improvement([np.ones(2) * 2], [np.ones(3)]).value == 1
    with pytest.raises(ConsilienceError, match="3 tasks against 1"):
        probability_of_improvement(first, second[:1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99), st.randoms(use_true_random=False))
def test_probability_best_sums_to_one(rows, tasks, seed, random) -> None:
    """Whole numbers, so that there are ties."""
    values = np.random.default_rng(seed).integers(0, 3, size=(rows, tasks, 40))
    draws = {str(row): values[row] for row in range(rows)}
    found = probability_best(draws)
    assert sum(found.values()) == pytest.approx(1)
    names = list(draws)
    random.shuffle(names)
    assert probability_best({name: draws[name] for name in names}) == pytest.approx(found)


def test_probability_best_known_answers() -> None:
    low, high = np.zeros((2, 10)), np.ones((2, 10))
    assert probability_best({"a": low, "b": high, "c": high}) == {"a": 0, "b": 0.5, "c": 0.5}
    gap = high.copy()
    gap[1] = np.nan
    assert probability_best({"a": low, "b": gap}) == {"a": 0, "b": 1}
    assert np.isnan(probability_best({"a": low * np.nan, "b": high})["b"])
    with pytest.raises(ConsilienceError, match="give every row the same"):
        probability_best({"a": low, "b": low[:1]})


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 held up to 0.06."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([np.nan, 0.03, 0.6, 0.7])) == pytest.approx([np.nan, 0.09, 1, 1], nan_ok=True)
    assert holm(np.array([])).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_knows_no_order(p_values, random) -> None:
    p = np.array(p_values)
    index = list(range(len(p)))
    random.shuffle(index)
    adjusted = holm(p)
    assert (holm(p[index]) == adjusted[index]).all()
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, len(p) * p) + 1e-15).all()


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_minimal_detectable_is_found_four_times_in_five(seeds) -> None:
    """Power of the two-sample t-test by the noncentral t."""
    values = np.random.default_rng(seeds).normal(size=(4, seeds))
    spread = np.sqrt(values.var(axis=1, ddof=1).mean())
    delta = minimal_detectable(values)
    df, shift = 2 * (seeds - 1), delta / (spread * np.sqrt(2 / seeds))
    limit = stats.t.ppf(0.975, df)
    assert stats.nct.sf(limit, df, shift) + stats.nct.cdf(-limit, df, shift) == pytest.approx(0.8, abs=0.04)


def test_minimal_detectable_by_hand() -> None:
    """t(0.975, 4) = 2.7764, t(0.8, 4) = 0.9410, s = 1, S = 3."""
    assert minimal_detectable(np.array([1.0, 2, 3])) == pytest.approx(3.7175 * np.sqrt(2 / 3), abs=1e-3)
    assert np.isnan(minimal_detectable(np.array([1.0])))


def test_rank_correlation_of_one_group_is_spearman() -> None:
    rng = np.random.default_rng(9)
    x = rng.integers(0, 9, 40).astype(float)
    y = x + rng.normal(scale=3, size=40)
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    assert found.p_value == pytest.approx(1 / 1001)
    assert rank_correlation(x, y, groups=np.full(40, "cells")) == found
    z = x + rng.normal(scale=9, size=40)
    assert rank_correlation(x, z).p_value == pytest.approx(stats.spearmanr(x, z).pvalue, abs=0.05)


def test_a_trend_between_groups_is_none_inside_them() -> None:
    """Simpson: falling inside every science, rising between them."""
    rng = np.random.default_rng(10)
    groups = np.repeat(list("abcd"), 10)
    x = np.tile(np.arange(10.0), 4) + np.repeat(np.arange(4), 10) * 100
    y = -np.tile(np.arange(10.0), 4) + np.repeat(np.arange(4), 10) * 100 + rng.normal(size=40)
    assert rank_correlation(x, y).value > 0.8
    inside = rank_correlation(x, y, groups=groups)
    assert inside.high < -0.8 and inside.p_value < 0.01
    order = rng.permutation(40)
    moved = rank_correlation(x[order], y[order], groups=groups[order])
    assert moved.value == pytest.approx(inside.value)
    noise = rank_correlation(x, rng.normal(size=40), groups=groups)
    assert noise.low < 0 < noise.high and noise.p_value > 0.05


def test_rank_correlation_edges() -> None:
    constant = rank_correlation(np.arange(5.0), np.ones(5))
    assert np.isnan([constant.value, constant.low, constant.p_value]).all()
    with pytest.raises(ConsilienceError, match="n >= 3"):
        rank_correlation(np.arange(2.0), np.arange(2.0))
    with pytest.raises(ConsilienceError, match="pair 1 is not finite"):
        rank_correlation(np.array([0, np.inf, 2]), np.arange(3.0))


def test_crossover() -> None:
    x = np.array([1.0, 100, 10_000])
    assert crossover(x, np.array([0.0, 1, 2]), np.array([0.5, 0.5, 0.5])) == pytest.approx(10)
    assert crossover(x[::-1], np.array([2.0, 1, 0]), np.full(3, 0.5)) == pytest.approx(10)
    assert crossover(x, np.array([0.0, 1, 2]), np.ones(3)) == pytest.approx(100)
    assert crossover(x, np.array([0.0, 1, 0]), np.ones(3)) is None
    assert crossover(x, np.arange(3.0), np.arange(3.0)) is None
    assert crossover(x, np.array([0.0, np.nan, 2]), np.ones(3)) == pytest.approx(100)
    with pytest.raises(ConsilienceError, match="leave 0 out"):
        crossover(np.array([0.0, 1]), np.zeros(2), np.ones(2))
    with pytest.raises(ConsilienceError, match="give three"):
        crossover(x, np.zeros(2), np.ones(3))
