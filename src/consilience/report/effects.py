"""A difference with its interval, and what may be said of it in words."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Side = Literal["above", "below", "unclear", "unknown"]

LEVEL = 0.05
"""A test counts below this p-value, after Holm's correction."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A difference; an end or a p-value is NaN where the study cannot give it.

    Args:
        value: the difference itself.
        low: lower end of its 95% interval.
        high: upper end.
        p: of its test, corrected; NaN where there is none, and the interval decides alone.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    @property
    def side(self) -> Side:
        """Above or below zero when the interval excludes it (and the test, if any, agrees); else unclear."""
        if not all(map(math.isfinite, (self.value, self.low, self.high))):
            return "unknown"
        if math.isfinite(self.p) and self.p > LEVEL:
            return "unclear"
        return "above" if self.low > 0 else "below" if self.high < 0 else "unclear"

    def __str__(self) -> str:
        return f"{self.value:+.3f}{bracket(self.low, self.high, sign=True)}"


def bracket(low: float, high: float, *, sign: bool = False) -> str:
    """ " [0.71, 0.83]", or nothing where there is no interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    form = "+.3f" if sign else ".3f"
    return f" [{low:{form}}, {high:{form}}]"


def apart(first: tuple[float, float, float], second: tuple[float, float, float]) -> Effect:
    """The difference of two (value, low, high) as if they were independent.

    Two rows of one study share test groups, so that their paired difference has a shorter interval: this one says too
    seldom that they differ, not too often.
    """
    value = first[0] - second[0]
    low = value - math.hypot(first[0] - first[1], second[2] - second[0])
    high = value + math.hypot(first[2] - first[0], second[0] - second[1])
    return Effect(value=value, low=low, high=high)


def sides(effects: Iterable[Effect]) -> dict[Side, int]:
    """How many are above, below, unclear, unknown."""
    found: dict[Side, int] = {"above": 0, "below": 0, "unclear": 0, "unknown": 0}
    for effect in effects:
        found[effect.side] += 1
    return found


def p_text(p: float) -> str:
    """ "p = 0.012", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
