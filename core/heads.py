"""Heads for real values whose conditional distribution is not one Gaussian: a mixture, and a flow a token.

A head that predicts one Gaussian, or a mean, blurs where a hidden token may be one of several things. A mixture
(GIVT, Tschannen et al. 2023, arXiv:2312.02116) and a small generative model of each token given the core's state
(MAR, Li et al. 2024, arXiv:2406.11838) do not, and need no codebook either.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from consilience.core.batch import TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.kernels import apply_linear
from consilience.core.likelihoods import (
    Categorical,
    Field,
    Gaussian,
    Likelihood,
    measurement_variance,
    natural_likelihoods,
    normal_like,
    squared_error,
)
from consilience.core.ode import Velocity, heun, log_density
from consilience.core.positions import fourier_features
from consilience.core.view import Scored

Head = Literal["gaussian", "mixture", "flow"]

EXACT_CHANNELS = 32
"""Up to so many channels the divergence of a token's flow is computed exactly, beyond by random probes."""
PROBES = 4
SAMPLING_STEPS, DENSITY_STEPS = 32, 64
"""Heun steps of a token's flow, two evaluations each. At 64, modes 14 spreads apart cost 2e-4 nats; at 32, 1e-3."""
ROWS = 2**14
"""Tokens whose flows are integrated at once."""


def check_head(objective: str, head: str) -> None:
    """Raise ConsilienceError for an unknown head."""
    if head not in get_args(Head):
        raise ConsilienceError(f"{objective}: unknown head '{head}'; known: {', '.join(get_args(Head))}")


def likelihoods_with(spec: TokenSpec, head: Head) -> dict[Field, Likelihood]:
    """The natural likelihoods of the content, with this head for real values.

    Raises:
        ConsilienceError: a head was chosen for tokens without real values.
    """
    found = natural_likelihoods(spec)
    if head == "gaussian":
        return found
    if not isinstance(found.get("values"), Gaussian):
        content = "counts" if spec.counts else "symbols"
        raise ConsilienceError(
            f"head {head} is for real values, and {spec.name} tokens are {content}, which have a likelihood of "
            "their own: leave head out"
        )
    found["values"] = GaussianMixture(spec) if head == "mixture" else FlowHead(spec)
    return found


@dataclass(frozen=True)
class GaussianMixture(Likelihood):
    """K components over all C channels of a token together, each with independent normals per channel.

    Measurement noise and unmeasured channels count as in `Gaussian`, and one component is a Gaussian. Components
    start apart along the diagonal, at normal quantiles with mean 0 and variance 1 in all: equal ones would get equal
    gradients, and stay equal for ever.
    """

    components: int = 8

    field = "values"

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ConsilienceError(f"a mixture needs at least 1 component, not {self.components}")

    @property
    def parameters(self) -> int:
        """A logit per component, then means and log spreads (K, C), standardised."""
        return self.components * (1 + 2 * self.spec.channels)

    def _start(self) -> tuple[Tensor, float]:
        """(K,) what is added to the means, and the spread of every component where the head says nothing."""
        share = (torch.arange(self.components, dtype=torch.float64) + 0.5) / self.components
        offset = math.sqrt(2 / self.spec.channels) * torch.erfinv(2 * share - 1)
        return offset.float(), math.sqrt(1 - float(offset.square().mean()))

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (S, K), means and spreads (S, K, C) in original units."""
        logits, rest = parameters.float().split([self.components, parameters.shape[-1] - self.components], -1)
        mean, log_spread = rest.unflatten(-1, (2, self.components, self.spec.channels)).unbind(-3)
        offset, spread = self._start()
        mean = mean + offset.to(mean.device)[:, None]
        scale = self.spec.value_scale
        return logits, mean * scale + self.spec.value_shift, scale * spread * log_spread.clamp(-7, 7).exp()

    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """Summed over measured channels within each component, then over components."""
        assert scored.values is not None
        logits, mean, spread = self._parts(parameters)
        variance, values = spread.square(), scored.values[:, None]
        if scored.precision is not None:
            variance = variance + measurement_variance(scored.precision)[:, None]
        nats = 0.5 * ((values - mean).square() / variance + variance.log() + math.log(2 * math.pi))
        if scored.precision is not None:
            nats = nats * (scored.precision > 0)[:, None]
        return -torch.logsumexp(logits.log_softmax(-1) - nats.sum(-1), dim=-1)

    def sample(
        self,
        parameters: Tensor,
        generator: torch.Generator,
        *,
        exposure: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """A component by its logit, then a normal; temperature scales both, 0 gives the likeliest component's mean."""
        logits, mean, spread = self._parts(parameters)
        # Categorical draws in float64, and takes the likeliest at temperature 0.
        chosen = Categorical(self.spec).sample(logits, generator, exposure=None, temperature=temperature)
        rows = torch.arange(len(chosen), device=chosen.device)
        mean, spread = mean[rows, chosen], spread[rows, chosen]
        return mean + temperature * spread * normal_like(mean, generator)

    def mean(self, parameters: Tensor, *, exposure: Tensor | None) -> Tensor:
        """The mean over components."""
        logits, mean, _ = self._parts(parameters)
        return (logits.softmax(-1)[..., None] * mean).sum(-2)


