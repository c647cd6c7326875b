"""Properties that RDKit computes from a structure: labels of origin `computed`, never measurements."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from rdkit import Chem, RDConfig
from rdkit.Chem import QED, rdMolDescriptors

from consilience.core.errors import ConsilienceError


def log_p(mol: Chem.Mol) -> float:
    """Octanol-water partition coefficient, log10 (Wildman & Crippen 1999, doi:10.1021/ci990307l)."""
    return float(rdMolDescriptors.CalcCrippenDescriptors(mol)[0])


def molecular_weight(mol: Chem.Mol) -> float:
    """Average molecular weight in g/mol, hydrogens included."""
    return float(rdMolDescriptors._CalcMolWt(mol))


def synthetic_accessibility(mol: Chem.Mol) -> float:
    """How easy a molecule is to make, 1 (easy) to 10 (Ertl & Schuffenhauer 2009, doi:10.1186/1758-2946-1-8).

    Raises:
        ConsilienceError: this RDKit comes without its contributed modules.
    """
    return float(_scorer()(mol))


@lru_cache(maxsize=1)
def _scorer() -> Callable[[Chem.Mol], float]:
    """The authors' own function, which RDKit ships beside its package, not in it."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = spec_from_file_location("rdkit_sascorer", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ConsilienceError(f"{path}: no such file; RDKit's wheels have it: pip install rdkit")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    score: Callable[[Chem.Mol], float] = module.calculateScore
    return score


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

DISTRIBUTION: Mapping[str, Callable[[Chem.Mol], float]] = {
    "logP": log_p,
    "SA": synthetic_accessibility,
    "QED": QED.qed,
    "weight": molecular_weight,
}
"""Properties whose distributions MOSES compares, under its names."""
