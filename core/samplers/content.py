"""Drawing the content of tokens from predicted parameters, for all samplers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.likelihoods import Field
from consilience.core.objectives.base import Predictor
from consilience.core.sampling import Sampling


def draw(
    predict: Predictor,
    tokens: TokenBatch,
    parameters: Mapping[Field, Tensor],
    where: Tensor,
    generator: torch.Generator,
    sampling: Sampling,
) -> TokenBatch:
    """The tokens with the content of the rows `where` drawn anew.

    Args:
        predict: the model, for its likelihoods.
        tokens: the batch so far, content in original units.
        parameters: (S, parameters) of the rows in `where`, in row-major order.
        where: (B, N) bool, S rows.
        generator: all randomness.
        sampling: how to draw.
    """
    sample = where.nonzero()[:, 0]
    exposure = None if tokens.exposure is None else tokens.exposure[sample]
    changed: dict[str, Any] = {}
    for field, likelihood in predict.likelihoods.items():
        found = sampling.permitted(parameters[field]) if field == "ids" else parameters[field]
        if sampling.mean:
            drawn = likelihood.mean(found, exposure=exposure)
        else:
            drawn = likelihood.sample(found, generator, exposure=exposure, temperature=sampling.temperature)
        old = getattr(tokens, field)
        assert old is not None, f"the template holds no `{field}` to fill"
        changed[field] = old.masked_scatter(
            where if old.dim() == 2 else where[..., None], drawn.to(old.dtype)
        )
    return replace(tokens, **changed)


def cut_at_end(tokens: TokenBatch, end_id: int | None, longest: Tensor) -> TokenBatch:
    """End every sample at its first end symbol and blank what comes after.

    Samples without an end symbol keep `longest` (B,) tokens.
    """
    if end_id is None or tokens.ids is None:
        return tokens
    row = torch.arange(tokens.width, device=tokens.device)[None]
    ended = (tokens.ids == end_id) & (row < longest[:, None]) & ~tokens.is_given
    first = torch.where(ended, row, tokens.width).amin(1)
    length = torch.minimum(first + 1, longest)
    keep = row < length[:, None]
    values = None if tokens.values is None else tokens.values * keep[..., None]
    return replace(tokens, length=length, ids=tokens.ids * keep, values=values)
