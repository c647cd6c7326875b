"""The synthetic sources are exact: against enumeration, linear algebra, the area theorem and torch's own densities."""

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.objectives import Denoising, Masked, MaskedDiffusion, NextToken
from consilience.core.oracle import Oracle
from consilience.core.samplers import log_likelihood
from consilience.core.synthetic import GaussianAR1, MarkovChain, source_from_state
from consilience.core.synthetic_tokenizer import SyntheticTokenizer

CHAIN = MarkovChain(length=5)
AR1 = GaussianAR1(mean=3.0, spread=2.0)


def all_sequences(source: MarkovChain) -> tuple[TokenBatch, torch.Tensor]:
    """Every sequence of the chain, with its probability."""
    ids = torch.tensor(list(itertools.product(range(len(source.transition)), repeat=source.length)))
    tokens = TokenBatch(length=torch.full((len(ids),), source.length), ids=ids)
    return tokens, (-source.nll(tokens)).exp()


def test_stationary_distribution_is_kept_by_the_chain():
    assert torch.allclose(CHAIN.stationary @ torch.tensor(CHAIN.transition).double(), CHAIN.stationary)


def test_entropy_of_the_chain_by_enumeration():
    tokens, p = all_sequences(CHAIN)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert float((p * CHAIN.nll(tokens)).sum()) / CHAIN.length == pytest.approx(CHAIN.entropy, abs=1e-12)


@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_masked_curve_of_the_chain_by_enumeration(rate: float):
    """H_r from the joint table alone: all sequences, all sets of kept tokens, no messages."""
    _, p = all_sequences(CHAIN)
    n, v = CHAIN.length, len(CHAIN.transition)
    table = p.reshape([v] * n)
    total = 0.0
    for place in range(n):
        others = [i for i in range(n) if i != place]
        for kept in itertools.chain.from_iterable(itertools.combinations(others, k) for k in range(n)):
            hidden = tuple(i for i in others if i not in kept)
            joint = table.sum(hidden) if hidden else table
            known = joint.sum(sorted([*kept, place]).index(place))
            h = float(torch.special.entr(joint).sum() - torch.special.entr(known).sum())
            total += rate ** len(hidden) * (1 - rate) ** len(kept) * h
    assert total / n == pytest.approx(CHAIN.masked_curve(rate), abs=1e-12)


@pytest.mark.parametrize("source", [CHAIN, AR1], ids=lambda s: s.name)
def test_the_area_under_the_masked_curve_is_the_entropy(source):
    nodes, weights = np.polynomial.legendre.leggauss(8)
    area = sum(w / 2 * source.masked_curve((x + 1) / 2) for x, w in zip(nodes, weights))
    assert area == pytest.approx(source.entropy, abs=1e-12)


def test_conditionals_of_the_chain_by_enumeration():
    tokens, p = all_sequences(CHAIN)
    visible = torch.tensor([True, False, False, True, False])
    kept = tokens.ids[:, visible]
    answers = CHAIN.parameters(tokens, visible.expand(len(kept), -1))["ids"].exp()
    for row in (0, 57, 200):
        same = (kept == kept[row]).all(1)
        for place in (1, 2, 4):
            exact = torch.stack([p[same & (tokens.ids[:, place] == s)].sum() for s in range(3)])
            assert torch.allclose(answers[row, place], exact / exact.sum(), atol=1e-12)


def test_ar1_density_and_conditionals_against_the_joint_normal():
    generator = torch.Generator().manual_seed(0)
    tokens = AR1.tokens(50, generator)
    covariance = 4 * AR1.covariance
    joint = MultivariateNormal(torch.full((6,), 3.0).double(), covariance)
    assert torch.allclose(AR1.nll(tokens), -joint.log_prob(tokens.values[..., 0].double()), atol=1e-9)
    visible = torch.rand(50, 6, generator=generator) < 0.5
    answers = AR1.parameters(tokens, visible)["values"]
    x = tokens.values[..., 0].double() - 3
    for row in range(50):
        for place in range(6):
            known = [i for i in range(6) if visible[row, i] and i != place]
            mean, variance = torch.zeros(()).double(), covariance[place, place]
            if known:
                gain = torch.linalg.solve(covariance[known][:, known], covariance[known, place])
                mean, variance = gain @ x[row, known], variance - gain @ covariance[known, place]
            assert float(answers[row, place, 0]) == pytest.approx(float(mean) / 2, abs=1e-6)
            assert float(answers[row, place, 1]) == pytest.approx(
                float(variance.log()) / 2 - np.log(2), abs=1e-9
            )


@pytest.mark.parametrize("source", [CHAIN, AR1], ids=lambda s: s.name)
@pytest.mark.parametrize("addressing", ["slots", "places"])
@pytest.mark.parametrize("order", ["natural", "reversed", "random"])
def test_next_token_accounting_is_exact(source, addressing, order):
    """Fed with exact conditionals, the loss of every order is the true nll of the same samples."""
    source = type(source)(**{**vars(source), "addressing": addressing})
    tokens = source.tokens(200, torch.Generator().manual_seed(1))
    objective = NextToken(order=order)
    loss = objective.evaluate(Oracle(source, objective), tokens, torch.Generator().manual_seed(2))
    assert loss.kind == "exact"
    assert loss.tokens == tokens.n_tokens
    assert loss.nats_per_token == pytest.approx(float(source.nll(tokens).sum()) / tokens.n_tokens, abs=1e-5)


