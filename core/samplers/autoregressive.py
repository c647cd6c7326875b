"""Generation one token after another, with a key-value cache; finished samples leave the batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.likelihoods import Field
from consilience.core.objectives.base import Predictor
from consilience.core.objectives.next_token import shifted_view
from consilience.core.samplers.content import cut_at_end, draw
from consilience.core.sampling import Sampling
from consilience.core.transformer import KeyValueCache
from consilience.core.view import View

WORTH_LEAVING = 0.8
"""The batch is made smaller once no more than this share of it is unfinished: moving the cache has a cost."""


def autoregress(
    predict: Predictor,
    tokens: TokenBatch,
    hidden: Tensor,
    generator: torch.Generator,
    sampling: Sampling,
) -> TokenBatch:
    """Fill hidden tokens in row order; visible ones are read, not drawn.

    Tokens that stand after a hidden one do not inform it: an autoregression looks back only.

    Args:
        predict: the model.
        tokens: ordered tokens; content of hidden rows is ignored.
        hidden: (B, N) bool.
        generator: all randomness; draws do not depend on whether keys and values are cached.
        sampling: how to draw; a sample is finished once it draws the end symbol, or has its length.
    """
    cache = predict.new_cache(tokens) if sampling.cached else None
    index = torch.arange(tokens.size, device=tokens.device)  # of the unfinished samples
    part, fill = tokens, hidden & tokens.real & ~tokens.is_given
    finished = torch.zeros_like(index, dtype=torch.bool)
    for row in range(tokens.width):
        parameters = _predicted(predict, part, row, cache)
        drawn = fill[:, row]
        if drawn.any():
            where = torch.zeros_like(fill)
            where[:, row] = drawn
            chosen = {field: out[drawn] for field, out in parameters.items()}
            part = draw(predict, part, chosen, where, generator, sampling)
        finished |= part.length <= row + 1
        if sampling.end_id is not None and part.ids is not None:
            finished |= (part.ids[:, row] == sampling.end_id) & ~part.is_given[:, row]
        unfinished = (~finished).nonzero().squeeze(1)
        if not len(unfinished):
            break
        if len(unfinished) <= WORTH_LEAVING * len(finished):
            tokens = _returned(tokens, part, index)
            index, fill, part = index[unfinished], fill[unfinished], part.take(unfinished)
            finished = finished[unfinished]
            if cache is not None:
                cache.keep(unfinished)
    return cut_at_end(_returned(tokens, part, index), sampling.end_id, tokens.length)


def _predicted(
    predict: Predictor, tokens: TokenBatch, row: int, cache: KeyValueCache | None
) -> Mapping[Field, Tensor]:
    """(B, parameters) of the token in this row, from those before it."""
    if cache is None:
        view = shifted_view(tokens, predict.spec).rows(0, row + 1)
        return {field: out[:, row] for field, out in predict(view).items()}
    return {
        field: out[:, 0] for field, out in predict(_one_row(tokens, row, predict.spec), cache=cache).items()
    }


def _one_row(tokens: TokenBatch, row: int, spec: TokenSpec) -> View:
    """Row `row` of the shifted view, made from the two tokens that it holds."""
    if row == 0:
        return shifted_view(tokens.columns(0, 1), spec)
    return shifted_view(tokens.columns(row - 1, row + 1), spec).rows(1, 2)


def _returned(tokens: TokenBatch, part: TokenBatch, index: Tensor) -> TokenBatch:
    """The tokens with the content of the samples `index` taken from `part`."""
    changed: dict[str, Any] = {}
    for name in ("ids", "values"):
        old, new = getattr(tokens, name), getattr(part, name)
        if old is not None:
            changed[name] = old.index_copy(0, index, new)
    return replace(tokens, **changed)