class FlowNetwork(nn.Module):
    """The velocity of the values of one token at a time, given what the head says of it.

    Two residual blocks, modulated by time and condition. The velocity that carries noise to a standard normal is
    added, so that an untrained flow is a standard normal and what is learned is the difference.
    """

    TIMES, BLOCKS = 12, 2

    def __init__(self, channels: int, condition: int, width: int) -> None:
        super().__init__()
        self.values = nn.Linear(channels, width)
        self.condition = nn.Linear(condition + 2 * self.TIMES, width)
        self.modulations = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(self.BLOCKS + 1))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(self.BLOCKS))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(self.BLOCKS))
        self.velocity = nn.Linear(width, channels)
        nn.init.zeros_(self.velocity.weight)
        nn.init.zeros_(self.velocity.bias)

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """(S, C) velocities.

        Args:
            x: (S, C) noisy values, standardised.
            level: (S,) times in [0, 1], 1 = clean.
            condition: (S, condition).
        """
        with torch.autocast(x.device.type, enabled=False):
            features = fourier_features(level[:, None], (0.1, 4.0), self.TIMES)
            told = torch.cat([condition.float(), features], dim=-1)
            told = nn.functional.silu(apply_linear(self.condition, told))
            hidden = apply_linear(self.values, x.float())
            for modulation, inner, outer in zip(self.modulations, self.inner, self.outer):
                inside = nn.functional.silu(apply_linear(inner, _modulated(hidden, modulation, told)))
                hidden = hidden + apply_linear(outer, inside)
            learned = apply_linear(self.velocity, _modulated(hidden, self.modulations[-1], told))
            t = level[:, None]
            return learned + x * (2 * t - 1) / ((1 - t).square() + t.square())


def _modulated(hidden: Tensor, modulation: nn.Module, told: Tensor) -> Tensor:
    scale, shift = apply_linear(modulation, told).chunk(2, dim=-1)
    return hidden * (1 + scale) + shift


