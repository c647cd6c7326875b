"""Readers: a file of point clouds to a Source, by its ending.

.xyz, .extxyz: atoms through ASE, any number of frames; `key=value` of the second line become labels.
.sdf: molecules in 3D with their bonds through RDKit; properties become labels, molecules (without
    stereochemistry) groups.
.ply: one cloud, the places of the element `vertex`, without a unit.
.npz: see `arrays.read_npz`; QM9 in two layouts: see `qm9`.
A folder: all such files in the order of their names.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pandas as pd
from plyfile import PlyData, PlyParseError
from rdkit import Chem, rdBase

from consilience.core.errors import ConsilienceError
from consilience.core.records import Failure
from consilience.domains.points import qm9
from consilience.domains.points.arrays import read_npz
from consilience.domains.points.bonds import bonds_of_mol
from consilience.domains.points.conformers import flat_smiles
from consilience.domains.points.source import Kinds, Source, columns_of
from consilience.domains.points.xyz_frames import Frame, cut_frames
from consilience.domains.sdf import properties_of
from consilience.tokenizers.point_records import PointCloud

SUFFIXES = (".xyz", ".extxyz", ".sdf", ".ply", ".npz", ".csv")
ID_NAMES = ("id", "name", "_Name")


def read_source(path: Path) -> Source:
    """Clouds of a file or folder.

    Raises:
        ConsilienceError: no such file, an unknown ending, an empty or a broken file.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ConsilienceError(f"{path}: no such file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConsilienceError(
            f"{path}: point clouds are read from {', '.join(SUFFIXES)}, not {path.suffix!r}"
        )
    if path.stat().st_size == 0:
        raise _empty(path)
    source = reader(path)
    if not len(source.clouds) and not source.failures:
        raise _empty(path)
    return source


def _empty(path: Path) -> ConsilienceError:
    return ConsilienceError(f"{path}: the file is empty; it holds no point cloud")


def _read_folder(folder: Path) -> Source:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ConsilienceError(f"{folder}: no file that ends in {', '.join(SUFFIXES)}")
    parts = [file for file in files if file.suffix == ".csv"]
    if parts:
        return qm9.read_qm9([file for file in parts if qm9.is_qm9(_header(file))] or parts)
    clouds: list[PointCloud] = []
    ids: list[str] = []
    rows: list[dict[str, object]] = []
    groups: list[str] = []
    failures: list[Failure] = []
    for place, file in enumerate(files):
        try:
            source = read_source(file)
        except ConsilienceError as error:
            failures.append(Failure(index=place, id=file.name, reason=str(error)))
            continue
        failures += source.failures
        for i, cloud in enumerate(source.clouds):
            clouds.append(cloud)
            rows.append({name: column[i] for name, column in source.labels.items()})
            groups.append(str(source.ids[i] if source.groups is None else source.groups[i]))
        ids += source.ids
    return Source(
        clouds=clouds,
        ids=ids,
        places=range(len(clouds)),
        labels=columns_of(rows),
        groups=np.array(groups),
        failures=tuple(failures),
    )


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Consecutive frames of an xyz file.

    Args:
        clouds: n clouds.
        ids: n names, as the file gives them.
        places: n places in the file, counted from 0.
        rows: n dictionaries of what is said of them.
        failures: frames that cannot be read.
        numbers: n numbers of the readable frames, counted from 0.
    """

    clouds: list[PointCloud]
    ids: list[str]
    places: list[int]
    rows: Sequence[Mapping[str, Any]]
    failures: list[Failure]
    numbers: Sequence[int]

    def source(self, *, unique: bool | None = None, kinds: Kinds | None = None) -> Source:
        """A Source; `unique` and `kinds` are those of the whole file where the frames are a piece of it."""
        unique = len(set(self.ids)) == len(self.ids) if unique is None else unique
        names = [f"{name}#{number}" for name, number in zip(self.ids, self.numbers)]
        return Source(
            clouds=self.clouds,
            ids=self.ids if unique else names,
            places=self.places,
            labels=columns_of(self.rows, kinds),
            failures=tuple(self.failures),
        )


def _read_xyz(path: Path) -> Source:
    return next(read_frames(path, None)).source()


def xyz_pieces(path: Path, size: int) -> Iterator[Source]:
    """The frames of an .xyz or .extxyz file in pieces; the file is read twice (see `Kinds`, and names)."""
    kinds, hashes, found = Kinds(), [np.zeros(0, np.uint64)], False
    for frames in read_frames(path, size):
        found = True
        kinds = kinds.join(Kinds.of(frames.rows))
        hashes.append(pd.util.hash_array(np.array(frames.ids, dtype=object), categorize=False))
    if not found:
        raise _empty(path)
    every = np.sort(np.concatenate(hashes))
    unique = not bool((every[1:] == every[:-1]).any())
    for frames in read_frames(path, size):
        yield frames.source(unique=unique, kinds=kinds)


def read_frames(path: Path, size: int | None) -> Iterator[Frames]:
    """Frames in pieces of `size`; None = all at once."""
    frames, number = enumerate(cut_frames(path)), 0
    while True:
        part = list(islice(frames, size))
        if not part and (number or size is not None):
            return
        made = _read_frames(path, part, number)
        number += len(made.clouds)
        yield made
        if size is None:
            return


def _read_frames(path: Path, frames: Sequence[tuple[int, Frame]], number: int) -> Frames:
    clouds, ids, places, rows, failures = [], [], [], [], []
    for place, frame in frames:
        try:
            atoms = _atoms(frame)
        except ConsilienceError as problem:
            reason = f"{path}: frame {place + 1} (line {frame.line}): {problem}"
            failures.append(Failure(index=place, id=f"{path.stem}-{place}", reason=reason))
            continue
        info = dict(atoms.info) if "=" in frame.text.split("\n", 2)[1] else {}
        info |= atoms.calc.results if atoms.calc is not None else {}
        clouds.append(
            PointCloud(atoms.get_positions(), np.array(atoms.get_chemical_symbols()), unit="angstrom")
        )
        ids.append(_name(info, f"{path.stem}-{place}"))
        places.append(place)
        rows.append(info)
    return Frames(
        clouds=clouds,
        ids=ids,
        places=places,
        rows=rows,
        failures=failures,
        numbers=range(number, number + len(clouds)),
    )


def _atoms(frame: Frame) -> Any:
    """ASE's Atoms of a frame; ConsilienceError where it is broken."""
    if frame.problem is not None:
        raise ConsilienceError(frame.problem)
    try:
        return ase.io.read(io.StringIO(frame.text), format="extxyz")
    except KeyError as error:
        if (name := str(error.args[0])) not in frame.text.split():
            raise ConsilienceError(_told(error)) from error
        hint = "; write symbols of elements, not their numbers" if name.isdigit() else ""
        raise ConsilienceError(f"unknown element {name!r}{hint}") from error
    except (ValueError, IndexError, OSError) as error:
        raise ConsilienceError(_told(error)) from error


