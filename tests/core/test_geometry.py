"""Places as distances: states that do not turn, velocities that do, hidden places that stay hidden."""

import importlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.geometry import DistanceBasis, DistanceView, _Bumps, centred, turned_onto
from consilience.core.modalities import join_biases
from consilience.core.model import FoundationModel
from consilience.core.objectives import AnyOrder, Denoising, Masked, NextToken
from consilience.core.objectives.denoising import noisy_view
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.token_shard import Ragged
from consilience.core.view import View

SPEC = TokenSpec(name="cloud", addresses=4, channels=3, invariant=True, value_scale=2.0, constrained=True)
MIXED = TokenSpec(name="cloud", vocabulary=4, channels=4, invariant=True, constrained=True)


def tokens_of(spec: TokenSpec, seed: int = 0, lengths: tuple[int, ...] = (6, 3, 5)) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    length, n = torch.tensor(lengths), max(lengths)
    real = torch.arange(n) < length[:, None]
    kinds = torch.randint(4, (len(lengths), n), generator=generator) * real
    values = torch.randn(len(lengths), n, spec.channels, generator=generator)
    values[..., :3] = 2 * centred(values[..., :3], real)
    return TokenBatch(
        length=length,
        ids=kinds if spec.vocabulary else None,
        address=None if spec.vocabulary else kinds,
        values=values * real[..., None],
    ).validate(spec)


def turn(seed: int, *, mirror: bool = False) -> Tensor:
    q, r = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    q = q * r.diagonal().sign()
    q = q * torch.linalg.det(q)
    return (-q if mirror else q).float()


def view_at(tokens: TokenBatch, spec: TokenSpec, time: float = 0.4) -> View:
    times = torch.full((tokens.size,), time)
    return noisy_view(tokens, spec.standardise(tokens.values), times, torch.zeros_like(tokens.real), spec)