@dataclass(frozen=True)
class FlowHead(Likelihood):
    """A flow a token: x_t = (1 - t) noise + t x in standardised units, velocity by a small network (`FlowNetwork`).

    What the linear head says of a token conditions the network. In training its squared error stands for nats, with
    noise and time from the objective's view (`with_noise`); `evaluated` integrates the flow to the exact nats.
    Measurement noise is not modelled apart from the thing itself: badly measured channels count less in training,
    and weighted values have no nats here.
    """

    velocity: nn.Module | None = dataclasses.field(default=None, repr=False)

    field = "values"
    proper = False

    @property
    def parameters(self) -> int:
        """The width of the condition: at least what a Gaussian head says."""
        return max(32, 2 * self.spec.channels)

    def network(self, width: int) -> nn.Module:
        """A network as wide as the core."""
        return FlowNetwork(self.spec.channels, self.parameters, width)

    def attached(self, network: nn.Module | None) -> Likelihood:
        """The head with this network."""
        return type(self)(self.spec, network)

    def evaluated(self, generator: torch.Generator) -> Likelihood:
        """The density of the flow; the surrogate again for weighted and for constrained values, which have none."""
        if self.spec.weighted or self.spec.constrained:
            return self
        return FlowDensity(self.spec, copy.deepcopy(self._network).requires_grad_(False), generator)

    @property
    def _network(self) -> nn.Module:
        if self.velocity is None:
            raise ConsilienceError("a flow head works within a model only, which holds its network")
        return self.velocity

    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """Squared error of the velocity at the time and noise of each row, mean over channels: a surrogate."""
        assert scored.values is not None
        if scored.noise is None or scored.level is None:
            raise ConsilienceError(
                "a flow head needs the noise of the view: the objective must take head='flow'"
            )
        clean, noise, t = self.spec.standardise(scored.values), scored.noise, scored.level[:, None]
        found = self._network((1 - t) * noise + t * clean, scored.level, parameters)
        return squared_error(found, clean - noise, scored.precision, self.spec)

    def sample(
        self,
        parameters: Tensor,
        generator: torch.Generator,
        *,
        exposure: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Noise carried along the flow; temperature scales the noise, 0 gives the median of a single channel."""
        like = parameters.new_zeros(len(parameters), self.spec.channels, dtype=torch.float32)
        noise = temperature * normal_like(like, generator)
        return self.spec.restore(heun(self._flow(parameters), noise, flow_times(SAMPLING_STEPS)))

    def mean(self, parameters: Tensor, *, exposure: Tensor | None) -> Tensor:
        """The expected value, in one evaluation: at t = 0 the noise tells nothing, and v(x, 0) = E[value] - x."""
        zero = parameters.new_zeros(len(parameters), self.spec.channels, dtype=torch.float32)
        return self.spec.restore(self._flow(parameters)(zero, 0.0))

    def _flow(self, parameters: Tensor) -> Velocity:
        network = self._network

        def velocity(x: Tensor, t: float) -> Tensor:
            return network(x, torch.full((len(x),), t, device=x.device), parameters)

        return velocity


@dataclass(frozen=True)
class FlowDensity(FlowHead):
    """The exact nats of a flow head, by integrating the flow of every token back to noise."""

    generator: torch.Generator = dataclasses.field(default_factory=torch.Generator, repr=False)

    proper = True

    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """-log p in original units; see `core.ode.log_density`. Beyond EXACT_CHANNELS unbiased, with noise."""
        assert scored.values is not None
        clean = self.spec.standardise(scored.values.float())
        rows = range(0, max(len(clean), 1), ROWS)
        nats = torch.cat([self._nats(parameters[i : i + ROWS], clean[i : i + ROWS]) for i in rows])
        return (nats + self.spec.channels * math.log(self.spec.value_scale)).float()

    def _nats(self, parameters: Tensor, clean: Tensor) -> Tensor:
        """(S,) in standardised units; every row is a sample of one token."""
        flow, x = self._flow(parameters.detach()), clean[:, None]

        def velocity(x: Tensor, t: float) -> Tensor:
            return flow(x[:, 0], t)[:, None]

        probes = None if self.spec.channels <= EXACT_CHANNELS else PROBES
        free = torch.ones_like(x, dtype=torch.bool)
        return -log_density(velocity, x, free, flow_times(DENSITY_STEPS), self.generator, probes=probes)


def flow_times(steps: int) -> Tensor:
    """(steps + 1,) from 0 to 1, dense near 1, where what is narrow takes its shape."""
    return torch.sin(torch.linspace(0, math.pi / 2, steps + 1, dtype=torch.float64))
