"""Generation and likelihood by transport: the ODE dx/dt = v(x, t) of a flow-matching model.

t runs from 0 (noise) to 1 (data), in standardised units. Heun's second-order method, two evaluations a step.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.objectives.base import Predictor, predictable, uniform_like
from consilience.core.objectives.denoising import noise_of, noisy_view
from consilience.core.ode import log_density
from consilience.core.sampling import Sampling


def transport(
    predict: Predictor,
    tokens: TokenBatch,
    hidden: Tensor,
    generator: torch.Generator,
    sampling: Sampling,
) -> TokenBatch:
    """Carry noise to data. Visible tokens are held on their own straight path from noise to their value.

    Args:
        predict: a flow-matching model.
        tokens: the template; values of hidden rows are ignored.
        hidden: (B, N) bool.
        generator: all randomness.
        sampling: how to draw: Heun steps (default 50), also of erased symbols; temperature is the scale of the
            initial noise, and a mean starts every hidden token at the mean of the noise.
    """
    assert tokens.values is not None
    spec = predict.spec
    steps = sampling.steps or 50
    temperature = 0.0 if sampling.mean else sampling.temperature
    free = predictable(tokens)
    hidden = hidden & free
    values = tokens.values
    clean = spec.standardise(values)
    noise = noise_of(tokens, spec, generator)
    x = torch.where(hidden[..., None], temperature * noise, noise)
    lost = hidden.clone()

    def hold(moving: Tensor, t: float) -> Tensor:
        """Visible tokens on their own path, given tokens clean; only hidden ones move."""
        path = torch.where(free[..., None], (1 - t) * noise + t * clean, clean)
        return torch.where(hidden[..., None], moving, path)

    for step in range(steps):
        t, t_next = step / steps, (step + 1) / steps
        v, symbols = _velocity(predict, tokens, hold(x, t), t, lost)
        if step + 1 < steps:
            ahead, _ = _velocity(predict, tokens, hold(x + (t_next - t) * v, t_next), t_next, lost)
            v = (v + ahead) / 2
        x = x + (t_next - t) * v
        if symbols is not None:
            reveal = lost & (uniform_like(lost, generator) < (t_next - t) / (1 - t))
            drawn = predict.likelihoods["ids"].sample(
                sampling.permitted(symbols), generator, exposure=None, temperature=temperature
            )
            ids = tokens.ids
            assert ids is not None
            tokens = replace(tokens, ids=torch.where(reveal, drawn, ids))
            lost = lost & ~reveal
    return replace(tokens, values=torch.where(hidden[..., None], spec.restore(x), values))


def log_likelihood(
    predict: Predictor,
    tokens: TokenBatch,
    generator: torch.Generator,
    *,
    steps: int = 40,
    probes: int | None = None,
) -> Tensor:
    """(B,) log p(values) in nats, original units, by integrating the divergence along the flow; see `core.ode`.

    Args:
        predict: a flow-matching model over continuous content.
        tokens: the samples.
        generator: randomness of the probes.
        steps: Heun steps backwards from data to noise.
        probes: None computes the divergence exactly (one backward pass per dimension); a number uses that many
            Hutchinson probes, unbiased (Grathwohl et al. 2019, arXiv:1810.01367).
    """
    assert tokens.values is not None
    spec = predict.spec
    free = predictable(tokens)[..., None].expand_as(tokens.values)
    seen = torch.zeros_like(tokens.real)
    total = log_density(
        lambda x, t: _velocity(predict, tokens, x, t, seen)[0],
        spec.standardise(tokens.values),
        free,
        torch.linspace(0, 1, steps + 1, dtype=torch.float64),
        generator,
        probes=probes,
    )
    return total - free.flatten(1).sum(1) * math.log(spec.value_scale)


def _velocity(
    predict: Predictor, tokens: TokenBatch, x: Tensor, t: float, lost: Tensor
) -> tuple[Tensor, Tensor | None]:
    time = torch.full((tokens.size,), t, device=tokens.device)
    parameters = predict(noisy_view(tokens, x, time, lost, predict.spec))
    return parameters["values"].float(), parameters.get("ids")
