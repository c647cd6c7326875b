"""The mixture and the flow head: nats, samples and means, kinds of loss, a source where one Gaussian must lose."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, MixtureSameFamily, Normal

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.heads import (
    FlowHead,
    FlowNetwork,
    GaussianMixture,
    flow_times,
    likelihoods_with,
)
from consilience.core.likelihoods import Categorical, Gaussian, NegativeBinomial
from consilience.core.model import FoundationModel
from consilience.core.objectives import AnyOrder, Masked, MaskedDiffusion, NextToken
from consilience.core.objectives.base import Headed
from consilience.core.ode import heun, log_density
from consilience.core.synthetic import GaussianAR1, Source
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.view import Scored

TOLERANCE, BELOW = 0.03, 0.01
VALUES = TokenSpec(name="values", channels=3, value_shift=2.0, value_scale=5.0)
ONE = replace(VALUES, channels=1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scored(**parts: Tensor) -> Scored:
    return Scored(sample=torch.arange(len(next(iter(parts.values())))), **parts)


@dataclass(frozen=True, kw_only=True)
class Coins(Source):
    """Two channels at +-(1, -1) by a fair coin, and a little noise: a bimodal token that no past tells anything of."""

    noise: float = 0.2

    name = "coins"

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec(name=self.name, channels=2, **self._addresses())

    def density(self) -> MixtureSameFamily:
        places = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        return MixtureSameFamily(
            TorchCategorical(logits=torch.zeros(2)), Independent(Normal(places, self.noise), 1)
        )

    def uncertainty(self, left: int | None, right: int | None) -> float:
        return math.log(2) + math.log(2 * math.pi * math.e * self.noise**2)  # the modes are 14 sigma apart

    def nll(self, tokens: TokenBatch) -> Tensor:
        return -self.density().log_prob(tokens.values).sum(1).double()

    def parameters(self, tokens: TokenBatch, visible: Tensor) -> dict:
        raise NotImplementedError

    def _content(self, n: int, generator: torch.Generator) -> dict:
        coin = torch.randint(2, (n, self.length, 1), generator=generator) * 2.0 - 1
        noise = torch.randn(n, self.length, 2, generator=generator)
        return {"values": coin * torch.tensor([1.0, -1.0]) + self.noise * noise}


COINS, AR1 = Coins(), GaussianAR1()


def mixture_of(parameters: Tensor, likelihood: GaussianMixture, precision: Tensor | None = None):
    """The same mixture by torch, from the documented layout of the parameters."""
    k, c, spec = likelihood.components, likelihood.spec.channels, likelihood.spec
    logits, means, log_spreads = parameters.double().split([k, k * c, k * c], dim=-1)
    quantile = math.sqrt(2) * torch.erfinv(2 * (torch.arange(k).double() + 0.5) / k - 1) / math.sqrt(c)
    start = math.sqrt(1 - quantile.square().mean())
    mean = spec.value_scale * (means.unflatten(-1, (k, c)) + quantile[:, None]) + spec.value_shift
    spread = spec.value_scale * start * log_spreads.unflatten(-1, (k, c)).exp()
    if precision is not None:
        spread = (spread.square() + 1 / precision[:, None].double()).sqrt()
    return MixtureSameFamily(TorchCategorical(logits=logits), Independent(Normal(mean, spread), 1))


@pytest.mark.parametrize("components", [1, 2, 8])
def test_mixture_nats(components):
    likelihood = GaussianMixture(VALUES, components)
    parameters, values = randn(50, likelihood.parameters), 10 * randn(50, 3, seed=1)
    precision = 0.01 + randn(50, 3, seed=2).abs()
    for noise in (None, precision):
        parts = {"values": values} if noise is None else {"values": values, "precision": noise}
        expected = -mixture_of(parameters, likelihood, noise).log_prob(values.double())
        found = likelihood.nats(parameters, scored(**parts))
        assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-3)


def test_one_component_is_a_gaussian():
    parameters, values = randn(50, 7), 10 * randn(50, 3, seed=1)
    precision = randn(50, 3, seed=2).clamp_min(0)
    for parts in ({"values": values}, {"values": values, "precision": precision}):
        found = GaussianMixture(VALUES, 1).nats(parameters, scored(**parts))
        assert torch.allclose(found, Gaussian(VALUES).nats(parameters[:, 1:], scored(**parts)), atol=1e-4)


def test_unmeasured_channels_drop_out_of_every_component():
    likelihood, values = GaussianMixture(VALUES), 10 * randn(50, 3, seed=1)
    parameters, precision = randn(50, likelihood.parameters).requires_grad_(), torch.ones(50, 3)
    precision[:, 1] = 0
    nats = likelihood.nats(parameters, scored(values=values, precision=precision))
    other = values + 100 * torch.tensor([0.0, 1.0, 0.0])
    assert torch.equal(nats, likelihood.nats(parameters, scored(values=other, precision=precision)))
    nats.sum().backward()
    per_channel = parameters.grad[:, 8:].unflatten(-1, (2, 8, 3))
    assert not per_channel[..., 1].any()
    assert per_channel[..., 0].any()
    nothing = likelihood.nats(parameters, scored(values=0 * values, precision=0 * precision))
    assert torch.allclose(nothing, torch.zeros(50), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 32])
def test_a_mixture_starts_standard_and_apart(channels):
    spec = replace(VALUES, channels=channels)
    likelihood = GaussianMixture(spec)
    zero = torch.zeros(40_000, likelihood.parameters)
    drawn = likelihood.sample(zero, torch.Generator().manual_seed(0), exposure=None)
    assert torch.allclose(drawn.mean(0), torch.full((channels,), 2.0), atol=0.15)
    assert torch.allclose(drawn.std(0), torch.full((channels,), 5.0), rtol=0.03)
    assert torch.allclose(likelihood.mean(zero[:1], exposure=None), torch.tensor(2.0), atol=1e-4)
    some = torch.zeros(50, likelihood.parameters).requires_grad_()
    likelihood.nats(some, scored(values=10 * randn(50, channels))).sum().backward()
    means = some.grad[:, 8:].unflatten(-1, (2, 8, channels))[:, 0, :, 0].sum(0)
    assert (means[:, None] - means).abs().add(torch.eye(8)).min() > 1e-6, "gradients tie components together"


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_mixture_samples(temperature):
    """Two components, 1:3, far apart: temperature sharpens both the choice and the spread."""
    likelihood = GaussianMixture(ONE, 2)
    parameters = torch.tensor([[0.0, math.log(3), -4.0, 4.0, -0.5, -1.0]]).expand(40_000, 6)
    components = mixture_of(parameters[:1], likelihood).component_distribution
    low, high = components.mean[0, :, 0].float()
    drawn = likelihood.sample(
        parameters, torch.Generator().manual_seed(0), exposure=None, temperature=temperature
    )[:, 0]
    upper = drawn > (low + high) / 2
    share = 1.0 if temperature == 0 else 1 / (1 + 3 ** (-1 / temperature))
    assert float(upper.float().mean()) == pytest.approx(share, abs=0.01)
    spread = float(components.stddev[0, 1, 0])
    assert float(drawn[upper].mean()) == pytest.approx(float(high), abs=0.1)
    assert float(drawn[upper].std()) == pytest.approx(temperature * spread, rel=0.03, abs=1e-4)
    mean = likelihood.mean(parameters[:1], exposure=None)
    assert float(mean) == pytest.approx(float(low + 3 * high) / 4, abs=1e-3)


# The ODE and the flow head.


COVARIANCE = torch.tensor([[0.5, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 0.3]])
CENTRE = torch.tensor([0.5, -1.0, 0.2])


def gaussian_flow(x: Tensor, t: float) -> Tensor:
    """E[data - noise | (1 - t) noise + t data] for data ~ N(CENTRE, COVARIANCE)."""
    eye = torch.eye(3)
    mixed = (1 - t) ** 2 * eye + t**2 * COVARIANCE
    gain = torch.linalg.solve(mixed, t * COVARIANCE - (1 - t) * eye)
    return CENTRE + (x - t * CENTRE) @ gain


def test_density_of_a_linear_gaussian_flow():
    times, generator = flow_times(64), torch.Generator().manual_seed(0)
    data = torch.distributions.MultivariateNormal(CENTRE, COVARIANCE)
    x = CENTRE + randn(20, 3) @ torch.linalg.cholesky(COVARIANCE).T
    truth = data.log_prob(x).double()
    arguments = (lambda z, t: gaussian_flow(z[:, 0], t)[:, None], x[:, None])
    free = torch.ones(20, 1, 3, dtype=torch.bool)
    assert torch.allclose(log_density(*arguments, free, times, generator), truth, atol=2e-3)
    probed = log_density(*arguments, free, times, generator, probes=200)
    assert not torch.allclose(probed, truth, atol=1e-4)
    assert torch.allclose(probed, truth, atol=0.03)
    drawn = heun(gaussian_flow, randn(20_000, 3), flow_times(32))
    assert torch.allclose(drawn.mean(0), CENTRE, atol=0.03)
    assert torch.allclose(drawn.T.cov(), COVARIANCE, atol=0.03)


def flow_of(spec: TokenSpec, tools, scale: float = 0.0) -> FlowHead:
    torch.manual_seed(0)
    head = FlowHead(spec)
    network = head.network(16)
    tools.awaken(network, scale=scale)
    return head.attached(network)


def test_an_untrained_flow_is_a_standard_normal(tools):
    head, values = flow_of(VALUES, tools), 2 + 5 * randn(30, 3)
    density = head.evaluated(torch.Generator())
    truth = -Normal(2.0, 5.0).log_prob(values).sum(-1)
    parameters = randn(30, head.parameters)
    assert torch.allclose(density.nats(parameters, scored(values=values)), truth, atol=5e-3)
    assert density.nats(parameters[:0], scored(values=values[:0])).shape == (0,)
    many = torch.zeros(4000, head.parameters)
    drawn = head.sample(many, torch.Generator().manual_seed(0), exposure=None)
    assert torch.allclose(drawn.mean(0), torch.full((3,), 2.0), atol=0.3)
    assert torch.allclose(drawn.std(0), torch.full((3,), 5.0), rtol=0.05)
    cold = head.sample(many, torch.Generator().manual_seed(0), exposure=None, temperature=0.5)
    assert torch.allclose(cold - 2, (drawn - 2) / 2, atol=1e-4)
    assert torch.allclose(head.mean(many[:5], exposure=None), torch.tensor(2.0))


def test_the_density_of_a_flow_integrates_to_one_in_original_units(tools):
    """An independent check of sign, units and steps: any network is a density."""
    head = flow_of(ONE, tools, scale=0.6)
    grid = torch.linspace(-60, 60, 2401)[:, None]
    parameters = randn(1, 32).expand(2401, 32)
    nats = head.evaluated(torch.Generator()).nats(parameters, scored(values=grid)).double()
    mass = (-nats).exp() * 120 / 2400
    assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
    drawn = head.sample(parameters.repeat(2, 1), torch.Generator().manual_seed(0), exposure=None)
    drawn = drawn.detach()
    assert float(drawn.mean()) == pytest.approx(float((mass * grid[:, 0]).sum()), abs=0.25)
    assert abs(float(drawn.mean()) - 2) > 0.5, "control: the network does something"


def test_the_density_of_a_flow_agrees_with_a_fine_ode_and_with_probes(tools):
    wide = replace(VALUES, channels=33)
    for spec, tolerance in ((VALUES, 5e-3), (wide, 1.0)):
        head = flow_of(spec, tools, scale=0.4)
        parameters, values = randn(20, head.parameters), 2 + 4 * randn(20, spec.channels, seed=1)
        found = head.evaluated(torch.Generator().manual_seed(0)).nats(parameters, scored(values=values))
        flow = head._flow(parameters)
        fine = -log_density(
            lambda x, t, flow=flow: flow(x[:, 0], t)[:, None],
            spec.standardise(values)[:, None],
            torch.ones(20, 1, spec.channels, dtype=torch.bool),
            torch.linspace(0, 1, 201 if spec is VALUES else 33),
            torch.Generator(),
        )
        fine = fine + spec.channels * math.log(5)
        error = found.double() - fine
        assert error.abs().max() < tolerance
        assert error.mean().abs() < tolerance / 5, "probes are unbiased"


def test_training_error_of_a_flow_is_weighted_by_trust(tools):
    head = flow_of(replace(VALUES, weighted=True), tools, scale=1.0)
    parameters, values, noise = randn(10, 32), 5 * randn(10, 3, seed=1), randn(10, 3, seed=2)
    level = torch.linspace(0, 0.9, 10)
    parts = {"values": values, "noise": noise, "level": level}
    plain = head.nats(parameters, scored(**parts))
    clean, t = VALUES.standardise(values), level[:, None]
    found = head.velocity((1 - t) * noise + t * clean, level, parameters)
    assert torch.allclose(plain, (found - clean + noise).square().mean(-1))
    sure = head.nats(parameters, scored(**parts, precision=torch.full((10, 3), 1e8)))
    assert torch.allclose(plain, sure, rtol=1e-4)
    assert not head.nats(parameters, scored(**parts, precision=torch.zeros(10, 3))).any()
    no_rows = head.nats(torch.zeros(0, 32), scored(**{name: x[:0] for name, x in parts.items()}))
    assert no_rows.shape == (0,)
    assert head.evaluated(torch.Generator()) is head, "weighted values have no density under a flow"
    with pytest.raises(ConsilienceError, match="the objective must take head='flow'"):
        head.nats(parameters, scored(values=values))
    with pytest.raises(ConsilienceError, match="within a model only"):
        FlowHead(VALUES).nats(parameters, scored(**parts))


# The option of objectives.


HEADS = [
    cls(head=head) for cls in (NextToken, AnyOrder, Masked, MaskedDiffusion) for head in ("mixture", "flow")
]


def test_heads_are_for_real_values():
    symbols = TokenSpec(name="molecules", vocabulary=4)
    counts = TokenSpec(name="cells", channels=1, value_likelihood="negative-binomial")
    with pytest.raises(
        ConsilienceError, match="head flow is for real values, and molecules tokens are symbols"
    ):
        NextToken(head="flow").likelihoods(symbols)
    with pytest.raises(
        ConsilienceError, match="cells tokens are counts, which have a likelihood of their own"
    ):
        Masked(head="mixture").likelihoods(counts)
    with pytest.raises(
        ConsilienceError, match="next-token: unknown head 'spline'; known: gaussian, mixture, flow"
    ):
        NextToken(head="spline")
    assert isinstance(likelihoods_with(counts, "gaussian")["values"], NegativeBinomial)
    both = Masked(head="flow").likelihoods(replace(VALUES, vocabulary=3))
    assert [type(one) for one in both.values()] == [Categorical, FlowHead]


@pytest.mark.parametrize("kind", ["values", "weighted", "mixed"])
@pytest.mark.parametrize("objective", HEADS, ids=repr)
def test_losses_say_what_they_are(objective: Headed, kind, tools):
    """And randomness is the generator's alone, drawn for the whole batch."""
    model, tokens = tools.model_of(tools.spec_of(kind), objective), tools.batch_of(kind)
    state = torch.get_rng_state()
    whole = model.loss({kind: tokens}, tools.seeded(1))[kind]
    parts = [
        model.loss({kind: tokens}, tools.seeded(1), samples=torch.tensor(some))[kind]
        for some in ([0, 2], [1, 3, 4])
    ]
    assert float(whole.nats) == pytest.approx(sum(float(part.nats) for part in parts), rel=1e-4)
    flow = objective.head == "flow"
    assert whole.kind == ("surrogate" if flow else objective.kind)
    held_out = model.evaluate(tokens, seed=3)
    assert held_out.kind == ("surrogate" if flow and kind == "weighted" else objective.kind)
    assert held_out.nats == model.evaluate(tokens, seed=3).nats
    assert torch.equal(state, torch.get_rng_state()), "no draw from the global generator"
    constrained = tools.model_of(replace(tools.spec_of(kind), constrained=True), objective)
    assert constrained.evaluate(tokens).kind == "surrogate"


