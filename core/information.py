"""The information profile of data as one trained model sees it: how much is known of a token as more is seen.

Three ways to pre-train integrate to the same entropy. Next-token adds up the chain rule. Masking is an erasure
channel: with H_r the mean uncertainty of a token when every other one is kept with probability 1 - r,

    H(x) / N = area of H_r over r in [0, 1]      (Ashikhmin, Kramer and ten Brink 2004; for masked diffusion
                                                  Jeon et al. 2025, arXiv:2510.24088),

and above the area lies the total correlation N (H_1 - area), below it the dual total correlation N (area - H_0).
Denoising is a Gaussian channel, whose area is over the signal-to-noise ratio (`gaussian_profile`). The erasure
curve also says what it costs to reveal many tokens at once (`core.unmasking_cost`).

Given tokens are conditioned on and never count; lengths and addresses are conditioned on as well. With N_b
predictable tokens in sample b, numbers per token are sums over samples divided by the sum of N_b (token-weighted), and
numbers per sample are means over samples. Standard errors take samples as independent, and tokens of a sample
as not: that of a ratio is its linearisation (the infinitesimal jackknife).

    >>> profile = erasure_profile(model.predictor(), tokens, seed=0)
    >>> profile.entropy, profile.total_correlation
"""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.likelihoods import Velocity
from consilience.core.objectives.base import (
    Objective,
    Predictor,
    predictable,
    stratified,
    sum_fields,
    weakened,
)
from consilience.core.objectives.denoising import Denoising, noisy_view
from consilience.core.objectives.masked import Masked, masked_view
from consilience.core.objectives.masked_diffusion import MaskedDiffusion
from consilience.core.profiles import ErasureProfile, Estimate, GaussianProfile, ratio
from consilience.core.synthetic import GaussianAR1, Source
from consilience.core.view import Targets


def profiled_by(objective: Objective) -> Literal["erasure", "gaussian"] | None:
    """Which profile a model trained with this objective can give; None when it has not seen the whole channel."""
    last = objective.at(1.0)  # of an objective with phases, what training ended with
    if isinstance(last, Denoising):
        return "gaussian"
    if isinstance(last, MaskedDiffusion) or (isinstance(last, Masked) and last.rate is None):
        return "erasure"
    return None


@torch.no_grad()
def erasure_profile(
    predict: Predictor,
    tokens: TokenBatch,
    *,
    nodes: int = 8,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 256,
) -> ErasureProfile:
    """Measure H_r at Gauss-Legendre rates and at both ends.

    The area of a curve of N tokens is that of a polynomial of degree N - 1: exact up to N = 2 nodes, and for
    more tokens as smooth as the curve is; more nodes tell.

    Args:
        predict: a model in evaluation mode that saw all rates in training; see `profiled_by`.
        tokens: held-out samples, on the model's device.
        nodes: rates inside (0, 1).
        draws: sets of hidden tokens per sample and rate.
        seed: of the sets; padding and batch size do not change them.
        batch_size: samples at a time; changes speed and memory only.
    """
    if any(isinstance(likelihood, Velocity) for likelihood in predict.likelihoods.values()):
        raise ConsilienceError("this model denoises and hides no tokens: use gaussian_profile")
    if nodes < 1 or draws < 1:
        raise ConsilienceError(f"nodes and draws must be at least 1, not {nodes} and {draws}")
    free, count = _free(tokens)
    places, weights = np.polynomial.legendre.leggauss(nodes)
    rates = np.concatenate([[0.0], (places + 1) / 2, [1.0]])
    generator = torch.Generator().manual_seed(seed)
    nats = torch.zeros(tokens.size, len(rates), dtype=torch.float64)
    for column, rate in enumerate(rates):
        # At rate 1 all sets are the same; at rate 0 there are as many as tokens.
        most = {0.0: min(draws, int(count.max())), 1.0: 1}.get(float(rate), draws)
        rank = _uniform(free, generator).argsort(dim=1).argsort(dim=1)
        for draw in range(most):
            # In H_r token i is hidden always, any other with probability r. Given their number k = 1 + Binomial(
            # N - 1, r), which does not depend on i, the hidden set is a uniform k-subset S and i is uniform in it.
            # So: draw k, then S, and score the mean over S instead of one i. Unbiased at every rate (Rao-Blackwell);
            # S is never empty, and no weight blows up. k is stratified over samples; S is the first k tokens of a
            # random order, which further draws rotate to score other tokens: each draw alone is uniform.
            k = _hidden_counts(count, float(rate), generator)
            place = torch.remainder(rank - draw, count.clamp_min(1)[:, None])
            hidden = free & (place < k[:, None])
            for rows in _chunks(tokens, batch_size):
                mean = _mean_nats(predict, tokens.take(rows).trim(), hidden[rows])
                nats[rows, column] += mean.cpu() * count[rows] / most
    return ErasureProfile(
        rates=rates,
        weights=np.concatenate([[0.0], weights / 2, [0.0]]),
        nats=nats.numpy(),
        tokens=count.numpy(),
        kind=weakened("bound", predict.likelihoods),
    )


