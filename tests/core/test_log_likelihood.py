"""log p of records: exact on sources that know it, normalised, and free of neighbours, batches and order."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.log_likelihood import kind_of, of_tokens
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
from consilience.core.objectives.masked import masked_view
from consilience.core.oracle import Oracle
from consilience.core.synthetic import GaussianAR1, MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer

CHAIN, AR1 = MarkovChain(length=4), GaussianAR1(length=4, mean=3.0, spread=2.0)
EXACT = [
    NextToken(),
    NextToken(order="reversed"),
    AnyOrder(),
    Block(size=1),
    Block(size=2),
    Block(size=3, order="random"),
]
FLOWS = [Denoising(), Block(size=2, noise="gaussian")]


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def every_sequence() -> TokenBatch:
    ids = torch.tensor(list(product(range(3), repeat=4)))
    return CHAIN.place(TokenBatch(length=torch.full((81,), 4), ids=ids))


@pytest.mark.parametrize("source", [CHAIN, AR1], ids=lambda source: source.name)
@pytest.mark.parametrize("objective", EXACT, ids=repr)
def test_exact_values_of_a_source(objective, source):
    tokens, oracle = source.tokens(40, torch.Generator().manual_seed(0)), Oracle(source, objective)
    assert objective.likelihood_kind(oracle) == "exact"
    found = objective.log_likelihood(oracle, tokens, generators(40))
    assert found.dtype == torch.float64
    assert torch.allclose(found, -source.nll(tokens), atol=1e-4)


@pytest.mark.parametrize("objective", FLOWS, ids=repr)
def test_flows_have_the_exact_density(objective):
    tokens, oracle = AR1.tokens(8, torch.Generator().manual_seed(0)), Oracle(AR1, objective)
    assert objective.likelihood_kind(oracle) == "exact"
    assert torch.allclose(
        objective.log_likelihood(oracle, tokens, generators(8)), -AR1.nll(tokens), atol=0.05
    )


def test_tokens_alone_have_their_marginals():
    tokens, oracle = every_sequence(), Oracle(CHAIN, AddressOnly())
    found = AddressOnly().log_likelihood(oracle, tokens, generators(81))
    assert torch.allclose(found, CHAIN.stationary.log()[tokens.ids].sum(1), atol=1e-5)


def test_a_bound_is_the_exact_one_where_conditionals_agree():
    """Of a source every order gives the same, so that the bound of masked diffusion is tight: the mean is exact."""
    tokens, oracle = every_sequence().take([0, 17, 40, 80]), Oracle(CHAIN, MaskedDiffusion())
    assert MaskedDiffusion().likelihood_kind(oracle) == "bound"
    found = MaskedDiffusion().log_likelihood(oracle, tokens, generators(4), draws=4000)
    assert torch.allclose(found, -CHAIN.nll(tokens), atol=0.1)


def test_a_bound_is_its_own_mean_over_all_masks(tools):
    """Of a model whose conditionals do not agree: the estimate against the sum over every set of hidden tokens."""
    model = _model(MaskedDiffusion(), tools)
    tokens, predict = every_sequence().take([5, 77]), model.predictor()
    exact = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for k in range(1, 5):
            sets = list(combinations(range(4), k))
            for chosen in sets:
                hidden = torch.zeros(2, 4, dtype=torch.bool)
                hidden[:, chosen] = True
                logits = predict(masked_view(tokens, hidden, predict.spec))["ids"].log_softmax(-1).double()
                own = logits.gather(2, tokens.ids[..., None])[..., 0]
                exact += (own * hidden).sum(1) / k / len(sets)
    found = model.log_likelihood(_records(tokens), draws=4000)
    assert found.kind == "bound"
    assert np.allclose(found.values, exact.numpy(), atol=0.05)
    assert abs(exact[0] - exact[1]) > 0.3, "the two differ by more than the tolerance"


def _model(objective, tools, source=CHAIN) -> FoundationModel:
    torch.manual_seed(0)
    model = FoundationModel(tools.tiny, {source.name: SyntheticTokenizer(source)}, objective)
    tools.awaken(model, scale=1.0)
    return model.eval()


def _records(tokens: TokenBatch) -> list[np.ndarray]:
    return [row[:n].numpy() for row, n in zip(tokens.ids, tokens.length.tolist())]


@pytest.mark.parametrize(
    "objective", [NextToken(), NextToken(order="outside-in"), Block(size=1), AddressOnly()], ids=repr
)
def test_probabilities_of_all_sequences_sum_to_one(objective, tools):
    found = _model(objective, tools).log_likelihood(_records(every_sequence()))
    assert found.kind == "exact" and found.tokens.tolist() == [4] * 81
    assert np.exp(found.values).sum() == pytest.approx(1.0, abs=1e-5)
    assert found.values.std() > 0.1


@pytest.mark.parametrize("objective", [AnyOrder(), Block(size=2), Block(size=4, order="random")], ids=repr)
def test_along_one_order_they_sum_to_one_too(objective, tools):
    """The same order for every sequence: the same generator. Its own one for each gives another sum."""
    model = _model(objective, tools)
    tokens = every_sequence()
    for seed in range(3):
        same = [torch.Generator().manual_seed(seed) for _ in range(81)]
        with torch.no_grad():
            found = objective.log_likelihood(model.predictor(), tokens, same)
        assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    own = model.log_likelihood(_records(tokens))
    assert abs(np.exp(own.values).sum() - 1) > 1e-4


@pytest.mark.parametrize("objective", [NextToken(), Block(size=1), AnyOrder()], ids=repr)
def test_generated_sequences_occur_as_often_as_their_likelihood_says(objective, tools):
    """Frequencies of 20,000 samples against exp of the log-likelihood; any-order against its mean over orders."""
    model = _model(objective, tools)
    ids = model.generate_tokens(20_000, seed=1, batch_size=5000).ids
    frequency = torch.bincount((ids * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81) / len(ids)
    draws = 200 if objective == AnyOrder() else 1
    seeds = range(draws)
    probability = np.mean(
        [np.exp(model.log_likelihood(_records(every_sequence()), seed=seed).values) for seed in seeds], axis=0
    )
    assert np.abs(frequency.numpy() - probability).sum() < 0.1
    assert np.corrcoef(frequency.numpy(), probability)[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["ids", "values", "weighted", "counts", "mixed"])
@pytest.mark.parametrize(
    "objective", [*EXACT, AddressOnly(), MaskedDiffusion(), NextToken(head="flow")], ids=repr
)
def test_values_do_not_depend_on_neighbours(objective, kind, tools):
    if objective.head == "flow" and kind != "values":
        pytest.skip("a flow head is for real values without weights")
    spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
    model = tools.model_of(spec, objective)
    expected = of_tokens(model, tokens, spec.name, draws=3, seed=5)
    turned = of_tokens(model, tokens.take([4, 2, 0, 3, 1]), spec.name, draws=3, seed=5, batch_size=2)
    alone = [
        of_tokens(model, tokens.take([row]).trim(), spec.name, draws=3, seed=5).values[0] for row in range(5)
    ]
    assert np.allclose(turned.values[[2, 4, 1, 3, 0]], expected.values, atol=1e-3, rtol=1e-5)
    assert np.allclose(alone, expected.values, atol=1e-3, rtol=1e-5)
    random = objective in (AnyOrder(), MaskedDiffusion(), *EXACT[4:])
    other = of_tokens(model, tokens, spec.name, draws=3, seed=6)
    assert np.allclose(other.values, expected.values, atol=1e-6) != random
    assert expected.kind == ("bound" if random else "exact")


def test_flows_do_not_depend_on_neighbours_beyond_the_exact_dimensions(tools):
    """24 tokens of 2 channels: the divergence is estimated, with probes of the sample's own."""
    source = GaussianAR1(length=40)
    tokens = replace(source.tokens(3, torch.Generator().manual_seed(0)), length=torch.tensor([40, 35, 10]))
    for objective in (Denoising(), Block(size=35, noise="gaussian")):
        model = _model(objective, tools, source)
        expected = of_tokens(model, tokens, source.name)
        turned = of_tokens(model, tokens.take([2, 0, 1]), source.name, batch_size=1)
        assert np.allclose(turned.values[[1, 2, 0]], expected.values, atol=1e-2, rtol=1e-4)


