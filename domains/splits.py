"""Train, validation and test parts that keep a group (a donor, a scaffold, an object) in one piece.

Which part a group falls into depends on its name, the seed and the sizes of the groups, never on the order
of the records or on numpy's global random state: a shuffled file gives the same parts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import fingerprint


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of the records of each part: sorted int64 arrays without overlap; a part may be empty."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        for name, index in self.parts().items():
            object.__setattr__(self, name, np.sort(np.asarray(index, dtype=np.int64)))
        everything = np.concatenate(list(self.parts().values()))
        values, counts = np.unique(everything, return_counts=True)
        if (counts > 1).any():
            raise ConsilienceError(f"record {values[counts > 1][0]} is in two parts of the split")
        if len(values) and values[0] < 0:
            raise ConsilienceError(f"the split holds the negative position {values[0]}; count from 0")

    def parts(self) -> dict[str, np.ndarray]:
        """Name of the part -> positions, in the order train, validation, test."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


FRACTIONS = (0.7, 0.1, 0.2)
"""Shares of train, validation and test where nobody says otherwise."""

TRAIN = 0
"""Place of the training part among train, validation and test."""


def _draw(group: str, seed: int) -> bytes:
    """Place of a group in the random order of this seed: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(f"{seed}\0{group}".encode(), digest_size=16).digest()


def _check_fractions(fractions: Sequence[float]) -> np.ndarray:
    """The three fractions as float64; raises ConsilienceError when they are no division of a whole."""
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any():
        raise ConsilienceError(
            f"the parts {' '.join(map(str, fractions))} must be three shares of 0 or more, such as 0.7 0.1 0.2"
        )
    if abs(shares.sum() - 1) > 1e-6:
        raise ConsilienceError(
            f"the parts {' '.join(map(str, fractions))} add up to {shares.sum():g}; they must add up to 1"
        )
    return shares


def grouped_split(
    groups: Sequence[object] | np.ndarray, *, fractions: Sequence[float] = FRACTIONS, seed: int
) -> Split:
    """Split records so that no group straddles two parts.

    Groups are taken in a random order (a hash of seed and name); each goes to the part that lacks most
    records, so none exceeds its share by a whole group. No part with a positive fraction stays empty.

    A group larger than half of the smallest held-out share goes to training while there is room: a test part
    that is nearly all one group (benzene among scaffolds) would measure that group, not the data.

    Args:
        groups: (n,) the group of every record (`Collection.group_of`), compared as strings.
        fractions: of the records, for train, validation and test; a 0 leaves that part empty.
        seed: of the draw.

    Raises:
        ConsilienceError: no records, fewer groups than parts, or fractions that do not add up to 1.
    """
    shares = _check_fractions(fractions)
    names, group_of, sizes = np.unique(
        np.asarray(groups).astype(str), return_inverse=True, return_counts=True
    )
    wanted = [part for part in range(3) if shares[part] > 0]
    if len(names) < len(wanted):
        raise ConsilienceError(
            f"{len(names)} group(s) in {len(group_of)} record(s) cannot fill {len(wanted)} parts; "
            "give more records, or a share of 0 to the part to leave out (--parts 0.9 0 0.1)"
        )
    keys = [_draw(name, seed) for name in names.tolist()]
    lacking = (shares * len(group_of)).tolist()
    empty = set(wanted)
    part_of = np.empty(len(names), dtype=np.int64)
    held_out = [lacking[part] for part in wanted if part != TRAIN]
    large = sizes > max(1.0, min(held_out, default=np.inf) / 2)
    for place, group in enumerate(sorted(range(len(names)), key=lambda g: (not large[g], keys[g]))):
        must_fill = len(names) - place <= len(empty)
        part = max(sorted(empty) if must_fill else wanted, key=lacking.__getitem__)
        if large[group] and not must_fill and lacking[TRAIN] > 0:
            part = TRAIN
        part_of[group] = part
        lacking[part] -= int(sizes[group])
        empty.discard(part)
    part_of_record = part_of[group_of]
    return Split(*(np.flatnonzero(part_of_record == part) for part in range(3)))


def split_hash(split: Split, ids: np.ndarray | None = None) -> str:
    """Sixteen hex digits that name a split in reports.

    Args:
        split: the parts.
        ids: (n,) ids of all records. With them the hash does not depend on the order of the records.
    """
    pieces: list[str | np.ndarray] = []
    for name, index in split.parts().items():
        pieces.append(f"{name}:{len(index)}:")
        if ids is None:
            pieces.append(index)
        else:
            pieces.append("\0".join(sorted(np.asarray(ids)[index].astype(str).tolist())))
    return fingerprint(pieces)
