"""Samplers draw from the model's distribution, keep what is visible, and give the same for the same seed.

Distributions are checked with the oracle (exact conditionals: only the sampler can be wrong) and with small
trained models.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import (
    AddressOnly,
    AnyOrder,
    Block,
    Denoising,
    Masked,
    MaskedDiffusion,
    NextToken,
    TwoPhase,
)
from consilience.core.objectives.next_token import shifted_view
from consilience.core.oracle import Oracle
from consilience.core.samplers.autoregressive import autoregress
from consilience.core.samplers.content import cut_at_end
from consilience.core.sampling import Sampling
from consilience.core.synthetic import GaussianAR1, MarkovChain, Source
from consilience.core.synthetic_tokenizer import SyntheticTokenizer

CHAIN, AR1 = MarkovChain(), GaussianAR1(mean=3.0, spread=2.0)
KINDS = ["ids", "values", "weighted", "counts", "mixed", "cloud"]
ORDERS = [NextToken(), NextToken(order="reversed"), NextToken(order="random")]
UNMASKING = [Masked(), MaskedDiffusion()]
BLOCKS = [Block(size=1), Block(size=4), Block(size=2, order="random")]
FLOWS = [Denoising(), Block(size=2, noise="gaussian"), Block(size=4, order="reversed", noise="gaussian")]
OTHERS = [NextToken(order="centre-out"), AnyOrder(), TwoPhase(), AddressOnly()]
UNCACHED = ("next-token", "any-order")


def blank(source: Source, n: int) -> TokenBatch:
    tokens = source.tokens(1, torch.Generator().manual_seed(0)).take([0] * n)
    parts = {name: getattr(tokens, name) for name in ("ids", "values")}
    return replace(tokens, **{name: None if x is None else 0 * x for name, x in parts.items()})


def oracle_samples(objective, source: Source, n: int, hidden: Tensor | None = None, **options) -> TokenBatch:
    template = blank(source, n)
    hidden = template.real if hidden is None else hidden
    cached = {"cached": False} if objective.name in UNCACHED else {}
    generator = torch.Generator().manual_seed(1)
    return objective.sample(
        Oracle(source, objective), template, hidden, generator, Sampling(**cached, **options)
    )


def transition_counts(ids: Tensor, symbols: int) -> Tensor:
    """(V, V) how often symbol i is followed by j."""
    pairs = ids[:, :-1] * symbols + ids[:, 1:]
    return torch.bincount(pairs.flatten(), minlength=symbols**2).reshape(symbols, symbols).double()


def check_chain(ids: Tensor, tolerance: float) -> None:
    counts = transition_counts(ids, 3)
    assert torch.allclose(
        counts / counts.sum(1, keepdim=True), torch.tensor(CHAIN.transition).double(), atol=tolerance
    )
    for place in (0, 3, 5):
        frequency = torch.bincount(ids[:, place], minlength=3) / len(ids)
        assert torch.allclose(frequency.double(), CHAIN.stationary, atol=tolerance)


def check_ar1(values: Tensor, source: GaussianAR1, tolerance: float) -> None:
    z = (values[..., 0].double() - source.mean) / source.spread
    assert torch.allclose(z.mean(0), torch.zeros(6).double(), atol=tolerance)
    assert torch.allclose(z.T.cov(), source.covariance, atol=tolerance)


# With the oracle: the sampler alone.


@pytest.mark.parametrize("objective", ORDERS + OTHERS[:3] + UNMASKING + BLOCKS, ids=repr)
def test_symbols_have_the_exact_distribution(objective):
    check_chain(oracle_samples(objective, CHAIN, 20_000).ids, 0.02)


@pytest.mark.parametrize("objective", [*ORDERS, *OTHERS[:3], *UNMASKING, *BLOCKS, *FLOWS], ids=repr)
def test_values_have_the_exact_distribution(objective):
    if objective in FLOWS[1:]:  # the oracle solves a system for every sample, block and step
        check_ar1(oracle_samples(objective, AR1, 5000, steps=30).values, AR1, 0.08)
    else:
        check_ar1(oracle_samples(objective, AR1, 20_000).values, AR1, 0.04)


def test_address_only_draws_tokens_alone():
    """The marginals, whatever the neighbours are and may be."""
    ids = oracle_samples(AddressOnly(), CHAIN, 20_000).ids
    counts = transition_counts(ids, 3)
    rows = counts / counts.sum(1, keepdim=True)
    assert torch.allclose(rows, CHAIN.stationary.expand(3, 3), atol=0.02)


def test_blocks_in_one_step_keep_dependence_between_them():
    """Within a block draws are independent; the first token of a block still follows the one before it."""
    ids = oracle_samples(Block(size=2), CHAIN, 20_000, steps=1).ids
    for first, expected in ((0, CHAIN.stationary.expand(3, 3)), (1, torch.tensor(CHAIN.transition).double())):
        counts = transition_counts(ids[:, first : first + 2], 3)
        assert torch.allclose(counts / counts.sum(1, keepdim=True), expected, atol=0.03)


def test_blocks_infill_from_their_own_block_and_those_before():
    """Visible tokens of the block inform it, those of later blocks do not; drawn ones are exact."""
    template = blank(CHAIN, 20_000)
    for place, symbol in ((0, 1), (1, 2), (4, 0)):
        template.ids[:, place] = symbol
    hidden = torch.ones_like(template.real)
    hidden[:, [0, 1, 4]] = False
    for size, seen in ((3, [0, 1]), (6, [0, 1, 4])):
        objective = Block(size=size)
        oracle = Oracle(CHAIN, objective)
        filled = objective.sample(oracle, template, hidden, torch.Generator().manual_seed(2), Sampling())
        assert torch.equal(filled.ids[~hidden], template.ids[~hidden])
        known = torch.zeros_like(hidden)
        known[:, seen] = True
        exact = CHAIN.parameters(template, known)["ids"][0].exp()
        frequency = torch.bincount(filled.ids[:, 2], minlength=3) / len(filled.ids)
        assert torch.allclose(frequency.double(), exact[2], atol=0.02)


def test_parallel_unmasking_loses_dependence():
    """All tokens in one step are independent draws: the marginals stay, the transitions go."""
    ids = oracle_samples(MaskedDiffusion(), CHAIN, 20_000, steps=1).ids
    counts = transition_counts(ids, 3)
    rows = counts / counts.sum(1, keepdim=True)
    assert torch.allclose(rows, CHAIN.stationary.expand(3, 3), atol=0.02)


@pytest.mark.parametrize("objective", [*UNMASKING, NextToken()], ids=repr)
def test_infilling_draws_from_the_conditional(objective):
    """Two visible ends, the middle drawn: the pair (left neighbour, right neighbour) decides."""
    template = blank(CHAIN, 20_000)
    template.ids[:, 0], template.ids[:, 1] = 1, 2
    if objective.name != "next-token":  # an autoregression does not look ahead
        template.ids[:, 4] = 0
    hidden = torch.ones_like(template.real)
    hidden[:, [0, 1, 4]] = objective.name == "next-token"
    hidden[:, [0, 1]] = False
    cached = {"cached": False} if objective.name in UNCACHED else {}
    oracle = Oracle(CHAIN, objective)
    filled = objective.sample(oracle, template, hidden, torch.Generator().manual_seed(2), Sampling(**cached))
    assert torch.equal(filled.ids[~hidden], template.ids[~hidden])
    exact = CHAIN.parameters(template, ~hidden)["ids"][0].exp()
    for place in (2, 3, 5):
        frequency = torch.bincount(filled.ids[:, place], minlength=3) / len(filled.ids)
        assert torch.allclose(frequency.double(), exact[place], atol=0.02)


def test_transport_infilling_keeps_the_visible_and_leans_on_them():
    """Visible neighbours pull the hidden value to their side (an approximation: not the exact conditional)."""
    template = blank(AR1, 4000)
    template.values[:2000, [1, 3]] = 3.0 + 2.0 * 1.5
    template.values[2000:, [1, 3]] = 3.0 - 2.0 * 1.5
    hidden = torch.ones_like(template.real)
    hidden[:, [1, 3]] = False
    filled = Denoising().sample(
        Oracle(AR1, Denoising()), template, hidden, torch.Generator().manual_seed(2), Sampling()
    )
    assert torch.equal(filled.values[~hidden], template.values[~hidden])
    z = (filled.values[:, 2, 0] - 3) / 2
    assert float(z[:2000].mean()) > 0.8
    assert float(z[2000:].mean()) < -0.8


def test_mean_fills_with_the_expectation():
    template = blank(AR1, 3)
    template.values[:, 1] = torch.tensor([5.0, 3.0, 1.0])[:, None]
    hidden = torch.ones_like(template.real)
    hidden[:, 1] = False
    exact = 3 + 2 * AR1.parameters(template, ~hidden)["values"][..., 0]
    for objective in UNMASKING:
        oracle = Oracle(AR1, objective)
        filled = objective.sample(
            oracle, template, hidden, torch.Generator().manual_seed(0), Sampling(mean=True)
        )
        assert torch.allclose(filled.values[..., 0][hidden].double(), exact[hidden], atol=1e-5)
        again = objective.sample(
            oracle, template, hidden, torch.Generator().manual_seed(9), Sampling(mean=True)
        )
        assert torch.equal(filled.values, again.values), "a mean is not random"
    exact = CHAIN.parameters(blank(CHAIN, 2), torch.zeros(2, 6, dtype=torch.bool))["ids"].argmax(-1)
    found = oracle_samples(Masked(), CHAIN, 2, mean=True)
    assert torch.equal(found.ids, exact)


def test_temperature_sharpens():
    for objective in (NextToken(), MaskedDiffusion()):
        spreads = [oracle_samples(objective, AR1, 4000, temperature=t).values.std() for t in (1.0, 0.5)]
        assert spreads[1] < 0.7 * spreads[0]
        mode = oracle_samples(objective, CHAIN, 3, temperature=0).ids
        assert torch.equal(mode, mode[:1].expand(3, -1))
    wide, narrow = (oracle_samples(Denoising(), AR1, 2000, temperature=t).values.std() for t in (1.0, 0.5))
    assert float(narrow / wide) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 5, 64])
def test_unmasking_fills_everything_in_any_number_of_steps(steps):
    class Counting(Oracle):
        calls = 0

        def __call__(self, view, *, cache=None):
            type(self).calls += 1
            return super().__call__(view)

    Counting.calls = 0
    template = replace(blank(AR1, 50), length=torch.arange(50) % 6 + 1)
    hidden = template.real.clone()
    objective = MaskedDiffusion()
    oracle = Counting(AR1, objective)
    filled = objective.sample(
        oracle, template, hidden, torch.Generator().manual_seed(0), Sampling(steps=steps)
    )
    assert Counting.calls == min(steps, 6)
    assert (filled.values[template.real] != 0).all()
    assert not filled.values[~template.real].any()


# With small models: visible tokens, seeds, caches, ends.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [*ORDERS, *OTHERS, *UNMASKING, *BLOCKS, *FLOWS], ids=repr)
def test_visible_given_and_padding_rows_are_kept_to_the_bit(objective, kind, tools):
    if objective in FLOWS and kind == "ids":
        pytest.skip("noise needs values")
    model, tokens = tools.model_of(tools.spec_of(kind), objective), tools.batch_of(kind)
    asked = torch.rand(tokens.real.shape, generator=tools.seeded(4)) < 0.5
    hidden = asked & tokens.real & ~tokens.is_given
    found = model.fill(tokens, asked, seed=1, steps=3)
    again = model.fill(tokens, asked, seed=1, steps=3)
    other = model.fill(tokens, asked, seed=2, steps=3)
    changed = False
    for name in ("ids", "values"):
        before, after = getattr(tokens, name), getattr(found, name)
        if before is None:
            continue
        assert torch.equal(before[~hidden], after[~hidden])
        assert torch.equal(after, getattr(again, name)), "the same seed gives the same"
        changed |= not torch.equal(after, getattr(other, name))
        assert torch.isfinite(after.float()).all()
    assert changed, "another seed gives something else"
    for name in ("weight", "address", "positions", "given", "length"):
        before, after = getattr(tokens, name), getattr(found, name)
        assert before is None or torch.equal(before, after)
    if kind == "counts" and objective not in FLOWS:
        drawn = found.values[hidden]
        assert torch.equal(drawn, drawn.round())
        assert bool((drawn >= 0).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [*ORDERS, *OTHERS, *UNMASKING, *BLOCKS, *FLOWS], ids=repr)
def test_hidden_content_of_the_template_is_not_read(objective, kind, tools):
    if objective in FLOWS and kind == "ids":
        pytest.skip("noise needs values")
    model, tokens = tools.model_of(tools.spec_of(kind), objective), tools.batch_of(kind)
    hidden = tokens.real & ~tokens.is_given & (torch.arange(tokens.width) % 2 == 1)
    dirty = tools.content_of(kind, tokens, 5)
    parts = {}
    for name in ("ids", "values"):
        a, b = getattr(tokens, name), getattr(dirty, name)
        if a is not None:
            parts[name] = torch.where(hidden if a.dim() == 2 else hidden[..., None], b, a)
    found, again = (model.fill(t, hidden, seed=3) for t in (tokens, replace(tokens, **parts)))
    for name in parts:
        assert torch.equal(getattr(found, name)[hidden], getattr(again, name)[hidden])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ORDERS, ids=repr)
def test_cached_generation_equals_uncached(objective, kind, tools):
    spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
    model = tools.model_of(spec, objective)
    predict = model.predictor()
    hidden = tokens.real & ~tokens.is_given
    with torch.no_grad():
        if not spec.pairwise_bias:
            view = shifted_view(tokens.permute(objective.permutation(tokens, tools.seeded())), spec)
            cache = predict.new_cache(tokens)
            whole = predict(view)
            for row in range(tokens.width):
                step = predict(view.rows(row, row + 1), cache=cache)
                for field, parameters in step.items():
                    own = view.tokens.real[:, row]
                    assert torch.allclose(parameters[own, 0], whole[field][own, row], atol=1e-5)
        drawn = [
            objective.sample(predict, tokens, hidden, tools.seeded(1), Sampling(cached=cached))
            for cached in (True, False)
        ]
    for name in ("ids", "values"):
        a, b = (getattr(d, name) for d in drawn)
        if a is not None:
            assert torch.allclose(a.float(), b.float(), atol=1e-4)


@dataclass(frozen=True)
class Scripted:
    """Predicts the symbols 0, 1, 2, ... of a row's slot for certain."""

    spec: object
    likelihoods: object

    def __call__(self, view, *, cache=None):
        slot = view.tokens.address if view.ask_address is None else view.ask_address
        return {"ids": 100.0 * torch.nn.functional.one_hot(slot, self.spec.vocabulary).float()}


