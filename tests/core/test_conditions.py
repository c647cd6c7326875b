"""Conditions: exact conditional entropies, nothing scored or leaked, guidance, and nothing changed without them.

The source is one of two Markov chains, chosen by a fair coin: H(X | C) and H(X) are known exactly.
"""

import json
import logging
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from consilience.core.batch import TokenBatch
from consilience.core.checkpoint import describe_model
from consilience.core.conditions import Conditioner, Conditions, Property
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source, TokenFeed
from consilience.core.guidance import Guided, guided
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
from consilience.core.sampling import Sampling
from consilience.core.synthetic import GaussianAR1, MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig

CHAINS = (
    MarkovChain(),
    MarkovChain(transition=((0.40, 0.25, 0.35), (0.45, 0.30, 0.25), (0.20, 0.40, 0.40))),
)
NAME = MarkovChain.name
CLASS = Conditions(
    properties=(Property(name="class", mean=0.5, spread=0.5, low=0.0, high=1.0),), drop_each=0.3, drop_all=0.2
)
DISCRETE = [
    NextToken(),
    AnyOrder(),
    NextToken(order="reversed"),
    Masked(),
    MaskedDiffusion(),
    Block(size=1),
    Block(size=2),
    Block(size=None),
    TwoPhase(),
    AddressOnly(),
]
TOLERANCE, BELOW = 0.03, 0.01


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed_tokens(n: int, generator: torch.Generator) -> TokenBatch:
    """n samples, each of the chain that its condition names."""
    which = (torch.rand(n, generator=generator) < 0.5).long()
    both = torch.stack([chain.tokens(n, generator).ids for chain in CHAINS])
    tokens = CHAINS[0].tokens(n, seeded())
    told = torch.from_numpy(CLASS.standardise({"class": which.numpy()}))
    return replace(tokens, ids=both[which, torch.arange(n)], conditions=told)


def nll_of_both(tokens: TokenBatch) -> torch.Tensor:
    """(2, B) exact -log p of the samples under each chain."""
    return torch.stack([chain.nll(tokens) for chain in CHAINS])


def exact_nll(tokens: TokenBatch, conditioned: bool) -> float:
    """Mean nats per token of -log p(x | c), or of -log p(x)."""
    nll = nll_of_both(tokens)
    if conditioned:
        found = nll[(tokens.conditions[:, 0] > 0).long(), torch.arange(tokens.size)]
    else:
        found = -torch.logsumexp(-nll, 0) + np.log(2)
    return float(found.sum()) / tokens.n_tokens


def untrained(objective, tools, conditions=CLASS, source=CHAINS[0], awake: bool = True) -> FoundationModel:
    torch.manual_seed(0)
    told = {} if conditions is None else {source.name: conditions}
    model = FoundationModel(tools.tiny, {source.name: SyntheticTokenizer(source)}, objective, conditions=told)
    if awake:
        tools.awaken(model)
    return model.eval()


@pytest.fixture
def model(objective, tools) -> FoundationModel:
    """Untrained, of the objective that the test is parametrized with."""
    return untrained(objective, tools)


@cache
def trained(objective) -> FoundationModel:
    """A small model after a short training in which half of the samples are told nothing."""
    steps = 300 if isinstance(objective, MaskedDiffusion) else 200
    torch.manual_seed(0)
    core = CoreConfig(width=32, depth=2, heads=4)
    model = FoundationModel(
        core, {NAME: SyntheticTokenizer(CHAINS[0])}, objective, conditions={NAME: CLASS}
    ).train()
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    generator = seeded(100)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 8e-3 * min((step + 1) / 40, 1 - step / steps)
        tokens = model.drop_conditions(NAME, mixed_tokens(128, generator), generator)
        loss = model.loss({NAME: tokens}, generator)[NAME]
        optimiser.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("objective", [NextToken(), MaskedDiffusion(), Block(size=2)], ids=repr)
def test_the_conditional_entropy_is_reached_with_conditions_and_the_entropy_without(objective):
    model, tokens = trained(objective), mixed_tokens(4096, seeded(999))
    truth = {told: exact_nll(tokens, told) for told in (True, False)}
    assert truth[False] - truth[True] > 2 * TOLERANCE, "what the class tells is more than the tolerance"
    for told, batch in [(True, tokens), (False, replace(tokens, conditions=None))]:
        loss = model.evaluate(batch, seed=5, draws=8 if objective.kind == "bound" else 1)
        assert -BELOW < loss.nats_per_token - truth[told] < TOLERANCE, told


