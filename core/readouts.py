"""Read-outs: which layer of a frozen core, pooled how and seen at which time, stands for a record.

Which read-out is best differs between objectives (denoisers in the middle at a little noise, next-token before the
last layer), so that a fair comparison searches the same number of them for every objective. `core.embed` computes
many in one forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.objectives.base import Objective, predictable
from consilience.core.objectives.block import Block
from consilience.core.objectives.denoising import Denoising, noisy_view
from consilience.core.objectives.orders import laid_out
from consilience.core.view import View

Pool = Literal["mean", "last", "first", "max"]
POOLS: tuple[Pool, ...] = ("mean", "last", "first", "max")

LAYERS = 4
"""Layers that `candidates` spreads over the depth, the final state among them."""
TIMES = (1.0, 0.9, 0.7)
"""Times that `candidates` asks of a denoiser: as many as others have pools."""


@dataclass(frozen=True, kw_only=True, order=True)
class Readout:
    """One way to read a vector out of a core.

    Args:
        layer: -1 the final normalised state, 0 the embedding, 1..L after that block.
        pool: over the tokens of a record: mean, max, the first or the last.
        time: 1 = clean content; below 1, for denoisers alone, content is mixed with fixed noise first.
    """

    layer: int = -1
    pool: Pool = "mean"
    time: float = 1.0

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ConsilienceError(f"unknown pool '{self.pool}'; known: {', '.join(POOLS)}")
        if not 0 <= self.time <= 1:
            raise ConsilienceError(f"the time of a read-out must lie in [0, 1], not {self.time}")

    def __str__(self) -> str:
        layer = "final" if self.layer == -1 else f"layer {self.layer}"
        return f"{layer}, {self.pool}" + ("" if self.time == 1 else f", t = {self.time:g}")


def denoises(objective: Objective) -> bool:
    """Whether an objective was trained on content mixed with Gaussian noise, so that read-outs may choose a time."""
    return isinstance(objective, Denoising) or (
        isinstance(objective, Block) and objective.noise == "gaussian"
    )


def candidates(objective: Objective, depth: int) -> tuple[Readout, ...]:
    """The read-outs that a search tries: 12 for every objective (3 x depth for a core of less than 4 layers).

    Four layers at a quarter, half and three quarters of the depth and the final state, times three pools (mean, last,
    max); for denoisers times three times of the mean, since no token of theirs stands for the whole.
    """
    steps = min(LAYERS, depth)
    layers = [*(round(depth * step / steps) for step in range(1, steps)), -1]
    if denoises(objective):
        return tuple(Readout(layer=layer, time=time) for layer in layers for time in TIMES)
    pools: tuple[Pool, ...] = ("mean", "last", "max")
    return tuple(Readout(layer=layer, pool=pool) for layer in layers for pool in pools)


def check_readouts(readouts: Sequence[Readout], objective: Objective, depth: int) -> None:
    """Raise ConsilienceError for what a model of this objective and depth cannot do."""
    if not readouts:
        raise ConsilienceError("no read-out is asked for; give at least one")
    for readout in readouts:
        if not isinstance(readout.layer, Integral) or not -1 <= readout.layer <= depth:
            raise ConsilienceError(
                f"layer must be -1 (final) or 0..{depth} for this model, not {readout.layer}"
            )
        if readout.time != 1 and not denoises(objective):
            raise ConsilienceError(
                f"{objective.name} knows no noise: a read-out at time {readout.time:g} needs a denoiser; use time 1"
            )


def observe_at(objective: Objective, tokens: TokenBatch, spec: TokenSpec, time: float) -> View:
    """What the core sees for an embedding: nothing corrupted, or its values at an earlier time.

    The noise of a token depends on its place in its sample alone and is the same for every record, so that
    embeddings depend on neither batch nor order. Symbols beside the values stay. Blocks see their own tokens noisy
    and earlier blocks clean, as in training.
    """
    if time == 1:
        return objective.observe(tokens, spec)
    blocks = objective if isinstance(objective, Block) and objective.size is not None else None
    ordered = tokens if blocks is None else laid_out(tokens, blocks.order)
    assert ordered.values is not None
    free = predictable(ordered)
    clean = spec.standardise(ordered.values)
    noise = place_noise(tokens.width, spec.channels).to(clean)
    noisy = torch.where(free[..., None], (1 - time) * noise + time * clean, clean)
    kept = torch.zeros_like(ordered.real)
    if blocks is not None:
        count = int(blocks.number(ordered).max()) + 1
        times = torch.full((tokens.size, count), time, device=tokens.device)
        return blocks.noisy_view(ordered, noisy, times, kept, spec)
    return noisy_view(ordered, noisy, torch.full((tokens.size,), time, device=tokens.device), kept, spec)


def place_noise(width: int, channels: int) -> Tensor:
    """(1, N, C) standard normal noise, the same for every call: row i does not depend on how many rows there are."""
    # numpy draws one number after another; torch fills short and long tensors in different orders.
    drawn = np.random.default_rng(0).standard_normal((1, width, channels))
    return torch.from_numpy(drawn.astype(np.float32))
