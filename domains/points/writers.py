"""Writers: clouds as .xyz, .extxyz, .npz or .ply; embeddings as parquet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from plyfile import PlyData, PlyElement

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.point_records import PointCloud, PointTable, element_numbers


def write_records(
    records: Sequence[PointCloud], path: Path, columns: Mapping[str, Any] | None = None
) -> None:
    """Write clouds; `read` gives them back.

    .xyz, .extxyz: one frame a cloud, columns as `key=value`. Points without an element are written as X.
    .npz: positions (T, 3), n_points (n,), types, unit, features, and one array a column.
    .ply: one cloud a file; several become path-0.ply, path-1.ply, ... Types and columns are not part of it.

    Args:
        records: n clouds.
        path: where to; the ending decides.
        columns: name -> n values.
    """
    writer = {".xyz": _write_xyz, ".extxyz": _write_xyz, ".npz": _write_npz, ".ply": _write_ply}.get(
        path.suffix
    )
    if writer is None:
        raise ConsilienceError(
            f"{path}: point clouds are written as .xyz, .extxyz, .npz or .ply, not {path.suffix!r}"
        )
    columns = {name: np.asarray(values) for name, values in (columns or {}).items()}
    for name, values in columns.items():
        if len(values) != len(records):
            raise ConsilienceError(f"column {name!r} has {len(values)} values for {len(records)} clouds")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(PointTable.of(records), path, columns)


def as_atoms(cloud: PointCloud) -> ase.Atoms:
    """A cloud as ASE Atoms; points without an element become X."""
    numbers = np.zeros(len(cloud), dtype=int) if cloud.types is None else element_numbers(cloud.types)
    return ase.Atoms(numbers=numbers, positions=cloud.positions)


def _write_xyz(table: PointTable, path: Path, columns: Mapping[str, np.ndarray]) -> None:
    frames = []
    for i, cloud in enumerate(table):
        atoms = as_atoms(cloud)
        atoms.info = {name: values[i].item() for name, values in columns.items()}
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def _write_npz(table: PointTable, path: Path, columns: Mapping[str, np.ndarray]) -> None:
    held: dict[str, Any] = {
        "positions": table.positions,
        "n_points": table.sizes,
        "unit": np.array(table.unit),
    }
    if table.codes is not None:
        held["types"] = np.asarray(table.names)[table.codes]
    if table.features is not None:
        held["features"] = table.features
    np.savez_compressed(path, **(held | dict(columns)))


def _write_ply(table: PointTable, path: Path, columns: Mapping[str, np.ndarray]) -> None:
    for i, cloud in enumerate(table):
        rows = np.ascontiguousarray(cloud.positions, dtype=np.float32)
        vertices = rows.view([(axis, "f4") for axis in "xyz"]).reshape(-1)
        file = path if len(table) == 1 else path.with_name(f"{path.stem}-{i}.ply")
        PlyData([PlyElement.describe(vertices, "vertex")]).write(str(file))