@torch.no_grad()
def gaussian_profile(
    predict: Predictor,
    tokens: TokenBatch,
    *,
    nodes: int = 24,
    draws: int = 1,
    seed: int = 0,
    log_snr: tuple[float, float] = (-7.0, 9.0),
    batch_size: int = 256,
) -> GaussianProfile:
    """Measure the error of a flow-matching model on a grid of signal-to-noise ratios.

    x_t = (1 - t) noise + t x has g = (t / (1 - t))^2, and x - denoised = (1 - t) (velocity - predicted velocity).
    The error of the denoiser that is best for white data, x_t t / ((1 - t)^2 + t^2), on the same noise is
    subtracted and its expectation (|x|^2 + n g) / (1 + g)^2 added: no bias, and most of the noise cancels.

    Only measured channels count. Counts, weighted, constrained and mixed content have no density under the flow:
    the profile is a surrogate, in the standardised space with the scale added.

    Args:
        predict: a flow-matching model in evaluation mode.
        tokens: held-out samples, on the model's device.
        nodes: points of the grid.
        draws: noises per sample and point.
        seed: of the noise; padding and batch size do not change it.
        log_snr: ends of the grid; widen the upper one where neighbours determine a value to better than 1%.
        batch_size: samples at a time; changes speed and memory only.
    """
    if not isinstance(predict.likelihoods.get("values"), Velocity):
        raise ConsilienceError("gaussian_profile needs a denoising model; use erasure_profile")
    if nodes < 2 or draws < 1 or not log_snr[0] < log_snr[1]:
        raise ConsilienceError(f"no grid of {nodes} points over {log_snr} with {draws} draws")
    assert tokens.values is not None
    spec = predict.spec
    free, count = _free(tokens)
    clean = spec.standardise(tokens.values)
    measured = free[..., None].to(clean.device).expand_as(clean)
    if tokens.weight is not None:
        measured = measured & (tokens.weight > 0)
    energy = (clean.double().square() * measured).sum((1, 2)).cpu()
    dimensions = measured.sum((1, 2)).cpu()
    grid = np.linspace(*log_snr, nodes)
    generator = torch.Generator().manual_seed(seed)
    errors = torch.zeros(tokens.size, nodes, dtype=torch.float64)
    for column, g in enumerate(np.exp(grid).tolist()):
        time = math.sqrt(g) / (1 + math.sqrt(g))
        errors[:, column] = (energy + g * dimensions) / (1 + g) ** 2
        for _ in range(draws):
            noise = torch.zeros(clean.shape)
            noise[free] = torch.randn(int(free.sum()), clean.shape[2], generator=generator)
            noise = noise.to(clean.device)
            lost = (free & (_uniform(free, generator) >= time)).to(clean.device)
            for rows in _chunks(tokens, batch_size):
                part = tokens.take(rows).trim()
                x, eps, counts = (each[rows, : part.width] for each in (clean, noise, measured))
                noisy = torch.where(predictable(part)[..., None], (1 - time) * eps + time * x, x)
                at = torch.full((part.size,), time, device=part.device)
                velocity = predict(noisy_view(part, noisy, at, lost[rows, : part.width], spec))["values"]
                error = (1 - time) * (velocity.double() - (x - eps))
                white = (x - math.sqrt(g) * eps).double() / (1 + g)
                gained = (error.square() - white.square()) * counts
                errors[rows, column] += gained.sum((1, 2)).cpu() / draws
    improper = spec.vocabulary or spec.counts or spec.weighted or spec.constrained
    return GaussianProfile(
        log_snr=grid,
        errors=errors.numpy(),
        dimensions=dimensions.numpy(),
        tokens=count.numpy(),
        value_scale=spec.value_scale,
        kind="surrogate" if improper else "bound",
    )


