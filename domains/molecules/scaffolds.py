"""Groups for splitting: molecules of one Bemis-Murcko scaffold never stand on both sides of a split.

Bemis & Murcko 1996, doi:10.1021/jm9602928. A molecule without a ring has no scaffold; putting all of them in
one group would make a quarter of the bundled set indivisible, so each is a group of its own, stereochemistry
and duplicates aside. Near relatives without rings (homologous acids, say) may therefore be parted.
"""

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

ACYCLIC = "acyclic:"
"""Prefix of the groups of molecules without rings."""


def scaffold_group(mol: Chem.Mol) -> str:
    """The scaffold's SMILES without stereochemistry, or `acyclic:` and the molecule's own SMILES."""
    scaffold = str(MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False))
    return scaffold or ACYCLIC + str(Chem.MolToSmiles(mol, isomericSmiles=False))