@pytest.mark.parametrize("objective", [*ORDERS, MaskedDiffusion(), AddressOnly(), *BLOCKS], ids=repr)
def test_the_end_symbol_cuts_a_sample_and_blanks_the_rest(objective):
    """Slot 3 draws the end symbol: four tokens stay, in any order of generation."""
    chain = MarkovChain(transition=((1 / 6,) * 6,) * 6)
    scripted = Scripted(chain.spec, objective.likelihoods(chain.spec))
    template = replace(blank(chain, 3), length=torch.tensor([6, 5, 2]))
    cached = {"cached": False} if objective.name in UNCACHED else {}
    found = objective.sample(
        scripted, template, template.real, torch.Generator().manual_seed(0), Sampling(end_id=3, **cached)
    )
    assert found.length.tolist() == [4, 4, 2]
    assert found.ids.tolist() == [[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 0, 0], [0, 1, 0, 0, 0, 0]]


def test_a_given_end_symbol_does_not_cut():
    given = torch.tensor([[True, False, False, False]])
    tokens = TokenBatch(length=torch.tensor([4]), ids=torch.tensor([[3, 1, 3, 2]]), given=given)
    assert cut_at_end(tokens, 3, tokens.length).length.tolist() == [3]
    assert cut_at_end(tokens, None, tokens.length) is tokens


