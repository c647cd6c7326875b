"""Properties of molecules that RDKit computes, under the names by which a model is asked for them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import QED, rdMolDescriptors

from consilience.core.errors import ConsilienceError
from consilience.domains.molecules.properties import log_p, molecular_weight, synthetic_accessibility
from consilience.tokenizers.molecule_notation import parse

COMPUTED: Mapping[str, Callable[[Chem.Mol], float]] = {
    "logp": log_p,
    "qed": QED.qed,
    "tpsa": rdMolDescriptors.CalcTPSA,
    "weight": molecular_weight,
    "rings": rdMolDescriptors.CalcNumRings,
    "hbd": rdMolDescriptors.CalcNumHBD,
    "hba": rdMolDescriptors.CalcNumHBA,
    "sa": synthetic_accessibility,
}
"""Octanol-water log P, drug-likeness, polar surface area in square angstrom, g/mol, rings of the smallest set, donors
and acceptors of hydrogen bonds, synthetic accessibility; sources stand in `properties`."""


def compute(records: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Property -> (n,) float64 of every molecule, NaN where RDKit cannot read it.

    Args:
        records: SMILES or RDKit Mols; generated strings may be no molecules.
        names: of COMPUTED.
    """
    found = {name: np.full(len(records), np.nan) for name in names}
    for row, record in enumerate(records):
        try:
            mol = record if isinstance(record, Chem.Mol) else parse(str(record))
        except ConsilienceError:
            continue
        for name, column in found.items():
            column[row] = COMPUTED[name](mol)
    return found