@pytest.mark.parametrize("cls", [NextToken, AnyOrder, Masked, MaskedDiffusion])
def test_all_heads_see_the_same_view(cls, tools):
    """The noise of a flow head is drawn last, knows nothing of the content, and its levels are spread evenly."""
    spec, tokens = tools.spec_of("values"), tools.batch_of("values")
    other = tools.content_of("values", tokens, 9)
    plain, none = cls().view(tokens, spec, tools.seeded(1))
    view, targets = cls(head="flow").view(tokens, spec, tools.seeded(1))
    _, again = cls(head="flow").view(other, spec, tools.seeded(1))
    assert torch.equal(plain.tokens.values, view.tokens.values)
    assert torch.equal(none.scored, targets.scored)
    assert none.noise is none.level is None
    assert torch.equal(targets.noise, again.noise)
    assert torch.equal(targets.level, again.level)
    level = targets.level[targets.scored].sort().values
    assert torch.equal((level * len(level)).floor(), torch.arange(len(level)).float())


@pytest.mark.parametrize("head", ["mixture", "flow"])
def test_models_with_heads_save_embed_and_generate(head, tools, tmp_path):
    objective = MaskedDiffusion(head=head)
    model = FoundationModel(tools.tiny, {AR1.name: SyntheticTokenizer(AR1)}, objective)
    tools.awaken(model)
    loaded = FoundationModel.load(model.save(tmp_path / "model"))
    assert loaded.objective == objective
    records = [AR1.tokens(1, tools.seeded(i)).values[0, :, 0].numpy() for i in range(3)]
    assert (model.embed(records).vectors == loaded.embed(records).vectors).all()
    first, again = (m.generate_tokens(5, seed=2).values for m in (model, loaded))
    assert torch.equal(first, again)
    assert first.shape == (5, 6, 1)
    tokens = AR1.tokens(4, tools.seeded(3))
    assert model.evaluate(tokens).nats == loaded.evaluate(tokens).nats
    hidden = tokens.real & (torch.arange(6) > 2)
    means = [model.fill(tokens, hidden, seed=seed, mean=True).values for seed in (0, 1)]
    assert torch.equal(*means), "a mean is not random"
    networks = [
        name for name in model.state_dict() if f"ports.{AR1.name}_port.networks.values_network." in name
    ]
    assert bool(networks) == (head == "flow")


