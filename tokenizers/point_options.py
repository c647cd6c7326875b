"""PointOptions and PointState: how clouds become tokens, and what `fit` learned from the training clouds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np

from consilience.core.batch import TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.options import check_types
from consilience.core.written import LATE, written
from consilience.tokenizers.point_bonds import KINDS
from consilience.tokenizers.point_records import PointTable, Unit

CHOICES: Mapping[str, tuple[str, ...]] = {
    "tokens": ("points", "patches"),
    "types": ("address", "content", "ignore"),
    "features": ("ignore", "content"),
    "order": ("morton", "hilbert", "radial", "random", "given"),
    "position": ("fourier", "rotary", "both", "none"),
    "align": ("none", "principal"),
    "augment": ("rotate", "none"),
    "geometry": ("absolute", "invariant"),
}


@dataclass(frozen=True, kw_only=True)
class PointOptions:
    """How point clouds become tokens.

    Args:
        tokens: points (one a point) or patches (a neighbourhood of `patch_size` points around each of
            `n_patches` farthest-point samples; for large clouds; holds no types).
        types: address (elements are known, places are predicted), content (both are predicted) or ignore.
        features: content adds the feature columns to the values of every point, ignore leaves them out.
        order: the sequence of the tokens: morton, hilbert, radial (from the centroid outwards), random (drawn
            anew in training, a fixed shuffle otherwise) or given (as the rows come).
        slots: number the tokens along the order and give the number as a rotary address. None: yes for
            points, except where `position` puts the coordinates into the rotation; never for patches.
        position: how places in 3D enter the core, the noisy ones of points or the known centres of patches:
            fourier features, rotary (attention sees differences), both, or none (raw numbers alone).
        align: principal turns every cloud into its principal axes, which makes tokens stable under rotation.
        augment: rotate draws a random rotation in training (under `align="principal"`: a half turn, so that
            the sign rule is not learned by heart). Never without a generator.
        n_patches: patches a cloud; smaller clouds get one per point.
        patch_size: points a patch; clouds need at least as many.
        max_points: with tokens="points", larger clouds are refused.
        periods: shortest and longest period of the encodings of places, in units of the training coordinates'
            standard deviation.
        pairwise_bias: attention gets a bias from distances between places.
        geometry: absolute (coordinates are part of the tokens) or invariant (of points the core sees types and
            distances alone, and `position`, `slots` and `pairwise_bias` play no part: embeddings do not change under
            rotation, reflection, translation and reordering, so mirror images look alike; for denoising).
        bonds: the core sees the bonds of every cloud, as kinds of pairs; for geometry='invariant', order='given'.
    """

    tokens: Literal["points", "patches"] = "points"
    types: Literal["address", "content", "ignore"] = "address"
    features: Literal["ignore", "content"] = "ignore"
    order: Literal["morton", "hilbert", "radial", "random", "given"] = "morton"
    slots: bool | None = None
    position: Literal["fourier", "rotary", "both", "none"] = "fourier"
    align: Literal["none", "principal"] = "none"
    augment: Literal["rotate", "none"] = "rotate"
    n_patches: int = 64
    patch_size: int = 32
    max_points: int = 1024
    periods: tuple[float, float] = (0.5, 16.0)
    pairwise_bias: bool = False
    geometry: Literal["absolute", "invariant"] = field(default="absolute", metadata=LATE)
    bonds: bool = field(default=False, metadata=LATE)

    def __post_init__(self) -> None:
        check_types(self, "points")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConsilienceError(
                    f"points: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r}"
                )
        for name, least in (("n_patches", 1), ("patch_size", 2), ("max_points", 2)):
            if getattr(self, name) < least:
                raise ConsilienceError(f"points: {name} must be {least} or more, not {getattr(self, name)}")
        object.__setattr__(self, "periods", tuple(float(period) for period in self.periods))
        if len(self.periods) != 2 or not 0 < self.periods[0] < self.periods[1]:
            raise ConsilienceError(
                f"points: periods must be two ascending positive numbers, not {self.periods}"
            )
        if self.slots and self.tokens == "patches":
            raise ConsilienceError("points: patches stand at their centres, not in slots; leave slots out")
        if self.position == "none" and self.tokens == "patches":
            raise ConsilienceError(
                "points: patches need their places; choose position='fourier', 'rotary' or 'both'"
            )
        if self.slots and self.position in ("rotary", "both"):
            raise ConsilienceError(
                f"points: position={self.position!r} puts coordinates into the rotation that slots need; "
                "choose position='fourier' or slots=False"
            )
        if self.geometry == "invariant":
            self._check_invariant()
        if self.bonds and (self.geometry != "invariant" or self.order != "given"):
            raise ConsilienceError(
                "points: bonds=True tells kinds of pairs beside distances and keeps the order of the points; choose "
                "geometry='invariant' and order='given'"
            )

    def _check_invariant(self) -> None:
        """Raise ConsilienceError for what would give the frame or the order of the points away."""
        if self.tokens == "patches":
            raise ConsilienceError(
                "points: geometry='invariant' sees distances between points; choose tokens='points'"
            )
        for name, value in (("slots", bool(self.slots)), ("pairwise_bias", self.pairwise_bias)):
            if value:
                raise ConsilienceError(
                    f"points: {name} plays no part under geometry='invariant'; leave it out"
                )
        if self.position in ("rotary", "both"):
            raise ConsilienceError(
                f"points: position={self.position!r} plays no part under geometry='invariant'; leave it out"
            )

    @property
    def has_slots(self) -> bool:
        """Whether tokens carry their number along the order as an address."""
        if self.slots is None:
            if self.geometry == "invariant":
                return False
            return self.tokens == "points" and self.position in ("fourier", "none")
        return self.slots

    @classmethod
    def build(cls, options: Mapping[str, Any]) -> Self:
        """Options from a mapping; an unknown name raises ConsilienceError with the known ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConsilienceError(
                    f"points: unknown tokenizer option {name!r}; known: {', '.join(known)}"
                )
        return cls(**options)