def test_the_mean_agrees_with_the_held_out_loss(tools):
    tokens = CHAIN.tokens(300, torch.Generator().manual_seed(3))
    for objective in (NextToken(), Block(size=1)):
        model = _model(objective, tools)
        loss = model.evaluate(tokens)
        found = model.log_likelihood(_records(tokens))
        assert -found.values.sum() / found.tokens.sum() == pytest.approx(loss.nats_per_token, rel=1e-5)
    for objective in (MaskedDiffusion(), AnyOrder(), Block(size=2)):
        model = _model(objective, tools)
        loss = model.evaluate(every_sequence(), draws=100)
        found = model.log_likelihood(_records(every_sequence()), draws=100)
        assert -found.values.sum() / found.tokens.sum() == pytest.approx(loss.nats_per_token, rel=0.03)


def test_unreadable_records_come_back_as_failures(tools):
    model = _model(NextToken(), tools)
    records = [np.array([0, 1]), np.array([9]), np.array([2, 2, 2, 1])]
    found = model.log_likelihood(records)
    assert found.index.tolist() == [0, 2] and [f.index for f in found.failures] == [1]
    alone = model.log_likelihood(records[2:])
    assert alone.values[0] == pytest.approx(found.values[1], abs=1e-5)
    assert found.tokens.tolist() == [2, 4]


@pytest.mark.parametrize("objective", [Masked(), TwoPhase()], ids=repr)
def test_a_surrogate_is_refused(objective, tools):
    with pytest.raises(
        ConsilienceError, match=rf"the loss of {objective.name} on markov-chain is a surrogate"
    ):
        _model(objective, tools).log_likelihood(_records(every_sequence()))


def test_content_without_a_density_is_refused(tools):
    for kind, objective in (
        ("cloud", Denoising()),
        ("counts", Denoising()),
        ("mixed", Block(size=2, noise="gaussian")),
    ):
        with pytest.raises(ConsilienceError, match="is a surrogate"):
            kind_of(tools.model_of(tools.spec_of(kind), objective), kind)


def test_bad_options_are_named(tools):
    model = _model(NextToken(), tools)
    for name in ("draws", "batch_size"):
        with pytest.raises(ConsilienceError, match=f"{name} must be at least 1, not 0"):
            model.log_likelihood([np.array([0])], **{name: 0})