def turned(tokens: TokenBatch, matrix: Tensor) -> TokenBatch:
    return replace(tokens, values=torch.cat([tokens.values[..., :3] @ matrix, tokens.values[..., 3:]], -1))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("mirror", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("spec", [SPEC, MIXED], ids=["types as addresses", "types and a feature as content"])
@torch.no_grad()
def test_states_stay_and_velocities_turn(spec, mirror, tools):
    model, tokens = tools.model_of(spec, Denoising()), tokens_of(spec)
    predict, matrix = model.predictor(), turn(3, mirror=mirror)
    here, there = (view_at(t, spec) for t in (tokens, turned(tokens, matrix)))
    states = [model.forward({spec.name: view}).final for view in (here, there)]
    assert relative(states[1], states[0]) < 1e-5
    velocities = [predict(view)["values"] * tokens.real[..., None] for view in (here, there)]
    assert velocities[0][..., :3].abs().max() > 0.1, "control: something must move"
    assert relative(velocities[1][..., :3], velocities[0][..., :3] @ matrix) < 1e-5
    if spec.channels > 3:
        assert relative(velocities[1][..., 3:], velocities[0][..., 3:]) < 1e-5


@torch.no_grad()
def test_velocities_follow_a_permutation_and_ignore_a_shift_and_padding(tools):
    model, tokens = tools.model_of(SPEC, Denoising()), tokens_of(SPEC, lengths=(5, 5))
    predict = model.predictor()
    wanted = predict(view_at(tokens, SPEC))["values"]
    order = torch.stack([torch.randperm(5, generator=tools.seeded(i)) for i in range(2)])
    found = predict(view_at(tokens.permute(order), SPEC))["values"]
    assert relative(found, wanted.gather(1, order[..., None].expand(-1, -1, 3))) < 1e-5
    moved = replace(tokens, values=tokens.values + torch.tensor([1.0, -2.0, 0.5]))
    assert relative(predict(view_at(moved, SPEC))["values"], wanted) < 1e-5
    assert relative(predict(view_at(tokens.pad(9), SPEC))["values"][:, :5], wanted) < 1e-5


@torch.no_grad()
def test_scale_and_types_do_matter(tools):
    """Controls: a model that saw nothing of the geometry would pass the tests above."""
    model, tokens = tools.model_of(SPEC, Denoising()), tokens_of(SPEC)
    state = model.forward({"cloud": view_at(tokens, SPEC)}).final
    for other in (
        replace(tokens, values=1.2 * tokens.values),
        replace(tokens, address=(tokens.address + 1) % 4 * tokens.real),
    ):
        assert relative(model.forward({"cloud": view_at(other, SPEC)}).final, state) > 1e-2


def test_bumps_are_what_they_say_and_their_gradient_is_right():
    x = torch.linspace(-0.5, 5.0, 40, dtype=torch.float64, requires_grad=True)
    centres = torch.linspace(0, 4.0, 32, dtype=torch.float64)
    width = centres[1] - centres[0]
    assert torch.allclose(_Bumps.apply(x), torch.exp(-0.5 * ((x[:, None] - centres) / width).square()))
    assert torch.autograd.gradcheck(_Bumps.apply, x)


def test_the_affine_map_of_distances_belongs_to_an_ordered_pair_of_types():
    basis, tokens = DistanceBasis(SPEC), tokens_of(SPEC, lengths=(6,))
    tokens = replace(tokens, address=torch.tensor([[0, 1, 1, 2, 3, 0]]))
    before = basis(view_at(tokens, SPEC))
    with torch.no_grad():
        basis.shift[0 * 4 + 1] += 0.3
    changed = (basis(view_at(tokens, SPEC)) != before).any(-1)[0]
    kinds = tokens.address[0]
    assert torch.equal(changed, (kinds[:, None] == 0) & (kinds[None] == 1))


def test_hidden_places_and_padding_reach_nobody(tools):
    """Moving a hidden place, or what stands in padding, changes nothing anywhere, to the bit."""
    view = view_at(tokens_of(SPEC), SPEC)
    hidden = torch.zeros_like(view.hidden)
    hidden[0, 2] = True
    view = replace(view, hidden=hidden)
    model = tools.model_of(SPEC, Denoising())
    moved = view.tokens.values.clone()
    moved[0, 2] += 1.0
    moved[1, 4:] += 3.0
    other = replace(view, tokens=replace(view.tokens, values=moved))
    assert torch.equal(*(model.forward({"cloud": one}).final for one in (view, other)))
    bias, near = DistanceView(SPEC, tools.tiny)(view)
    assert bias.shape == (2, 3, 4, 6, 6) and near.shape == (3, 6, 32)
    assert not bias[:, 0, :, 2].any() and not bias[:, 0, :, :, 2].any() and not near[0, 2].any()
    velocities = [model.predictor()(one)["values"] for one in (view, other)]
    assert torch.equal(velocities[0][0, [0, 1, 3, 4, 5]], velocities[1][0, [0, 1, 3, 4, 5]])


def test_no_clean_value_leaks_beside_the_noisy_one(tools, monkeypatch):
    """Another clean cloud whose noise leads to the same noisy cloud: predictions stay, targets do not."""
    module = importlib.import_module("consilience.core.objectives.denoising")
    tokens, other, objective = tokens_of(SPEC), tokens_of(SPEC, seed=5), Denoising()
    model, plain = tools.model_of(SPEC, objective), module.noise_of
    view, targets = objective.view(tokens, SPEC, tools.seeded(1))
    t = view.time[view.time_index][..., None]
    noise = ((view.tokens.values - t * SPEC.standardise(other.values)) / (1 - t)).nan_to_num()

    def leading_there(*arguments):
        plain(*arguments)  # the generator goes on as it would
        return noise

    monkeypatch.setattr(module, "noise_of", leading_there)
    again, moved = objective.view(replace(other, address=tokens.address), SPEC, tools.seeded(1))
    assert relative(again.tokens.values, view.tokens.values) < 1e-5
    predict = model.predictor()
    with torch.no_grad():
        assert relative(predict(again)["values"], predict(view)["values"]) < 1e-4
    assert relative(moved.velocity[tokens.real], targets.velocity[tokens.real]) > 0.1


def test_noise_has_no_mean_over_a_sample_and_its_padding_is_zero(tools):
    tokens = tokens_of(SPEC)
    _, targets = Denoising().view(tokens, SPEC, tools.seeded())
    noise = SPEC.standardise(tokens.values) - targets.velocity
    assert noise.sum(1).abs().max() < 1e-5
    assert not noise[1, 3:].any()
    assert float(noise[tokens.real].square().mean()) == pytest.approx(1 - 3 / 14, abs=0.35)


def test_a_turned_copy_comes_back_and_nothing_is_nearer(tools):
    x = centred(torch.randn(4, 6, 3, generator=tools.seeded()), torch.ones(4, 6, dtype=torch.bool))
    assert relative(turned_onto(x @ turn(1, mirror=True), x), x) < 1e-5
    target = torch.randn(4, 6, 3, generator=tools.seeded(1))
    best = (turned_onto(x, target) - target).square().sum((1, 2))
    for seed in range(20):
        other = (x @ turn(seed, mirror=seed % 2 == 1) - target).square().sum((1, 2))
        assert (best <= other + 1e-4).all()


def test_aligned_noise_is_turned_and_nothing_else(tools):
    """The distances within the noise stay, padding stays zero, and paths get shorter."""
    tokens = tokens_of(SPEC, lengths=(6, 3, 5))
    noise, length = [], []
    for align in (False, True):
        _, targets = Denoising(align=align).view(tokens, SPEC, tools.seeded(3))
        noise.append(SPEC.standardise(tokens.values) - targets.velocity)
        length.append(float(targets.velocity.square().sum()))
    assert torch.allclose(*(torch.cdist(one, one) for one in noise), atol=1e-4)
    assert not noise[1][1, 3:].any()
    assert length[1] < 0.9 * length[0]
    with pytest.raises(ConsilienceError, match="align needs tokens without a frame"):
        Denoising(align=True).likelihoods(replace(SPEC, invariant=False))
    with pytest.raises(ConsilienceError, match="noise of one level has none"):
        Denoising(align=True, noise=0.1)


def test_pairs_belong_to_invariant_tokens():
    with pytest.raises(ConsilienceError, match="they need invariant tokens"):
        TokenSpec(name="t", channels=3, pairs=2)
    spec = replace(SPEC, pairs=2)
    tokens = tokens_of(SPEC)
    for pairs, message in (
        (None, "need `pairs`"),
        (torch.zeros(3, 6, 5), "expected"),
        (torch.full((3, 6, 6), 2), "0..1"),
    ):
        with pytest.raises(ConsilienceError, match=message):
            replace(tokens, pairs=pairs).validate(spec)
    with pytest.raises(ConsilienceError, match="a token cache holds tokens and no pairs"):
        Ragged.of(replace(tokens, pairs=torch.zeros(3, 6, 6, dtype=torch.uint8)), spec)


@torch.no_grad()
def test_generation_turns_with_its_noise(tools, monkeypatch):
    """Two draws whose noise differs by a rotation give clouds that differ by it."""
    module = importlib.import_module("consilience.core.samplers.transport")
    model, tokens, matrix = tools.model_of(SPEC, Denoising()), tokens_of(SPEC, lengths=(5, 5)), turn(5)
    plain = module.noise_of
    drawn = []
    for factor in (torch.eye(3), matrix):
        monkeypatch.setattr(module, "noise_of", lambda *a, factor=factor: plain(*a) @ factor)
        drawn.append(model.fill(tokens, tokens.real, seed=2, steps=8).values)
    assert relative(drawn[1], drawn[0] @ matrix) < 1e-4
    assert drawn[0].mean(1).abs().max() < 1e-4


@pytest.mark.parametrize("objective", [Masked(), NextToken(), AnyOrder()], ids=lambda o: o.name)
def test_other_objectives_are_refused_in_one_line(objective, tools):
    with pytest.raises(ConsilienceError, match=r"can be denoised only.*geometry='absolute'"):
        tools.model_of(SPEC, objective)


@pytest.mark.parametrize(
    "wrong", [{"channels": 2}, {"coordinates": 1}, {"pairwise_bias": True}, {"weighted": True}]
)
def test_specs_that_would_give_the_frame_away_are_refused(wrong):
    with pytest.raises(ConsilienceError, match="invariant tokens need"):
        TokenSpec(**{"name": "t", "channels": 3, "invariant": True} | wrong)


def test_biases_with_and_without_layers_join():
    plain, layered = torch.ones(2, 4, 3, 3), 2 * torch.ones(5, 2, 4, 2, 2)
    joined = join_biases([plain, layered, None], [3, 2, 1], torch.zeros(2, 6, 8), 4)
    assert joined.shape == (5, 2, 4, 6, 6)
    assert (joined[..., :3, :3] == 1).all() and (joined[..., 3:5, 3:5] == 2).all()
    assert joined.sum() == 5 * 2 * 4 * (9 + 8)
    assert join_biases([plain, None], [3, 1], torch.zeros(2, 4, 8), 4).shape == (2, 4, 4, 4)


class Triangles:
    """A rigid figure of four points of three types, turned at random: a source of which a frame says nothing."""

    name = "cloud"
    figure = 1.5 * torch.tensor([[0.0, 0, 0], [1.2, 0, 0], [0, 2.0, 0], [0.3, 0.4, 1.5]])

    def __init__(self, *, invariant: bool) -> None:
        self.spec = replace(
            SPEC, invariant=invariant, value_scale=1.2, value_encoding="linear" if invariant else "fourier"
        )

    def tokens(self, n: int, generator: torch.Generator) -> TokenBatch:
        q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator))
        q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
        q = q * torch.linalg.det(q)[:, None, None]
        figure = self.figure - self.figure.mean(0)
        return TokenBatch(
            length=torch.full((n,), 4), values=figure @ q, address=torch.tensor([0, 1, 2, 2]).expand(n, 4)
        )


def loss_after(source: Triangles, tools, steps: int, clouds: int) -> float:
    torch.manual_seed(0)
    model = FoundationModel(tools.tiny, {"cloud": SyntheticTokenizer(source)}, Denoising()).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator, data = tools.seeded(1), source.tokens(clouds, tools.seeded(9))
    for _ in range(steps):
        rows = torch.randint(clouds, (64,), generator=generator)
        loss = model.loss({"cloud": data.take(rows)}, generator)["cloud"].value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return float(
            model.eval().loss({"cloud": source.tokens(1000, tools.seeded(7))}, tools.seeded(8))["cloud"].value
        )


def test_a_turned_figure_is_learned_from_less(tools):
    """Same core, same steps: from 8 turned copies the invariant model learns what the absolute one needs 4,000 for."""
    few = loss_after(Triangles(invariant=True), tools, 250, 8)
    assert few < 0.95 * loss_after(Triangles(invariant=False), tools, 250, 4000)
    assert few < 0.6 * loss_after(Triangles(invariant=False), tools, 250, 8)