def _read_sdf(path: Path) -> Source:
    clouds, ids, places, rows, groups, failures = [], [], [], [], [], []
    with path.open("rb") as file, rdBase.BlockLogs():
        for place, mol in enumerate(Chem.ForwardSDMolSupplier(file, removeHs=False)):
            flat = mol is None or not mol.GetNumConformers() or not mol.GetConformer().Is3D()
            if flat:
                why = "RDKit cannot read this structure" if mol is None else "has no 3D coordinates"
                failures.append(
                    Failure(index=place, id=f"{path.stem}-{place}", reason=f"{path}: entry {place + 1} {why}")
                )
                continue
            info = properties_of(mol)
            numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
            clouds.append(
                PointCloud(
                    mol.GetConformer().GetPositions(), numbers, unit="angstrom", bonds=bonds_of_mol(mol)
                )
            )
            ids.append(_name(info, f"{path.stem}-{place}"))
            places.append(place)
            rows.append({name: value for name, value in info.items() if not name.startswith("_")})
            groups.append(flat_smiles(mol))
    return Source(
        clouds=clouds,
        ids=_unique(ids),
        places=places,
        labels=columns_of(rows),
        groups=np.array(groups),
        failures=tuple(failures),
        smiles=np.array(groups),
    )


def _read_ply(path: Path) -> Source:
    try:
        vertices = PlyData.read(str(path))["vertex"].data
        positions = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        raise ConsilienceError(
            f"{path}: cannot be read as PLY with x, y, z of vertices ({_told(error)})"
        ) from error
    return Source(clouds=[PointCloud(positions)], ids=[path.stem], places=[0])


def _read_arrays(path: Path) -> Source:
    if not zipfile.is_zipfile(path):  # numpy would take it for pickled objects
        raise ConsilienceError(f"{path}: cannot be read as .npz, a zip archive of arrays; is it whole?")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ConsilienceError(
                f"{path}: holds an array of Python objects, which are never read; save it as numbers or text "
                "(`array.astype(str)`)"
            ) from error
        raise ConsilienceError(f"{path}: cannot be read as .npz ({_told(error)}); is it whole?") from error
    return qm9.from_arrays(held, path) if "xyz_1e4A" in held else read_npz(path, held)


def _read_csv(path: Path) -> Source:
    if not qm9.is_qm9(_header(path)):
        raise ConsilienceError(
            f"{path}: of .csv files only the parts of qm9pack hold point clouds; use .npz or .xyz"
        )
    return qm9.read_qm9(path)


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip().split(",")


def _name(info: Mapping[str, Any], default: str) -> str:
    return next((str(info[name]) for name in ID_NAMES if str(info.get(name, "")).strip()), default)


def _unique(ids: list[str]) -> list[str]:
    """The names where each is one of its own, else with their place added."""
    return ids if len(set(ids)) == len(ids) else [f"{name}#{place}" for place, name in enumerate(ids)]


def _told(error: Exception) -> str:
    if isinstance(error, KeyError):  # its text is the key alone
        return f"unknown element or column {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_READERS: Mapping[str, Callable[[Path], Source]] = {
    ".xyz": _read_xyz,
    ".extxyz": _read_xyz,
    ".sdf": _read_sdf,
    ".ply": _read_ply,
    ".npz": _read_arrays,
    ".csv": _read_csv,
}