@pytest.mark.parametrize("objective", [NextToken(), Block(size=2), MaskedDiffusion()], ids=repr)
def test_the_likelihood_of_records_is_conditional(objective):
    model, tokens = trained(objective), mixed_tokens(64, seeded(5))
    records = SyntheticTokenizer(CHAINS[0]).decode(tokens)
    which = (tokens.conditions[:, 0] > 0).numpy().astype(float)
    found = {
        name: model.log_likelihood(records, conditions=asked).values
        for name, asked in [("right", {"class": which}), ("wrong", {"class": 1 - which}), ("none", {})]
    }
    assert found["right"].mean() > found["none"].mean() > found["wrong"].mean()
    one_by_one = model.log_likelihood(records, conditions={"class": which}, batch_size=1).values
    assert np.allclose(one_by_one, found["right"], atol=1e-4)


@pytest.mark.parametrize("objective", [MaskedDiffusion(), AnyOrder(), Block(size=2)], ids=repr)
def test_masks_and_orders_do_not_depend_on_what_is_told(objective, model):
    """Of a model whose conditions do nothing, likelihoods could differ by their draws alone."""
    model.conditioners[f"{NAME}_told"].mix.weight.data.zero_()
    records = SyntheticTokenizer(CHAINS[0]).decode(mixed_tokens(12, seeded(5)))
    told = model.log_likelihood(records, conditions={"class": 1.0}).values
    assert np.array_equal(told, model.log_likelihood(records).values)


# What the core sees of conditions.


@pytest.mark.parametrize("objective", DISCRETE, ids=repr)
def test_every_prediction_is_told_and_nothing_of_it_is_scored(objective, model):
    tokens = mixed_tokens(6, seeded(1))
    other = replace(tokens, conditions=-tokens.conditions)
    hidden = replace(tokens, conditions=torch.full_like(tokens.conditions, torch.nan))
    drawn = [objective.view(batch, model.predictor().spec, seeded(3)) for batch in (tokens, other, hidden)]
    scored = drawn[0][1].scored
    with torch.no_grad():
        said = [model.predictor()(view)["ids"][scored] for view, _ in drawn]
        plain = model.predictor()(objective.view(_untold(tokens), model.predictor().spec, seeded(3))[0])[
            "ids"
        ]
    assert all(torch.equal(targets.scored, scored) for _, targets in drawn)
    assert (said[0] != said[1]).any(-1).all(), "every scored row is told"
    assert torch.equal(said[2], plain[scored]), "a hidden property adds nothing"
    assert int(scored.sum()) <= tokens.n_tokens * (2 if isinstance(objective, Block) else 1)


def _untold(tokens: TokenBatch) -> TokenBatch:
    return replace(tokens, conditions=None)


@pytest.mark.parametrize("objective", DISCRETE, ids=repr)
def test_what_is_told_belongs_to_its_own_sample(objective, model):
    tokens = mixed_tokens(5, seeded(1))
    changed = replace(tokens, conditions=tokens.conditions.clone())
    changed.conditions[2] *= -1
    with torch.no_grad():
        views = [objective.view(batch, model.predictor().spec, seeded(3))[0] for batch in (tokens, changed)]
        before, after = (model.predictor()(view)["ids"] for view in views)
    moved = (before != after).flatten(1).any(1)
    assert moved.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("objective", DISCRETE, ids=repr)
def test_a_vector_is_of_the_record_alone(objective, tools):
    from consilience.core.embed import embed_tokens
    from consilience.core.readouts import Readout

    model, plain = untrained(objective, tools), untrained(objective, tools, conditions=None)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "_told" not in k})
    tokens, readout = mixed_tokens(6, seeded(1)), Readout()
    told = embed_tokens(model, tokens, NAME, [readout])[readout]
    assert np.array_equal(told, embed_tokens(model, _untold(tokens), NAME, [readout])[readout])
    assert np.array_equal(told, embed_tokens(plain, _untold(tokens), NAME, [readout])[readout])
    records = SyntheticTokenizer(CHAINS[0]).decode(tokens)
    assert np.array_equal(model.embed(records).vectors, plain.embed(records).vectors)


def test_observing_keeps_what_is_told_apart_from_the_tokens(tools):
    """The view of embeddings is one row longer than the tokens; the conditions of a sample are not rows."""
    tokens = replace(mixed_tokens(3, seeded()), conditions=torch.randn(3, 4))
    view = NextToken().observe(tokens, CHAINS[0].spec)
    assert view.tokens.width == tokens.width + 1 and torch.equal(view.tokens.conditions, tokens.conditions)


