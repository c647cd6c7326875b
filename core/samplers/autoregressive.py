"""Generation one token after another, with a key-value cache and an early stop."""

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.objectives.base import Predictor
from consilience.core.objectives.next_token import shifted_view
from consilience.core.samplers.content import cut_at_end, draw
from consilience.core.sampling import Sampling


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
        sampling: how to draw; a sample is finished once it draws the end symbol.
    """
    fill = hidden & tokens.real & ~tokens.is_given
    finished = torch.zeros(tokens.size, dtype=torch.bool, device=tokens.device)
    # The cache keeps keys and values, not the places that a pairwise bias is made of.
    cached = sampling.cached and not predict.spec.pairwise_bias
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
            tokens = draw(predict, tokens, chosen, where, generator, sampling)
        if sampling.end_id is not None and tokens.ids is not None:
            finished |= (tokens.ids[:, row] == sampling.end_id) & ~tokens.is_given[:, row]
            if finished.all():
                break
    return cut_at_end(tokens, sampling.end_id, tokens.length)