def test_the_network_belongs_to_its_port(tools):
    """Also after a copy, as sharded training makes one."""
    model = tools.model_of(tools.spec_of("values"), NextToken(head="flow"))
    copied = copy.deepcopy(model)
    for one in (model, copied):
        port = one.predictor().port
        assert port.likelihoods["values"].velocity is port.networks["values_network"]
        assert isinstance(port.networks["values_network"], FlowNetwork)
    assert (
        copied.predictor().port.networks["values_network"]
        is not model.predictor().port.networks["values_network"]
    )
    network = model.predictor().port.networks["values_network"]
    model.loss({"values": tools.batch_of("values")}, tools.seeded())["values"].value.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert model.predictor().port.offsets["values_offset"].weight.grad.any()


# Trained models, end to end.


def excess(model: FoundationModel, source: Source, kind: str) -> float:
    """Nats per token above the true nll of the same samples."""
    tokens = source.tokens(1024, torch.Generator().manual_seed(999))
    loss = model.evaluate(tokens, seed=5, draws=8 if kind == "bound" else 1)
    assert loss.kind == kind
    return loss.nats_per_token - float(source.nll(tokens).sum()) / tokens.n_tokens


TRAINED = [
    (COINS, NextToken(head="mixture"), 200),
    (COINS, NextToken(head="flow"), 400),
    (AR1, NextToken(head="mixture"), 200),
    (AR1, NextToken(head="flow"), 300),
    (AR1, MaskedDiffusion(head="mixture"), 400),
]


