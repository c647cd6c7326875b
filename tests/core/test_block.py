"""Blocks: the dial from next-token to masked diffusion and denoising, exact at every size with exact conditionals."""

from dataclasses import replace

import pytest
import torch

from consilience.core.attention import Pattern
from consilience.core.errors import ConsilienceError
from consilience.core.objectives import AnyOrder, Block, Denoising, MaskedDiffusion, NextToken
from consilience.core.objectives.masked import masked_view
from consilience.core.oracle import Oracle
from consilience.core.sampling import Sampling
from consilience.core.synthetic import GaussianAR1, MarkovChain

CHAIN, AR1 = MarkovChain(), GaussianAR1(mean=3.0, spread=2.0)
SOURCES = pytest.mark.parametrize("source", [CHAIN, AR1], ids=lambda source: source.name)
KINDS = ["ids", "values", "weighted", "counts", "mixed", "cloud"]
WHOLE = [
    (Block(size=None), MaskedDiffusion()),
    (Block(size=None, order="reversed"), MaskedDiffusion()),
    (Block(size=None, noise="gaussian"), Denoising()),
]


def excess(objective, source, tokens, draws=1):
    """(nats per token above the truth of the same samples, the loss) of the perfect model."""
    loss = objective.evaluate(
        Oracle(source, objective), tokens, torch.Generator().manual_seed(5), draws=draws
    )
    return loss.nats_per_token - float(source.nll(tokens).sum()) / tokens.n_tokens, loss


def same(a, b) -> bool:
    """Whether two views, targets or batches hold the same tensors, to the bit."""
    first, second = (
        {name: x for part in (one, one.tokens) for name, x in vars(part).items() if torch.is_tensor(x)}
        for one in (a, b)
    )
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# With the oracle: views, weights and accounting alone.


@SOURCES
@pytest.mark.parametrize("order", ["natural", "reversed", "centre-out", "outside-in", "random"])
def test_blocks_of_one_are_the_chain_rule(order, source, tools):
    tokens = source.tokens(300, tools.seeded(1))
    found, loss = excess(Block(size=1, order=order), source, tokens)
    assert loss.kind == "exact"
    assert loss.tokens == tokens.n_tokens
    assert found == pytest.approx(0, abs=1e-5)
    assert excess(NextToken(order=order), source, tokens)[0] == pytest.approx(found, abs=1e-5)


@SOURCES
@pytest.mark.parametrize("order", ["natural", "random"])
@pytest.mark.parametrize("size", [2, 4, 6, 9])
def test_the_bound_of_a_perfect_model_is_the_entropy_at_every_size(size, order, source, tools):
    tokens = source.tokens(4096, tools.seeded(1))
    found, loss = excess(Block(size=size, order=order), source, tokens, draws=4)
    assert loss.kind == "bound"
    assert loss.tokens == 4 * tokens.n_tokens
    assert found == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("order", ["natural", "random"])
@pytest.mark.parametrize("size", [1, 2, 4, 6, None])
def test_the_ode_of_a_perfect_flow_is_exact_at_every_size(size, order, tools):
    tokens = AR1.tokens(64, tools.seeded(1))
    found, loss = excess(Block(size=size, order=order, noise="gaussian"), AR1, tokens)
    assert loss.kind == "exact"
    assert loss.tokens == tokens.n_tokens
    assert found == pytest.approx(0, abs=2e-3)


def test_the_nats_of_random_orders_are_those_of_all_draws(tools):
    objective, tokens = Block(size=2, order="random", noise="gaussian"), AR1.tokens(16, tools.seeded(1))
    found, loss = excess(objective, AR1, tokens, draws=3)
    assert loss.tokens == 3 * tokens.n_tokens
    assert found == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block", "whole"), WHOLE, ids=repr)
