"""Scaffold decoration: a scaffold with attachment points as patterns, and whether a molecule holds it.

An attachment point is `*`, `[*]` or `[*:1]`: an atom with one bond whose place what is generated takes. A pattern
(`tokenizers.molecule_patterns`) is about a string, so that one scaffold has many. The canonical one comes first, which
models of canonical strings know best; then those that end at the attachment point, for models that look back only.
"""

from collections.abc import Sequence

import numpy as np
from rdkit import Chem

from consilience.core.errors import ConsilienceError
from consilience.domains.molecules.generation import canonical_or_none
from consilience.tokenizers.molecule_notation import parse
from consilience.tokenizers.molecule_patterns import free_as_atoms

TRIES = 200
"""Random atom orders looked through for one that ends at the attachment point."""


def scaffold_patterns(scaffold: str) -> list[str]:
    """Patterns that keep a scaffold, the best known first.

    Args:
        scaffold: SMILES with at least one attachment point.

    Raises:
        ConsilienceError: when it is no SMILES, has no attachment point, or one with several bonds.
    """
    mol = _attachable(scaffold)
    points = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0]
    if not points:
        raise ConsilienceError(
            f"scaffold {scaffold!r} has no attachment point: write * where it is to go on, as in 'c1ccc(*)cc1'"
        )
    for atom in points:
        if atom.GetDegree() != 1:
            raise ConsilienceError(
                f"scaffold {scaffold!r}: an attachment point has one bond, and atom {atom.GetIdx() + 1}, a *, has "
                f"{atom.GetDegree()}"
            )
    found = [str(Chem.MolToSmiles(mol))]
    if len(points) == 1:
        texts = Chem.MolToRandomSmilesVect(mol, TRIES, randomSeed=1)
        found += sorted({text for text in texts if text.endswith("*")}, key=lambda text: (len(text), text))
    return found


def holds_scaffold(strings: Sequence[str], scaffold: str) -> np.ndarray:
    """(n,) bool: valid molecules with the scaffold as a substructure, and something at every attachment point."""
    settings = Chem.AdjustQueryParameters.NoAdjustments()
    settings.makeDummiesQueries = True  # type: ignore[assignment]  # RDKit's stubs are wrong
    query = Chem.AdjustQueryProperties(_attachable(scaffold), settings)
    valid = [None if text is None else parse(text) for text in canonical_or_none(strings)]
    return np.array([mol is not None and mol.HasSubstructMatch(query) for mol in valid], dtype=bool)


def scaffold_of_pattern(pattern: str) -> str | None:
    """A pattern as a scaffold, with an attachment point for every free part; None where that is no molecule."""
    text = free_as_atoms(pattern)
    return text if canonical_or_none([text])[0] is not None else None


def _attachable(scaffold: str) -> Chem.Mol:
    """The molecule of a scaffold, its attachment points without numbers."""
    if not scaffold.strip():
        raise ConsilienceError(
            "the scaffold is empty: write a SMILES with * where it is to go on, as in 'c1ccc(*)cc1'"
        )
    try:
        mol = parse(scaffold)
    except ConsilienceError as error:
        raise ConsilienceError(
            f"scaffold {scaffold!r} is no SMILES that RDKit can read: correct it (lengths such as *{{2,8}} are for "
            "--pattern)"
        ) from error
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            atom.SetAtomMapNum(0)
            atom.SetIsotope(0)
    return mol
