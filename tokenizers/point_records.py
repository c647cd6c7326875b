"""PointCloud and PointTable: the record of the points science, and many records laid end to end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.tokenizers.point_bonds import BondTable, checked

Unit = Literal["angstrom", ""]


def type_names(types: Any, unit: str) -> np.ndarray:
    """Types as names, (n,) str: integers become element symbols in ångström clouds, else decimal text."""
    array = np.asarray(types)
    if array.dtype.kind in "iu":
        if unit == "angstrom":
            wrong = (array < 1) | (array >= len(chemical_symbols))
            if wrong.any():
                raise ConsilienceError(
                    f"{int(array[wrong][0])} is no atomic number (1 to {len(chemical_symbols) - 1})"
                )
            return np.asarray(chemical_symbols)[array]
        return array.astype(str)
    return array.astype(str)


def element_numbers(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Atomic numbers (n,) int64 of element symbols; 0 for a name that is no element."""
    return np.array([atomic_numbers.get(str(name), 0) for name in names], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """n points in space, of one type each or of none.

    Args:
        positions: (n, 3) float, in `unit`.
        types: (n,) names (element symbols) or integers (atomic numbers in ångström clouds); kept as names.
        features: (n, F) float, anything else that is known of a point.
        unit: "angstrom" for atoms, "" for shapes without a unit.
        bonds: (e, 3) int, two points counted from 0 and the order of their bond (see `point_bonds`); kept sorted.

    Raises:
        ConsilienceError: for arrays that do not fit together. `point_checks` finds NaN and coinciding atoms.
    """

    positions: np.ndarray
    types: np.ndarray | None = None
    features: np.ndarray | None = None
    unit: Unit = ""
    bonds: np.ndarray | None = None

    def __post_init__(self) -> None:
        positions = np.asarray(self.positions)
        if positions.dtype.kind not in "fiu" or positions.ndim != 2 or positions.shape[1] != 3:
            raise ConsilienceError(
                f"positions must be an (n, 3) array of numbers, not {positions.shape} of {positions.dtype}"
            )
        if self.unit not in ("angstrom", ""):
            raise ConsilienceError(f"unit must be 'angstrom' or '' (none), not {self.unit!r}")
        object.__setattr__(
            self, "positions", positions.astype(np.promote_types(positions.dtype, np.float32), copy=False)
        )
        if self.types is not None:
            object.__setattr__(self, "types", type_names(self.types, self.unit))
        if self.features is not None:
            object.__setattr__(self, "features", np.asarray(self.features, dtype=np.float64))
        for name, ndim in (("types", 1), ("features", 2)):
            array = getattr(self, name)
            if array is not None and (array.ndim != ndim or len(array) != len(positions)):
                raise ConsilienceError(f"{name} has shape {array.shape} for {len(positions)} points")
        if self.bonds is not None:
            object.__setattr__(self, "bonds", checked(self.bonds, len(positions)))

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class PointTable(Sequence[PointCloud]):
    """Many clouds laid end to end: behaves like a list of PointCloud, and is fast for many.

    Args:
        positions: (T, 3) float, all points.
        starts: (n + 1,) int64; cloud i is the rows starts[i] to starts[i + 1].
        codes: (T,) int, index of the type in `names`; None for clouds without types.
        names: the types that occur.
        features: (T, F) float or None.
        unit: "angstrom" or "".
        bonds: of every cloud, or None.
    """

    positions: np.ndarray
    starts: np.ndarray
    codes: np.ndarray | None = None
    names: tuple[str, ...] = ()
    features: np.ndarray | None = None
    unit: Unit = ""
    bonds: BondTable | None = None

    @classmethod
    def of(cls, records: Sequence[PointCloud]) -> "PointTable":
        """The same clouds as a table; a table is returned as it is.

        Raises:
            UnreadableRecordError: for the first record that `readable` refuses.
        """
        if isinstance(records, PointTable):
            return records
        table, refused = readable(records)
        if refused:
            raise UnreadableRecordError(*min(refused.items()))
        return table

    @classmethod
    def joined(cls, records: Sequence[PointCloud]) -> "PointTable":
        """Clouds of one kind (see `readable`) laid end to end."""
        if not records:
            return cls(np.zeros((0, 3)), np.zeros(1, dtype=np.int64))
        first = records[0]
        starts = np.concatenate([[0], np.cumsum([len(cloud) for cloud in records])]).astype(np.int64)
        codes: np.ndarray | None = None
        names: tuple[str, ...] = ()
        if first.types is not None:
            types = np.concatenate([cloud.types for cloud in records if cloud.types is not None])
            unique, codes = np.unique(types, return_inverse=True)
            names = tuple(str(name) for name in unique)
        features = None
        if first.features is not None:
            features = np.concatenate([cloud.features for cloud in records if cloud.features is not None])
        positions = np.concatenate([cloud.positions for cloud in records])
        bonds = None
        if first.bonds is not None:
            bonds = BondTable.joined([cloud.bonds for cloud in records if cloud.bonds is not None])
        return cls(positions, starts, codes, names, features, first.unit, bonds)

    @property
    def sizes(self) -> np.ndarray:
        """(n,) int64: the number of points of every cloud."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> PointCloud: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> PointCloud | Self:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"cloud {index} of {len(self)}")
        index %= len(self)
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        types = None if self.codes is None else np.asarray(self.names)[self.codes[rows]]
        features = None if self.features is None else self.features[rows]
        bonds = None if self.bonds is None else self.bonds[index]
        return PointCloud(self.positions[rows], types, features, self.unit, bonds)

    def __iter__(self) -> Iterator[PointCloud]:
        return (self[i] for i in range(len(self)))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Row numbers of the points of these clouds, in order."""
        sizes = self.sizes[indices]
        ends = np.cumsum(sizes)
        return np.repeat(self.starts[indices] - (ends - sizes), sizes) + np.arange(
            ends[-1] if len(ends) else 0
        )

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The clouds with these indices, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        rows = self.rows(index)
        return type(self)(
            self.positions[rows],
            np.concatenate([[0], np.cumsum(self.sizes[index])]).astype(np.int64),
            None if self.codes is None else self.codes[rows],
            self.names,
            None if self.features is None else self.features[rows],
            self.unit,
            None if self.bonds is None else self.bonds.take(index),
        )

    def padded(self, flat: np.ndarray, fill: float = 0) -> np.ndarray:
        """A per-point array (T, ...) as (n, N, ...) with N the largest cloud; padding holds `fill`."""
        width = int(self.sizes.max(initial=0))
        if len(flat) == len(self) * width:
            return flat.reshape(len(self), width, *flat.shape[1:])
        out = np.full((len(self), width, *flat.shape[1:]), fill, dtype=flat.dtype)
        out[self.real] = flat
        return out

    @property
    def real(self) -> np.ndarray:
        """(n, N) bool: True for points, False for padding."""
        return np.arange(int(self.sizes.max(initial=0)))[None, :] < self.sizes[:, None]


def as_cloud(record: Any) -> PointCloud:
    """A record as a PointCloud: itself, an ASE Atoms object, or an (n, 3) array."""
    if isinstance(record, PointCloud):
        return record
    if hasattr(record, "get_chemical_symbols"):
        return PointCloud(record.get_positions(), np.array(record.get_chemical_symbols()), unit="angstrom")
    if isinstance(record, np.ndarray):
        return PointCloud(record)
    raise ConsilienceError(
        f"a {type(record).__name__} is no point cloud; pass a PointCloud or an (n, 3) array"
    )


def is_cloud(record: Any) -> bool:
    """Whether something is of a type that `as_cloud` takes."""
    return isinstance(record, PointCloud | np.ndarray) or hasattr(record, "get_chemical_symbols")


def readable(records: Sequence[Any]) -> tuple[PointTable, dict[int, str]]:
    """The records that fit into one table, and index -> reason for those that do not.

    One table holds one kind: typed or not, one number of features, one unit, with bonds or not; the first record
    decides.
    """
    if isinstance(records, PointTable):
        return records, {}
    kept: list[PointCloud] = []
    refused: dict[int, str] = {}
    for index, record in enumerate(records):
        try:
            cloud = as_cloud(record)
        except ConsilienceError as error:
            refused[index] = str(error)
            continue
        if kept and _kind(cloud) != _kind(kept[0]):
            refused[index] = (
                f"is {_describe(cloud)}, while the first is {_describe(kept[0])}; keep them in two sets"
            )
            continue
        kept.append(cloud)
    return PointTable.joined(kept), refused


def _kind(cloud: PointCloud) -> tuple[bool, int, str, bool]:
    features = -1 if cloud.features is None else cloud.features.shape[1]
    return cloud.types is not None, features, cloud.unit, cloud.bonds is not None


def _describe(cloud: PointCloud) -> str:
    typed, features, unit, bonded = _kind(cloud)
    told = f"{'typed' if typed else 'without types'}, {max(features, 0)} features, unit {unit!r}"
    return f"{told}, with bonds" if bonded else told