@dataclass(frozen=True, kw_only=True)
class PointState:
    """What `fit` learned from the training clouds alone.

    Args:
        types: the types that occur, sorted; empty when clouds have none or they are ignored.
        unit: of the coordinates.
        spread: standard deviation of the centred coordinates.
        value_scale: standard deviation of what the tokens hold: `spread`, or that of the offsets in patches.
        feature_shift: (F,) mean of every feature column that is content.
        feature_scale: (F,) standard deviation of every feature column that is content.
        lengths: token counts of the examples.
        compositions: type codes of the examples in the order of their tokens; for types="address" only.
        centres: patch centres of the examples, each n_patches x 3; for patches only.
        bonds: bonds of the examples, each a list of (point, point, order); for the option bonds only.
    """

    types: tuple[str, ...]
    unit: Unit
    spread: float
    value_scale: float
    feature_shift: tuple[float, ...] = ()
    feature_scale: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    compositions: tuple[tuple[int, ...], ...] = ()
    centres: tuple[tuple[tuple[float, ...], ...], ...] = ()
    bonds: tuple[tuple[tuple[int, ...], ...], ...] = field(default=(), metadata=LATE)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _listed(written(self))

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(**{name: _tupled(value) for name, value in state.items()})


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _listed(part) for name, part in value.items()}
    return [_listed(part) for part in value] if isinstance(value, (list, tuple)) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(part) for part in value) if isinstance(value, (list, tuple)) else value


def point_spec(options: PointOptions, state: PointState) -> TokenSpec:
    """What the tokens look like under these options."""
    patches = options.tokens == "patches"
    columns = 3 + len(state.feature_shift)
    by_content = options.types == "content"
    places: dict[str, Any] = {}
    if patches and options.position != "none":
        places = {
            "coordinates": 3,
            "position_encoding": options.position,
            "periods": (options.periods[0] * state.spread, options.periods[1] * state.spread),
        }
    elif not patches and options.position in ("rotary", "both"):
        places = {"coordinates": 3, "rotary_from_values": True, "periods": options.periods}
    elif options.has_slots:
        places = {"coordinates": 1, "position_encoding": "rotary"}
    invariant = options.geometry == "invariant"
    fourier = not patches and not invariant and options.position in ("fourier", "both")
    return TokenSpec(
        name="points",
        vocabulary=len(state.types) if by_content else 0,
        symbols=state.types if by_content else (),
        channels=columns * (options.patch_size if patches else 1),
        addresses=0 if by_content else len(state.types),
        value_encoding="fourier" if fourier else "linear",
        value_periods=options.periods,
        value_scale=state.value_scale,
        pairwise_bias=options.pairwise_bias,
        invariant=invariant,
        pairs=KINDS if options.bonds else 0,
        constrained=True,  # centred clouds: the last point follows from the others
        **places,
    )


def measure(table: PointTable, options: PointOptions) -> PointState:
    """Types and scales of these training clouds, without examples."""
    sizes = table.sizes
    middles = np.add.reduceat(table.positions.astype(np.float64), table.starts[:-1], axis=0) / sizes[:, None]
    spread = float(np.sqrt(np.square(table.positions - np.repeat(middles, sizes, axis=0)).mean()))
    types: tuple[str, ...] = ()
    if table.codes is not None and options.types != "ignore":
        present = np.unique(table.codes)
        types = tuple(sorted(table.names[int(code)] for code in present))
    shift, scale = np.zeros(0), np.ones(0)
    if options.features == "content" and table.features is not None:
        shift, deviation = table.features.mean(0), table.features.std(0)
        scale = np.where(deviation > 0, deviation, 1.0)
    return PointState(
        types=types,
        unit=table.unit,
        spread=spread or 1.0,
        value_scale=spread or 1.0,
        feature_shift=tuple(float(x) for x in shift),
        feature_scale=tuple(float(x) for x in scale),
    )
