"""What readers of several sciences share: draws with a fixed seed and official splits."""

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.splits import Split, grouped_split

OFFICIAL = "official split"
"""The label that holds a benchmark's own split: "train" or "test"."""

COARSE_CELL_TYPE = "coarse cell type"
"""The label that both blood studies share."""

STUDY = "study"
"""The label that names where a record was measured, for transfer from one study to another."""

VALIDATION = 0.125
"""Part of an official training set that is kept for validation: 10 % where 20 % are for the test."""


def draw(n: int, size: int | None, seed: int = 0) -> np.ndarray:
    """`size` of n positions, without replacement and in ascending order; all of them for None or a size above n."""
    if size is None or size >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size, replace=False))


def official_split(collection: Collection, seed: int = 0) -> Split:
    """Test as the label "official split" says; validation is drawn by group from the rest."""
    return _held_out(collection, collection.labels[OFFICIAL] == "test", seed)


def study_split(collection: Collection, seed: int = 0, *, test: str) -> Split:
    """Test = every record of one study; training and validation = the records of the others."""
    return _held_out(collection, collection.labels[STUDY] == test, seed)


def _held_out(collection: Collection, is_test: np.ndarray, seed: int) -> Split:
    test, rest = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    if not len(test) or not len(rest):
        raise ConsilienceError(
            f"{collection.source}: its fixed split has {len(rest)} records for training and {len(test)} for the test"
        )
    parts = grouped_split(collection.group_of[rest], fractions=(1 - VALIDATION, VALIDATION, 0), seed=seed)
    return Split(train=rest[parts.train], validation=rest[parts.validation], test=test)
