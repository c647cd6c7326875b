"""Which molecules pass the filters of MOSES: the rules by which its data were chosen from ZINC.

No ring of 8 atoms or more, no charge, no other element than C, N, S, O, F, Cl, Br and H, and no match of the medicinal
chemistry filters (22 patterns) or of PAINS (480 patterns; Baell & Holloway 2010, doi:10.1021/jm901137j).
"""

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rdkit import Chem
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogEntry, SmartsMatcher

from consilience.core.errors import ConsilienceError

ELEMENTS = frozenset(("C", "N", "S", "O", "F", "Cl", "Br", "H"))
LARGE_RING = 8
FILES = ("mcf.csv", "wehi_pains.csv")

Patterns = tuple[str, ...]


def read_patterns(folder: Path) -> Patterns:
    """The patterns that MOSES publishes, as SMARTS.

    Args:
        folder: of the fetched data set, with mcf.csv (names, smarts) and wehi_pains.csv (SMARTS first, no header).

    Raises:
        ConsilienceError: a file is missing or holds no readable pattern.
    """
    found = []
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise ConsilienceError(
                f"{path}: no such file; the filters come with `consilience data fetch moses` (without --data-dir)"
            )
        patterns = list(_smarts(path))
        if not patterns:
            raise ConsilienceError(f"{path}: holds no pattern; remove it and fetch moses again")
        found += patterns
    return tuple(found)


def passes(mol: Chem.Mol, patterns: Patterns) -> bool:
    """Whether a molecule passes all of the filters."""
    if any(len(ring) >= LARGE_RING for ring in mol.GetRingInfo().AtomRings()):
        return False
    atoms = mol.GetAtoms()
    if any(atom.GetFormalCharge() != 0 or atom.GetSymbol() not in ELEMENTS for atom in atoms):
        return False
    if _catalogue(patterns).HasMatch(Chem.AddHs(mol)):  # the patterns name their hydrogens
        return False
    # A molecule whose SMILES without stereochemistry cannot be read back does not pass.
    return Chem.MolFromSmiles(Chem.MolToSmiles(mol, isomericSmiles=False)) is not None


def _smarts(path: Path) -> Iterator[str]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        column = next(rows).index("smarts") if path.name == "mcf.csv" else 0
        for number, row in enumerate(rows, 1):
            text = row[column].strip()
            if Chem.MolFromSmarts(text) is None:
                raise ConsilienceError(
                    f"{path}: row {number}: {text!r} is no SMARTS; remove the file and fetch moses again"
                )
            yield text


@lru_cache(maxsize=4)
def _catalogue(patterns: Patterns) -> FilterCatalog:
    """The patterns as one object, which looks through them without coming back to Python."""
    catalogue = FilterCatalog()
    for text in patterns:
        matcher = SmartsMatcher(text, Chem.MolFromSmarts(text))
        catalogue.AddEntry(FilterCatalogEntry(text, matcher))
    return catalogue
