"""Generation by revealing hidden tokens step by step (masked and masked-diffusion models)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.likelihoods import Field
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

    Each step draws an equal share of the tokens that are still hidden, independently given the rest. One token a
    step in random order is exact sampling of the any-order model; fewer steps trade dependence for speed.

    In the order of confidence the next token is the one whose likeliest symbol has the greatest probability. Which
    one that is depends on visible tokens alone, so that with one token a step the chain rule still holds, and
    conditionals that agree with one another (`core.oracle`) still give the exact distribution. Those of a trained
    model do not quite agree: samples then follow another distribution than the one which the bound of masked
    diffusion is of, usually a narrower one. Several tokens a step lose less dependence than in random order.

    Args:
        predict: the model.
        tokens: the template; content of hidden rows is ignored.
        hidden: (B, N) bool.
        generator: all randomness.
        sampling: how to draw; steps None = one token a step, at most 64.
    """
    by_confidence = sampling.unmask_order == "confidence"
    if by_confidence and not predict.spec.vocabulary:
        raise ConsilienceError(
            f"unmask_order=confidence is for symbols, and {predict.spec.name} tokens are numbers, whose densities "
            "depend on their units: use random"
        )
    hidden = hidden & tokens.real & ~tokens.is_given
    total = hidden.sum(1)
    longest = int(total.max()) if tokens.size else 0
    steps = max(min(sampling.steps or 64, longest), 1)
    rank = hidden.long() if by_confidence else _random_rank(hidden, generator)
    for step in range(steps):
        shown = (total * step) // steps
        upto = (total * (step + 1)) // steps
        if not (shown < upto).any():
            continue
        parameters = predict(masked_view(tokens, hidden, predict.spec))
        if by_confidence:
            rank = shown[:, None] + _rank(_confidence(parameters, sampling).masked_fill(~hidden, -1.0))
        where = hidden & (rank < upto[:, None])
        chosen = {field: out[where] for field, out in parameters.items()}
        tokens = draw(predict, tokens, chosen, where, generator, sampling)
        hidden = hidden & ~where
    return cut_at_end(tokens, sampling.end_id, tokens.length)


def _random_rank(hidden: Tensor, generator: torch.Generator) -> Tensor:
    """(B, N) places in a random order of the hidden tokens; the others come after."""
    return uniform_like(hidden, generator).masked_fill(~hidden, 2.0).argsort(dim=1).argsort(dim=1)


def _rank(score: Tensor) -> Tensor:
    """(B, N) places from the greatest score to the least; of equal ones the first comes first."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _confidence(parameters: Mapping[Field, Tensor], sampling: Sampling) -> Tensor:
    """(B, N) probability of the likeliest symbol among those that may be drawn, at temperature 1."""
    logits = parameters["ids"]
    plain = Sampling(banned=sampling.banned)
    return plain.permitted(logits.flatten(0, 1)).double().softmax(-1).amax(-1).reshape(logits.shape[:2])
