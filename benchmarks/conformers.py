"""Conformers of held-out QM9 molecules: the model that comes with the package beside RDKit's ETKDG, both relaxed too.

The molecules are the first of the test part of the usual split whose geometry tells the bonds of their SMILES. Either
everybody is told the stereochemistry of the reference, as a SMILES would, or nobody is. Intervals are those of
molecules drawn again, so they say nothing of another training.

    python benchmarks/conformers.py --data qm9.npz --threads 1
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Report, options
from rdkit import Chem

import consilience
from consilience.core.errors import ConsilienceError
from consilience.domains.metrics import bootstrap
from consilience.domains.points import data
from consilience.domains.points.conformer_benchmark import Scores, bonded, measured
from consilience.domains.points.qm9_split import TRAIN, VALIDATION, draw
from consilience.pretrained import FOLDER

ASKED = ((2, 30), (2, 10), (10, 30))
"""(conformers of each molecule, steps of transport); RDKit's rows are measured once for each number of conformers."""
COLUMNS = {
    "COV": "covered",
    "MAT (Å)": "matching",
    "bonds within 0.1 Å": "bond_lengths",
    "all bonds": "all_bonds",
    "graph": "graph",
}
DRAWS = 2000
BESIDE = "ETKDG + MMFF94"


class Row(NamedTuple):
    """What was asked of whom."""

    name: str
    told: bool
    n: int
    steps: int


def drawn_again(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over molecules that have a value, and its 95% interval."""
    some = np.isfinite(values)
    filled = np.where(some, values, 0.0)

    def mean(weight: np.ndarray) -> np.ndarray:
        found: np.ndarray = weight @ filled / (weight @ some)
        return found

    low, high = bootstrap(mean, np.arange(len(values)), draws=DRAWS, level=0.95, seed=0)
    return float(values[some].mean()), low, high


def shown(name: str, beside: str, found: Scores, other: Scores) -> str:
    """One line: differences of COV and MAT on the same molecules."""
    cells = []
    for column in ("COV", "MAT (Å)"):
        middle, low, high = drawn_again(getattr(found, COLUMNS[column]) - getattr(other, COLUMNS[column]))
        cells.append(f"{column} {middle:+.3f} [{low:+.3f}, {high:+.3f}]")
    return f"{name} less {beside}, molecule by molecule: {', '.join(cells)}."


def molecules(chosen: Any) -> tuple[list[Chem.Mol], list[np.ndarray], int]:
    """Molecules, their geometries, and how many were looked at."""
    if chosen.quick:
        read = list(Chem.SDMolSupplier(str(FOLDER / "conformers-small" / "held-out.sdf"), removeHs=False))[:4]
        return read, [mol.GetConformer().GetPositions() for mol in read], len(read)
    if not chosen.data:
        raise ConsilienceError("--data: name QM9 as .npz or .csv")
    collection = data.read(Path(chosen.data))
    order = draw(len(collection), seed=0, source=collection.source)
    tested, mols = bonded(collection, order[TRAIN + VALIDATION :][: chosen.test])
    return mols, [cloud.positions for cloud in tested.records], chosen.test


def rows(
    chosen: Any, mols: list[Chem.Mol], references: list[np.ndarray]
) -> Iterator[tuple[Row, float, Scores]]:
    """(which, CPU seconds of each, scores)."""
    model = consilience.load(chosen.model)
    for told in (True, False):
        seen: set[int] = set()
        for n, steps in ((1, 3),) if chosen.quick else ASKED:
            ways = measured(model, mols, references, n=n, steps=steps, stereo=told)
            for name, seconds, found in islice(ways, 2 if n in seen else None):
                yield Row(name.replace("denoising", "conformers-small"), told, n, steps), seconds, found
            seen.add(n)


def main() -> int:
    """Draw, score, write."""
    chosen = options(__doc__, data="", model="conformers-small", test=500)
    mols, references, looked_at = molecules(chosen)
    report = Report(
        "conformers", "Conformers of held-out QM9 molecules",
        ["method", "stereo", "of each", "steps", "none", *COLUMNS, "median MAT (Å)", "CPU s each"],
        packages=("rdkit",),
        notes=[
            f"{len(mols)} of {looked_at} drawn test molecules: the geometry of the others does not spell their SMILES. "
            "Mean and 95% interval over molecules drawn again; one training and one seed of the noise.",
            "Stereo told: that of the reference, to everybody; none: to nobody. 'none' counts molecules without any "
            "conformer, which cover nothing and play no part in the other columns.",
            "COV: share of molecules with a conformer within 0.5 Å of the DFT geometry (heavy atoms, best rotation, "
            "symmetric atoms exchanged). MAT: distance of the nearest. Definitions: docs/geometry.md.",
        ],
    )  # fmt: skip
    kept: dict[Row, Scores] = {}
    for row, seconds, found in rows(chosen, mols, references):
        kept[row] = found
        cells = [drawn_again(getattr(found, column)) for column in COLUMNS.values()]
        means = found.means
        steps = str(row.steps) if row.name.startswith("conformers-small") else ""
        told = "told" if row.told else "none"
        report.add(row.name, told, row.n, steps, means["without"], *cells, means["mat_median"], seconds)
    for row, found in kept.items():
        beside = next((one for one in kept if one[:3] == (BESIDE, row.told, row.n)), None)
        if row.name.startswith("conformers-small") and beside is not None:
            asked = f"{row.n} of each, {row.steps} steps, stereo {'told' if row.told else 'none'}"
            report.notes.append(f"{asked}: {shown(row.name, BESIDE, found, kept[beside])}")
    report.write(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
