"""The usual random split of QM9: 110,000 molecules to train on, 10,000 to choose with, the rest to test.

Papers share the sizes and not the molecules, so a split is a seed, its sizes and a hash of its indices here; the
command that uses one writes the indices beside its results.
"""

from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing
from consilience.core.records import fingerprint
from consilience.domains.splits import Split

TRAIN, VALIDATION = 110_000, 10_000
WHOLE = 130_831
"""Molecules of the set without those that failed the authors' consistency check."""
HASHES = {0: "77989252ff8c8309"}
"""Seed -> what `draw_hash` must give for the whole set with the usual sizes."""


def draw(
    n: int, *, seed: int = 0, train: int = TRAIN, validation: int = VALIDATION, source: str = "the data"
) -> np.ndarray:
    """(n,) int64: a permutation of the records whose first `train` rows train, the next `validation` choose.

    The permutation is that of numpy's legacy generator, which numpy promises not to change.

    Raises:
        ConsilienceError: sizes that leave nothing to test, or (for the whole set) other indices than the known ones.
    """
    if min(train, validation) < 1 or train + validation >= n:
        raise ConsilienceError(
            f"{source}: {n} molecules cannot give {train} to train on, {validation} to choose with and some to test: "
            f"give the whole of QM9 ({WHOLE:,} molecules)"
        )
    if not 0 <= seed < 2**32:
        raise ConsilienceError(f"the seed of the split must lie in 0 to {2**32 - 1}, not {seed}")
    order = np.random.RandomState(seed).permutation(n).astype(np.int64)
    if n == WHOLE and seed in HASHES and draw_hash(order) != HASHES[seed]:
        raise ConsilienceError(
            f"the split of seed {seed} has hash {draw_hash(order)}, known is {HASHES[seed]}: this numpy shuffles "
            "otherwise, and results would not compare; use the versions in constraints.txt"
        )
    return order


def draw_hash(order: np.ndarray) -> str:
    """Sixteen hex digits of a permutation."""
    return fingerprint([order.astype("<i8")])


def split_of(
    order: np.ndarray,
    *,
    train: int = TRAIN,
    validation: int = VALIDATION,
    labels: int | None = None,
    choose_on: int | None = None,
) -> Split:
    """The split of a permutation.

    Args:
        order: of `draw`.
        train: rows that may train.
        validation: rows that choose.
        labels: train on the first so many of the training rows alone; None = all.
        choose_on: choose with the first so many of the validation rows alone; None = all.
    """
    if labels is not None and not 2 <= labels <= train:
        raise ConsilienceError(f"labels must lie in 2 to {train}, not {labels}")
    if choose_on is not None and not 1 <= choose_on <= validation:
        raise ConsilienceError(f"choose_on must lie in 1 to {validation}, not {choose_on}")
    return Split(
        train=order[: train if labels is None else labels],
        validation=order[train : train + (validation if choose_on is None else choose_on)],
        test=order[train + validation :],
    )


def write_indices(split: Split, path: Path) -> None:
    """The positions of all parts as .npz: train, validation, test."""
    parts: dict[str, Any] = dict(split.parts())
    with replacing(path) as part:
        np.savez_compressed(part, **parts)
