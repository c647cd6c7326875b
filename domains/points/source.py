"""Source: what a reader finds in a file, before clouds are checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from consilience.core.records import Failure, Origin
from consilience.tokenizers.point_records import PointCloud, PointTable


@dataclass(frozen=True, kw_only=True)
class Source:
    """Clouds of a file with their names and labels.

    Args:
        clouds: n clouds.
        ids: n names.
        places: n places in the file, counted from 0.
        labels: name -> (n,) numbers (NaN where unknown) or strings ("" where unknown).
        groups: (n,) what must not be split between training and test.
        failures: what could not be turned into a cloud.
        origin: user, or computed for known collections.
        smiles: (n,) strings of the molecules, where the file or its structures say them.
    """

    clouds: Sequence[PointCloud]
    ids: Sequence[str]
    places: Sequence[int]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: np.ndarray | None = None
    failures: tuple[Failure, ...] = ()
    origin: Origin = "user"
    smiles: np.ndarray | None = None


def without_hydrogens(source: Source) -> Source:
    """The same clouds without the points of type H; clouds of hydrogen alone become empty."""
    table = PointTable.of(source.clouds)
    if table.codes is None or "H" not in table.names:
        return source
    heavy = table.codes != table.names.index("H")
    sizes = np.add.reduceat(np.append(heavy, False), table.starts[:-1]) * (table.sizes > 0)
    clouds = PointTable(
        table.positions[heavy],
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        table.codes[heavy],
        table.names,
        None if table.features is None else table.features[heavy],
        table.unit,
        None if table.bonds is None else table.bonds.among(heavy, table.starts),
    )
    return replace(source, clouds=clouds)


SCALAR = (int, float, str, bool, np.number, np.bool_)


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """What the labels of records are.

    Args:
        names: of what is a number or a string somewhere, in order of appearance.
        text: names with a string somewhere.
        nested: names with something else somewhere (an array).
    """

    names: tuple[str, ...] = ()
    text: frozenset[str] = frozenset()
    nested: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, object]]) -> Self:
        """The kinds of some records' labels."""
        held = [(name, value) for row in rows for name, value in row.items() if value is not None]
        return cls(
            names=tuple(dict.fromkeys(name for name, value in held if isinstance(value, SCALAR))),
            text=frozenset(name for name, value in held if isinstance(value, str)),
            nested=frozenset(name for name, value in held if not isinstance(value, SCALAR)),
        )

    def join(self, other: Self) -> Self:
        """The kinds of all records of both."""
        return type(self)(
            names=tuple(dict.fromkeys([*self.names, *other.names])),
            text=self.text | other.text,
            nested=self.nested | other.nested,
        )


def columns_of(rows: Sequence[Mapping[str, object]], kinds: Kinds | None = None) -> dict[str, np.ndarray]:
    """Labels of n records from their dictionaries: numeric where every value is a number, else strings.

    Values that are neither numbers nor strings (arrays, nested data) are no labels. `kinds` are those of the whole
    file where the records are a piece of it.
    """
    kinds = Kinds.of(rows) if kinds is None else kinds
    columns = {}
    for name in kinds.names:
        values = [row.get(name) for row in rows]
        if name in kinds.text:
            columns[name] = np.array(["" if value is None else str(value) for value in values], dtype=str)
        elif name not in kinds.nested:
            columns[name] = np.array([np.nan if value is None else float(value) for value in values])  # type: ignore[arg-type]
    return columns
