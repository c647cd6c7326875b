"""TokenSpec and TokenBatch: the one structure that crosses every wall of the house.

A token is a pair (address, content). The address may be known while the content is hidden: which gene,
which wavelength, which place in the string. The content is what a model predicts: a count, a flux patch,
a symbol, a place in space.

Shape letters, here and everywhere: B samples, N tokens, D width, H heads, L layers, P coordinates,
C channels, V vocabulary, T real tokens of a batch laid end to end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from consilience.core.errors import ConsilienceError

ValueLikelihood = Literal["gaussian", "negative-binomial"]
ValueEncoding = Literal["linear", "fourier", "soft-bins"]
PositionEncoding = Literal["none", "rotary", "fourier", "both"]


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """What the tokens of one science look like; enough to build an embedder and a head.

    Args:
        name: the science, for messages and for the names of weights.
        vocabulary: V, the number of symbols of categorical content; 0 when there is none.
        symbols: the V symbols in order, for people; may be empty.
        channels: C, the number of real channels of continuous or count content; 0 when there is none.
        addresses: A, the number of discrete addresses (genes, slots, special places); 0 when there is none.
        coordinates: P, the number of float coordinates of an address, 0 to 3.
        position_encoding: how float coordinates enter: rotary (differences), fourier (absolute places), both.
        periods: shortest and longest period of the encodings, in the units of the coordinates.
        value_likelihood: the natural likelihood of the values.
        value_encoding: how visible values enter the core. `fourier` uses `value_periods`.
        value_periods: shortest and longest period of the Fourier features of values.
        value_shift: with `value_scale`, the standardisation of values in the space where the core works,
            (f(value) - shift) / scale, where f is log1p for counts and the identity otherwise.
        value_scale: see `value_shift`.
        rotary_from_values: rotary positions are the first P values as the core sees them (points whose
            coordinates are the noisy content); tokens with hidden content stand at the origin.
        pairwise_bias: attention gets a bias from distances between the first three values or coordinates.
        weighted: batches carry an inverse variance per value.
        invariant: the first three values are a place in space of which the core sees distances alone (`core.geometry`):
            states do not change under rotation, translation and reflection, and places can be denoised only.
        pairs: kinds of pairs of tokens (bonds of a molecule), 0 when there are none; for invariant tokens.
        constrained: values obey a constraint (the points of a centred cloud sum to zero), so that their density
            is degenerate and no loss on them is a likelihood, whatever the objective.
    """

    name: str
    vocabulary: int = 0
    symbols: tuple[str, ...] = ()
    channels: int = 0
    addresses: int = 0
    coordinates: int = 0
    position_encoding: PositionEncoding = "rotary"
    periods: tuple[float, float] = (6.2831853, 6283.1853)
    value_likelihood: ValueLikelihood = "gaussian"
    value_encoding: ValueEncoding = "linear"
    value_periods: tuple[float, float] = (0.5, 16.0)
    value_shift: float = 0.0
    value_scale: float = 1.0
    rotary_from_values: bool = False
    pairwise_bias: bool = False
    invariant: bool = False
    pairs: int = 0
    weighted: bool = False
    constrained: bool = False

    def __post_init__(self) -> None:
        if self.vocabulary < 0 or self.channels < 0 or self.addresses < 0:
            raise ConsilienceError(f"{self.name}: vocabulary, channels and addresses must not be negative")
        if self.vocabulary == 0 and self.channels == 0:
            raise ConsilienceError(f"{self.name}: tokens need content: a vocabulary, channels, or both")
        if not 0 <= self.coordinates <= 3:
            raise ConsilienceError(f"{self.name}: coordinates must be 0 to 3, not {self.coordinates}")
        if self.symbols and len(self.symbols) != self.vocabulary:
            raise ConsilienceError(
                f"{self.name}: {len(self.symbols)} symbols for a vocabulary of {self.vocabulary}"
            )
        if not 0 < self.periods[0] < self.periods[1] or not 0 < self.value_periods[0] < self.value_periods[1]:
            raise ConsilienceError(f"{self.name}: periods must be positive and ascending")
        if self.invariant and (
            self.channels < 3 or self.coordinates or self.weighted or self.counts or self.pairwise_bias
        ):
            raise ConsilienceError(
                f"{self.name}: invariant tokens need three exact values for their place, and no coordinates, weights, "
                "counts or pairwise_bias beside them"
            )

        if self.pairs and not self.invariant:
            raise ConsilienceError(
                f"{self.name}: kinds of pairs enter beside distances: they need invariant tokens"
            )

    @property
    def counts(self) -> bool:
        """Whether values are counts, so that the core sees log1p of them."""
        return self.value_likelihood == "negative-binomial"

    def standardise(self, values: Tensor) -> Tensor:
        """Values in the space where the core works (log1p for counts, then shift and scale)."""
        values = torch.log1p(values) if self.counts else values
        return (values - self.value_shift) / self.value_scale

    def restore(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardise`; counts come back real-valued and not negative."""
        values = standardised * self.value_scale + self.value_shift
        return torch.expm1(values).clamp_min(0) if self.counts else values


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """B samples of up to N tokens. Row i of a sample is real for i < length, padding after.

    Args:
        length: (B,) int64, the number of real tokens.
        ids: (B, N) int64, categorical content.
        values: (B, N, C) float32, real or count content; 0 where not measured.
        weight: (B, N, C) float32, inverse variance of the values in the same units; 0 = not measured.
            None means that values are exact.
        address: (B, N) int64, discrete addresses.
        positions: (B, N, P) float32, float coordinates of the addresses.
        given: (B, N) bool, tokens whose content is always seen and never scored (a depth, a begin mark).
            Given tokens stand before all others of their sample.
        exposure: (B,) float32, the size factor of counts (library size / 10,000).
        pairs: (B, N, N) uint8, the kind of every pair of tokens, always seen; 0 = nothing is said of it.
        conditions: (B, K) float32, standardised properties of the whole sample that the model is told; NaN = hidden.
            None hides all. See `core.conditions`.
        context: modality -> tokens of the same B objects in it, which the core sees whole and never scores
            (`core.context`): the conformer of a SMILES string. None = there is nothing beside these tokens.
    """

    length: Tensor
    ids: Tensor | None = None
    values: Tensor | None = None
    weight: Tensor | None = None
    address: Tensor | None = None
    positions: Tensor | None = None
    given: Tensor | None = None
    exposure: Tensor | None = None
    pairs: Tensor | None = None
    conditions: Tensor | None = None
    context: "Mapping[str, TokenBatch] | None" = None

    @property
    def size(self) -> int:
        """B, the number of samples."""
        return int(self.length.shape[0])

    @property
    def width(self) -> int:
        """N, the number of token rows, padding included."""
        content = self.ids if self.ids is not None else self.values
        assert content is not None, "a TokenBatch needs ids or values"
        return int(content.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.length.device

    @property
    def real(self) -> Tensor:
        """(B, N) bool: True for tokens, False for padding."""
        return torch.arange(self.width, device=self.device)[None, :] < self.length[:, None]

    @property
    def is_given(self) -> Tensor:
        """(B, N) bool: `given`, or all False when there are no given tokens."""
        return self.given if self.given is not None else torch.zeros_like(self.real)

    @property
    def n_tokens(self) -> int:
        """The number of real tokens, those of the context included."""
        return int(self.length.sum()) + sum(beside.n_tokens for beside in (self.context or {}).values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor, those of the context included."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "context"}
        changed: dict[str, Any] = {k: None if v is None else function(v) for k, v in parts.items()}
        if self.context is not None:
            changed["context"] = {name: beside.map(function) for name, beside in self.context.items()}
        return type(self)(**changed)

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Pin every tensor (called by data loaders)."""
        return self.map(lambda tensor: tensor.pin_memory())

    def take(self, rows: Tensor | Sequence[int]) -> Self:
        """The samples with these indices, in this order."""
        kind = None if isinstance(rows, Tensor) else torch.int64  # a list of none would be float
        index = torch.as_tensor(rows, dtype=kind, device=self.device)
        return self.map(lambda tensor: tensor[index])

    def permute(self, order: Tensor) -> Self:
        """Reorder tokens: row i of the result is row `order[b, i]`. order: (B, N) int64."""
        return self._per_token(lambda tensor: _gather_rows(tensor, order))

    def columns(self, first: int, stop: int) -> Self:
        """Token rows first..stop of every sample, as samples of that many tokens."""
        cut = self._per_token(lambda tensor: tensor[:, first:stop])
        return replace(cut, length=torch.full_like(self.length, stop - first))

    def trim(self) -> Self:
        """Drop columns that are padding in every sample, in the context too."""
        width = max(int(self.length.max()), 1) if self.size else 0
        cut = self._per_token(lambda tensor: tensor[:, :width])
        if cut.context is None:
            return cut
        return replace(cut, context={name: beside.trim() for name, beside in cut.context.items()})

    def pad(self, width: int) -> Self:
        """Add padding columns up to `width`."""
        extra = width - self.width
        if extra <= 0:
            return self
        return self._per_token(
            lambda tensor: torch.cat(
                [tensor, tensor.new_zeros(tensor.shape[0], extra, *tensor.shape[2:])], dim=1
            )
        )

    def _per_token(self, function: Callable[[Tensor], Tensor]) -> Self:
        names = ("ids", "values", "weight", "address", "positions", "given")
        changed: dict[str, Any] = {
            name: function(getattr(self, name)) for name in names if getattr(self, name) is not None
        }
        if self.pairs is not None:
            changed["pairs"] = function(function(self.pairs).transpose(1, 2)).transpose(1, 2)
        return replace(self, **changed)

    def validate(self, spec: TokenSpec) -> Self:
        """Raise ConsilienceError unless the tensors fit the spec; returns the batch itself."""
        b, n = self.size, self.width
        wanted: dict[str, tuple[bool, tuple[int, ...]]] = {
            "ids": (spec.vocabulary > 0, (b, n)),
            "values": (spec.channels > 0, (b, n, spec.channels)),
            "weight": (spec.weighted, (b, n, spec.channels)),
            "address": (spec.addresses > 0, (b, n)),
            "positions": (spec.coordinates > 0 and not spec.rotary_from_values, (b, n, spec.coordinates)),
            "pairs": (spec.pairs > 0, (b, n, n)),
        }
        for name, (needed, shape) in wanted.items():
            tensor = getattr(self, name)
            if needed and tensor is None:
                raise ConsilienceError(f"{spec.name} tokens need `{name}` of shape {shape}, which is missing")
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ConsilienceError(
                    f"{spec.name} tokens: `{name}` is {tuple(tensor.shape)}, expected {shape}"
                )
        if b and (int(self.length.min()) < 1 or int(self.length.max()) > n):
            raise ConsilienceError(f"{spec.name} tokens: lengths must lie in 1..{n}")
        for name, limit in (("ids", spec.vocabulary), ("address", spec.addresses), ("pairs", spec.pairs)):
            tensor = getattr(self, name)
            if (
                tensor is not None
                and tensor.numel()
                and not 0 <= int(tensor.min()) <= int(tensor.max()) < limit
            ):
                raise ConsilienceError(f"{spec.name} tokens: `{name}` must lie in 0..{limit - 1}")
        for name in ("values", "weight", "positions"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.numel() and not all_finite(tensor):
                raise ConsilienceError(f"{spec.name} tokens: `{name}` holds NaN or infinity")
        if self.given is not None:
            rows = torch.arange(n, device=self.device)[None, :]
            if bool((self.given & (rows >= self.given.sum(1, keepdim=True))).any()):
                raise ConsilienceError(f"{spec.name} tokens: given tokens must stand before all others")
        return self

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """Stack batches of one spec along B, padded to the widest; all have the same context, or none has."""
        width = max(batch.width for batch in batches)
        padded = [batch.pad(width) for batch in batches]
        parts: dict[str, Any] = {}
        for field in fields(cls):
            held = [getattr(batch, field.name) for batch in padded]
            if held[0] is None:
                parts[field.name] = None
            elif field.name == "context":
                parts["context"] = {name: cls.concatenate([one[name] for one in held]) for name in held[0]}
            else:
                parts[field.name] = torch.cat(held)
        return cls(**parts)


def all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity: the extremes tell, in one pass without a mask in between."""
    least, greatest = torch.aminmax(tensor)
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


def _gather_rows(tensor: Tensor, order: Tensor) -> Tensor:
    index = order.reshape(*order.shape, *([1] * (tensor.dim() - 2))).expand(-1, -1, *tensor.shape[2:])
    return torch.gather(tensor, 1, index)