def test_denoising_is_told_as_well(tools):
    source = GaussianAR1()
    model = untrained(Denoising(), tools, source=source)
    drawn = [model.generate_tokens(4, seed=1, steps=4, conditions={"class": c}).values for c in (0, 1)]
    assert (drawn[0] != drawn[1]).any()
    strong = model.generate_tokens(4, seed=1, steps=4, conditions={"class": 1}, guidance=2.0).values
    assert strong.isfinite().all() and (strong != drawn[1]).any()


# Guidance.


@pytest.mark.parametrize("objective", DISCRETE, ids=repr)
def test_guidance_zero_is_the_plain_conditional(objective, model):
    plain = model.generate_tokens(20, seed=2, conditions={"class": 1}).ids
    assert torch.equal(plain, model.generate_tokens(20, seed=2, conditions={"class": 1}, guidance=0.0).ids)
    assert not torch.equal(plain, model.generate_tokens(20, seed=2, conditions={"class": 0}).ids)
    assert not torch.equal(
        plain, model.generate_tokens(20, seed=2, conditions={"class": 1}, guidance=4.0).ids
    )


def test_guidance_is_its_formula(tools):
    model = untrained(NextToken(), tools)
    predict, tokens = model.predictor(), mixed_tokens(4, seeded(1))
    view, bare = (NextToken().view(batch, predict.spec, seeded())[0] for batch in (tokens, _untold(tokens)))
    with torch.no_grad():
        expected = 2.5 * predict(view)["ids"] - 1.5 * predict(bare)["ids"]
        assert torch.equal(Guided(predict, 1.5)(view)["ids"], expected)
        assert torch.allclose(Guided(predict, 1.5)(bare)["ids"], predict(bare)["ids"], atol=1e-5)
    assert guided(predict, 0.0, conditioned=False) is predict


@pytest.mark.parametrize("objective", [NextToken(), AnyOrder()], ids=repr)
def test_guided_caches_give_what_recomputing_gives(objective, tools):
    """With ends, so that samples leave the batch, and both caches with them."""
    torch.manual_seed(0)
    model = FoundationModel(
        tools.tiny, {NAME: SyntheticTokenizer(CHAINS[0], end=2)}, objective, conditions={NAME: CLASS}
    )
    tools.awaken(model, scale=1.0)
    model.eval()
    template = replace(
        model.tokenizers[NAME].template(40, generator=seeded()),
        conditions=mixed_tokens(40, seeded(4)).conditions,
    )
    drawn = [
        objective.sample(
            guided(model.predictor(), 1.5, conditioned=True),
            template,
            template.real,
            seeded(7),
            Sampling(end_id=2, cached=cached),
        )
        for cached in (True, False)
    ]
    assert torch.equal(drawn[0].ids, drawn[1].ids) and torch.equal(drawn[0].length, drawn[1].length)
    assert len(set(drawn[0].length.tolist())) > 2


@pytest.mark.parametrize("objective", [NextToken(), MaskedDiffusion(), Block(size=2)], ids=repr)
def test_guidance_raises_the_share_of_the_asked_class(objective):
    model = trained(objective)
    share = {}
    for weight in (None, 0.0, 1.0, 3.0):
        asked = {} if weight is None else {"conditions": {"class": 1}, "guidance": weight}
        nll = nll_of_both(model.generate_tokens(600, seed=1, **asked))
        share[weight] = float((nll[1] < nll[0]).double().mean())
    # Of 600 draws a share has a standard deviation of 0.02 at most: 0.06 and 0.1 are three and five of them.
    assert 0.4 < share[None] < 0.6
    truth = nll_of_both(CHAINS[1].tokens(4096, seeded()))
    assert share[0.0] == pytest.approx(float((truth[1] < truth[0]).double().mean()), abs=0.06)
    assert share[None] + 0.2 < share[0.0] < share[1.0] - 0.02 and share[3.0] > share[1.0] - 0.01


def test_each_sample_may_be_asked_for_something_else():
    model = trained(NextToken())
    which = np.tile([0.0, 1.0], 150)
    nll = nll_of_both(
        model.generate_tokens(300, seed=1, conditions={"class": which}, guidance=2.0, batch_size=70)
    )
    assert ((nll[1] < nll[0]).numpy() == (which == 1)).mean() > 0.85
    top = model.generate_tokens(50, seed=1, conditions={"class": 1}, guidance=1.0, top_k=1).ids
    assert (top == top[0]).all(), "top-k is taken of guided logits"


