"""Denoising: flow matching on continuous content; generation transports noise to data along an ODE.

x_t = (1 - t) * noise + t * x in standardised units, t uniform in [0, 1]; the core sees x_t and t and predicts
the velocity x - noise (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003). The squared
error is a surrogate; the likelihood comes from integrating the flow (`core.samplers.transport`), exactly.

Categorical content beside continuous content (atom types beside coordinates) is hidden with probability 1 - t
and predicted by cross-entropy: noise and erasure share one clock.

With `noise` there is one small level of it instead of a path: x + noise * eps, and the core predicts -eps, which is
the field's pre-training on equilibrium geometries (Zaidi et al. 2023, arXiv:2206.00133). The best prediction is the
score of the noisy data times the level, so for a molecule the force of a Boltzmann mixture around its equilibria.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.geometry import centred, turned_onto
from consilience.core.likelihoods import Categorical, Field, Likelihood, Velocity
from consilience.core.objectives.base import Objective, Predictor, predictable, stratified, uniform_like
from consilience.core.sampling import Sampling
from consilience.core.view import Kind, Loss, Targets, View
from consilience.core.written import LATE

EXACT_DIMENSIONS = 32
"""Up to so many dimensions a sample the divergence of the flow is computed exactly, beyond by random probes."""


@dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """Flow matching with a straight path between noise (t = 0) and data (t = 1), or noise of one level.

    Args:
        noise: standard deviation of the noise in the unit of the values (0.04 to 0.1 Å suits molecules at rest);
            symbols then stay, and nothing can be generated or given a likelihood. None: the whole path.
        align: turn (and mirror) the noise of every sample onto its data before they are mixed, for invariant tokens:
            paths get shorter and straighter, and what is generated stays the same (Klein et al. 2023,
            arXiv:2306.15030).
    """

    noise: float | None = field(default=None, metadata=LATE)
    align: bool = field(default=False, metadata=LATE)

    name = "denoising"
    kind = "surrogate"

    def __post_init__(self) -> None:
        if self.noise is not None and not 0 < self.noise < float("inf"):
            raise ConsilienceError(
                f"denoising: noise must be a positive number or left out, not {self.noise}"
            )
        if self.align and self.noise is not None:
            raise ConsilienceError(
                "denoising: align turns the start of a path, and noise of one level has none: give one of them"
            )

    def likelihoods(self, spec: TokenSpec) -> dict[Field, Likelihood]:
        """A velocity for values, and symbols beside them where there are any."""
        if not spec.channels:
            raise ConsilienceError(
                f"denoising needs continuous content, and {spec.name} tokens are symbols; use masked-diffusion"
            )
        if self.align and not spec.invariant:
            raise ConsilienceError(
                f"denoising: align needs tokens without a frame, and {spec.name} tokens have one: choose "
                "geometry='invariant', or leave align out"
            )
        found: dict[Field, Likelihood] = {"ids": Categorical(spec)} if spec.vocabulary else {}
        found["values"] = Velocity(spec)
        if self.noise is not None and spec.counts:
            raise ConsilienceError(
                f"denoising: noise of one level is for real values, and {spec.name} tokens are counts; leave noise out"
            )
        return found

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """Mix every sample with noise at its own time, or at the one level; all predictable tokens are scored."""
        assert tokens.values is not None
        free = predictable(tokens)
        clean = spec.standardise(tokens.values)
        noise = noise_of(tokens, spec, generator)
        if self.noise is not None:
            noisy = torch.where(free[..., None], clean + self.noise / spec.value_scale * noise, clean)
            view = noisy_view(tokens, noisy, time_of_level(tokens), torch.zeros_like(free), spec)
            kept = torch.zeros_like(free) if spec.vocabulary else None
            return view, Targets(tokens=tokens, scored=free, velocity=-noise, erased=kept)
        if self.align:
            turned = turned_onto(noise[..., :3], clean[..., :3] * free[..., None])
            noise = torch.cat([turned, noise[..., 3:]], dim=-1)
        time = stratified(tokens.size, generator, tokens.device)
        t = time[:, None, None]
        noisy = torch.where(free[..., None], (1 - t) * noise + t * clean, clean)
        lost = free & (uniform_like(free, generator) >= time[:, None])
        view = noisy_view(tokens, noisy, time, lost, spec)
        return view, Targets(
            tokens=tokens, scored=free, velocity=clean - noise, erased=lost if spec.vocabulary else None
        )

    def observe(self, tokens: TokenBatch, spec: TokenSpec) -> View:
        """Clean content at time 1."""
        assert tokens.values is not None
        clean = spec.standardise(tokens.values)
        return noisy_view(tokens, clean, time_of_level(tokens), torch.zeros_like(tokens.real), spec)

    def evaluate(
        self, predict: Predictor, tokens: TokenBatch, generator: torch.Generator, *, draws: int = 1
    ) -> Loss:
        """The exact negative log-likelihood through the ODE for purely continuous, exactly known content.

        Beyond EXACT_DIMENSIONS the divergence is estimated by random probes: unbiased, with noise.

        Counts, weighted or constrained values and mixed content have no density under this flow: they get the
        surrogate.
        """
        spec = predict.spec
        if self.noise is not None or not has_density(spec):
            return super().evaluate(predict, tokens, generator, draws=draws)
        from consilience.core.samplers.transport import log_likelihood

        free = predictable(tokens)
        count = int(free.sum())
        if int(free.sum(1).max()) * spec.channels <= EXACT_DIMENSIONS:
            nats = -log_likelihood(predict, tokens, generator)
        else:  # one backward pass per dimension would take hours; a probe is unbiased, and its noise averages out
            nats = -log_likelihood(predict, tokens, generator, steps=16, probes=1)
        return Loss(value=nats.sum() / count, nats=nats.double().sum(), tokens=count, kind="exact")

    def likelihood_kind(self, predict: Predictor, *, draws: int = 1) -> Kind:
        """Exact where a flow has a density of the content."""
        return "exact" if self.noise is None and has_density(predict.spec) else "surrogate"

    def log_likelihood(
        self,
        predict: Predictor,
        tokens: TokenBatch,
        generators: Sequence[torch.Generator],
        *,
        draws: int = 1,
    ) -> Tensor:
        """Through the ODE; samples beyond EXACT_DIMENSIONS one by one, each with probes of its own."""
        from consilience.core.samplers.transport import log_likelihood

        small = predictable(tokens).sum(1) * predict.spec.channels <= EXACT_DIMENSIONS
        found = torch.zeros(tokens.size, dtype=torch.float64, device=tokens.device)
        if small.any():
            found[small] = log_likelihood(predict, tokens.take(small.nonzero()[:, 0]).trim(), generators[0])
        for row in (~small).nonzero()[:, 0].tolist():
            one = tokens.take([row]).trim()
            found[row] = log_likelihood(predict, one, generators[row], steps=16, probes=draws)[0]
        return found

    def sample(
        self,
        predict: Predictor,
        template: TokenBatch,
        hidden: Tensor,
        generator: torch.Generator,
        sampling: Sampling,
    ) -> TokenBatch:
        """Transport noise to data; known tokens follow their own straight path."""
        from consilience.core.samplers.transport import transport

        if self.noise is not None:
            raise ConsilienceError(
                f"a model that denoises one level ({self.noise:g}) knows the data from near alone and cannot generate: "
                "train denoising without noise="
            )
        self.refuse_confidence(sampling)
        return transport(predict, template, hidden, generator, sampling)


def noise_of(tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> Tensor:
    """(B, N, C) standard normal noise for the values; without its mean over a sample where places are invariant.

    There the core sees differences of places alone, and could not tell a shift of all of them from none.
    """
    assert tokens.values is not None
    shape = tokens.values.shape
    noise = torch.randn(shape, generator=generator, device=generator.device).to(tokens.device)
    if not spec.invariant:
        return noise
    return torch.cat([centred(noise[..., :3], predictable(tokens)), noise[..., 3:]], dim=-1)


def time_of_level(tokens: TokenBatch) -> Tensor:
    """(B,) ones: the time of clean content, and of content at one level of noise, so that states of both match."""
    return torch.ones(tokens.size, device=tokens.device)


def has_density(spec: TokenSpec) -> bool:
    """Whether a flow has a density of this content: values alone, exact, not counts and without a constraint."""
    return not (spec.vocabulary or spec.counts or spec.weighted or spec.constrained)


def noisy_view(tokens: TokenBatch, noisy: Tensor, time: Tensor, lost: Tensor, spec: TokenSpec) -> View:
    """The view of noisy values. noisy: (B, N, C) standardised; time: (B,); lost: (B, N) erased symbols.

    Given tokens stay clean at time 1. Symbols are erased by the extra symbol V, not by hiding the row.
    """
    free = predictable(tokens)
    sample = torch.arange(tokens.size, device=tokens.device)[:, None]
    ids = None
    if tokens.ids is not None:
        ids = tokens.ids.masked_fill(lost, spec.vocabulary)
    return View(
        tokens=replace(tokens, ids=ids, values=noisy, given=None),
        hidden=torch.zeros_like(free),
        time=torch.cat([time, time.new_ones(1)]),
        time_index=torch.where(free, sample, tokens.size),
    )
