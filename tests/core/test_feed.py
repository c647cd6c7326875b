"""Batches are a function of the step; optimisers step as one and come back from their state."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source, StepSampler, TokenFeed, epoch_batches, step_generator
from consilience.core.optim import Together, build_optimizer, schedule
from consilience.core.synthetic import MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=200),
    st.integers(10, 200),
    st.integers(0, 9),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_record_once_within_the_budget(
    lengths: list[int], budget: int, seed: int, epoch: int
) -> None:
    sizes = np.array(lengths)
    batches = epoch_batches(sizes, budget, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(sizes)))
    for batch in batches:
        assert sizes[batch].sum() <= budget or len(batch) == 1
    again = epoch_batches(sizes, budget, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_records_of_a_batch_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 4000)
    batches = epoch_batches(lengths, 512, 0, 0)
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert lengths.sum() / padded > 0.95
    assert not np.array_equal(batches[0], epoch_batches(lengths, 512, 0, 1)[0]), "epochs differ"


def lengths_of(kind: str) -> tuple[np.ndarray, int]:
    """Tokens of many records and a budget, spread as in MOSES, QM9 and cells with 200 to 4,000 genes."""
    rng = np.random.default_rng(0)
    if kind == "cells":
        return np.clip(np.exp(rng.normal(7.1, 0.6, 8000)), 200, 4000).astype(int), 16_384
    mean, spread, low, high = (37, 4.6, 15, 57) if kind == "moses" else (18, 2.9, 3, 29)
    return np.clip(np.rint(rng.normal(mean, spread, 40_000)), low, high).astype(int), 4096


@pytest.mark.parametrize("kind", ["moses", "qm9", "cells"])
def test_batches_of_real_lengths_waste_little_and_are_random(kind: str) -> None:
    lengths, budget = lengths_of(kind)
    epochs = [epoch_batches(lengths, budget, 0, epoch) for epoch in range(4)]
    for batches in epochs:
        slots = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
        assert lengths.sum() / slots > 0.95
        assert lengths.sum() / (len(batches) * budget) > 0.9  # batches are full
        if kind != "cells":  # short samples: one call of the grouped kernel a distinct length
            assert np.mean([len(np.unique(lengths[batch])) for batch in batches]) < 3
        # Long and short batches come in no order.
        mean = np.array([lengths[batch].mean() for batch in batches])
        assert abs(np.corrcoef(np.arange(len(mean)), mean)[0, 1]) < 4 / len(mean) ** 0.5
    # Which records meet in a batch differs from epoch to epoch.
    first, second = (
        {frozenset(pair) for batch in batches for pair in zip(batch[:-1].tolist(), batch[1:].tolist())}
        for batches in epochs[:2]
    )
    assert len(first & second) < 0.04 * len(first)
    # When a record comes says nothing of its length, over epochs.
    when = np.zeros(len(lengths))
    for batches in epochs:
        for place, batch in enumerate(batches):
            when[batch] += place / len(batches) / len(epochs)
    assert abs(np.corrcoef(when, lengths)[0, 1]) < 0.1


def feed(**changes: object) -> TokenFeed:
    chain = MarkovChain()
    records = list(range(40))
    sources = {
        name: Source(records=records, tokenizer=Numbers(chain), weight=weight)
        for name, weight in (("a", 3.0), ("b", 1.0))
    }
    return TokenFeed(sources, **{"steps": 400, "tokens_per_batch": 60, "seed": 5, **changes})  # type: ignore[arg-type]


class Numbers(SyntheticTokenizer):
    """Records are seeds of chains."""

    def encode(self, records, *, generator=None):  # type: ignore[no-untyped-def]
        extra = 0 if generator is None else int(torch.randint(1000, (1,), generator=generator))
        tokens = [self.source.tokens(1, torch.Generator().manual_seed(1000 * r + extra)) for r in records]
        return type(tokens[0]).concatenate(tokens)

    def lengths(self, records):  # type: ignore[no-untyped-def]
        return np.full(len(records), 6)


def test_a_step_gives_the_same_batch_whenever_it_is_asked() -> None:
    forward, backward = feed(), feed()
    steps = [0, 1, 17, 250, 399]
    first = {step: forward[step] for step in steps}
    travelled = pickle.loads(pickle.dumps(backward))  # as into a worker process
    for step in reversed(steps):
        name, tokens = travelled[step]
        assert name == first[step][0]
        assert torch.equal(tokens.ids, first[step][1].ids)


def test_shares_of_the_steps_follow_the_weights() -> None:
    source = feed(steps=4000)
    turns = [source.indices(step)[0] for step in range(4000)]
    assert turns.count("a") / 4000 == pytest.approx(0.75, abs=0.03)


def test_each_science_sees_its_records_once_an_epoch() -> None:
    source = feed()
    seen = [
        index
        for step in range(400)
        for name, batch in [source.indices(step)]
        if name == "b"
        for index in batch
    ]
    assert sorted(seen[:40]) == list(range(40)) and sorted(seen[40:80]) == list(range(40))
    assert seen[:40] != seen[40:80]


def test_bad_feeds_are_named() -> None:
    tokenizer = Numbers(MarkovChain())
    with pytest.raises(ConsilienceError, match="a: there are no records to train on"):
        TokenFeed({"a": Source(records=[], tokenizer=tokenizer)}, steps=1, tokens_per_batch=8, seed=0)
    with pytest.raises(ConsilienceError, match="a: its weight must be positive, not 0"):
        TokenFeed(
            {"a": Source(records=[1], tokenizer=tokenizer, weight=0)}, steps=1, tokens_per_batch=8, seed=0
        )


def test_generators_of_steps_and_streams_differ() -> None:
    draws = {
        (seed, step, stream): float(torch.rand(1, generator=step_generator(seed, step, stream)))
        for seed in range(3)
        for step in range(20)
        for stream in range(3)
    }
    assert len(set(draws.values())) == len(draws)


def test_the_sampler_goes_on_from_its_first_step() -> None:
    sampler = StepSampler(10)
    sampler.first = 7
    assert list(sampler) == [7, 8, 9] and len(sampler) == 10


@pytest.mark.parametrize("warmup, decay", [(0.1, 0.5), (0.0, 0.0), (1.0, 1.0)])
def test_schedule_rises_and_falls(warmup: float, decay: float) -> None:
    rates = [schedule(step, steps=100, warmup=warmup, decay=decay) for step in range(101)]
    assert all(0 <= rate <= 1 for rate in rates) and rates[0] > 0 and rates[100] == 0
    if decay == 0.5:
        assert rates[4] == pytest.approx(0.5) and rates[20] == 1 and rates[75] == pytest.approx(0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.ModuleDict({"blocks": nn.Linear(8, 8)})
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.core["blocks"](x)))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimisers_learn_and_resume_to_the_same_weights(name: str) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :2] * 3

    def run(net: Net, optimizer: torch.optim.Optimizer, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    def build() -> tuple[Net, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = Net()
        return net, build_optimizer(net, name=name, learning_rate=0.02, weight_decay=0.0)  # type: ignore[arg-type]

    whole, optimizer = build()
    first = run(whole, optimizer, 1)
    assert run(whole, optimizer, 39) < first / 2
    if name == "muon":
        assert isinstance(optimizer, Together)
        assert [type(part).__name__ for part in optimizer.parts] == ["Muon", "AdamW"]
    half, first_half = build()
    run(half, first_half, 20)
    again, second_half = build()
    again.load_state_dict(half.state_dict())
    second_half.load_state_dict(first_half.state_dict())
    run(again, second_half, 20)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_frozen_core_leaves_the_rest_to_train(name: str) -> None:
    net = Net()
    net.core.requires_grad_(False)
    before = {path: value.clone() for path, value in net.state_dict().items()}
    optimizer = build_optimizer(net, name=name, learning_rate=0.1, weight_decay=0.1)  # type: ignore[arg-type]
    net(torch.ones(4, 8)).square().sum().backward()
    optimizer.step()
    changed = {path for path, value in net.state_dict().items() if not torch.equal(value, before[path])}
    assert changed == {"head.weight", "head.bias"}


def test_a_schedule_reaches_all_parts_of_a_joint_optimiser() -> None:
    optimizer = build_optimizer(Net(), name="muon", learning_rate=1.0, weight_decay=0.0)
    rule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert isinstance(optimizer, Together)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.5}
    assert rule.get_last_lr() == [0.5] * len(optimizer.param_groups)
