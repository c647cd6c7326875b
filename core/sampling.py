"""Sampling: the options that all samplers share, checked before anything is drawn."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from consilience.core.errors import ConsilienceError
from consilience.core.options import check_types

UnmaskOrder = Literal["random", "confidence"]

INTERNAL = ("end_id", "banned", "cached")
"""Fields that no person sets."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw new content.

    Args:
        steps: number of steps of samplers that can choose it (unmasking, transport); None = their default.
        temperature: below 1 sharpens, 0 takes the mode. Counts know 0 and 1 only in effect: their spread is
            part of the model.
        top_k: symbols are drawn from the k likeliest alone; None = from all.
        top_p: symbols are drawn from the smallest set of the likeliest that holds this share of the probability
            at the temperature (nucleus; Holtzman et al. 2020, arXiv:1904.09751); None = from all.
        unmask_order: which hidden tokens an unmasking sampler reveals next: random ones, or (confidence) those
            whose likeliest symbol has the greatest probability; see `core.samplers.unmasking`.
        mean: expected values instead of samples.
        guidance: how far predictions are pushed towards the conditions of the samples; 0 = the plain conditional
            model; see `core.guidance`.
        end_id: the symbol that ends a sample; later tokens are cut off.
        banned: symbols that are never drawn.
        cached: autoregression keeps keys and values; False recomputes all rows at every step (the slow
            reference).
    """

    steps: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    unmask_order: UnmaskOrder = "random"
    mean: bool = False
    guidance: float = 0.0
    end_id: int | None = None
    banned: tuple[int, ...] = ()
    cached: bool = True

    def __post_init__(self) -> None:
        check_types(self, "sampling")
        if self.steps is not None and self.steps < 1:
            raise ConsilienceError(f"steps must be at least 1, not {self.steps}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConsilienceError(f"temperature must not be negative, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConsilienceError(
                f"top_k must be at least 1, not {self.top_k}; leave it out to draw from all"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConsilienceError(
                f"top_p must lie in (0, 1], not {self.top_p}; leave it out to draw from all"
            )
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ConsilienceError(
                f"guidance must not be negative, not {self.guidance}; 0 is plain conditional"
            )
        if self.unmask_order not in get_args(UnmaskOrder):
            raise ConsilienceError(
                f"unknown unmask_order '{self.unmask_order}'; known: {', '.join(get_args(UnmaskOrder))}"
            )

    @classmethod
    def of(cls, options: dict[str, Any], *, end_id: int | None = None) -> Self:
        """From keyword arguments of a person; an unknown one raises ConsilienceError naming the known ones."""
        known = [field.name for field in fields(cls) if field.name not in INTERNAL]
        for name in options:
            if name not in known:
                raise ConsilienceError(f"unknown option '{name}' of a sampler; known: {', '.join(known)}")
        return cls(**options, end_id=end_id)

    def permitted(self, logits: Tensor) -> Tensor:
        """Logits with minus infinity for the symbols that may not be drawn; the others as they are.

        Args:
            logits: (S, V).
        """
        if self.banned:
            logits = logits.index_fill(-1, torch.tensor(self.banned, device=logits.device), -torch.inf)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            best = logits.topk(self.top_k, dim=-1).indices
            logits = logits.masked_fill(
                torch.ones_like(logits, dtype=torch.bool).scatter(-1, best, False), -torch.inf
            )
        if self.top_p is not None and self.top_p < 1 and self.temperature > 0:
            share, order = (logits.double() / self.temperature).softmax(-1).sort(dim=-1, descending=True)
            beyond = share.cumsum(-1) - share >= self.top_p  # never the likeliest: nothing stands before it
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
        return logits
