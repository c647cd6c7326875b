"""Groups stay whole, parts have their sizes, and nothing but names, sizes and the seed matters."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.core.errors import ConsilienceError
from consilience.domains.splits import Split, grouped_split, split_hash

group_lists = st.lists(st.integers(0, 12), min_size=3, max_size=80).filter(lambda g: len(set(g)) >= 3)


@settings(max_examples=100, deadline=None)
@given(group_lists, st.integers(0, 2**31))
def test_parts_are_a_partition_that_keeps_groups_whole(groups: list[int], seed: int) -> None:
    split = grouped_split(groups, seed=seed)
    parts = list(split.parts().values())
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    names = [set(np.asarray(groups)[part].tolist()) for part in parts]
    assert all(names), "no part is empty"
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert all(part.dtype == np.int64 for part in parts)


@settings(max_examples=50, deadline=None)
@given(group_lists, st.integers(0, 100), st.randoms(use_true_random=False))
def test_order_of_records_does_not_matter(groups: list[int], seed: int, shuffler) -> None:
    order = list(range(len(groups)))
    shuffler.shuffle(order)
    ids = np.array([f"record-{i}" for i in range(len(groups))])
    before = grouped_split(groups, seed=seed)
    after = grouped_split(np.asarray(groups)[order], seed=seed)
    for name, part in before.parts().items():
        assert set(ids[part]) == set(ids[order][after.parts()[name]])
    assert split_hash(before, ids) == split_hash(after, ids[order])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=40, max_size=120), st.integers(0, 100))
def test_no_part_exceeds_its_share_by_a_whole_group(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    split = grouped_split(groups, seed=seed)
    for part, fraction in zip(split.parts().values(), (0.7, 0.1, 0.2)):
        assert len(part) < fraction * len(groups) + max(sizes)
        assert len(part) > fraction * len(groups) - 2 * max(sizes)


def test_a_dominant_group_is_trained_on_and_not_tested_on() -> None:
    """Scaffolds of a real set: one in five molecules is a benzene."""
    groups = ["benzene"] * 200 + ["pyridine"] * 80 + [f"scaffold {i}" for i in range(720)]
    for seed in range(20):
        split = grouped_split(groups, seed=seed)
        assert set(range(280)) <= set(split.train.tolist())
        assert abs(len(split.test) - 200) <= 1 and abs(len(split.validation) - 100) <= 1


def test_single_records_are_cut_exactly() -> None:
    split = grouped_split([f"galaxy {i}" for i in range(1000)], seed=4)
    assert [len(part) for part in split.parts().values()] == [700, 100, 200]


def test_global_random_state_is_neither_read_nor_moved() -> None:
    np.random.seed(0)
    first = grouped_split(range(50), seed=1)
    state = np.random.get_state()[1].copy()
    np.random.seed(99)
    second = grouped_split(range(50), seed=1)
    np.random.seed(0)
    grouped_split(range(50), seed=1)
    assert split_hash(first) == split_hash(second)
    assert (np.random.get_state()[1] == state).all()


def test_known_split_never_changes() -> None:
    """A frozen value: saved runs name their split by this hash, on any machine and version."""
    split = grouped_split(["a", "a", "b", "c", "d", "e", "f", "g", "h", "i"], seed=0)
    assert split.test.tolist() == [3, 7]
    assert split_hash(split) == "ea71df412fcfd2e1"


def test_seed_changes_the_split_and_its_hash() -> None:
    hashes = {split_hash(grouped_split(range(100), seed=seed)) for seed in range(20)}
    assert len(hashes) == 20


def test_text_and_numbers_with_the_same_name_are_one_group() -> None:
    assert split_hash(grouped_split(np.arange(20), seed=3)) == split_hash(
        grouped_split([str(i) for i in range(20)], seed=3)
    )


def test_hash_of_one_part_is_not_hash_of_another() -> None:
    a, b = np.array([0, 1]), np.array([2, 3])
    empty = np.array([], dtype=int)
    hashes = {
        split_hash(Split(a, b, empty)),
        split_hash(Split(b, a, empty)),
        split_hash(Split(a, empty, b)),
        split_hash(Split(np.arange(4), empty, empty)),
    }
    assert len(hashes) == 4


def test_three_groups_fill_three_parts_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = grouped_split(["a", "b", "c"], seed=0)
    assert sorted(len(part) for part in split.parts().values()) == [1, 1, 1]


def test_zero_fraction_leaves_the_part_empty() -> None:
    split = grouped_split(range(10), fractions=(0.8, 0, 0.2), seed=0)
    assert [len(part) for part in split.parts().values()] == [8, 0, 2]


@pytest.mark.parametrize(
    ("groups", "fractions", "message"),
    [
        (["a", "b", "a"], (0.7, 0.1, 0.2), r"2 group\(s\) in 3 record\(s\) cannot fill 3 parts"),
        ([], (0.7, 0.1, 0.2), r"0 group\(s\) in 0 record"),
        (range(9), (0.7, 0.1, 0.1), r"add up to 0\.9"),
        (range(9), (1.2, -0.4, 0.2), "three shares of 0 or more"),
        (range(9), (0.5, 0.5), "three shares of 0 or more"),
    ],
)
def test_bad_input(groups, fractions, message: str) -> None:
    with pytest.raises(ConsilienceError, match=message):
        grouped_split(groups, fractions=fractions, seed=0)


def test_overlapping_parts_are_refused() -> None:
    with pytest.raises(ConsilienceError, match="record 2 is in two parts"):
        Split(np.array([0, 2]), np.array([1]), np.array([2]))
    with pytest.raises(ConsilienceError, match="negative position -1"):
        Split(np.array([0, -1]), np.array([1]), np.array([2]))