@pytest.mark.parametrize(("source", "objective", "steps"), TRAINED, ids=lambda x: getattr(x, "name", x))
def test_heads_reach_the_entropy(source, objective, steps, tools):
    kind = "bound" if objective.name == "masked-diffusion" else "exact"
    assert -BELOW < excess(tools.trained(source, objective, steps=steps), source, kind) < TOLERANCE


def test_one_gaussian_pays_for_two_modes(tools):
    """It cannot do better than its moments: log((1 + s^2) / s^2) - log 2 nats too much, for two channels."""
    variance = COINS.noise**2
    price = math.log((1 + variance) / variance) - math.log(2)
    model = tools.trained(COINS, NextToken(), steps=200)
    assert excess(model, COINS, "exact") == pytest.approx(price, abs=TOLERANCE)


@pytest.mark.parametrize(("head", "steps"), [("mixture", 200), ("flow", 400)])
def test_trained_heads_draw_both_modes(head, steps, tools):
    model = tools.trained(COINS, NextToken(head=head), steps=steps)
    values = model.generate_tokens(1000, seed=1, batch_size=1000).values.flatten(0, 1)
    side = values[:, 0].sign()
    assert float((side > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((side == -values[:, 1].sign()).float().mean()) > 0.995, "channels are drawn together"
    for channel, sign in ((0, 1.0), (1, -1.0)):
        folded = side * sign * values[:, channel]
        assert float(folded.mean()) == pytest.approx(1, abs=0.04)
        assert float(folded.std()) == pytest.approx(COINS.noise, rel=0.25)
    tokens = COINS.tokens(100, tools.seeded())
    hidden = tokens.real & (torch.arange(6) == 5)
    mean = model.fill(tokens, hidden, mean=True).values[:, 5]
    assert mean.abs().max() < 0.35, "the expectation lies between the modes"
    mode = model.fill(tokens, hidden, temperature=0.0).values[:, 5]
    if head == "mixture":
        assert torch.allclose(mode.abs(), torch.tensor(1.0), atol=0.1)
