"""Generation one token after another, with a key-value cache and an early stop."""

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.objectives.base import Predictor
from consilience.core.objectives.next_token import shifted_view
from consilience.core.samplers.content import cut_at_end, draw


def autoregress(
    predict: Predictor,
    tokens: TokenBatch,
    hidden: Tensor,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    end_id: int | None = None,
    mean: bool = False,
    cached: bool = True,
) -> TokenBatch:
    """Fill hidden tokens in row order; visible ones are read, not drawn.

    Tokens that stand after a hidden one do not inform it: an autoregression looks back only.

    Args:
        predict: the model.
        tokens: ordered tokens; content of hidden rows is ignored.
        hidden: (B, N) bool.
        generator: all randomness; draws do not depend on `cached`.
        temperature: below 1 sharpens; 0 takes the mode.
        end_id: a sample is finished once it draws this symbol.
        mean: expected content instead of samples.
        cached: keep keys and values; False recomputes all rows at every step (the slow reference).
    """
    fill = hidden & tokens.real & ~tokens.is_given
    finished = torch.zeros(tokens.size, dtype=torch.bool, device=tokens.device)
    # The cache keeps keys and values, not the places that a pairwise bias is made of.
    cached = cached and not predict.spec.pairwise_bias
    cache = predict.new_cache(tokens.size, tokens.width) if cached else None
    for row in range(tokens.width):
        view = shifted_view(tokens, predict.spec)
        if cache is not None:
            parameters = {
                field: out[:, 0] for field, out in predict(view.rows(row, row + 1), cache=cache).items()
            }
        else:
            parameters = {field: out[:, row] for field, out in predict(view.rows(0, row + 1)).items()}
        where = torch.zeros_like(fill)
        where[:, row] = fill[:, row]
        if where.any():
            chosen = {field: out[fill[:, row]] for field, out in parameters.items()}
            tokens = draw(predict, tokens, chosen, where, generator, temperature=temperature, mean=mean)
        if end_id is not None and tokens.ids is not None:
            finished |= (tokens.ids[:, row] == end_id) & ~tokens.is_given[:, row]
            if finished.all():
                break
    return cut_at_end(tokens, end_id, tokens.length)