def test_filling_in_is_told_too(tools):
    model = untrained(MaskedDiffusion(), tools)
    records = SyntheticTokenizer(CHAINS[0]).decode(mixed_tokens(30, seeded(3)))
    hidden = torch.zeros(30, 6, dtype=torch.bool)
    hidden[:, 2:4] = True
    drawn = [
        np.stack(model.complete(records, hidden, seed=1, conditions={"class": c}, guidance=3.0))
        for c in (0, 1)
    ]
    kept = [0, 1, 4, 5]
    assert (drawn[0][:, kept] == np.stack(records)[:, kept]).all() and (drawn[0] != drawn[1]).any()


# What is refused, and what is warned of.


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"logp": 1.0}, "not trained with 'logp' as a condition; known: class"),
        ({"class": "high"}, "must be a number, not 'high'"),
        ({"class": float("nan")}, "must be a number"),
        ({"class": [0.0, 1.0]}, "one for each of the 5 samples"),
        ({"class": float("inf")}, "must be one number"),
        ({"class": 1e9}, r"class' is 1000000000[.]0, more than 1e[+]06 standard deviations .* 0 to 1"),
        ({"class": 1.0, "CLASS": 0.0}, "'class' is asked for twice, as 'class' and as 'CLASS'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(asked, message, tools):
    with pytest.raises(ConsilienceError, match=message) as error:
        untrained(NextToken(), tools).generate(5, conditions=asked)
    assert "\n" not in str(error.value)


def test_models_that_cannot_are_told_apart(tools):
    plain = untrained(NextToken(), tools, conditions=None)
    with pytest.raises(ConsilienceError, match="without conditions"):
        plain.generate(2, conditions={"class": 1})
    with pytest.raises(ConsilienceError, match="needs a condition"):
        plain.generate(2, guidance=1.0)
    with pytest.raises(ConsilienceError, match="must not be negative"):
        plain.generate(2, guidance=-1.0)
    with pytest.raises(ConsilienceError, match="without conditions"):
        plain.evaluate(mixed_tokens(2, seeded()))
    two = replace(mixed_tokens(2, seeded()), conditions=torch.zeros(2, 2))
    with pytest.raises(ConsilienceError, match="knows 1 conditions a sample"):
        untrained(NextToken(), tools).evaluate(two)
    with pytest.raises(ConsilienceError, match="conditions of 2 samples for 3"):
        untrained(NextToken(), tools).generate_tokens(3, conditions=torch.zeros(2, 1))
    gaussian = untrained(NextToken(), tools, source=GaussianAR1())
    assert len(gaussian.generate(2, conditions={"class": 1})) == 2
    with pytest.raises(ConsilienceError, match="have the head Gaussian"):
        gaussian.generate(2, conditions={"class": 1}, guidance=1.0)


def test_values_beyond_training_are_warned_of_with_the_range(tools, caplog):
    model = untrained(NextToken(), tools)
    with caplog.at_level(logging.WARNING, logger="consilience"):
        model.generate(4, conditions={"CLASS": 0.5}, batch_size=2)
        assert not caplog.records
        model.generate(4, conditions={"class": 7}, batch_size=2)
    (record,) = caplog.records
    assert "class = 7 lies outside of what the model was trained on, 0 to 1" in record.getMessage()


def test_fitting_uses_what_is_known_and_refuses_what_tells_nothing():
    values = {"a": np.array([1.0, np.nan, 3.0]), "b": np.array([0.0, 1.0, np.inf])}
    fitted = Conditions.fit(values, computed=["a"], drop_each=0.2)
    first, second = fitted.properties
    assert (first.mean, first.spread, first.low, first.high, first.computed) == (2.0, 1.0, 1.0, 3.0, True)
    assert (second.mean, second.spread, second.high, second.computed) == (0.5, 0.5, 1.0, False)
    assert np.array_equal(
        fitted.standardise(values), np.array([[-1, -1], [np.nan, 1], [1, np.nan]], np.float32), equal_nan=True
    )
    assert Conditions.from_state(json.loads(json.dumps(fitted.state()))) == fitted
    for column, message in [
        ([2.0, 2.0], "is 2 in all 2 of the 2"),
        ([np.nan] * 2, "is unknown in all"),
        ([1.0, 1e300], "values up to 1e[+]300 in the training records, too large"),
    ]:
        with pytest.raises(ConsilienceError, match=message):
            Conditions.fit({"a": np.array(column)})
    with pytest.raises(ConsilienceError, match="stands twice"):
        Conditions(properties=(first, first))
    with pytest.raises(ConsilienceError, match="drop_all is a probability"):
        Conditions(properties=(first,), drop_all=1.0)


def test_properties_are_hidden_each_on_its_own_and_all_at_once():
    values = {name: np.arange(4.0) for name in "abc"}
    conditions = Conditions.fit(values, drop_each=0.2, drop_all=0.1)
    hidden = conditions.drop(torch.zeros(40_000, 3), seeded()).isnan()
    assert hidden.double().mean(0).tolist() == pytest.approx([0.28] * 3, abs=0.01)
    assert float(hidden.all(1).double().mean()) == pytest.approx(0.1 + 0.9 * 0.2**3, abs=0.006)
    assert float(hidden.any(1).double().mean()) == pytest.approx(1 - 0.9 * 0.8**3, abs=0.01)
    again = conditions.drop(torch.zeros(40_000, 3), seeded()).isnan()
    assert torch.equal(hidden, again)


def test_far_values_differ_and_unknown_ones_add_nothing():
    torch.manual_seed(0)
    conditioner = Conditioner(Conditions.fit({name: np.arange(4.0) for name in "ab"}), 8)
    rows = conditioner(
        torch.tensor([[torch.nan, torch.nan], [1.0, torch.nan], [torch.nan, 1.0], [17.0, torch.nan]])
    )
    assert not rows[0].any()
    assert (rows[1] != rows[2]).any()
    assert (rows[1] - rows[3]).abs().max() > 0.5, "beyond the longest period values are still told apart"


# Without conditions nothing changes.


@pytest.mark.parametrize("objective", [NextToken(), Masked(), Denoising(), Block(size=2)], ids=repr)
def test_other_weights_start_the_same_and_no_key_is_new(objective, tools):
    source = GaussianAR1() if isinstance(objective, Denoising) else CHAINS[0]
    plain = untrained(objective, tools, conditions=None, source=source, awake=False)
    told = untrained(objective, tools, source=source, awake=False)
    keys = set(plain.state_dict())
    assert set(told.state_dict()) - keys == {f"conditioners.{source.name}_told.mix.weight"}
    assert all(torch.equal(tensor, told.state_dict()[name]) for name, tensor in plain.state_dict().items())
    config = describe_model(plain)
    assert set(config["domains"][source.name]) == {"tokenizer", "state"}
    assert set(config) == {"format", "core", "objective", "domains", "versions", "provenance"}


def test_a_feed_attaches_conditions_and_draws_the_same_tokens():
    records = SyntheticTokenizer(CHAINS[0]).decode(mixed_tokens(50, seeded()))
    plain = Source(records=records, tokenizer=SyntheticTokenizer(CHAINS[0]))
    values = np.arange(50, dtype=np.float32)[:, None]
    feeds = [
        TokenFeed({NAME: source}, steps=4, tokens_per_batch=60, seed=3)
        for source in (plain, replace(plain, conditions=values))
    ]
    for step in range(4):
        (_, bare), (_, told) = feeds[0][step], feeds[1][step]
        assert bare.conditions is None
        assert torch.equal(bare.ids, told.ids)
        assert told.conditions[:, 0].tolist() == feeds[1].indices(step)[1].tolist()


def test_conditions_come_back_with_the_model(tools, tmp_path):
    model = untrained(NextToken(), tools)
    folder = model.save(tmp_path / "model")
    again = FoundationModel.load(folder)
    assert again.conditions == {NAME: CLASS}
    drawn = [
        one.generate_tokens(9, seed=1, conditions={"class": 1}, guidance=1.0).ids for one in (model, again)
    ]
    assert torch.equal(*drawn)
    assert json.loads((folder / "config.json").read_text())["domains"][NAME]["conditions"] == CLASS.state()
    assert f"conditioners.{NAME}_told.mix.weight" in load_file(folder / "model.safetensors")


def test_a_model_saved_before_there_were_conditions_loads(tools, tmp_path):
    folder = untrained(NextToken(), tools, conditions=None).save(tmp_path / "model")
    assert "conditions" not in (folder / "config.json").read_text()
    assert "conditioner" not in " ".join(load_file(folder / "model.safetensors"))
    assert FoundationModel.load(folder).conditions == {}


def test_a_science_that_the_model_lacks_has_no_conditions(tools):
    with pytest.raises(ConsilienceError, match="knows markov-chain, not 'cells'"):
        FoundationModel(
            tools.tiny, {NAME: SyntheticTokenizer(CHAINS[0])}, NextToken(), conditions={"cells": CLASS}
        )


def test_specs_without_a_tokenizer_still_make_models(tools):
    tokenizer = SimpleNamespace(spec=CHAINS[0].spec, log_rates=lambda: None, end_id=None)
    assert FoundationModel(tools.tiny, {NAME: tokenizer}, NextToken()).conditions == {}
