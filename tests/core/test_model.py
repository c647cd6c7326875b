"""One core for all: batches, neighbours, modalities and options change nothing that they should not change."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.embedding import PairBias
from consilience.core.errors import ConsilienceError
from consilience.core.kernels import rms_norm
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising, Masked, MaskedDiffusion, NextToken, Objective
from consilience.core.synthetic import GaussianAR1, MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig
from consilience.core.view import View

KINDS = ["ids", "values", "weighted", "counts", "mixed", "cloud"]
OBJECTIVES = [NextToken(), NextToken(order="random"), Masked(), MaskedDiffusion(), Denoising()]
CHAIN, AR1 = MarkovChain(), GaussianAR1()


def possible(objective, kind: str) -> bool:
    return objective.name != "denoising" or kind != "ids"


CASES = [(o, k) for o in OBJECTIVES for k in KINDS if possible(o, k)]
EACH = pytest.mark.parametrize(("objective", "kind"), CASES, ids=repr)


def alone(view: View, i: int) -> View:
    """What the core sees of sample i, without neighbours and padding."""
    n = int(view.tokens.length[i])

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[i : i + 1, :n]

    names = ("hidden", "time_index", "start", "ask_address", "ask_positions")
    return replace(
        view, tokens=view.tokens.take([i]).trim(), **{name: cut(getattr(view, name)) for name in names}
    )


@EACH
def test_a_sample_in_a_ragged_batch_is_as_it_is_alone(objective, kind, tools):
    model = tools.model_of(tools.spec_of(kind), objective)
    view, _ = objective.view(tools.batch_of(kind), tools.spec_of(kind), tools.seeded(1))
    with torch.no_grad():
        together = model.forward({kind: view}).final
        for i, n in enumerate(view.tokens.length.tolist()):
            assert torch.allclose(together[i, :n], model.forward({kind: alone(view, i)}).final[0], atol=1e-5)
            assert not together[i, n:].any()


@EACH
@pytest.mark.parametrize("kernel", ["reference", "padded"])
def test_the_kernel_changes_nothing(objective, kind, kernel, tools):
    tokens, spec = tools.batch_of(kind), tools.spec_of(kind)
    grouped = tools.model_of(spec, objective)
    other = tools.model_of(spec, objective, core=replace(tools.tiny, kernel=kernel))
    losses = [m.loss({kind: tokens}, tools.seeded(1))[kind].value for m in (grouped, other)]
    assert torch.allclose(*losses, rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    for a, b in zip(grouped.parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)


@EACH
def test_padding_is_never_read(objective, kind, tools):
    """Garbage in padding rows, and more padding, leave loss and gradients the same to the bit."""
    spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
    pad = ~tokens.real
    parts = {}
    for name in ("values", "weight", "positions"):
        value = getattr(tokens, name)
        parts[name] = None if value is None else value.masked_fill(pad[..., None], 1e6)
    for name in ("ids", "address"):
        value = getattr(tokens, name)
        parts[name] = None if value is None else value.masked_fill(pad, 3)
    found = []
    for batch in (tokens, replace(tokens, **parts)):
        model = tools.model_of(spec, objective)
        loss = model.loss({kind: batch}, tools.seeded(1))[kind]
        loss.value.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((loss, gradients))
    (clean, clean_gradients), (dirty, dirty_gradients) = found
    assert torch.equal(clean.value, dirty.value)
    assert clean.tokens == dirty.tokens
    assert all(torch.equal(a, b) for a, b in zip(clean_gradients, dirty_gradients, strict=True))


@EACH
def test_training_and_evaluation_compute_the_same_loss(objective, kind, tools):
    """Two paths, one through scored rows and one through the predictor of samplers and likelihoods."""
    model, tokens = tools.model_of(tools.spec_of(kind), objective), tools.batch_of(kind)
    trained = model.loss({kind: tokens}, tools.seeded(1))[kind]
    with torch.no_grad():
        held_out = Objective.evaluate(objective, model.predictor(), tokens, tools.seeded(1))
    assert held_out.tokens == trained.tokens
    assert float(held_out.nats) == pytest.approx(float(trained.nats), rel=1e-5)
    assert float(held_out.value) == pytest.approx(float(trained.value.detach()), rel=1e-5)


@pytest.mark.parametrize("objective", [NextToken(order="random"), Masked(), MaskedDiffusion()], ids=repr)
def test_heads_of_counts_start_at_the_rate_of_the_token_that_is_asked_for(objective, tools):
    spec, tokens = tools.spec_of("counts"), tools.batch_of("counts")
    rates = np.linspace(-1.0, 3.0, spec.addresses)
    tokenizer = SimpleNamespace(spec=spec, log_rates=lambda: rates, end_id=None)
    model = FoundationModel(tools.tiny, {"counts": tokenizer}, objective)
    view, targets = objective.view(tokens, spec, tools.seeded())
    with torch.no_grad():
        log_rate = model.predictor()(view)["values"][..., 0]
    expected = torch.tensor(rates).float()[targets.tokens.address]
    assert torch.allclose(log_rate[tokens.real], expected[tokens.real], atol=1e-6)


@pytest.fixture(
    scope="module", params=[NextToken(), NextToken(order="reversed"), MaskedDiffusion()], ids=repr
)
def chain_model(request, tools) -> FoundationModel:
    torch.manual_seed(0)
    model = FoundationModel(tools.tiny, {"chain": SyntheticTokenizer(CHAIN)}, request.param)
    tools.awaken(model)
    return model.eval()


@pytest.fixture(scope="module")
def records() -> list[np.ndarray]:
    """Ragged sequences of the chain."""
    lengths = torch.randint(1, 7, (40,), generator=torch.Generator().manual_seed(5)).tolist()
    whole = SyntheticTokenizer(CHAIN).decode(CHAIN.tokens(40, torch.Generator().manual_seed(6)))
    return [record[:n] for record, n in zip(whole, lengths)]


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
def test_embeddings_do_not_depend_on_company(chain_model, records, layer, pool):
    vectors = chain_model.embed(records, layer=layer, pool=pool).vectors
    assert vectors.shape == (40, 32)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, chain_model.embed(records, layer=layer, pool=pool).vectors), "to the bit"
    for batch_size in (1, 7):
        other = chain_model.embed(records, layer=layer, pool=pool, batch_size=batch_size).vectors
        assert np.allclose(vectors, other, atol=1e-5)
    order = np.random.default_rng(0).permutation(40)
    shuffled = chain_model.embed([records[i] for i in order], layer=layer, pool=pool, batch_size=9).vectors
    assert np.allclose(vectors[order], shuffled, atol=1e-5)
    single = chain_model.embed(records[3:4], layer=layer, pool=pool).vectors
    assert np.allclose(vectors[3:4], single, atol=1e-5)


def test_embeddings_tell_records_apart(chain_model, records):
    different = len({tuple(record) for record in records})
    assert len(np.unique(chain_model.embed(records).vectors.round(4), axis=0)) == different


def test_unreadable_records_are_listed_and_the_rest_embedded(chain_model, records):
    mixed = [records[0], np.array([99]), records[1], np.array([])]
    found = chain_model.embed(mixed, ids=["a", "b", "c", "d"])
    assert found.ids.tolist() == ["a", "c"]
    assert found.index.tolist() == [0, 2]
    assert [(f.index, f.id) for f in found.failures] == [(1, "b"), (3, "d")]
    assert "no symbol" in found.failures[0].reason
    assert np.allclose(found.vectors, chain_model.embed(records[:2]).vectors, atol=1e-5)
    nothing = chain_model.embed([np.array([99])])
    assert nothing.vectors.shape == (0, 32)
    assert len(nothing.failures) == 1


def test_bad_options_of_embed_are_named(chain_model, records):
    with pytest.raises(ConsilienceError, match=r"layer must be -1 \(final\) or 0..2"):
        chain_model.embed(records, layer=3)
    with pytest.raises(ConsilienceError, match="unknown pool 'sum'; known: mean, last, first"):
        chain_model.embed(records, pool="sum")
    with pytest.raises(ConsilienceError, match="batch_size must be at least 1"):
        chain_model.embed(records, batch_size=0)
    with pytest.raises(ConsilienceError, match="2 ids for 40 records"):
        chain_model.embed(records, ids=["a", "b"])
    with pytest.raises(ConsilienceError, match="knows chain, not 'cells'"):
        chain_model.embed(records, domain="cells")
    with pytest.raises(ConsilienceError, match="n must be at least 1"):
        chain_model.generate(0)


def test_layers_and_attention_maps(tools):
    for objective, kind in ((NextToken(), "ids"), (Masked(), "mixed")):
        model = tools.model_of(tools.spec_of(kind), objective)
        tokens = tools.batch_of(kind)
        with torch.no_grad():
            states = model.forward(
                {kind: objective.observe(tokens, model.port(kind).spec)}, layers=True, attention=True
            )
            plain = model.forward({kind: objective.observe(tokens, model.port(kind).spec)})
        b, m, d = states.final.shape
        assert torch.equal(states.final, plain.final)
        assert plain.layers == ()
        assert plain.attention == ()
        assert [tuple(x.shape) for x in states.layers] == [(b, m, d)] * 3
        assert [tuple(x.shape) for x in states.attention] == [(b, 4, m, m)] * 2
        real = torch.arange(m) < tokens.length[:, None] + (m - tokens.width)
        last = rms_norm(states.layers[-1]) * model.core.norm * real[..., None]
        assert torch.allclose(states.final, last, atol=1e-6)
        for maps in states.attention:
            assert torch.allclose(maps.sum(-1), torch.ones(b, 4, m), atol=1e-5)
            above = maps * torch.ones(m, m).triu(1)
            assert bool(above.any()) == (objective.name != "next-token")


# Several modalities of one object.

PAIRS = [(NextToken(), "ids", "values"), (Masked(), "ids", "mixed"), (Denoising(), "values", "cloud")]


def two_ports(objective, kinds: tuple[str, str], tools) -> tuple[FoundationModel, dict[str, TokenBatch]]:
    """A model of two modalities and samples whose modalities are padded each on their own."""
    one, two = (tools.model_of(tools.spec_of(kind), objective) for kind in kinds)
    model = FoundationModel(tools.tiny, {**one.tokenizers, **two.tokenizers}, objective).eval()
    tools.awaken(model)
    first, second = tools.batch_of(kinds[0]), tools.batch_of(kinds[1], 9, (2, 6, 1, 5, 6))
    return model, {kinds[0]: first, kinds[1]: second}


@pytest.mark.parametrize(("objective", "first", "second"), PAIRS, ids=repr)
def test_modalities_see_one_another(objective, first, second, tools):
    """The loss of one modality reaches the other's embedder, and no head but its own."""
    model, batches = two_ports(objective, (first, second), tools)
    losses = model.loss(batches, tools.seeded(2))
    for own, other in ((first, second), (second, first)):
        model.zero_grad()
        losses[own].value.backward(retain_graph=True)

        def moved(name: str, part: str) -> bool:
            parameters = getattr(model.port(name), part).parameters()
            return any(p.grad is not None and bool(p.grad.any()) for p in parameters)

        assert moved(own, "heads")
        assert moved(own, "embed")
        assert not moved(other, "heads")
        # Under a causal pattern the first modality stands before the second and does not see it.
        assert moved(other, "embed") == (objective.name != "next-token" or own == second)


