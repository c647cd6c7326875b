"""Lengths of samples that fit what stands beside them."""

import json

import numpy as np
import torch

from consilience.core.batch import TokenBatch
from consilience.core.pair_lengths import count_lengths, draw_lengths, of_length


class Words:
    """A tokenizer of words: one token a letter."""

    def encode(self, records: list[str]) -> TokenBatch:
        length = torch.tensor([len(word) for word in records])
        return TokenBatch(length=length, ids=torch.zeros(len(records), int(length.max()), dtype=torch.int64))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PAIRS = {"short": ["a", "a", "a", "a", "bb", "bb"], "long": ["xxx", "xxx", "xxx", "xxxx", "x" * 9, "x" * 9]}
LENGTHS = count_lengths({name: Words() for name in PAIRS}, PAIRS)


def test_pairs_are_counted() -> None:
    assert LENGTHS == [{"names": ["short", "long"], "counts": [[1, 3, 3], [1, 4, 1], [2, 9, 2]]}]
    assert json.loads(json.dumps(LENGTHS)) == LENGTHS


def test_lengths_follow_those_of_the_context() -> None:
    context = {"short": Words().encode(["a"] * 4000 + ["bb"] * 10 + ["cccc"] * 10)}
    drawn = draw_lengths(LENGTHS, "long", context, seeded()).numpy()
    values, times = np.unique(drawn[:4000], return_counts=True)
    assert values.tolist() == [3, 4] and abs(times[0] / 4000 - 0.75) < 0.03
    assert (drawn[4000:] == 9).all()  # the longest that is known stands in for four letters
    back = draw_lengths(LENGTHS, "short", {"long": Words().encode(["x" * 4, "x" * 8])}, seeded())
    assert back.tolist() == [1, 2]
    again = draw_lengths(LENGTHS, "long", context, seeded()).numpy()
    assert np.array_equal(drawn, again)


def test_what_is_not_known_is_not_drawn() -> None:
    context = {"other": Words().encode(["a"])}
    assert draw_lengths(LENGTHS, "long", context, seeded()) is None
    assert draw_lengths((), "long", {"short": Words().encode(["a"])}, seeded()) is None


def test_templates_of_a_length_are_drawn_at_random() -> None:
    templates = Words().encode(["x" * n for n in (2, 3, 3, 5)])
    templates.ids[:, 0] = torch.arange(4)  # their number
    wanted = torch.tensor([3] * 200 + [2, 9])
    found = of_length(templates, wanted, seeded())
    assert found.length.tolist() == [3] * 200 + [2, 5] and found.width == 5
    assert 60 < int((found.ids[:200, 0] == 1).sum()) < 140 and found.ids[200:, 0].tolist() == [0, 3]
    assert of_length(templates, wanted[:200], seeded()).width == 3
