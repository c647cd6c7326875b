"""Tasks of a collection of molecules, and the classical representation they are compared with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from consilience.core.records import Collection
from consilience.domains.base import Baseline, Task
from consilience.tokenizers.molecule_notation import parse

FINGERPRINT = "ECFP4 counts (2048)"
BITS = 2048


def tasks(collection: Collection) -> list[Task]:
    """One task per label that varies: 0/1 labels are classification, other numbers regression.

    The order is that of the labels: a file's own columns first, logP before the other computed properties.
    """
    found = []
    for name, column in collection.labels.items():
        values = np.unique(column[~np.isnan(column)])
        if len(values) < 2:
            continue
        binary = len(values) == 2 and set(values.tolist()) == {0.0, 1.0}
        found.append(Task(name=name, label=name, kind="classification" if binary else "regression"))
    return found


def morgan_fingerprints(smiles: Sequence[Any], *, counts: bool = False) -> np.ndarray:
    """Morgan fingerprints of radius 2 (ECFP4; Rogers & Hahn 2010, doi:10.1021/ci100050t).

    Args:
        smiles: n SMILES or RDKit Mols.
        counts: how often each fragment occurs, instead of whether it does. For properties that add up over
            atoms (logP, TPSA, weight) this is by far the stronger representation.

    Returns:
        (n, 2048) float32, zeros and ones unless `counts`.

    Raises:
        ConsilienceError: for a SMILES that RDKit cannot read.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BITS)
    bits = np.zeros((len(smiles), BITS), np.float32)
    for row, record in enumerate(smiles):
        mol = record if isinstance(record, Chem.Mol) else parse(record)
        bits[row] = (
            generator.GetCountFingerprintAsNumPy(mol) if counts else generator.GetFingerprintAsNumPy(mol)
        )
    return bits


def descriptors(smiles: Sequence[Any]) -> np.ndarray:
    """RDKit's two-dimensional descriptors: weights, counts, surfaces, charges, connectivity (some 200).

    A value that RDKit cannot compute (partial charges of a rare element) is 0; the largest ones, which overflow float32
    in big molecules (Ipc), are cut.

    Args:
        smiles: n SMILES or RDKit Mols.

    Returns:
        (n, d) float32, in the order of RDKit's list.
    """
    from rdkit import rdBase
    from rdkit.Chem import Descriptors

    largest = float(np.finfo(np.float32).max)
    rows = []
    with rdBase.BlockLogs():
        for record in smiles:
            mol = record if isinstance(record, Chem.Mol) else parse(record)
            rows.append(list(Descriptors.CalcMolDescriptors(mol).values()))
    table = np.nan_to_num(np.array(rows, dtype=np.float64), nan=0.0, posinf=largest, neginf=-largest)
    return table.clip(-largest, largest).astype(np.float32)


def baseline(collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
    """ECFP4 of all molecules. Nothing is fitted, so `train` is not looked at.

    Counts rather than bits: logP and TPSA add up over atoms, and ridge on bits would be a straw man.
    """
    return FINGERPRINT, morgan_fingerprints(collection.records, counts=True)


def baselines(collection: Collection, train: np.ndarray) -> list[Baseline]:
    """ECFP4 counts with a linear read-out and with a random forest, the usual pair of cheminformatics.

    The forest sees the columns that vary among the training molecules: others cannot be split on.
    """
    name, features = baseline(collection, train)
    seen = features[train].min(0) < features[train].max(0)
    return [
        Baseline(name=name, features=features),
        Baseline(name="ECFP4 counts, random forest", features=features[:, seen], method="forest"),
    ]
