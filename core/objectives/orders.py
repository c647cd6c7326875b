"""Orders of the tokens of a sample: which come first, for objectives that predict some tokens from others before.

Whatever the order, given tokens stand first and padding last. The entropy of a source does not depend on the order,
so how much harder one is to learn than another says how natural it is for a science.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.objectives.base import predictable, uniform_like

Order = Literal["natural", "reversed", "random", "centre-out", "outside-in"]
ORDERS: tuple[Order, ...] = get_args(Order)


def check_order(objective: str, order: str) -> None:
    """Raise ConsilienceError for an unknown order."""
    if order not in ORDERS:
        raise ConsilienceError(f"{objective}: unknown order '{order}'; known: {', '.join(ORDERS)}")


def permutation(tokens: TokenBatch, order: Order, generator: torch.Generator) -> Tensor:
    """(B, N) int64, row i of the ordered sample is row `permutation[b, i]`: given tokens, the order, padding.

    * natural: as the tokenizer lays tokens out; reversed: from the last to the first.
    * random: a new order for every sample, from the generator.
    * centre-out: by distance from the middle of the free tokens, the earlier of two equally distant ones first;
      outside-in: the farthest first.
    """
    n = tokens.width
    place = torch.arange(n, device=tokens.device).expand(tokens.size, n).float()
    free = predictable(tokens)
    if order == "reversed":
        place = torch.where(free, n - place, place)
    elif order == "random":
        place = torch.where(free, n * uniform_like(free, generator), place)
    elif order in ("centre-out", "outside-in"):
        middle = (tokens.is_given.sum(1) + tokens.length - 1)[:, None] / 2
        distance = (place - middle).abs()
        place = torch.where(free, distance if order == "centre-out" else n - distance, place)
    rank = torch.where(tokens.is_given, place - 4 * n, place) + torch.where(tokens.real, 0.0, 4.0 * n)
    return rank.argsort(dim=1, stable=True)


def visible_first(order: Tensor, tokens: TokenBatch, hidden: Tensor) -> Tensor:
    """(B, N) the order with hidden tokens after all visible ones, both as they were; padding stays last.

    In a random order any tokens may come first: what is visible then informs all that is drawn.
    """
    late = (hidden & predictable(tokens)).long() + 2 * (~tokens.real).long()
    return order.gather(1, late.gather(1, order).argsort(dim=1, stable=True))


def unread_ahead(objective: str, number: Tensor, tokens: TokenBatch, hidden: Tensor) -> str | None:
    """The reason of `Objective.unread` where a visible token comes after a hidden one; None where none does.

    Args:
        objective: its name and order, for the message.
        number: (B, N) int64, when each token is drawn; those of one number inform one another.
        tokens: the samples.
        hidden: (B, N) bool.
    """
    free = predictable(tokens)
    first = torch.where(free & hidden, number, number.max() + 1).amin(1, keepdim=True)
    late = (free & ~hidden & (number > first)).nonzero()
    if not len(late):
        return None
    return (
        f"{objective} looks back only, and token {int(late[0, 1])} is to be kept after one that is to be filled; "
        "models of any-order, masked and masked-diffusion fill tokens between others"
    )


def laid_out(tokens: TokenBatch, order: Order) -> TokenBatch:
    """The tokens in the order of training; a model of random orders is shown the natural one."""
    if order in ("natural", "random"):
        return tokens
    return tokens.permute(permutation(tokens, order, torch.Generator()))
