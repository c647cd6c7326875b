"""Generation by revealing hidden tokens step by step in random order (masked and masked-diffusion models)."""

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.objectives.base import Predictor, uniform_like
from consilience.core.objectives.masked import masked_view
from consilience.core.samplers.content import cut_at_end, draw
from consilience.core.sampling import Sampling


def unmask(
    predict: Predictor,
    tokens: TokenBatch,
    hidden: Tensor,
    generator: torch.Generator,
    sampling: Sampling,
) -> TokenBatch:
    """Fill hidden tokens from all that is visible so far.

    Each step draws an equal share of the tokens that are still hidden, independently given the rest; one
    token a step is exact sampling of the any-order model, fewer steps trade dependence for speed.

    Args:
        predict: the model.
        tokens: the template; content of hidden rows is ignored.
        hidden: (B, N) bool.
        generator: all randomness.
        sampling: how to draw; steps None = one token a step, at most 64.
    """
    hidden = hidden & tokens.real & ~tokens.is_given
    total = hidden.sum(1)
    longest = int(total.max()) if tokens.size else 0
    steps = max(min(sampling.steps or 64, longest), 1)
    rank = uniform_like(hidden, generator).masked_fill(~hidden, 2.0).argsort(dim=1).argsort(dim=1)
    for step in range(steps):
        shown = (total * step) // steps
        upto = (total * (step + 1)) // steps
        still = hidden & (rank >= shown[:, None])
        where = still & (rank < upto[:, None])
        if not where.any():
            continue
        parameters = {
            field: out[where] for field, out in predict(masked_view(tokens, still, predict.spec)).items()
        }
        tokens = draw(predict, tokens, parameters, where, generator, sampling)
    return cut_at_end(tokens, sampling.end_id, tokens.length)