@pytest.mark.parametrize(("objective", "first", "second"), PAIRS, ids=repr)
def test_each_head_reads_its_own_part(objective, first, second, tools):
    """Every sample alone, its modalities without padding between them, gives the same losses."""
    model, batches = two_ports(objective, (first, second), tools)
    drawn = {name: objective.view(b, model.port(name).spec, tools.seeded(2)) for name, b in batches.items()}
    together = model.forward({name: view for name, (view, _) in drawn.items()}).final
    widths = [view.tokens.width for view, _ in drawn.values()]
    parts = dict(zip(drawn, together.split(widths, dim=1)))
    for i in range(5):
        single = {name: alone(view, i) for name, (view, _) in drawn.items()}
        states = model.forward(single).final[0].split([view.tokens.width for view in single.values()])
        for name, state in zip(single, states):
            assert torch.allclose(parts[name][i, : len(state)], state, atol=1e-5)
    assert model.loss(batches, tools.seeded(2)).keys() == batches.keys()


def test_modalities_must_share_a_pattern(tools):
    model, batches = two_ports(Masked(), ("ids", "values"), tools)
    views = {
        "ids": Masked().observe(batches["ids"], model.port("ids").spec),
        "values": NextToken().observe(batches["values"], model.port("values").spec),
    }
    with pytest.raises(ConsilienceError, match="must share the pattern of attention"):
        model.forward(views)


