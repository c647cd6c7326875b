"""Context: exact conditional entropies given another modality, the control, and nothing scored, leaked or mixed up.

The other modality is an echo of a Markov chain through a noisy channel. With 6 symbols of 3 kinds every pair of samples
can be counted, so that H(X), H(X | Y) and their marginals are known exactly.
"""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.context import PairedSource, beside, paired
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source, TokenFeed
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
from consilience.core.sampling import Sampling
from consilience.core.synthetic import MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.training import fit
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig

CHAIN = MarkovChain()
ECHO = MarkovChain(addressing="places")
"""Only its spec counts: symbols at places of one coordinate."""
N, V, KEPT = CHAIN.length, 3, 0.85
TOLERANCE, BELOW = 0.04, 0.015
PRIMARY = (AnyOrder(), MaskedDiffusion(), Masked(rate=1.0))
OTHERS = (NextToken(), TwoPhase(), AddressOnly(), NextToken(order="reversed"), Masked())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def echo_of(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Each symbol kept with probability KEPT, otherwise one of the two others; then renamed a -> b -> c -> a."""
    kept = torch.rand(ids.shape, generator=generator) < KEPT
    step = torch.randint(1, V, ids.shape, generator=generator)
    return (torch.where(kept, ids, ids + step) + 1) % V


@cache
def joint() -> tuple[np.ndarray, np.ndarray]:
    """All V^N sequences, and (V^N, V^N) float64 p(x, y)."""
    words = np.array(list(product(range(V), repeat=N)))
    prior = np.exp(
        -CHAIN.nll(CHAIN.place(TokenBatch(length=torch.full((len(words),), N), ids=torch.tensor(words))))
    )
    same = (words[:, None] + 1) % V == words[None]
    agree = same.sum(-1)
    channel = KEPT**agree * ((1 - KEPT) / (V - 1)) ** (N - agree)
    return words, prior.numpy()[:, None] * channel


def entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


@cache
def truth(of: str, given: bool, each: bool) -> float:
    """Nats per token of one modality: of the sequence, or (each) of its tokens one by one; given the other or not."""
    words, p = joint()
    p = p if of == "chain" else p.T  # the modality in rows
    if not given:
        p = p.sum(1, keepdims=True)
    base = entropy(p.sum(0))
    if not each:
        return (entropy(p) - base) / N
    parts = [np.stack([p[words[:, place] == v].sum(0) for v in range(V)]) for place in range(N)]
    return sum(entropy(part) - base for part in parts) / N


def pairs(n: int, seed: int, shuffled: bool = False) -> dict[str, TokenBatch]:
    """n samples of both; shuffled ones have the echo of another sample."""
    generator = seeded(seed)
    chain = CHAIN.tokens(n, generator)
    heard = ECHO.place(TokenBatch(length=chain.length, ids=echo_of(chain.ids, generator)))
    return {"chain": chain, "echo": heard.take(torch.arange(n).roll(1)) if shuffled else heard}


def given(batches: dict[str, TokenBatch], of: str) -> TokenBatch:
    other = "echo" if of == "chain" else "chain"
    return beside(batches[of], {other: batches[other]})


def model_of(objective, tools=None) -> FoundationModel:
    torch.manual_seed(0)
    tokenizers = {"chain": SyntheticTokenizer(CHAIN), "echo": SyntheticTokenizer(ECHO)}
    model = FoundationModel(CoreConfig(width=32, depth=2, heads=4), tokenizers, objective)
    if tools is not None:
        tools.awaken(model)
    return model.eval()


def sources(n: int, seed: int, shuffled: bool = False) -> dict[str, Source]:
    records = {name: list(batch.ids.numpy()) for name, batch in pairs(n, seed, shuffled).items()}
    made = {"chain": SyntheticTokenizer(CHAIN), "echo": SyntheticTokenizer(ECHO)}
    return {name: Source(records=records[name], tokenizer=made[name]) for name in records}


@cache
def trained(objective, shuffled: bool = False) -> FoundationModel:
    """Trained on pairs as a run is: through the feed, each modality alone and given the other."""
    model = model_of(objective)
    config = TrainingConfig(
        steps=700, tokens_per_batch=12 * 128, learning_rate=8e-3, weight_decay=0.0, validations=0
    )
    fit(model, paired(sources(30_000, 5, shuffled), 0.3), {}, config, progress=False)
    return model


def measured(model: FoundationModel, tokens: TokenBatch, of: str) -> float:
    draws = 8 if model.objective.kind == "bound" else 1
    return model.evaluate(tokens, domain=of, seed=5, draws=draws).nats_per_token


@pytest.mark.parametrize("of", ["chain", "echo"])
@pytest.mark.parametrize("objective", PRIMARY, ids=repr)
def test_the_other_modality_is_worth_its_mutual_information(objective, of):
    """Each reaches its entropy alone and its conditional entropy given the other, in one set of weights."""
    model, batches = trained(objective), pairs(4096, 999)
    each = isinstance(objective, Masked)
    gain = truth(of, False, each) - truth(of, True, each)
    assert gain > 5 * TOLERANCE, "what the other tells is more than the tolerance"
    for told, tokens in [(False, batches[of]), (True, given(batches, of))]:
        found = measured(model, tokens, of)
        assert -BELOW < found - truth(of, told, each) < TOLERANCE, (told, found, truth(of, told, each))


def test_without_pairs_the_gain_vanishes():
    """Trained on samples beside the echoes of others: nothing is gained, whichever echo is shown."""
    model = trained(AnyOrder(), shuffled=True)
    alone = measured(model, pairs(4096, 999)["chain"], "chain")
    for shuffled in (False, True):
        found = measured(model, given(pairs(4096, 999, shuffled), "chain"), "chain")
        assert abs(found - alone) < BELOW


def test_the_wrong_echo_misleads():
    """A model of pairs believes what it is shown: an echo of another sample costs more than it knows alone."""
    model, wrong = trained(AnyOrder()), pairs(4096, 999, shuffled=True)
    alone = measured(model, wrong["chain"], "chain")
    assert measured(model, given(wrong, "chain"), "chain") > alone + 5 * TOLERANCE


@pytest.mark.parametrize("objective", [AnyOrder(), MaskedDiffusion()], ids=repr)
def test_samples_follow_the_conditional(objective):
    """One for each of many echoes: the mean of -log p(x | y) is H(X | Y), correlations included."""
    words, p = joint()
    place = {tuple(word): row for row, word in enumerate(words.tolist())}
    posterior = p / p.sum(0)
    echoes = pairs(4000, 12)["echo"].ids.numpy()
    drawn = trained(objective).generate(4000, domain="chain", seed=3, context={"echo": list(echoes)})
    own = [place[tuple(int(x) for x in one)] for one in drawn]

    def surprise(heard: np.ndarray) -> float:
        return float(-np.log(posterior[own, [place[tuple(one)] for one in heard.tolist()]]).mean() / N)

    wanted = truth("chain", True, False)
    assert abs(surprise(echoes) - wanted) < 1.5 * TOLERANCE
    assert surprise(np.roll(echoes, 1, axis=0)) > wanted + 0.5, "the same samples beside other echoes"


@pytest.mark.parametrize("objective", [*PRIMARY, *OTHERS], ids=repr)
def test_a_context_is_read_and_never_scored(objective, tools):
    model, batches = model_of(objective, tools), pairs(5, 1)
    plain, told = batches["chain"], given(batches, "chain")
    alone = model.loss({"chain": plain}, seeded(2))["chain"]
    found = model.loss({"chain": told}, seeded(2))["chain"]
    assert found.tokens == alone.tokens and not torch.isclose(found.value, alone.value)
    model.zero_grad()
    found.value.backward()
    heads = model.port("echo").heads.parameters()
    assert all(p.grad is None or not p.grad.any() for p in heads)
    assert any(p.grad is not None and p.grad.any() for p in model.port("echo").embed.parameters())


@pytest.mark.parametrize(
    "objective", [AnyOrder(), NextToken(), Masked(rate=0.5), MaskedDiffusion()], ids=repr
)
def test_every_token_of_the_context_informs(objective, tools):
    """The last one too, which a causal order shifted by one would lose."""
    model, batches = model_of(objective, tools), pairs(4, 1)
    before = model.loss({"chain": given(batches, "chain")}, seeded(2))["chain"].value
    for place in range(N):
        ids = batches["echo"].ids.clone()
        ids[:, place] = (ids[:, place] + 1) % V
        changed = given({**batches, "echo": replace(batches["echo"], ids=ids)}, "chain")
        assert not torch.isclose(before, model.loss({"chain": changed}, seeded(2))["chain"].value, atol=1e-6)


PORTS = [(AnyOrder(), "ids", "values"), (Masked(), "ids", "mixed"), (Denoising(), "values", "cloud")]


@pytest.mark.parametrize(("objective", "own", "other"), PORTS, ids=repr)
def test_neighbours_and_padding_change_nothing(objective, own, other, tools):
    """A sample with its context alone, without padding, has the states that it has in a ragged batch."""
    parts = [tools.model_of(tools.spec_of(kind), objective) for kind in (own, other)]
    model = FoundationModel(tools.tiny, {**parts[0].tokenizers, **parts[1].tokenizers}, objective).eval()
    tools.awaken(model)
    tokens = beside(tools.batch_of(own), {other: tools.batch_of(other, 9, (2, 6, 1, 5, 6))})
    view, _ = objective.view(tokens, model.port(own).spec, seeded(2))
    whole = model.forward({own: view}).final
    assert whole.shape[1] == view.tokens.width
    for i in range(tokens.size):
        single = view.take(torch.tensor([i]))
        if view.time_index is None and len(view.time) > 1:
            single = replace(single, time=view.time)
        state = model.forward({own: single}).final[0]
        assert torch.allclose(whole[i, : len(state)], state, atol=1e-5)


@pytest.mark.parametrize("objective", [AnyOrder(), NextToken()], ids=repr)
def test_draws_do_not_depend_on_the_cache_or_on_others(objective, tools):
    """Contexts of several lengths beside one another."""
    model, batches = model_of(objective, tools), pairs(4, 1)
    heard = [row[: 3 + i] for i, row in enumerate(batches["echo"].ids.numpy())]
    likely = model.log_likelihood(list(batches["chain"].ids.numpy()), domain="chain", context={"echo": heard})
    for i in range(4):
        own = model.log_likelihood(
            [batches["chain"].ids[i].numpy()], domain="chain", context={"echo": [heard[i]]}
        )
        assert np.isclose(own.values[0], likely.values[i], atol=1e-4)
    drawn = model.generate(4, domain="chain", temperature=0.0, context={"echo": heard}, seed=1)
    if isinstance(objective, AnyOrder):
        return  # the orders of a batch are drawn together
    for i in range(4):
        (own,) = model.generate(1, domain="chain", temperature=0.0, context={"echo": [heard[i]]}, seed=1)
        assert np.array_equal(own, drawn[i])


def test_a_cache_keeps_the_context_and_knows_its_padding(tools):
    """Row by row with a cache: what all rows at once give, though contexts differ in length."""
    model, batches = model_of(NextToken(), tools), pairs(4, 1)
    predict, spec = model.predictor("chain"), model.predictor("chain").spec
    tokens = batches["chain"]
    heard = model.tokenizers["echo"].encode(
        [row[: 3 + i] for i, row in enumerate(batches["echo"].ids.numpy())]
    )
    tokens = replace(tokens, context={"echo": heard})
    with torch.no_grad():
        view = shifted_view(tokens, spec)
        whole, cache = predict(view)["ids"], predict.new_cache(tokens)
        for row in range(tokens.width):
            step = predict(view.rows(row, row + 1), cache=cache)["ids"]
            assert torch.allclose(step[:, 0], whole[:, row], atol=1e-5)
            if row == 2:  # one leaves the batch
                kept = torch.tensor([0, 2, 3])
                cache.keep(kept)
                view, whole = view.take(kept), whole[kept]
        assert not torch.allclose(
            predict(shifted_view(replace(tokens, context=None), spec))["ids"][kept], whole
        )
        drawn = [
            model.objective.sample(predict, tokens, tokens.real, seeded(2), Sampling(cached=cached))
            for cached in (True, False)
        ]
    assert torch.equal(drawn[0].ids, drawn[1].ids)


def test_embeddings_read_the_context(tools):
    model, batches = model_of(Masked(), tools), pairs(6, 1)
    chain, heard = (list(batches[name].ids.numpy()) for name in ("chain", "echo"))
    plain = model.embed(chain, domain="chain").vectors
    told = model.embed(chain, domain="chain", context={"echo": heard}).vectors
    assert told.shape == plain.shape and np.abs(told - plain).max() > 1e-3
    again = model.embed(chain[::-1], domain="chain", context={"echo": heard[::-1]}, batch_size=2).vectors
    assert np.allclose(again[::-1], told, atol=1e-5)


def test_the_feed_is_a_function_of_the_step() -> None:
    made = {"steps": 60, "tokens_per_batch": 120, "seed": 3}
    feed, again = (TokenFeed(paired(sources(200, 5), 0.25), **made) for _ in range(2))
    seen = [feed[step] for step in range(60)]
    for step in (41, 7):  # in any order, as a resumed run or a worker asks
        name, tokens = again[step]
        assert name == seen[step][0] and torch.equal(tokens.ids, seen[step][1].ids)
        assert (tokens.context is None) == (seen[step][1].context is None)
    alone = sum(tokens.context is None for _, tokens in seen)
    assert 6 <= alone <= 25
    for name, tokens in seen:
        assert tokens.size <= 10 and tokens.n_tokens == tokens.size * (N if tokens.context is None else 2 * N)
        if tokens.context is not None:
            assert list(tokens.context) == ["echo" if name == "chain" else "chain"]


def test_rows_of_a_pair_belong_together() -> None:
    """Record i beside record i, whatever the batch: an echo without noise tells its own chain."""
    chain = [np.full(N, i % V) for i in range(30)]
    own = Source(records=chain, tokenizer=SyntheticTokenizer(CHAIN))
    feed = TokenFeed(paired({"chain": own, "echo": own}, 0.0), steps=20, tokens_per_batch=60, seed=0)
    for step in range(20):
        name, tokens = feed[step]
        (other,) = tokens.context.values()
        assert torch.equal(tokens.ids[:, 0], other.ids[:, 0]), name


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"echo": [np.zeros(3)]}, "1 records of echo for 2 of chain"),
        ({"chain": [np.zeros(3)] * 2}, "cannot be given beside chain"),
        ({"cells": [np.zeros(3)] * 2}, "knows chain, echo, not 'cells'"),
        ({"echo": [np.zeros(3), np.zeros(9)]}, "record 1 of echo: 9 entries"),
    ],
)
def test_wrong_contexts_are_refused(context, message, tools):
    with pytest.raises(ConsilienceError, match=message):
        model_of(Masked(), tools).generate(2, domain="chain", context=context)


def test_blocks_of_tokens_have_no_context(tools):
    """Their pattern of attention joins with no other one; it is said, not dropped in silence."""
    with pytest.raises(ConsilienceError, match="must share the pattern of attention"):
        model_of(Block(size=2), tools).loss({"chain": given(pairs(3, 1), "chain")}, seeded())


def test_wrong_pairs_are_refused():
    own = sources(20, 5)["chain"]
    fewer = Source(records=own.records[:9], tokenizer=own.tokenizer)
    with pytest.raises(ConsilienceError, match="9 records of echo for 20"):
        paired({"chain": own, "echo": fewer}, 0.5)
    with pytest.raises(ConsilienceError, match="share of the steps"):
        PairedSource(records=own.records, tokenizer=own.tokenizer, alone=1.5)


def test_batches_keep_their_context() -> None:
    tokens = given(pairs(4, 1), "chain")
    taken = tokens.take([2, 0])
    assert torch.equal(taken.context["echo"].ids, tokens.context["echo"].ids[[2, 0]])
    both = TokenBatch.concatenate([taken, tokens])
    assert both.context["echo"].size == 6 and both.n_tokens == 6 * 2 * N
    short = beside(tokens, {"echo": replace(tokens.context["echo"], length=torch.tensor([3, 2, 1, 3]))})
    assert short.trim().context["echo"].width == 3
    order = torch.arange(N).flip(0).expand(4, -1)
    assert torch.equal(tokens.permute(order).context["echo"].ids, tokens.context["echo"].ids)
