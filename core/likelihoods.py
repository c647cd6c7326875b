"""Likelihoods: parameters from a linear head -> nats, samples and means.

Every class reads one field of the content and says how many parameters a token needs. All arithmetic is float32
or better, whatever the precision of the core. Values come in original units and so do samples; heads work in
standardised units (see `TokenSpec.standardise`), the change of variable is accounted for in the nats.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consilience.core.batch import TokenSpec
from consilience.core.view import Scored

Field = Literal["ids", "values"]


@dataclass(frozen=True)
class Likelihood(ABC):
    """Scores one field of the content of S tokens.

    Some have weights of their own (`core.heads.FlowHead`): the port builds and registers their network, and holds
    the likelihood that `attached` returns.
    """

    spec: TokenSpec
    field: ClassVar[Field]
    proper: ClassVar[bool] = True
    """Whether `nats` is a negative log-likelihood; False makes every loss with it a surrogate."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number of parameters per token."""

    @abstractmethod
    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """(S,) negative log-likelihood in nats. parameters: (S, parameters)."""

    @abstractmethod
    def sample(
        self,
        parameters: Tensor,
        generator: torch.Generator,
        *,
        exposure: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """(S,) symbols or (S, C) values in original units."""

    @abstractmethod
    def mean(self, parameters: Tensor, *, exposure: Tensor | None) -> Tensor:
        """The most likely symbol, or the expected values in original units."""

    def network(self, width: int) -> nn.Module | None:
        """A new network that `attached` takes, beside a core of this width; None for most."""
        return None

    def attached(self, network: nn.Module | None) -> "Likelihood":
        """The likelihood that uses this network."""
        return self

    def evaluated(self, generator: torch.Generator) -> "Likelihood":
        """What scores the same parameters in evaluation: with proper nats where there are any."""
        return self


class Categorical(Likelihood):
    """V symbols with a softmax."""

    field = "ids"

    @property
    def parameters(self) -> int:
        """V."""
        return self.spec.vocabulary

    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """Cross-entropy; 0 for symbols that the core could see."""
        assert scored.ids is not None
        nats = F.cross_entropy(parameters.float(), scored.ids, reduction="none")
        return nats if scored.erased is None else nats * scored.erased

    def sample(
        self,
        parameters: Tensor,
        generator: torch.Generator,
        *,
        exposure: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Gumbel-max in float64: in float32 the noise itself would lower the temperature (arXiv:2409.02908)."""
        if temperature == 0:
            return parameters.argmax(-1)
        # On the generator's device, which may be the CPU for a model on a GPU.
        uniform = torch.rand(
            parameters.shape, generator=generator, dtype=torch.float64, device=generator.device
        ).to(parameters.device)
        return (parameters.double() / temperature - torch.log(-torch.log(uniform))).argmax(-1)

    def mean(self, parameters: Tensor, *, exposure: Tensor | None) -> Tensor:
        """The most likely symbol."""
        return parameters.argmax(-1)


class Gaussian(Likelihood):
    """Independent normals per channel; measurement noise of known inverse variance w adds to the spread.

    x ~ N(mean, spread^2 + 1/w): the head learns the spread of the thing itself, and badly measured values
    count for little. Channels with w = 0 were not measured and do not count.
    """

    field = "values"

    @property
    def parameters(self) -> int:
        """A mean and a log spread per channel, standardised."""
        return 2 * self.spec.channels

    def _moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_spread = parameters.float().chunk(2, dim=-1)
        scale = self.spec.value_scale
        return mean * scale + self.spec.value_shift, scale * torch.exp(log_spread.clamp(-7, 7))

    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """Summed over measured channels."""
        assert scored.values is not None
        mean, spread = self._moments(parameters)
        variance = spread.square()
        if scored.precision is not None:
            variance = variance + measurement_variance(scored.precision)
        nats = 0.5 * ((scored.values - mean).square() / variance + variance.log() + math.log(2 * math.pi))
        if scored.precision is not None:
            nats = nats * (scored.precision > 0)
        return nats.sum(-1)

    def sample(
        self,
        parameters: Tensor,
        generator: torch.Generator,
        *,
        exposure: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """The thing itself, without measurement noise; temperature scales the spread."""
        mean, spread = self._moments(parameters)
        return mean + temperature * spread * normal_like(mean, generator)

    def mean(self, parameters: Tensor, *, exposure: Tensor | None) -> Tensor:
        """The mean."""
        return self._moments(parameters)[0]


class NegativeBinomial(Likelihood):
    """Counts with mean exposure * rate and variance mean + mean^2 / dispersion, per channel.

    The usual count model of single-cell data (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2).
    """

    field = "values"

    @property
    def parameters(self) -> int:
        """A log rate and a log dispersion per channel."""
        return 2 * self.spec.channels

    @staticmethod
    def _logs(parameters: Tensor, exposure: Tensor | None) -> tuple[Tensor, Tensor]:
        log_rate, log_dispersion = parameters.float().chunk(2, dim=-1)
        log_mean = log_rate.clamp(-15, 15)
        if exposure is not None:
            log_mean = log_mean + exposure.float().clamp_min(1e-8).log()[:, None]
        return log_mean, log_dispersion.clamp(-8, 8)

    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """Summed over channels. In float64: differences of log gammas of large counts lose 0.01 nats in float32."""
        assert scored.values is not None
        log_mean, log_dispersion = (part.double() for part in self._logs(parameters, scored.exposure))
        x, dispersion = scored.values.double(), log_dispersion.exp()
        log_total = torch.logaddexp(log_mean, log_dispersion)
        combinations = torch.lgamma(x + dispersion) - torch.lgamma(dispersion) - torch.lgamma(x + 1)
        log_p = combinations + dispersion * (log_dispersion - log_total) + x * (log_mean - log_total)
        return -log_p.sum(-1).float()

    def sample(
        self,
        parameters: Tensor,
        generator: torch.Generator,
        *,
        exposure: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Poisson counts with a gamma-distributed mean; temperature 0 gives the rounded mean."""
        log_mean, log_dispersion = self._logs(parameters, exposure)
        if temperature == 0:
            return log_mean.exp().round()
        dispersion = log_dispersion.exp()
        gamma = torch._standard_gamma(dispersion.cpu(), generator=_cpu(generator)).to(log_mean.device)
        mean = gamma * (log_mean - log_dispersion).exp()
        return torch.poisson(mean.cpu(), generator=_cpu(generator)).to(log_mean.device)

    def mean(self, parameters: Tensor, *, exposure: Tensor | None) -> Tensor:
        """The expected count."""
        return self._logs(parameters, exposure)[0].exp()


class Velocity(Likelihood):
    """The velocity of a flow, in standardised units. Not a likelihood: its squared error is a surrogate.

    The likelihood of a flow comes from integrating it: `core.samplers.transport.log_likelihood`.
    """

    field = "values"
    proper = False

    @property
    def parameters(self) -> int:
        """One per channel."""
        return self.spec.channels

    def nats(self, parameters: Tensor, scored: Scored) -> Tensor:
        """Squared error, mean over channels; badly measured channels count less, unmeasured ones not at all."""
        assert scored.velocity is not None
        return squared_error(parameters, scored.velocity, scored.precision, self.spec)

    def sample(
        self,
        parameters: Tensor,
        generator: torch.Generator,
        *,
        exposure: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """The velocity itself (the sampler adds it up)."""
        return parameters.float()

    def mean(self, parameters: Tensor, *, exposure: Tensor | None) -> Tensor:
        """The velocity itself."""
        return parameters.float()


def natural_likelihoods(spec: TokenSpec) -> dict[Field, Likelihood]:
    """The likelihood of each field of the content that the spec names."""
    found: dict[Field, Likelihood] = {}
    if spec.vocabulary:
        found["ids"] = Categorical(spec)
    if spec.channels:
        found["values"] = NegativeBinomial(spec) if spec.counts else Gaussian(spec)
    return found


def measurement_variance(precision: Tensor) -> Tensor:
    """The variance that a measurement of this inverse variance adds; 0 where nothing was measured."""
    return torch.where(precision > 0, 1 / precision.clamp_min(1e-12), 0.0)


def squared_error(found: Tensor, wanted: Tensor, precision: Tensor | None, spec: TokenSpec) -> Tensor:
    """(S,) squared error of velocities (S, C), mean over channels, each weighted by how far it can be trusted."""
    error = (found.float() - wanted).square()
    if precision is None:
        return error.mean(-1)
    # Precision in standardised units: w / (1 + w) tends to 1 for exact values and to 0 for noise.
    precision = precision * spec.value_scale**2
    trust = precision / (1 + precision)
    return (error * trust).sum(-1) / error.shape[-1]


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise, drawn on the generator's device, which may be the CPU for a model on a GPU."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)


def _cpu(generator: torch.Generator) -> torch.Generator:
    """A CPU generator: the given one, or one seeded from it when it lives on a GPU."""
    if generator.device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)
