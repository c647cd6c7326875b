"""Point clouds with labels and groups: bundled conformers, and files of the user.

Records are a PointTable (a list of PointCloud that is fast). Clouds that cannot be used (one point, NaN, two
atoms at one place) stand in `failures` with their place in the source.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, Failure, Origin, fingerprint
from consilience.domains.pieces import Piece, pieces_of, regroup
from consilience.domains.points import conformers, readers
from consilience.domains.points.bonds import with_bonds, without_bonds
from consilience.domains.points.shapes import shape_labels
from consilience.domains.points.source import Source, without_hydrogens
from consilience.tokenizers.point_checks import problems
from consilience.tokenizers.point_records import PointTable, readable

BUNDLED = "conformers: 436 that RDKit ships and ETKDG ones of NCI molecules (all computed, heavy atoms)"
EMBEDDED = 1200
"""NCI molecules that are embedded: 9 s of one core the first time."""


@lru_cache(maxsize=1)
def bundled() -> Collection:
    """Heavy atoms of computed conformers; groups are molecules without their stereochemistry."""
    parts = [conformers.shipped(), conformers.embedded(EMBEDDED)]
    clouds = [cloud for part in parts for cloud in part.clouds]
    smiles = np.array([text for part in parts for text in part.smiles])
    source = Source(
        clouds=clouds,
        ids=[name for part in parts for name in part.ids],
        places=range(len(clouds)),
        groups=smiles,
        smiles=smiles,
    )
    return collect(source, name=BUNDLED, origin="computed")


def read(
    path: Path, *, hydrogens: bool = True, group_by: str | None = None, bonds: bool = False
) -> Collection:
    """Clouds of a file, or of all files of a folder; see `readers` for the formats.

    Args:
        path: .xyz, .extxyz, .sdf, .ply, .npz, QM9's .csv parts, or a folder of such files.
        hydrogens: keep hydrogen atoms; without, clouds hold the heavy atoms.
        group_by: the label whose equal values must not be split between training and test.
        bonds: keep the bonds of an .sdf file, or find those of QM9 (see `bonds.with_bonds`).

    Raises:
        ConsilienceError: naming the file, when it cannot be used or holds no readable cloud.
    """
    path = Path(path)
    source = readers.read_source(path)
    if bonds:
        source = with_bonds(source, path)
    else:
        source = replace(source, clouds=without_bonds(source.clouds))
    if not hydrogens:
        source = without_hydrogens(source)
    if group_by is not None:
        if group_by not in source.labels:
            known = ", ".join(source.labels) or "none"
            raise ConsilienceError(f"{path}: no label {group_by!r} to group by; it has: {known}")
        groups = np.asarray(source.labels[group_by]).astype(str)
        source = replace(source, groups=np.where(groups == "", np.asarray(source.ids), groups))
    return collect(source, name=str(path), origin=source.origin)


def stream(
    path: Path, size: int, *, hydrogens: bool = True, group_by: str | None = None, bonds: bool = False
) -> Iterator[Piece]:
    """The clouds of a file in pieces of `size`; arguments and errors as in `read`.

    .xyz and .extxyz are read frame by frame, twice; the others as a whole.
    """
    path = Path(path)
    if path.suffix.lower() not in (".xyz", ".extxyz") or not path.is_file() or group_by is not None or bonds:
        yield from pieces_of(read(path, hydrogens=hydrogens, group_by=group_by, bonds=bonds), size)
        return

    def pieces() -> Iterator[Piece]:
        for source in readers.xyz_pieces(path, size):
            chosen = source if hydrogens else without_hydrogens(source)
            found = collect(chosen, name=str(path), origin=source.origin, partly=True)
            unread = [failure.index for failure in found.failures]
            yield Piece(collection=found, places=np.setdiff1d(source.places, unread))

    yield from regroup(pieces(), size, join=_joined)


def _joined(parts: Sequence[PointTable]) -> PointTable:
    return PointTable.of([cloud for table in parts for cloud in table])


def collect(source: Source, *, name: str, origin: Origin, partly: bool = False) -> Collection:
    """The usable clouds of a source, with labels of their shape beside its own; of a piece there may be none."""
    table, refused = readable(source.clouds)
    accepted = np.array([i for i in range(len(source.clouds)) if i not in refused], dtype=np.int64)
    refused |= {int(accepted[i]): reason for i, reason in problems(table).items()}
    good = np.array([i for i, place in enumerate(accepted) if int(place) not in refused], dtype=np.int64)
    failures = [
        Failure(index=source.places[i], id=source.ids[i], reason=f"{name}: {source.ids[i]}: {reason}")
        for i, reason in refused.items()
    ]
    failures = sorted([*source.failures, *failures], key=lambda failure: failure.index)
    if not len(good) and not partly:
        why = f"; the first: {failures[0].reason}" if failures else ""
        raise ConsilienceError(f"{name}: no point cloud can be used{why}")
    clouds = table.take(good) if len(good) < len(table) else table
    kept = accepted[good]
    labels = {key: np.asarray(column)[kept] for key, column in source.labels.items()}
    for key, column in shape_labels(clouds).items():
        labels.setdefault(key, column)
    ids = np.asarray(source.ids)[kept].astype(str)
    return Collection(
        records=clouds,
        ids=ids,
        source=name,
        origin=origin,
        fingerprint=_fingerprint(clouds),
        labels=labels,
        groups=None if source.groups is None else np.asarray(source.groups)[kept],
        failures=tuple(failures),
        beside={} if source.smiles is None else {"molecules": np.asarray(source.smiles)[kept]},
    )


def _fingerprint(table: PointTable) -> str:
    codes = np.zeros(0) if table.codes is None else table.codes.astype(np.int32)
    features = np.zeros(0) if table.features is None else table.features
    parts: list[Any] = [table.positions, table.starts, codes, " ".join(table.names), features]
    if table.bonds is not None:
        parts += [table.bonds.rows, table.bonds.starts]
    return fingerprint(parts)