def test_one_block_of_all_is_masked_diffusion_or_denoising(block, whole, kind, tools):
    spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
    if kind == "ids" and block.noise == "gaussian":
        with pytest.raises(ConsilienceError, match="denoising needs continuous content"):
            block.likelihoods(spec)
        return
    for ours, theirs in zip(
        block.view(tokens, spec, tools.seeded(1)), whole.view(tokens, spec, tools.seeded(1))
    ):
        assert same(ours, theirs)
    assert same(block.observe(tokens, spec), whole.observe(tokens, spec))
    models = [tools.model_of(spec, objective) for objective in (block, whole)]
    losses = [model.loss({kind: tokens}, tools.seeded(1))[kind] for model in models]
    assert torch.equal(losses[0].value, losses[1].value)
    assert (losses[0].kind, losses[0].tokens) == (losses[1].kind, losses[1].tokens)
    if block.noise == "erasure":  # the ODE takes long, and is compared above
        held_out = [model.evaluate(tokens, seed=2) for model in models]
        assert torch.equal(held_out[0].nats, held_out[1].nats)
    hidden = tokens.real & ~tokens.is_given
    filled = [model.fill(tokens, hidden, seed=1, steps=3) for model in models]
    for name in ("ids", "values"):
        a, b = (getattr(one, name) for one in filled)
        assert a is None or torch.equal(a, b)


# The view.


