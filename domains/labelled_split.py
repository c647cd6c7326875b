"""The split of a labelled table: by group (scaffold), written so that anybody can run on the same one."""

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from consilience.core.errors import ConsilienceError
from consilience.domains.labelled import LabelledTable
from consilience.domains.splits import Split, grouped_split

FRACTIONS = (0.8, 0.1, 0.1)
PARTS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
"""How files spell the parts."""


def group_split(data: LabelledTable) -> Split:
    """80 / 10 / 10 by group; seed 0, so that a file has one split whatever the order of its rows.

    Raises:
        ConsilienceError: naming the file, where there are fewer groups than parts.
    """
    groups = len(set(data.collection.group_of.tolist()))
    if groups < len(FRACTIONS):
        raise ConsilienceError(
            f"{data.collection.source}: {len(data.collection)} labelled molecule(s) with {groups} scaffold(s) "
            "cannot be split into training, validation and test; give more molecules"
        )
    return grouped_split(data.collection.group_of, fractions=FRACTIONS, seed=0)


def split_digest(split: Split, data: LabelledTable) -> str:
    """SHA-256 (64 hex digits) of the lines `part<tab>record`, sorted; independent of the order of rows."""
    lines = sorted(
        f"{part}\t{data.collection.records[place]}\n"
        for part, index in split.parts().items()
        for place in index.tolist()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_split(path: Path, split: Split, data: LabelledTable) -> None:
    """CSV with part, id, canonical SMILES and scaffold of every record."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("part", "id", "smiles", "scaffold"))
        for part, index in split.parts().items():
            for place in index.tolist():
                collection = data.collection
                writer.writerow(
                    (part, collection.ids[place], collection.records[place], collection.group_of[place])
                )


@dataclass(frozen=True, kw_only=True)
class Aside:
    """What a given split does not settle.

    Args:
        unplaced: molecules of the data that are in no part.
        unreadable: one line about every row of the split that cannot be read.
    """

    unplaced: int = 0
    unreadable: tuple[str, ...] = ()


def read_split(
    path: Path, data: LabelledTable, canonical: Callable[[str], str]
) -> tuple[LabelledTable, Split, Aside]:
    """The split in a CSV with the columns `part` (train, validation or valid, test) and `smiles`.

    Args:
        path: the file.
        data: what is to be split.
        canonical: the string by which records are told apart.

    Returns:
        The molecules that the file places, their split, and what is set aside: molecules that it does not place, and
        rows of it whose SMILES cannot be read (published splits have some).

    Raises:
        ConsilienceError: naming the file and the row: a missing column, an unknown part, a molecule in two parts, or a
            part that stays empty.
    """
    if path.is_dir():
        raise ConsilienceError(f"{path}: is a folder; name the split.csv in it")
    if not path.is_file():
        raise ConsilienceError(f"{path}: no such file; leave out --split for a new split by scaffold")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError as error:
        raise ConsilienceError(f"{path}: the file is empty; it holds no split") from error
    except ValueError as error:
        raise ConsilienceError(f"{path} is not a CSV file: {' '.join(str(error).split())}") from error
    if not {"part", "smiles"} <= set(frame.columns):
        raise ConsilienceError(
            f"{path}: a split has the columns part and smiles, this file has {', '.join(map(str, frame.columns))}"
        )
    part_of: dict[str, str] = {}
    unreadable = []
    for row, (part, smiles) in enumerate(zip(frame["part"], frame["smiles"]), 1):
        if part not in PARTS:
            raise ConsilienceError(f"{path}: row {row} is in part {part!r}; use train, validation or test")
        try:
            molecule = canonical(smiles)
        except ConsilienceError as error:
            unreadable.append(f"row {row} of {path}: {error}")
            continue
        if part_of.setdefault(molecule, PARTS[part]) != PARTS[part]:
            raise ConsilienceError(
                f"{path}: row {row}: {smiles} is in {part_of[molecule]} and in {PARTS[part]}"
            )
    parts = np.array([part_of.get(record, "") for record in data.collection.records])
    placed = np.flatnonzero(parts != "")
    split = Split(*(np.flatnonzero(parts[placed] == name) for name in ("train", "validation", "test")))
    for name, index in split.parts().items():
        if not len(index):
            raise ConsilienceError(
                f"{path}: no molecule of {data.collection.source} is in its part {name!r}; is it the split of another "
                "file?" + (f" (also, {unreadable[0]})" if unreadable else "")
            )
    aside = Aside(unplaced=len(parts) - len(placed), unreadable=tuple(unreadable))
    return data.take(placed), split, aside
