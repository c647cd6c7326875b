"""Point clouds of the study: molecules of QM9, and surfaces of ModelNet10's voxel grids."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.points.data import collect
from consilience.domains.points.qm9 import read_qm9
from consilience.domains.points.source import Source
from consilience.study.sets.common import OFFICIAL, draw
from consilience.tokenizers.point_records import PointTable

QM9_RECORDS = 6000
SURFACE_POINTS = 512
SIDE = 24
"""Voxels a side."""


def qm9(path: Path) -> Collection:
    """6,000 molecules of QM9 with computed geometries, hydrogens included; grouped by Murcko scaffold.

    Args:
        path: the .npz, or the folder of the three .csv parts.
    """
    source = read_qm9(sorted(path.glob("*.csv")) if path.is_dir() else path)
    table = PointTable.of(source.clouds)
    rows = draw(len(table), QM9_RECORDS)
    assert source.groups is not None
    chosen = replace(
        source,
        clouds=table.take(rows),
        ids=[source.ids[row] for row in rows],
        places=rows.tolist(),
        labels={name: column[rows] for name, column in source.labels.items()},
        groups=np.array([_scaffold(str(smiles)) for smiles in source.groups[rows]]),
    )
    return collect(chosen, name=str(path), origin="computed")


def _scaffold(smiles: str) -> str:
    """The scaffold of a SMILES; the SMILES itself where RDKit cannot read it."""
    from consilience.domains.molecules.scaffolds import scaffold_group
    from consilience.tokenizers.molecule_notation import parse

    try:
        return scaffold_group(parse(smiles))
    except ConsilienceError:
        return smiles


def modelnet10(path: Path) -> Collection:
    """Surface voxels of furniture (CAD models), at most 512 a shape; label `class`, the official split.

    Empty shapes go to `failures`. Of equal voxel grids the first is kept, those of the training set first: no test
    shape equals a training shape. Coordinates are in voxels.
    """
    with np.load(path, allow_pickle=False) as held:
        missing = {"classes", "vox_train", "y_train", "vox_test", "y_test"} - set(held.files)
        if missing:
            raise ConsilienceError(f"{path}: no array `{sorted(missing)[0]}`")
        packed = np.concatenate([held["vox_train"], held["vox_test"]])
        kinds = held["classes"][np.concatenate([held["y_train"], held["y_test"]])].astype(str)
        is_test = np.arange(len(packed)) >= len(held["vox_train"])
    first = np.sort(np.unique(packed, axis=0, return_index=True)[1])
    voxels = np.unpackbits(packed[first], axis=1).reshape(-1, SIDE, SIDE, SIDE).astype(bool)
    clouds = [_surface(grid, int(row)) for grid, row in zip(voxels, first)]
    sizes = np.array([len(cloud) for cloud in clouds])
    source = Source(
        clouds=PointTable(
            np.concatenate(clouds).astype(np.float32),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        ),
        ids=[f"modelnet10-{row:04d}" for row in first],
        places=first.tolist(),
        labels={"class": kinds[first], OFFICIAL: np.where(is_test[first], "test", "train")},
    )
    return collect(source, name=str(path), origin="model")


def _surface(grid: np.ndarray, row: int) -> np.ndarray:
    """(m, 3) indices of the filled voxels with an empty one at a face, at most `SURFACE_POINTS`, drawn by row."""
    padded = np.pad(grid, 1)
    inner = grid.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    points = np.argwhere(grid & ~inner)
    return points[draw(len(points), SURFACE_POINTS, seed=row)]
