"""Properties that RDKit computes from a structure: labels of origin `computed`, never measurements."""

from collections.abc import Callable, Mapping

from rdkit import Chem
from rdkit.Chem import QED, rdMolDescriptors


def log_p(mol: Chem.Mol) -> float:
    """Octanol-water partition coefficient, log10 (Wildman & Crippen 1999, doi:10.1021/ci990307l)."""
    return float(rdMolDescriptors.CalcCrippenDescriptors(mol)[0])


def molecular_weight(mol: Chem.Mol) -> float:
    """Average molecular weight in g/mol, hydrogens included."""
    return float(rdMolDescriptors._CalcMolWt(mol))


PROPERTIES: Mapping[str, Callable[[Chem.Mol], float]] = {
    "logP": log_p,
    "TPSA": rdMolDescriptors.CalcTPSA,
    "molecular weight": molecular_weight,
    "QED": QED.qed,
    "ring count": rdMolDescriptors.CalcNumRings,
}
"""With the above: topological polar surface area in square angstrom (Ertl 2000, doi:10.1021/jm000942e);
drug-likeness 0 to 1 (Bickerton 2012, doi:10.1038/nchem.1243); rings of the smallest set."""

CHEAP = ("logP", "TPSA")
"""What is computed for files without numbers of their own: 0.2 ms a molecule (QED alone takes 0.7 ms)."""
