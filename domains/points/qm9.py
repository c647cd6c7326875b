"""QM9: 130,831 small molecules with DFT geometries and properties (Ramakrishnan et al., Sci. Data 1, 140022, 2014).

Two layouts are read: the three .csv parts of the package `qm9pack` (one molecule a line), and one .npz with flat
arrays (`xyz_1e4A` int32 in 1e-4 Å, `z`, `n_atoms`, `props`, `prop_names`, `smiles`, `index`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from ase.units import Hartree

from consilience.core.errors import ConsilienceError
from consilience.domains.points.source import Source
from consilience.tokenizers.point_records import PointTable

PROPERTIES = {
    "HOMO_LUMO_gap_au": ("gap_ev", Hartree),
    "HOMO_au": ("homo_ev", Hartree),
    "LUMO_au": ("lumo_ev", Hartree),
    "Dipole_debye": ("dipole_debye", 1.0),
    "Polarizability_bohr3": ("polarizability_bohr3", 1.0),
    "R2_bohr2": ("r2_bohr2", 1.0),
    "ZPVE_au": ("zpve_ev", Hartree),
    "InternalEnergy_0K_au": ("u0_ev", Hartree),
    "InternalEnergy_298K_au": ("u298_ev", Hartree),
    "Enthalphy_298K_au": ("h298_ev", Hartree),
    "GibbsFreeEnergy_298K_au": ("g298_ev", Hartree),
    "Heatcapacity_Cv_cal_mol_K": ("cv_cal_mol_k", 1.0),
}
"""Column of the source -> (label, factor to its unit)."""

ARRAYS = {
    "index": "iu", "n_atoms": "iu", "z": "iu", "xyz_1e4A": "iuf", "props": "iuf", "prop_names": "US", "smiles": "US"
}  # fmt: skip
"""Array of the .npz layout -> what it may hold, as numpy's kinds."""
KINDS = {"iu": "whole numbers", "iuf": "numbers", "US": "text"}

CSV_COLUMNS = ("Index", "SMILES", "N_atoms", "Elements", "XYZ_Ang")


def read_qm9(paths: Path | Sequence[Path]) -> Source:
    """QM9 from one .npz or from the .csv parts of qm9pack, labels in eV where energies are meant.

    Groups are the SMILES of the source; every molecule has one geometry.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if files[0].suffix == ".npz":
        with np.load(files[0], allow_pickle=False) as held:
            return from_arrays({name: held[name] for name in held.files}, files[0])
    return from_tables(files)


def is_qm9(columns: Sequence[str]) -> bool:
    """Whether these are the columns of qm9pack."""
    return set(CSV_COLUMNS) <= set(columns)


def from_arrays(held: dict[str, np.ndarray], path: Path) -> Source:
    """The .npz layout.

    Raises:
        ConsilienceError: naming the file and the array: one that is missing, of another shape or of another type.
    """
    _check_arrays(held, path)
    names = [str(name) for name in held["prop_names"]]
    columns = {name: held["props"][:, place] for place, name in enumerate(names)}
    numbers, codes = np.unique(held["z"], return_inverse=True)
    return _source(
        index=held["index"],
        sizes=held["n_atoms"].astype(np.int64),
        positions=(held["xyz_1e4A"] / np.float32(1e4)).astype(np.float32),
        codes=codes,
        names=tuple(chemical_symbols[number] for number in numbers),
        smiles=np.char.decode(held["smiles"]) if held["smiles"].dtype.kind == "S" else held["smiles"],
        columns=columns,
    )


def _check_arrays(held: dict[str, np.ndarray], path: Path) -> None:
    """Raise ConsilienceError for arrays that are not the layout of the module docstring."""
    missing = [name for name in ARRAYS if name not in held]
    if missing:
        raise ConsilienceError(
            f"{path}: QM9 with `xyz_1e4A` has no array {', '.join(missing)}; it needs {', '.join(ARRAYS)}"
        )
    n, sizes = len(np.atleast_1d(held["index"])), held["n_atoms"]
    atoms = int(sizes.sum()) if sizes.dtype.kind in "iu" else 0
    shapes = {"index": (n,), "n_atoms": (n,), "smiles": (n,), "z": (atoms,), "xyz_1e4A": (atoms, 3)}
    shapes |= {"props": (n, held["prop_names"].size), "prop_names": (held["prop_names"].size,)}
    for name, kinds in ARRAYS.items():
        if held[name].dtype.kind not in kinds or held[name].shape != shapes[name]:
            raise ConsilienceError(
                f"{path}: array `{name}` is {held[name].shape} of {held[name].dtype}, expected {shapes[name]} of "
                f"{KINDS[kinds]}; is the file whole?"
            )
    if n and (sizes < 1).any():
        row = int(np.flatnonzero(sizes < 1)[0])
        raise ConsilienceError(
            f"{path}: molecule {row + 1} has {sizes[row]} atoms in `n_atoms`; leave it out"
        )
    wrong = np.flatnonzero((held["z"] < 1) | (held["z"] >= len(chemical_symbols)))
    if len(wrong):
        raise ConsilienceError(
            f"{path}: atom {wrong[0] + 1} has atomic number {held['z'][wrong[0]]} in `z`; they are 1 to "
            f"{len(chemical_symbols) - 1}"
        )


def from_tables(files: Sequence[Path]) -> Source:
    """The .csv layout, all parts one after the other."""
    wanted = [*CSV_COLUMNS, *PROPERTIES]
    frames = []
    for file in files:
        try:
            frames.append(pd.read_csv(file, usecols=wanted))
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ConsilienceError(f"{file}: cannot be read as a part of qm9pack ({reason})") from error
    frame = pd.concat(frames, ignore_index=True)
    sizes = frame["N_atoms"].to_numpy(np.int64)
    elements = re.findall(r"[A-Z][a-z]?", "".join(frame["Elements"]))
    numbers = ",".join(frame["XYZ_Ang"]).replace("[", "").replace("]", "").split(",")
    if len(elements) != sizes.sum() or len(numbers) != 3 * sizes.sum():
        raise ConsilienceError(
            f"{files[0]}: elements or coordinates do not match N_atoms; is the download whole?"
        )
    names, codes = np.unique(elements, return_inverse=True)
    return _source(
        index=frame["Index"].to_numpy(),
        sizes=sizes,
        positions=np.array(numbers, dtype=np.float32).reshape(-1, 3),
        codes=codes,
        names=tuple(str(name) for name in names),
        smiles=frame["SMILES"].to_numpy().astype(str),
        columns={name: frame[name].to_numpy(np.float64) for name in PROPERTIES},
    )


def _source(
    *,
    index: np.ndarray,
    sizes: np.ndarray,
    positions: np.ndarray,
    codes: np.ndarray,
    names: tuple[str, ...],
    smiles: np.ndarray,
    columns: dict[str, np.ndarray],
) -> Source:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Source(
        clouds=PointTable(positions, starts, codes, names, None, "angstrom"),
        ids=[f"qm9-{int(number)}" for number in index],
        places=range(len(sizes)),
        labels={
            label: columns[name] * factor for name, (label, factor) in PROPERTIES.items() if name in columns
        },
        groups=smiles,
        origin="computed",
        smiles=smiles,
    )