@pytest.mark.parametrize("noise", ["erasure", "gaussian"])
@pytest.mark.parametrize("order", ["natural", "reversed", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_streams_show_context_clean_and_queries_corrupted(kind, order, noise, tools):
    if kind == "ids" and noise == "gaussian":
        pytest.skip("noise needs values")
    objective = Block(size=2, order=order, noise=noise)
    spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
    view, targets = objective.view(tokens, spec, tools.seeded(1))
    ordered = targets.tokens.permute(torch.arange(0, 14, 2).expand(5, -1))
    assert torch.equal(view.tokens.length, 2 * tokens.length)
    assert not view.hidden[:, ::2].any()
    assert not targets.scored[:, ::2].any()
    assert torch.equal(view.pattern.query, (torch.arange(14) % 2 == 1).expand(5, -1))
    number = view.pattern.block[:, ::2]
    for b, n in enumerate(tokens.length.tolist()):  # the first token of a sample is given
        assert number[b, :n].tolist() == [0, 1, 1, 2, 2, 3, 3][:n]
        assert not targets.scored[b, 1]
    clean = masked_view(replace(ordered, length=tokens.length), torch.zeros_like(tokens.real), spec).tokens
    for name in ("ids", "values", "weight", "address", "positions"):
        shown, expected = getattr(view.tokens, name), getattr(clean, name)
        if expected is not None:
            assert torch.equal(shown[:, ::2][tokens.real], expected[tokens.real])
            if name in ("address", "positions"):
                assert torch.equal(shown[:, 1::2][tokens.real], expected[tokens.real])
    if noise == "erasure":
        assert torch.equal(targets.scored, view.hidden & ~targets.tokens.is_given)
        assert float((targets.weight * targets.scored).sum()) == pytest.approx(int((tokens.length - 1).sum()))
        assert view.time_index is None
    else:
        time = view.time[view.time_index]
        assert (time[:, ::2] == 1).all()
        free = (tokens.real & ~tokens.is_given).repeat_interleave(2, dim=1) & view.pattern.query
        assert torch.equal(targets.scored, free)
        assert bool((time[free] < 1).all())
        for b in range(tokens.size):  # one time a block, another for each
            levels = {
                block: set(time[b][free[b] & (view.pattern.block[b] == block)].tolist())
                for block in (1, 2, 3)
            }
            found = [level for level in levels.values() if level]
            assert all(len(level) == 1 for level in found)
            assert len(set.union(*found)) == len(found)
        values = spec.standardise(targets.tokens.values) - (1 - time[..., None]) * targets.velocity
        assert torch.allclose(view.tokens.values[free], values[free], atol=1e-5)


def test_every_number_of_hidden_tokens_is_as_likely_and_weighs_the_same(tools):
    """In blocks of 4, 4 and 2: k uniform in 1..n, each hidden token weighs n / k."""
    source = GaussianAR1(length=10)
    view, targets = Block(size=4).view(source.tokens(4000, tools.seeded()), source.spec, tools.seeded(1))
    for first, n in ((0, 4), (4, 4), (8, 2)):
        rows = slice(2 * first, 2 * (first + n))
        share = torch.bincount(view.hidden[:, rows].sum(1), minlength=n + 1) / 4000
        assert torch.allclose(share[1:], torch.full((n,), 1 / n), atol=0.02)
        weight = (targets.weight * targets.scored)[:, rows].sum(1)
        assert torch.allclose(weight, torch.full((4000,), float(n)))
        each = view.hidden[:, rows].float().mean(0)[1::2]
        assert torch.allclose(each, each.mean().expand(n), atol=0.03), "no place is preferred"


def test_blocks_of_one_hide_every_query(tools):
    view, targets = Block(size=1).view(tools.batch_of("ids"), tools.spec_of("ids"), tools.seeded(1))
    real = view.tokens.real
    assert torch.equal(view.hidden & real, view.pattern.query & real)
    assert bool((targets.weight[targets.scored] == 1).all())


@pytest.mark.parametrize("noise", ["erasure", "gaussian"])
@pytest.mark.parametrize("kind", ["values", "mixed", "cloud"])
def test_one_stream_of_a_sampler_sees_what_two_streams_saw(kind, noise, tools):
    """Queries of one block after the context before it predict what they predict among all other rows."""
    objective = Block(size=2, noise=noise)
    spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
    predict = tools.model_of(spec, objective).predictor()
    view, _ = objective.view(tokens, spec, tools.seeded(1))
    block = 2
    keep = torch.where(view.pattern.block < block, ~view.pattern.query, view.pattern.query)
    rows = keep.nonzero()[:, 1].reshape(tokens.size, -1)
    number = torch.gather(view.pattern.block, 1, rows)

    def pick(x):
        wide = rows.reshape(*rows.shape, *([1] * (x.dim() - 2))).expand(-1, -1, *x.shape[2:])
        return torch.gather(x, 1, wide)

    content = {
        name: None if (x := getattr(view.tokens, name)) is None else pick(x)
        for name in ("ids", "values", "weight", "address", "positions")
    }
    length = (tokens.real & (number <= block)).sum(1)
    single = replace(
        view,
        tokens=replace(view.tokens, length=length, **content),
        hidden=pick(view.hidden),
        time_index=None if view.time_index is None else pick(view.time_index),
        pattern=Pattern(kind="block", block=number, query=number == block),
    )
    with torch.no_grad():
        both, alone = predict(view), predict(single)
    own = single.tokens.real & (number == block)
    assert own.any()
    for field, found in alone.items():
        assert torch.allclose(found[own], pick(both[field])[own], atol=1e-5)


def test_embeddings_of_a_block_see_their_own_block_and_those_before(tools):
    tokens = tools.batch_of("values")
    view = Block(size=2).observe(tokens, tools.spec_of("values"))
    allowed = view.pattern.allowed(7, torch.device("cpu"))[0]
    number = torch.tensor([0, 1, 1, 2, 2, 3, 3])
    assert torch.equal(allowed, number[None] <= number[:, None])


# Sampling.


def test_samples_end_themselves_only_where_a_block_does_not_show_how_many_tokens_are_left():
    assert Block(size=1).ends_samples
    for objective in (Block(), Block(size=1, order="reversed"), Block(size=None), AnyOrder()):
        assert not objective.ends_samples


def test_more_steps_than_tokens_of_a_block_are_not_taken(tools):
    calls = 0

    class Counting(Oracle):
        def __call__(self, view, *, cache=None):
            nonlocal calls
            calls += 1
            return super().__call__(view)

    objective = Block(size=4)
    for steps, expected in ((None, 6), (2, 4), (1, 2), (50, 6)):
        calls, template = 0, CHAIN.tokens(5, tools.seeded())
        objective.sample(
            Counting(CHAIN, objective), template, template.real, tools.seeded(1), Sampling(steps=steps)
        )
        assert calls == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, or None for all tokens, not 0"),
        ({"noise": "salt"}, "unknown noise 'salt'; known: erasure, gaussian"),
        (
            {"order": "sideways"},
            "block: unknown order 'sideways'; known: natural, reversed, random, centre-out",
        ),
        ({"noise": "gaussian", "head": "mixture"}, "no choice of head, so not 'mixture'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConsilienceError, match=message):
        Block(**options)
