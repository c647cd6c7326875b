"""Flows as ordinary differential equations dx/dt = v(x, t), from noise (t = 0) to data (t = 1), in standard units.

Heun's second-order method, two evaluations a step. Used by `core.samplers.transport` (one flow over a whole sample)
and by `core.heads` (one small flow a token).
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""(x, t) -> dx/dt, of the shape of x."""


def heun(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """x carried from times[0] to times[-1], ascending or descending. times: (steps + 1,)."""
    for t, t_next in pairwise(times.tolist()):
        v = velocity(x, t)
        v = (v + velocity(x + (t_next - t) * v, t_next)) / 2
        x = x + (t_next - t) * v
    return x


def log_density(
    velocity: Velocity,
    x: Tensor,
    free: Tensor,
    times: Tensor,
    generator: torch.Generator,
    *,
    probes: int | None = None,
) -> Tensor:
    """(B,) float64, log p(x) in nats where a standard normal at t = 0 is carried to t = 1.

    log p(x_1) = log N(x_0) - integral of div v dt (Chen et al. 2018, arXiv:1806.07366).

    Args:
        velocity: of the flow; differentiable in x.
        x: (B, N, C) values at t = 1.
        free: (B, N, C) bool, the dimensions that the flow moves; the others stay as they are and do not count.
        times: (steps + 1,) ascending from 0 to 1.
        generator: randomness of the probes.
        probes: None computes the divergence exactly (one backward pass per dimension); a number uses that many
            Hutchinson probes, unbiased (Grathwohl et al. 2019, arXiv:1810.01367).
    """
    total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    descending = times.tolist()[::-1]
    for t, t_before in pairwise(descending):
        h = t - t_before
        v, divergence = _divergence(velocity, x, t, free, generator, probes)
        back = torch.where(free, x - h * v, x)
        v_before, divergence_before = _divergence(velocity, back, t_before, free, generator, probes)
        x = torch.where(free, x - h * (v + v_before) / 2, x)
        total -= h * (divergence + divergence_before) / 2
    base = -0.5 * (x.double().square() + math.log(2 * math.pi)) * free
    return total + base.flatten(1).sum(1)


@torch.enable_grad()
def _divergence(
    velocity: Velocity, x: Tensor, t: float, free: Tensor, generator: torch.Generator, probes: int | None
) -> tuple[Tensor, Tensor]:
    """Velocity (B, N, C) and its divergence over the free dimensions (B,), float64."""
    x = x.detach().requires_grad_()
    v = velocity(x, t)
    if probes is None:
        divergence = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for row, channel in free.any(0).nonzero().tolist():
            (gradient,) = torch.autograd.grad(v[:, row, channel].sum(), x, retain_graph=True)
            divergence += (gradient[:, row, channel] * free[:, row, channel]).double()
    else:
        parts = []
        for _ in range(probes):
            coin = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device) < 0.5
            sign = (coin.float() * 2 - 1) * free
            (gradient,) = torch.autograd.grad((v * sign).sum(), x, retain_graph=True)
            parts.append((gradient * sign).double().flatten(1).sum(1))
        divergence = torch.stack(parts).mean(0)
    return v.detach(), divergence
