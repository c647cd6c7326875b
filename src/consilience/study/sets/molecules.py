"""Molecules of the study: a slice of MOSES, and two sets of MoleculeNet with measured labels."""

from pathlib import Path

import numpy as np
import pandas as pd

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.molecules.data import of_smiles
from consilience.domains.molecules.properties import PROPERTIES
from consilience.study.sets.common import draw

MOSES_RECORDS = 6000


def moses_slice(path: Path) -> Collection:
    """6,000 molecules of MOSES' training set; labels are computed by RDKit. `path`: train.csv.gz or its folder."""
    file = path / "train.csv.gz" if path.is_dir() else path
    smiles = _table(file, "SMILES")["SMILES"].astype(str).to_numpy()
    rows = draw(len(smiles), MOSES_RECORDS)
    return of_smiles(
        smiles[rows].tolist(),
        source=str(file),
        ids=[f"moses-{row}" for row in rows],
        properties=tuple(PROPERTIES),
    )


def lipophilicity(path: Path) -> Collection:
    """Measured octanol-water distribution coefficients at pH 7.4 (log10), as label `logD`."""
    return _measured(path, smiles="smiles", column="lipo", label="logD")


def bace(path: Path) -> Collection:
    """Measured inhibition of human beta-secretase 1, yes or no, as label `BACE-1 inhibitor`."""
    return _measured(path, smiles="mol", column="Class", label="BACE-1 inhibitor")


def _measured(path: Path, *, smiles: str, column: str, label: str) -> Collection:
    table = _table(path, smiles, column)
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    name = path.name.split(".")[0]
    return of_smiles(
        table[smiles].astype(str).tolist(),
        source=str(path),
        ids=[f"{name}-{row}" for row in range(len(table))],
        labels={label: values},
    )


def _table(path: Path, *columns: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, usecols=list(columns))
    except (OSError, ValueError, EOFError) as error:
        raise ConsilienceError(f"{path}: needs the columns {', '.join(columns)} ({error})") from error
