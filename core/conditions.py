"""Conditions: numbers that hold of a whole sample, such as the logP of a molecule, told to the model beside its tokens.

A sample carries its K properties in `TokenBatch.conditions`, standardised, NaN where one is unknown or hidden. Each
known property is a vector that is added to every row of the sample; an unknown one adds nothing. No row, no pattern of
attention and no cache changes, so every objective and sampler works as it does without, and nothing of a condition is
ever scored: likelihoods become log p(x | c).

In training properties are hidden at random, so that one model learns p(x | c) for every subset of them, p(x) among
these (Ho & Salimans 2022, arXiv:2207.12598); `core.guidance` needs both.

    >>> conditions = Conditions.fit({"logp": logp_of_training_records})
    >>> tokens = replace(tokens, conditions=conditions.rows({"logp": 2.5}, tokens.size))
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.positions import fourier_features

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel

logger = logging.getLogger(__name__)

FARTHEST = 1e6
"""Standard deviations from the mean beyond which a condition is a slip of the pen."""

Asked = Mapping[str, float | Sequence[float] | np.ndarray]
"""Property -> one number for all samples, or one for each (NaN = not asked of this one), in its own units."""


@dataclass(frozen=True, kw_only=True)
class Property:
    """One number of a sample, as it was in training.

    Args:
        name: for people.
        mean: of the training records that have it, in its own units.
        spread: standard deviation of the same.
        low: least of the same.
        high: greatest of the same.
        computed: whether the science can compute it from a record; False for what was measured.
    """

    name: str
    mean: float
    spread: float
    low: float
    high: float
    computed: bool = False

    @classmethod
    def of(cls, name: str, values: np.ndarray, *, computed: bool = False) -> Self:
        """From the values of training records, (n,) with NaN where unknown; ConsilienceError where nothing varies."""
        known = np.asarray(values, np.float64)
        known = known[np.isfinite(known)]
        if not len(known) or known.min() == known.max():
            found = f"is {known[0]:g} in all {len(known)} of" if len(known) else "is unknown in all of"
            raise ConsilienceError(
                f"condition {name!r} {found} the {len(values)} training records: there is nothing to learn from it"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            mean, spread = float(known.mean()), float(known.std())
        if not np.isfinite(mean + spread):
            raise ConsilienceError(
                f"condition {name!r} has values up to {np.abs(known).max():g} in the training records, too large for a "
                "mean and a spread: correct them or leave them empty"
            )
        return cls(
            name=name,
            mean=mean,
            spread=spread,
            low=float(known.min()),
            high=float(known.max()),
            computed=computed,
        )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The K properties that a model of one science knows, and how often training hides them.

    Args:
        properties: in the order of `TokenBatch.conditions`.
        drop_each: probability that a property is hidden, for every sample and property on its own.
        drop_all: probability that all properties of a sample are hidden.
    """

    properties: tuple[Property, ...]
    drop_each: float = 0.1
    drop_all: float = 0.1

    def __post_init__(self) -> None:
        if not self.properties:
            raise ConsilienceError("conditions: name at least one property")
        twice = [name for place, name in enumerate(self.names) if name in self.names[:place]]
        if twice:
            raise ConsilienceError(f"conditions: {twice[0]!r} stands twice; name each property once")
        for name in ("drop_each", "drop_all"):
            if not 0 <= getattr(self, name) < 1:
                raise ConsilienceError(
                    f"conditions: {name} is a probability in [0, 1), not {getattr(self, name)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the properties, in their order."""
        return tuple(one.name for one in self.properties)

    @classmethod
    def fit(
        cls,
        values: Mapping[str, np.ndarray],
        *,
        computed: Sequence[str] = (),
        drop_each: float = 0.1,
        drop_all: float = 0.1,
    ) -> Self:
        """Scales and ranges of these properties.

        Args:
            values: property -> (n,) numbers of training records, NaN where unknown.
            computed: names of those that the science computes.
            drop_each: see the class.
            drop_all: see the class.

        Raises:
            ConsilienceError: for a property that no record has, or that is the same in all.
        """
        found = [Property.of(name, column, computed=name in computed) for name, column in values.items()]
        return cls(properties=tuple(found), drop_each=drop_each, drop_all=drop_all)

    def standardise(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n, K) float32 of (n,) numbers a property, in their own units; what is not finite becomes NaN."""
        columns = []
        for one in self.properties:
            column = (np.asarray(values[one.name], np.float64) - one.mean) / one.spread
            columns.append(np.where(np.isfinite(column), column, np.nan))
        return np.stack(columns, axis=1).astype(np.float32)

    def rows(self, asked: Asked, n: int) -> Tensor:
        """(n, K) float32, what is asked of n samples, as `TokenBatch.conditions` takes it; not asked = NaN.

        What lies outside of the range of training is warned of.

        Raises:
            ConsilienceError: for a property that was not trained with, or values that are not one number a sample.
        """
        full: dict[str, np.ndarray] = {name: np.full(n, np.nan) for name in self.names}
        spelled: dict[str, str] = {}
        for name, value in asked.items():
            one = self.named(name)
            if spelled.setdefault(one.name, name) != name:
                raise ConsilienceError(
                    f"condition {one.name!r} is asked for twice, as {spelled[one.name]!r} and as {name!r}"
                )
            try:
                numbers = np.asarray(value, np.float64)
            except (TypeError, ValueError) as error:
                raise ConsilienceError(f"condition {name!r} must be a number, not {value!r}") from error
            if numbers.shape not in ((), (n,)) or np.isinf(numbers).any():
                raise ConsilienceError(
                    f"condition {name!r} must be one number, or one for each of the {n} samples, not {value!r}"
                )
            if numbers.ndim == 0 and np.isnan(numbers):
                raise ConsilienceError(f"condition {name!r} must be a number, not {value!r}; or leave it out")
            if (np.abs(numbers - one.mean) > FARTHEST * one.spread).any():
                raise ConsilienceError(
                    f"condition {name!r} is {value!r}, more than {FARTHEST:g} standard deviations from what the model "
                    f"was trained on, {one.low:g} to {one.high:g}"
                )
            for beyond in numbers[(numbers < one.low) | (numbers > one.high)].ravel()[:1].tolist():
                logger.warning(
                    "%s = %g lies outside of what the model was trained on, %g to %g",
                    one.name, beyond, one.low, one.high,
                )  # fmt: skip
            full[one.name] = np.broadcast_to(numbers, (n,))
        return torch.from_numpy(self.standardise(full))

    def named(self, name: str) -> Property:
        """The property of this name, capitals aside; ConsilienceError names those that there are."""
        for one in self.properties:
            if one.name == name:
                return one
        for one in self.properties:
            if one.name.lower() == name.lower():
                return one
        raise ConsilienceError(
            f"the model was not trained with {name!r} as a condition; known: {', '.join(self.names)}"
        )

    def drop(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """The conditions of a training step, (B, K), with NaN where they are to be hidden."""
        draws = torch.rand(values.shape[0], len(self.properties) + 1, generator=generator).to(values.device)
        hidden = (draws[:, 1:] < self.drop_each) | (draws[:, :1] < self.drop_all)
        return values.masked_fill(hidden, math.nan)

    def state(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"properties": [asdict(one) for one in self.properties]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `state`; raises ConsilienceError for what it does not hold."""
        known = {part.name for part in fields(cls)}
        if set(state) != known:
            raise ConsilienceError(f"conditions: expected {', '.join(sorted(known))}, not {sorted(state)}")
        found = tuple(Property(**one) for one in state["properties"])
        return cls(**{**state, "properties": found})


class Conditioner(nn.Module):
    """From the conditions of a sample to the vector that all its rows get: linear in features of each property.

    The features of a value are 1, the value itself (so that what lies beyond the training range still goes on) and
    sines and cosines of it; all are zero where it is unknown.
    """

    FEATURES = 16
    PERIODS = (0.5, 16.0)
    """Of the sines, in standard deviations."""

    def __init__(self, conditions: Conditions, width: int) -> None:
        super().__init__()
        self.count = len(conditions.properties)
        self.mix = nn.Linear(self.count * (2 + 2 * self.FEATURES), width, bias=False)
        nn.init.normal_(self.mix.weight, std=self.mix.in_features**-0.5)

    def forward(self, values: Tensor) -> Tensor:
        """(B, K) standardised, NaN where unknown -> (B, D)."""
        if values.shape[1:] != (self.count,):
            raise ConsilienceError(
                f"the model knows {self.count} conditions a sample, these samples have {tuple(values.shape[1:])}"
            )
        known = ~values.isnan()[..., None]
        value = torch.where(known, values.nan_to_num()[..., None], 0.0)
        features = torch.cat(
            [torch.ones_like(value), value, fourier_features(value, self.PERIODS, self.FEATURES)], dim=-1
        )
        return self.mix((features * known).flatten(1).to(self.mix.weight.dtype))


def rows_of(
    model: "FoundationModel", domain: str, conditions: Asked | Tensor | None, n: int
) -> Tensor | None:
    """(n, K) what is asked of n samples of a science; None where nothing is."""
    if isinstance(conditions, Tensor):
        if conditions.shape[0] != n:
            raise ConsilienceError(f"there are conditions of {conditions.shape[0]} samples for {n}")
        return conditions
    return model.conditions_of(domain).rows(conditions, n) if conditions else None


def told(model: "FoundationModel", domain: str, tokens: TokenBatch, conditions: Asked | None) -> TokenBatch:
    """The tokens with what the model is told of each sample."""
    return replace(tokens, conditions=rows_of(model, domain, conditions, tokens.size))