def test_autoregression_stops_once_all_samples_have_ended():
    class Counting(Scripted):
        calls = 0

        def __call__(self, view, *, cache=None):
            type(self).calls += 1
            return super().__call__(view)

    chain = MarkovChain(transition=((1 / 6,) * 6,) * 6)
    template = blank(chain, 3)
    scripted = Counting(chain.spec, NextToken().likelihoods(chain.spec))
    autoregress(
        scripted, template, template.real, torch.Generator().manual_seed(0), Sampling(end_id=1, cached=False)
    )
    assert Counting.calls == 2


# Trained models, end to end.


@pytest.mark.parametrize("objective", [NextToken(), MaskedDiffusion()], ids=repr)
def test_a_trained_chain_has_the_right_transitions(objective, tools):
    model = tools.trained(CHAIN, objective)
    check_chain(model.generate_tokens(6000, seed=1, batch_size=3000).ids, 0.04)


def test_a_trained_flow_has_the_right_correlations(tools):
    source = GaussianAR1()
    model = tools.trained(source, Denoising())
    check_ar1(model.generate_tokens(4000, seed=1, batch_size=4000, steps=20).values, source, 0.2)


@pytest.mark.parametrize("objective", [NextToken(), Masked(), MaskedDiffusion(), Denoising()], ids=repr)
def test_generation_is_reproducible(objective, tools):
    source = GaussianAR1()
    model = FoundationModel(tools.tiny, {source.name: SyntheticTokenizer(source)}, objective)
    tools.awaken(model)
    first, again, other = (model.generate_tokens(20, seed=s, batch_size=8).values for s in (5, 5, 6))
    assert first.shape == (20, 6, 1)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, "unknown option 'colour' of a sampler; known: steps, temperature, top_k"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must not be negative, not -1.0"),
        ({"temperature": float("nan")}, "temperature must not be negative, not nan"),
    ],
)
def test_bad_options_are_named(options, message, tools):
    model = tools.model_of(AR1.spec, Masked())
    with pytest.raises(ConsilienceError, match=message):
        model.generate_tokens(1, **options)
    if "colour" not in options:
        with pytest.raises(ConsilienceError, match=message):
            model.fill(blank(AR1, 1), torch.ones(1, 6, dtype=torch.bool), **options)
