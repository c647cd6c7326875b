"""Bonds of molecules: a list a cloud, many lists end to end, and the kinds of pairs that the core sees of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from consilience.core.errors import ConsilienceError

ORDERS = ("single", "double", "triple", "aromatic")
"""Bond orders; their codes are 1 to 4."""
TWO_APART, THREE_APART = 5, 6
"""Kinds of pairs that are not bonded, but two or three bonds apart: what bends and turns. Kind 0: all others."""
KINDS = 7


def checked(bonds: Any, points: int) -> np.ndarray:
    """(E, 3) int64 rows (first point, second point, order), first < second, sorted.

    Raises:
        ConsilienceError: for anything that is no list of bonds between so many points.
    """
    rows = np.asarray(bonds)
    if rows.size == 0:
        return np.zeros((0, 3), dtype=np.int64)
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "iu":
        raise ConsilienceError(
            f"bonds must be an (E, 3) array of whole numbers (point, point, order), not {rows.shape} of {rows.dtype}"
        )
    rows = rows.astype(np.int64)
    ends = np.sort(rows[:, :2], axis=1)
    for row, (first, second), order in zip(rows, ends.tolist(), rows[:, 2].tolist()):
        if not 0 <= first < second < points:
            raise ConsilienceError(
                f"bond {row.tolist()} does not join two of {points} points, counted from 0"
            )
        if not 1 <= order <= len(ORDERS):
            known = ", ".join(f"{code + 1} {name}" for code, name in enumerate(ORDERS))
            raise ConsilienceError(f"bond {row.tolist()} has order {order}; known: {known}")
    rows = np.column_stack([ends, rows[:, 2]])
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    same = (rows[1:, :2] == rows[:-1, :2]).all(1)
    if same.any():
        raise ConsilienceError(f"bond {rows[1:][same][0].tolist()} is given twice")
    return rows


@dataclass(frozen=True, eq=False)
class BondTable:
    """The bonds of n clouds end to end.

    Args:
        rows: (S, 3) int64 of `checked`; points count within their cloud.
        starts: (n + 1,) int64; cloud i has the rows starts[i] to starts[i + 1].
    """

    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[np.ndarray]) -> Self:
        """From the bonds (e, 3) of every cloud."""
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return cls(np.concatenate([np.zeros((0, 3), dtype=np.int64), *parts]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """(e, 3) bonds of one cloud."""
        return self.rows[int(self.starts[index]) : int(self.starts[index + 1])]

    def take(self, indices: np.ndarray) -> Self:
        """The bonds of these clouds, in this order."""
        return self.joined([self[int(index)] for index in indices])

    def among(self, kept: np.ndarray, points: np.ndarray) -> Self:
        """The bonds between the points that are kept, renumbered.

        Args:
            kept: (T,) bool, all points of all clouds end to end.
            points: (n + 1,) int64 where the points of each cloud start.
        """
        cloud = np.repeat(np.arange(len(self)), np.diff(self.starts))
        ends = self.rows[:, :2] + points[cloud][:, None]
        stays = kept[ends].all(1)
        number = np.concatenate([[0], np.cumsum(kept)])
        fresh = number[ends] - number[points[cloud]][:, None]
        rows = np.column_stack([fresh, self.rows[:, 2]])[stays]
        counts = np.bincount(cloud[stays], minlength=len(self))
        return type(self)(rows, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def pairs(self, width: int) -> np.ndarray:
        """(n, N, N) uint8 kind of every pair of points, N = width: bond order, two or three bonds apart, or 0."""
        n = len(self)
        kinds = np.zeros((n, width, width), dtype=np.uint8)
        cloud = np.repeat(np.arange(n), np.diff(self.starts))
        first, second, order = self.rows.T
        kinds[cloud, first, second] = kinds[cloud, second, first] = order
        joined = (kinds > 0).astype(np.float32)
        reached = (kinds > 0) | np.eye(width, dtype=bool)
        steps = joined
        for kind in (TWO_APART, THREE_APART):
            steps = np.minimum(steps @ joined, 1)
            fresh = (steps > 0) & ~reached
            kinds[fresh] = kind
            reached |= fresh
        return kinds


def bonds_of_pairs(pairs: np.ndarray) -> np.ndarray:
    """(e, 3) bonds that these kinds of pairs (N, N) tell of."""
    first, second = np.nonzero(np.triu((pairs >= 1) & (pairs <= len(ORDERS)), k=1))
    return np.column_stack([first, second, pairs[first, second]]).astype(np.int64)
