"""TokenBatch: reordering, padding and stacking lose nothing, and validate names what is wrong."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError

SPEC = TokenSpec(name="toy", vocabulary=5, channels=2, addresses=11, coordinates=3, weighted=True)


def batch_of(lengths: list[int], width: int, seed: int) -> TokenBatch:
    """A full batch of SPEC, padded with zeros to `width`."""
    generator, b = torch.Generator().manual_seed(seed), len(lengths)
    length = torch.tensor(lengths)
    real = torch.arange(width) < length[:, None]
    n_given = (torch.rand(b, generator=generator) * (length + 1)).long()
    return TokenBatch(
        length=length,
        ids=torch.randint(5, (b, width), generator=generator) * real,
        values=torch.randn(b, width, 2, generator=generator) * real[..., None],
        weight=torch.rand(b, width, 2, generator=generator) * real[..., None],
        address=torch.randint(11, (b, width), generator=generator) * real,
        positions=torch.randn(b, width, 3, generator=generator) * real[..., None],
        given=torch.arange(width) < n_given[:, None],
        exposure=torch.rand(b, generator=generator),
    )


@st.composite
def batches(draw, width: int | None = None) -> TokenBatch:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    extra = draw(st.integers(0, 3))
    return batch_of(lengths, max(lengths) + extra if width is None else width, draw(st.integers(0, 2**20)))


def same(a: TokenBatch, b: TokenBatch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(TokenBatch)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def per_token(batch: TokenBatch) -> list[Tensor]:
    return [batch.ids, batch.values, batch.weight, batch.address, batch.positions, batch.given]


LAW = settings(max_examples=60, deadline=None, derandomize=True)


@LAW
@given(batches())
def test_a_generated_batch_is_valid(batch):
    assert batch.validate(SPEC) is batch
    assert batch.n_tokens == int(batch.real.sum())
    assert batch.real.sum(1).tolist() == batch.length.tolist()


@LAW
@given(batches(), st.integers(0, 2**20))
def test_permute_is_undone_by_the_inverse_order(batch, seed):
    order = torch.rand(batch.size, batch.width, generator=torch.Generator().manual_seed(seed)).argsort(1)
    moved = batch.permute(order)
    assert same(moved.permute(order.argsort(1)), batch)
    for before, after in zip(per_token(batch), per_token(moved)):
        for b in range(batch.size):
            assert torch.equal(after[b], before[b][order[b]])
    assert moved.length is batch.length
    assert moved.exposure is batch.exposure


@LAW
@given(batches(), st.integers(0, 5))
def test_trim_undoes_pad(batch, extra):
    padded = batch.pad(batch.width + extra)
    assert padded.width == batch.width + extra
    assert same(padded.trim(), batch.trim())
    assert batch.trim().width == int(batch.length.max())
    assert batch.trim().n_tokens == batch.n_tokens
    assert batch.pad(batch.width - 1) is batch, "pad never cuts"
    for tensor in per_token(padded):
        assert not tensor[~padded.real].any()


@LAW
@given(batches(), st.data())
def test_take_picks_samples_in_order(batch, data):
    rows = data.draw(st.lists(st.integers(0, batch.size - 1), min_size=1, max_size=6))
    taken = batch.take(rows)
    assert taken.size == len(rows)
    assert same(taken, batch.take(torch.tensor(rows)))
    for i, row in enumerate(rows):
        assert same(taken.take([i]), batch.take([row]))


@LAW
@given(st.lists(batches(), min_size=1, max_size=4))
def test_concatenate_stacks_and_pads(parts):
    whole = TokenBatch.concatenate(parts)
    assert whole.size == sum(part.size for part in parts)
    assert whole.width == max(part.width for part in parts)
    whole.validate(SPEC)
    first = 0
    for part in parts:
        rows = list(range(first, first + part.size))
        assert same(whole.take(rows).trim(), part.trim())
        first += part.size


def test_map_and_to_keep_what_is_missing():
    batch = TokenBatch(length=torch.tensor([2]), ids=torch.tensor([[1, 2]]))
    assert batch.values is None
    assert batch.map(lambda x: x + 1).values is None
    assert batch.map(lambda x: x + 1).ids.tolist() == [[2, 3]]
    assert batch.to("cpu").ids.tolist() == [[1, 2]]
    assert not batch.is_given.any()
    assert TokenBatch.concatenate([batch, batch]).values is None


GOOD = batch_of([3, 2], 3, 0)
NAN = GOOD.values.clone()
NAN[1, 0, 1] = float("nan")
FAULTS = {
    "ids missing": ({"ids": None}, r"toy tokens need `ids` of shape \(2, 3\), which is missing"),
    "weight missing": ({"weight": None}, r"need `weight` of shape \(2, 3, 2\)"),
    "address missing": ({"address": None}, "need `address`"),
    "positions missing": ({"positions": None}, "need `positions`"),
    "values narrow": ({"values": GOOD.values[..., :1]}, r"`values` is \(2, 3, 1\), expected \(2, 3, 2\)"),
    "positions flat": ({"positions": GOOD.positions[..., 0]}, r"`positions` is \(2, 3\), expected"),
    "length zero": ({"length": torch.tensor([3, 0])}, r"lengths must lie in 1\.\.3"),
    "length too long": ({"length": torch.tensor([4, 2])}, r"lengths must lie in 1\.\.3"),
    "symbol too large": ({"ids": GOOD.ids + 5}, r"`ids` must lie in 0\.\.4"),
    "symbol negative": ({"ids": GOOD.ids - 1}, r"`ids` must lie in 0\.\.4"),
    "address too large": ({"address": GOOD.address + 11}, r"`address` must lie in 0\.\.10"),
    "nan": ({"values": NAN}, "`values` holds NaN or infinity"),
    "infinite weight": ({"weight": GOOD.weight / 0}, "`weight` holds NaN or infinity"),
    "given after others": (
        {"given": torch.tensor([[False, True, False]] * 2)},
        "given tokens must stand before",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_names_the_fault(fault):
    change, message = FAULTS[fault]
    with pytest.raises(ConsilienceError, match=message):
        replace(GOOD, **change).validate(SPEC)


SPECS = {
    "negative": ({"vocabulary": -1}, "must not be negative"),
    "no content": ({}, "tokens need content: a vocabulary, channels, or both"),
    "four coordinates": ({"channels": 1, "coordinates": 4}, "coordinates must be 0 to 3, not 4"),
    "symbols": ({"vocabulary": 2, "symbols": ("a",)}, "1 symbols for a vocabulary of 2"),
    "periods": ({"channels": 1, "periods": (5.0, 1.0)}, "periods must be positive and ascending"),
}


@pytest.mark.parametrize("fault", SPECS)
def test_a_spec_names_its_fault(fault):
    options, message = SPECS[fault]
    with pytest.raises(ConsilienceError, match=message):
        TokenSpec(name="toy", **options)


@LAW
@given(st.floats(-5, 5), st.floats(0.1, 10), st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=5))
def test_standardise_has_an_inverse(shift, scale, values):
    spec = TokenSpec(name="toy", channels=1, value_shift=shift, value_scale=scale)
    x = torch.tensor(values)
    assert torch.allclose(spec.restore(spec.standardise(x)), x, rtol=1e-4, atol=1e-4)
    counts = replace(spec, value_likelihood="negative-binomial")
    x = x.abs().round()
    assert torch.allclose(counts.restore(counts.standardise(x)), x, rtol=1e-3, atol=1e-3)