def exact_erasure(source: Source, rates: np.ndarray) -> np.ndarray:
    """H_r of a source, nats per token."""
    return np.array([source.masked_curve(float(rate)) for rate in rates])


def exact_gaussian(source: Source, log_snr: np.ndarray) -> np.ndarray:
    """Minimum mean squared error of a Gaussian source per dimension, standardised: trace(S (I + g S)^-1) / N."""
    if not isinstance(source, GaussianAR1):
        raise ConsilienceError(f"{source.name} has no values: its curve is exact_erasure")
    return np.array([source.mmse(math.exp(log_g)) for log_g in log_snr])


def captured_dependence(marginal_nats: float, model_nats: float, tokens: int) -> float:
    """Total correlation that a model has captured, nats per token: (marginal - model) / tokens.

    Both are summed negative log-likelihoods of the same samples: tokens one by one by their marginals (address alone),
    and the model's of the whole. Unit-free: an invertible map of a value (units, log, standardisation, finer bins)
    adds the same log-derivative to both, which cancels; only what tokens say about one another is left. So it may be
    compared between sciences, where nats of a density may not. Fit the marginals with the same family of
    likelihood, or what the family lacks counts as dependence.
    """
    return (marginal_nats - model_nats) / tokens


def paired_captured_dependence(
    marginal_nats: np.ndarray, model_nats: np.ndarray, tokens: np.ndarray
) -> Estimate:
    """`captured_dependence` from (B,) nats and tokens of every sample; what makes a sample hard cancels."""
    return ratio(np.asarray(marginal_nats) - np.asarray(model_nats), np.asarray(tokens))


def _hidden_counts(count: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """(B,) 1 + Binomial(N_b - 1, rate), at most N_b: by inverting the distribution at stratified numbers."""
    sizes, size = torch.unique(count, return_inverse=True)
    below = binomial((sizes - 1).clamp_min(0), torch.full(sizes.shape, rate)).cumsum(1)
    level = stratified(len(count), generator, count.device)[:, None]
    return torch.minimum(1 + (below[size] <= level).sum(1), count)


def _free(tokens: TokenBatch) -> tuple[Tensor, Tensor]:
    """(B, N) predictable tokens and (B,) their number, on the CPU where randomness is drawn."""
    free = predictable(tokens).cpu()
    if not free.any():
        raise ConsilienceError("there is no token to predict: all are given, or there are no samples")
    return free, free.sum(1)


def _uniform(free: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) for predictable tokens, 2 for others: drawn for those alone, whatever the padding."""
    numbers = torch.full(free.shape, 2.0)
    numbers[free] = torch.rand(int(free.sum()), generator=generator)
    return numbers


def _chunks(tokens: TokenBatch, size: int) -> Iterator[Tensor]:
    yield from torch.arange(tokens.size).split(size)


def _mean_nats(predict: Predictor, tokens: TokenBatch, hidden: Tensor) -> Tensor:
    """(B,) float64, nats per hidden token of every sample."""
    hidden = hidden[:, : tokens.width].to(tokens.device)
    scored = Targets(tokens=tokens, scored=hidden).select()
    parameters = {
        field: rows[hidden] for field, rows in predict(masked_view(tokens, hidden, predict.spec)).items()
    }
    nats = sum_fields(predict.likelihoods, parameters, scored).double()
    total = torch.zeros(tokens.size, dtype=torch.float64, device=nats.device)
    return total.index_add(0, scored.sample, nats) / hidden.sum(1).clamp_min(1)


def binomial(total: Tensor, p: Tensor) -> Tensor:
    """(S, most + 1) float64, probabilities of 0, 1, ... successes in `total` (S,) trials of probability p (S,)."""
    successes = torch.arange(int(total.max()) + 1)
    law = torch.distributions.Binomial(total.double()[:, None], p.double()[:, None])
    possible = successes <= total[:, None]
    return law.log_prob(torch.minimum(successes, total[:, None]).double()).exp() * possible
