"""View, Targets and Loss: what an objective makes of a batch.

A View is the only thing the core ever sees; Targets hold what the head is scored against. That they are apart,
row by row, is what the leak test relies on.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from consilience.core.attention import Pattern
from consilience.core.batch import TokenBatch

Kind = Literal["exact", "bound", "surrogate"]


@dataclass(frozen=True, kw_only=True)
class View:
    """What the core may see of one modality of a batch: M rows a sample.

    Args:
        tokens: addresses, and the content of visible rows; values are standardised (`TokenSpec.standardise`)
            and possibly noisy. What stands in the content of hidden rows is never read.
        hidden: (B, M) bool, rows whose content the core may not see.
        time: (U,) levels of time in [0, 1]; 1 = clean.
        time_index: (B, M) int64 level of every row; None = level 0 for all.
        pattern: the rule of attention.
        start: (B, M) bool, rows that stand before the first token and hold nothing but what is asked.
        ask_address: (B, M) address of the token that the row predicts; None = its own.
        ask_positions: (B, M, P) coordinates of the token that the row predicts; None = its own.
    """

    tokens: TokenBatch
    hidden: Tensor
    time: Tensor
    time_index: Tensor | None = None
    pattern: Pattern = field(default_factory=Pattern)
    start: Tensor | None = None
    ask_address: Tensor | None = None
    ask_positions: Tensor | None = None

    def rows(self, first: int, stop: int) -> Self:
        """The view of rows first..stop alone (causal generation feeds them one by one)."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, first:stop]

        per_row = ("ids", "values", "weight", "address", "positions", "given")
        own: dict[str, Any] = {name: cut(getattr(self.tokens, name)) for name in per_row}
        tokens = replace(self.tokens, length=torch.full_like(self.tokens.length, stop - first), **own)
        names = ("hidden", "time_index", "start", "ask_address", "ask_positions")
        changed: dict[str, Any] = {name: cut(getattr(self, name)) for name in names}
        return replace(self, tokens=tokens, **changed)

    def take(self, samples: Tensor) -> Self:
        """The view of some samples alone, without the columns that are padding in all of them; levels of time stay."""
        tokens = self.tokens.take(samples).trim()

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[samples, : tokens.width]

        names = ("hidden", "time_index", "start", "ask_address", "ask_positions")
        changed: dict[str, Any] = {name: cut(getattr(self, name)) for name in names}
        pattern = replace(self.pattern, block=cut(self.pattern.block), query=cut(self.pattern.query))
        return replace(self, tokens=tokens, pattern=pattern, **changed)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the predictions are scored against.

    Args:
        tokens: the clean content in original units, aligned with the rows of the view.
        scored: (B, M) bool, rows that carry loss.
        weight: (B, M) float, factor on each row's nats in the loss; None = 1.
        velocity: (B, M, C) float, the target of flow matching; None otherwise.
        erased: (B, M) bool, rows whose symbol the core could not see, where only some could not; None = all scored.
        noise: (B, M, C) float, standard normal noise of a flow head (`core.heads`), which draws none itself; None
            for other heads.
        level: (B, M) float in [0, 1), the time of the flow head at every scored row; see `noise`.
    """

    tokens: TokenBatch
    scored: Tensor
    weight: Tensor | None = None
    velocity: Tensor | None = None
    erased: Tensor | None = None
    noise: Tensor | None = None
    level: Tensor | None = None

    def take(self, samples: Tensor) -> Self:
        """The targets of some samples alone, aligned with `View.take` of the same ones."""
        tokens = self.tokens.take(samples).trim()

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[samples, : tokens.width]

        names = ("scored", "weight", "velocity", "erased", "noise", "level")
        changed: dict[str, Any] = {name: cut(getattr(self, name)) for name in names}
        return replace(self, tokens=tokens, **changed)

    def select(self) -> "Scored":
        """The scored rows of all samples end to end (S rows)."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[self.scored]

        sample = self.scored.nonzero()[:, 0]
        exposure = self.tokens.exposure
        return Scored(
            sample=sample,
            address=pick(self.tokens.address),
            ids=pick(self.tokens.ids),
            values=pick(self.tokens.values),
            precision=pick(self.tokens.weight),
            exposure=None if exposure is None else exposure[sample],
            weight=pick(self.weight),
            velocity=pick(self.velocity),
            erased=pick(self.erased),
            noise=pick(self.noise),
            level=pick(self.level),
        )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The rows that carry loss, end to end.

    Args:
        sample: (S,) the sample of each row.
        address: (S,) discrete address of the token.
        ids: (S,) clean symbols.
        values: (S, C) clean values in original units.
        precision: (S, C) inverse variance of the values; 0 = not measured; None = exact.
        exposure: (S,) size factor of counts.
        weight: (S,) factor of each row in the loss.
        velocity: (S, C) target of flow matching.
        erased: (S,) rows whose symbol counts; None = all.
        noise: (S, C) noise of a flow head.
        level: (S,) time of a flow head.
    """

    sample: Tensor
    address: Tensor | None = None
    ids: Tensor | None = None
    values: Tensor | None = None
    precision: Tensor | None = None
    exposure: Tensor | None = None
    weight: Tensor | None = None
    velocity: Tensor | None = None
    erased: Tensor | None = None
    noise: Tensor | None = None
    level: Tensor | None = None

    def rows(self, first: int, stop: int) -> Self:
        """Rows first..stop alone."""
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        cut: dict[str, Any] = {n: None if x is None else x[first:stop] for n, x in parts.items()}
        return replace(self, **cut)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss that says what it is.

    Args:
        value: scalar to minimise.
        nats: summed negative log-likelihood, float64 and detached; for surrogates the summed surrogate.
        tokens: the number of tokens that `nats` is summed over.
        kind: exact (a negative log-likelihood), bound (an upper bound of one), surrogate (neither: it must
            never be shown on a likelihood axis).
    """

    value: Tensor
    nats: Tensor
    tokens: int
    kind: Kind

    @property
    def nats_per_token(self) -> float:
        """Summed nats over tokens."""
        return float(self.nats) / max(self.tokens, 1)

    def __add__(self, other: "Loss") -> "Loss":
        """Sum of two losses; the kind is the weaker of the two."""
        order: tuple[Kind, ...] = ("exact", "bound", "surrogate")
        kind = order[max(order.index(self.kind), order.index(other.kind))]
        return Loss(
            value=self.value + other.value,
            nats=self.nats + other.nats,
            tokens=self.tokens + other.tokens,
            kind=kind,
        )