@pytest.mark.parametrize("source", [CHAIN, AR1], ids=lambda s: s.name)
def test_masked_diffusion_accounting_is_exact(source):
    """The bound is tight for exact conditionals, whose losses agree between all orders."""
    tokens = source.tokens(4096, torch.Generator().manual_seed(1))
    objective = MaskedDiffusion()
    loss = objective.evaluate(Oracle(source, objective), tokens, torch.Generator().manual_seed(2), draws=32)
    assert loss.kind == "bound"
    assert loss.tokens == 32 * tokens.n_tokens
    assert loss.nats_per_token == pytest.approx(float(source.nll(tokens).sum()) / tokens.n_tokens, abs=0.003)


@pytest.mark.parametrize("source", [CHAIN, AR1], ids=lambda s: s.name)
@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_masked_accounting_is_exact(source, rate):
    tokens = source.tokens(20_000, torch.Generator().manual_seed(1))
    objective = Masked(rate=rate)
    loss = objective.evaluate(Oracle(source, objective), tokens, torch.Generator().manual_seed(2), draws=8)
    assert loss.kind == "surrogate"
    assert loss.nats_per_token == pytest.approx(source.masked_curve(rate), abs=0.01)


def test_flow_likelihood_is_exact_and_converges_with_the_square_of_the_step():
    tokens = AR1.tokens(64, torch.Generator().manual_seed(1))
    oracle = Oracle(AR1, Denoising())
    errors = []
    for steps in (20, 40, 80):
        found = log_likelihood(oracle, tokens, torch.Generator(), steps=steps)
        errors.append(float((found + AR1.nll(tokens)).abs().mean()))
    assert errors[2] < 0.01
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3
    loss = Denoising().evaluate(oracle, tokens, torch.Generator().manual_seed(0))
    assert loss.kind == "exact"
    assert loss.nats_per_token == pytest.approx(float(AR1.nll(tokens).sum()) / tokens.n_tokens, abs=0.005)


def test_hutchinson_probes_are_unbiased():
    tokens = AR1.tokens(256, torch.Generator().manual_seed(1))
    oracle = Oracle(AR1, Denoising())
    exact = log_likelihood(oracle, tokens, torch.Generator(), steps=20)
    guessed = log_likelihood(oracle, tokens, torch.Generator().manual_seed(3), steps=20, probes=4)
    assert float((guessed - exact).abs().mean()) > 1e-3, "probes are random"
    assert float((guessed - exact).mean()) == pytest.approx(0, abs=0.15)


def test_ragged_tokens_are_shorter_chains():
    tokens = AR1.tokens(4, torch.Generator().manual_seed(0))
    cut = TokenBatch(**{**vars(tokens), "length": torch.tensor([6, 3, 1, 5])})
    short = GaussianAR1(mean=3.0, spread=2.0, length=3)
    first = TokenBatch(length=torch.tensor([3]), values=tokens.values[1:2, :3])
    assert float(AR1.nll(cut)[1]) == pytest.approx(float(short.nll(first)[0]), abs=1e-12)


@pytest.mark.parametrize("source", [CHAIN, AR1, MarkovChain(addressing="places")], ids=repr)
def test_tokenizer_round_trip(source):
    tokenizer = SyntheticTokenizer(source, end=2)
    records = tokenizer.decode(source.tokens(5, torch.Generator().manual_seed(0)))
    records[1] = records[1][:2]
    again = SyntheticTokenizer.from_state(tokenizer.state())
    assert again.source == source
    assert again.end_id == 2
    tokens = again.encode(records)
    assert tokens.length.tolist() == [source.length, 2, *[source.length] * 3]
    assert all(np.array_equal(a, b) for a, b in zip(again.decode(tokens), records))
    assert len(again.describe(records[1]).splitlines()) == 3
    assert again.template(3, generator=torch.Generator()).validate(again.spec).size == 3


def test_bad_records_and_options_are_named():
    tokenizer = SyntheticTokenizer.fit([])
    failures = tokenizer.check([np.array([0, 1]), np.array([]), np.array([0, 7]), np.array([np.nan])])
    assert [f.index for f in failures] == [1, 2, 3]
    with pytest.raises(UnreadableRecordError, match="record 1: an entry is no symbol"):
        tokenizer.encode([np.array([0]), np.array([9])])
    with pytest.raises(ConsilienceError, match="unknown option 'sorce'; known: source, end"):
        SyntheticTokenizer.fit([], sorce={})
    with pytest.raises(ConsilienceError, match="unknown source 'x'"):
        source_from_state({"source": "x"})
    with pytest.raises(ConsilienceError, match="correlation must lie"):
        GaussianAR1(correlation=1.0)
    with pytest.raises(ConsilienceError, match="rows that sum to 1"):
        MarkovChain(transition=((0.5, 0.4), (0.5, 0.5)))
    with pytest.raises(ConsilienceError, match="unknown addressing"):
        MarkovChain(addressing="elsewhere")
