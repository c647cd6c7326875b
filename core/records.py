"""Collection: records of one science with their ids, labels, groups and failures.

A record is one object in its community's own type. `records` may be a list or any object with `len()` and
`take(indices)` (a table of cells stays one sparse matrix).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from consilience.core.errors import ConsilienceError

Origin = Literal["real", "computed", "model", "simulated", "user"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A record that could not be read: its place in the source, its id and why."""

    index: int
    id: str
    reason: str


def take_records(records: Any, indices: Sequence[int] | np.ndarray) -> Any:
    """Records at these indices, through `records.take` when there is one, else as a list."""
    if hasattr(records, "take"):
        return records.take(np.asarray(indices))
    return [records[int(i)] for i in indices]


def fingerprint(parts: Iterable[bytes | str | np.ndarray]) -> str:
    """SHA-256 (first 16 hex digits) over the parts: names the data a model was trained on."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Records of one science.

    Args:
        records: list-like; see the module docstring.
        ids: one id a record, strings.
        source: where they come from, for people (a path, or the name of bundled data).
        origin: real (measured), computed (from theory), model (fitted to measurements), simulated, user.
        fingerprint: a hash of the content.
        labels: name -> array with one entry a record; NaN or "" where unknown.
        groups: what must not be split between training and test (donor, scaffold, object); default: the id.
        failures: records of the source that could not be read.
        beside: science -> the same objects as records of that science, one for each record, where the source says them.
    """

    records: Any
    ids: np.ndarray
    source: str
    origin: Origin
    fingerprint: str
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: np.ndarray | None = None
    failures: tuple[Failure, ...] = ()
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.records)
        columns = {"ids": self.ids, **self.labels, **{f"beside.{name}": v for name, v in self.beside.items()}}
        if self.groups is not None:
            columns["groups"] = self.groups
        for name, column in columns.items():
            if len(column) != n:
                raise ConsilienceError(f"{self.source}: `{name}` has {len(column)} entries for {n} records")

    def __len__(self) -> int:
        return len(self.records)

    @property
    def group_of(self) -> np.ndarray:
        """The group of every record; its own id when no groups are known."""
        return self.ids if self.groups is None else self.groups

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The records at these indices with everything that belongs to them (failures stay behind)."""
        index = np.asarray(indices, dtype=np.int64)
        return type(self)(
            records=take_records(self.records, index),
            ids=self.ids[index],
            source=self.source,
            origin=self.origin,
            fingerprint=fingerprint([self.fingerprint, index]),
            labels={name: column[index] for name, column in self.labels.items()},
            groups=None if self.groups is None else self.groups[index],
            beside={name: column[index] for name, column in self.beside.items()},
        )
