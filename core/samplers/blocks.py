"""Generation and likelihood block by block: unmasking or transport within each, given the clean blocks before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from consilience.core.attention import Pattern
from consilience.core.batch import TokenBatch
from consilience.core.likelihoods import Field
from consilience.core.objectives.base import Predictor, Wrapped, predictable, uniform_like
from consilience.core.objectives.block import Block, doubled, queries
from consilience.core.objectives.denoising import EXACT_DIMENSIONS
from consilience.core.objectives.orders import permutation
from consilience.core.objectives.scoring import nats_by_sample
from consilience.core.ode import log_density
from consilience.core.samplers.content import cut_at_end
from consilience.core.samplers.transport import transport
from consilience.core.samplers.unmasking import unmask
from consilience.core.sampling import Sampling
from consilience.core.transformer import KeyValueCache
from consilience.core.view import Targets, View


@dataclass(frozen=True)
class Patterned(Wrapped):
    """A model whose views get another pattern of attention: samplers of one block then see the blocks before it."""

    pattern: Pattern

    def __call__(self, view: View, *, cache: KeyValueCache | None = None) -> dict[Field, Tensor]:
        """Parameters of each likelihood for every row."""
        return self.predict(replace(view, pattern=self.pattern), cache=cache)


def block_by_block(
    objective: Block,
    predict: Predictor,
    tokens: TokenBatch,
    hidden: Tensor,
    generator: torch.Generator,
    sampling: Sampling,
) -> TokenBatch:
    """Fill hidden tokens block after block; visible ones inform their own block and later ones.

    One stream does: a token is context once its block is done, a query while it is drawn, and not there before.

    Args:
        objective: cuts the blocks.
        predict: the model.
        tokens: ordered tokens; content of hidden rows is ignored.
        hidden: (B, N) bool.
        generator: all randomness.
        sampling: how to draw; steps are those of each block; a sample is finished once it draws the end symbol.
    """
    number, length = objective.number(tokens), tokens.length
    hidden = hidden & predictable(tokens)
    inner = replace(sampling, end_id=None)
    if sampling.mean and objective.noise == "erasure":
        inner = replace(inner, steps=1)
    for block in range(1, int(number.max()) + 1):
        own = hidden & (number == block)
        index = own.any(1).nonzero().squeeze(1)
        if not len(index):
            continue
        upto = (number <= block).sum(1).minimum(length)
        part = replace(tokens, given=number < block, length=upto).take(index).trim()
        numbers = number[index, : part.width]
        pattern = Pattern(kind="block", block=numbers, query=numbers == block)
        fill = unmask if objective.noise == "erasure" else transport
        filled = fill(Patterned(predict, pattern), part, own[index, : part.width], generator, inner)
        tokens = _returned(tokens, filled, index)
        if sampling.end_id is not None and tokens.ids is not None:
            ended = ((tokens.ids == sampling.end_id) & (number == block) & predictable(tokens)).any(1)
            hidden = hidden & ~ended[:, None]
    return cut_at_end(tokens, sampling.end_id, length)


def _returned(tokens: TokenBatch, part: TokenBatch, index: Tensor) -> TokenBatch:
    """The tokens with the content of the samples `index` taken from `part`, which is not wider."""
    changed: dict[str, Any] = {}
    for name in ("ids", "values"):
        old, new = getattr(tokens, name), getattr(part, name)
        if old is not None:
            changed[name] = old.clone()
            changed[name][index, : part.width] = new
    return replace(tokens, **changed)


def revealed_log_likelihoods(
    objective: Block, predict: Predictor, tokens: TokenBatch, generators: Sequence[torch.Generator]
) -> Tensor:
    """(B,) float64, log p(x | order) of blocks whose tokens are revealed one by one in an order drawn for each sample.

    What `block_by_block` draws from with a token a step. Step r asks for the r-th token of every block at once: given
    clean contexts blocks do not touch.
    """
    assert objective.size is not None
    parts, ranks = [], []
    for row, generator in enumerate(generators):
        own = tokens.take([row]).trim()
        own = own.permute(permutation(own, objective.order, generator))
        number = objective.number(own)
        chance = uniform_like(own.real, generator).argsort(1)
        before = (number[:, :, None] == number[:, None]) & (chance[:, :, None] > chance[:, None])
        parts.append(own)
        ranks.append((before & own.real[:, None]).sum(2))
    ordered = TokenBatch.concatenate(parts)
    rank = torch.full_like(ordered.real, -1, dtype=torch.int64)
    for row, own_rank in enumerate(ranks):
        rank[row, : own_rank.shape[1]] = own_rank[0]
    free = predictable(ordered)
    total = torch.zeros(tokens.size, dtype=torch.float64, device=tokens.device)
    for step in range(objective.size):
        asked = free & (rank == step)
        if asked.any():
            view = objective.erased_view(ordered, free & (rank >= step), predict.spec)
            targets = Targets(tokens=doubled(ordered), scored=queries(asked))
            total -= nats_by_sample(predict, view, targets, generators, 1)
    return total


def flow_log_likelihoods(
    objective: Block, predict: Predictor, tokens: TokenBatch, generators: Sequence[torch.Generator]
) -> Tensor:
    """(B,) float64, `block_log_likelihood` of samples that do not depend on one another."""
    assert objective.size is not None
    exact = objective.size * predict.spec.channels <= EXACT_DIMENSIONS
    if exact and objective.order != "random":
        ordered = tokens.permute(permutation(tokens, objective.order, generators[0]))
        return block_log_likelihood(objective, predict, ordered, generators[0])
    parts = []
    for row, generator in enumerate(generators):
        own = tokens.take([row]).trim()
        own = own.permute(permutation(own, objective.order, generator))
        parts.append(block_log_likelihood(objective, predict, own, generator))
    return torch.cat(parts)


def block_log_likelihood(
    objective: Block, predict: Predictor, ordered: TokenBatch, generator: torch.Generator
) -> Tensor:
    """(B,) log p(values) in nats, original units, by the chain rule over blocks, each by the ODE of its flow.

    Given clean contexts the flows of different blocks do not touch: all are integrated at once, as samples of `size`
    tokens. The divergence is exact up to EXACT_DIMENSIONS a block, and estimated by random probes beyond.
    """
    assert ordered.values is not None and objective.size is not None
    spec, free, number, size = predict.spec, predictable(ordered), objective.number(ordered), objective.size
    blocks, channels = int(number.max()), spec.channels
    place = torch.arange(ordered.width, device=ordered.device)[None] - ordered.is_given.sum(1, keepdim=True)
    slot = torch.where(free, place, blocks * size)[..., None].expand_as(ordered.values)  # the last: not free
    clean = spec.standardise(ordered.values)
    none_lost = torch.zeros_like(free)

    def apart(rows: Tensor) -> Tensor:
        """(B, N, C) -> (B * blocks, size, C)."""
        wide = rows.new_zeros(ordered.size, blocks * size + 1, channels).scatter(1, slot, rows)
        return wide[:, :-1].reshape(-1, size, channels)

    def velocity(x: Tensor, t: float) -> Tensor:
        wide = torch.cat(
            [x.reshape(ordered.size, -1, channels), x.new_zeros(ordered.size, 1, channels)], dim=1
        )
        noisy = torch.where(free[..., None], torch.gather(wide, 1, slot), clean)
        time = torch.full((ordered.size, blocks + 1), t, device=x.device)
        view = objective.noisy_view(ordered, noisy, time, none_lost, spec)
        return apart(predict(view)["values"][:, 1::2].float())

    exact = min(size, int(free.sum(1).max())) * channels <= EXACT_DIMENSIONS
    moved = apart(free[..., None].expand_as(clean))
    times = torch.linspace(0, 1, (40 if exact else 16) + 1, dtype=torch.float64)
    total = log_density(velocity, apart(clean), moved, times, generator, probes=None if exact else 1)
    return total.reshape(ordered.size, -1).sum(1) - free.sum(1) * channels * math.log(spec.value_scale)
