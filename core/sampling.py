"""Sampling: the options that all samplers share, checked before anything is drawn."""

import math
from dataclasses import dataclass, fields
from typing import Any, Self

from consilience.core.errors import ConsilienceError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw new content.

    Args:
        steps: number of steps of samplers that can choose it (unmasking, transport); None = their default.
        temperature: below 1 sharpens, 0 takes the mode. Counts know 0 and 1 only in effect: their spread is
            part of the model.
        mean: expected values instead of samples.
        end_id: the symbol that ends a sample; later tokens are cut off.
        cached: autoregression keeps keys and values; False recomputes all rows at every step (the slow
            reference).
    """

    steps: int | None = None
    temperature: float = 1.0
    mean: bool = False
    end_id: int | None = None
    cached: bool = True

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConsilienceError(f"steps must be at least 1, not {self.steps}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConsilienceError(f"temperature must not be negative, not {self.temperature}")

    @classmethod
    def of(cls, options: dict[str, Any], *, end_id: int | None = None) -> Self:
        """From keyword arguments of a person; an unknown one raises ConsilienceError naming the known ones."""
        known = [field.name for field in fields(cls) if field.name not in ("end_id", "cached")]
        for name in options:
            if name not in known:
                raise ConsilienceError(f"unknown option '{name}' of a sampler; known: {', '.join(known)}")
        return cls(**options, end_id=end_id)