def test_every_science_trains_the_same_core(tools):
    """One set of core weights: each science alone moves all of them, and only its own port."""
    sources = {"chain": CHAIN, "ar1": AR1}
    model = FoundationModel(tools.tiny, {n: SyntheticTokenizer(s) for n, s in sources.items()}, Masked())
    tools.awaken(model)
    for name, source in sources.items():
        model.zero_grad()
        model.loss({name: source.tokens(64, tools.seeded())}, tools.seeded(1))[name].value.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.core.parameters())
        for other in sources:
            touched = any(p.grad is not None and bool(p.grad.any()) for p in model.port(other).parameters())
            assert touched == (other == name)


# Options.


@pytest.mark.parametrize("mlp", ["squared-relu", "swiglu"])
@pytest.mark.parametrize("residual_scale", ["one", "sqrt", "linear"])
def test_options_of_the_core_run(mlp, residual_scale, tools):
    core = CoreConfig(width=32, depth=3, heads=2, mlp=mlp, residual_scale=residual_scale, dropout=0.1)
    model = tools.model_of(CHAIN.spec, Masked(), core=core).train()
    loss = model.loss({CHAIN.name: CHAIN.tokens(16, tools.seeded())}, tools.seeded(1))[CHAIN.name]
    loss.value.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.core.parameters())


def test_swiglu_and_squared_relu_have_equal_size(tools):
    sizes = []
    for mlp in ("squared-relu", "swiglu"):
        model = tools.model_of(CHAIN.spec, Masked(), core=CoreConfig(width=96, depth=2, heads=2, mlp=mlp))
        sizes.append(sum(p.numel() for p in model.core.parameters()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_every_objective_has_the_same_core(tools):
    sizes = {sum(p.numel() for p in tools.model_of(AR1.spec, o).core.parameters()) for o in OBJECTIVES}
    assert len(sizes) == 1


def test_residual_scale_shrinks_the_branches(tools):
    """With 1/L branches, the state moves 1/L as far in one block."""
    steps = []
    for scale in ("one", "linear"):
        core = CoreConfig(width=32, depth=4, heads=2, residual_scale=scale)
        model = tools.model_of(CHAIN.spec, Masked(), core=core)
        view = Masked().observe(CHAIN.tokens(8, tools.seeded()), CHAIN.spec)
        with torch.no_grad():
            before, after = model.forward({CHAIN.name: view}, layers=True).layers[:2]
        steps.append(float((after - before).norm()))
    assert 2 < steps[0] / steps[1] < 8


def test_checkpointed_activations_give_the_same_gradients(tools):
    found = []
    for option in (False, True):
        core = replace(tools.tiny, checkpoint_activations=option)
        model = tools.model_of(AR1.spec, NextToken(), core=core).train()
        model.loss({AR1.name: AR1.tokens(16, tools.seeded())}, tools.seeded(1))[AR1.name].value.backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-6)


# Geometry.


def rotation(seed: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def test_distances_alone_make_embeddings_invariant(tools):
    """Types with places that enter through the pairwise bias only: rotations and shifts change nothing."""
    spec = TokenSpec(name="t", vocabulary=4, coordinates=3, position_encoding="none", pairwise_bias=True)
    for objective in (Masked(), NextToken()):
        model = tools.model_of(spec, objective)
        tools.awaken(model.port("t").pair_bias, 1, scale=5.0)
        places = torch.randn(3, 6, 3, generator=tools.seeded())
        tokens = TokenBatch(
            length=torch.tensor([6, 4, 5]),
            ids=torch.randint(4, (3, 6), generator=tools.seeded()),
            positions=places,
        )
        with torch.no_grad():

            def states(places: Tensor, model=model, tokens=tokens, objective=objective) -> Tensor:
                view = objective.observe(replace(tokens, positions=places), spec)
                return model.forward({"t": view}).final

            here = states(places)
            assert torch.allclose(here, states(places @ rotation(1).T + 7.0), atol=1e-4)
            assert not torch.allclose(here, states(1.5 * places), atol=1e-2)


def test_pair_bias_is_blind_to_hidden_places(tools):
    spec = TokenSpec(name="t", channels=3, coordinates=3, rotary_from_values=True, pairwise_bias=True)
    bias = PairBias(spec, 4)
    values = torch.randn(2, 5, 3)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[0, 2] = True
    tokens = TokenBatch(length=torch.tensor([5, 5]), values=values)
    found = bias(View(tokens=tokens, hidden=hidden, time=torch.ones(1)))
    assert found.shape == (2, 4, 5, 5)
    assert not found[0, :, 2].any()
    assert not found[0, :, :, 2].any()
    assert torch.allclose(found, found.transpose(-1, -2))
    moved = replace(tokens, values=values @ rotation(3).T - 2.0)
    assert torch.allclose(found, bias(View(tokens=moved, hidden=hidden, time=torch.ones(1))), atol=1e-5)


# A science may have any name.


@pytest.mark.parametrize("name", ["values", "train", "keys"])
def test_a_science_may_have_the_name_of_a_method(name, tools):
    model = FoundationModel(tools.tiny, {name: SyntheticTokenizer(CHAIN)}, Masked())
    assert model.domains == (name,)
    assert len(model.generate(2, domain=name)) == 2


def test_a_model_of_several_sciences_asks_which(tools):
    with pytest.raises(ConsilienceError, match="at least one science"):
        FoundationModel(tools.tiny, {}, Masked())
    pair = {"a": SyntheticTokenizer(CHAIN), "b": SyntheticTokenizer(AR1)}
    model = FoundationModel(tools.tiny, pair, Masked())
    with pytest.raises(ConsilienceError, match="knows a, b: say which one with domain="):
        model.generate(1)
    assert len(model.generate(3, domain="b")) == 3


def test_denoising_of_symbols_is_refused(tools):
    with pytest.raises(ConsilienceError, match=r"denoising needs continuous content.*use masked-diffusion"):
        FoundationModel(tools.tiny, {"chain": SyntheticTokenizer(CHAIN)}, Denoising())


def test_bad_options_of_objectives_are_named():
    with pytest.raises(ConsilienceError, match=r"rate must lie in \(0, 1\], not 0"):
        Masked(rate=0.0)
    with pytest.raises(ConsilienceError, match="unknown order 'sideways'; known: natural, reversed, random"):
        NextToken(order="sideways")


@pytest.mark.parametrize("kind", ["ids", "values", "counts", "mixed"])
@pytest.mark.parametrize("objective", [NextToken(), Masked(), MaskedDiffusion()], ids=repr)
def test_a_loss_in_pieces_is_the_loss(objective, kind, tools, monkeypatch):
    """Value, nats, count and gradients do not depend on how many rows pass the heads at once."""
    tokens = {kind: tools.batch_of(kind)}
    found = []
    for numbers in (2**23, 12):
        monkeypatch.setattr("consilience.core.port.HEAD_NUMBERS", numbers)
        model = tools.model_of(tools.spec_of(kind), objective).train()
        loss = model.loss(tokens, tools.seeded(1))[kind]
        loss.value.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((loss, gradients))
    (whole, expected), (pieces, gradients) = found
    assert pieces.tokens == whole.tokens
    assert pieces.kind == whole.kind
    assert torch.allclose(pieces.value, whole.value, rtol=1e-5)
    assert torch.allclose(pieces.nats, whole.nats, rtol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, expected, strict=True))
