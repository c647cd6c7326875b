"""Properties of the entries of an .sdf file, also where some are not the UTF-8 that RDKit takes all text for."""

from contextlib import suppress
from typing import Any

from rdkit import Chem


def properties_of(mol: Chem.Mol) -> dict[str, Any]:
    """Name -> value, numbers as numbers, with the private ones (`_Name`); those that are no UTF-8 are left out."""
    try:
        return dict(mol.GetPropsAsDict(includePrivate=True))
    except UnicodeDecodeError:
        readable, names = Chem.Mol(), mol.GetPropNames(includePrivate=True)
        for place in range(len(names)):  # not `in names`: one name that is no UTF-8 would end the loop
            with suppress(UnicodeDecodeError):
                readable.SetProp(names[place], mol.GetProp(names[place]))
        return dict(readable.GetPropsAsDict(includePrivate=True))


def title_of(mol: Chem.Mol) -> str:
    """The first line of the entry, "" where there is none or none that can be read."""
    with suppress(UnicodeDecodeError):
        return mol.GetProp("_Name").strip() if mol.HasProp("_Name") else ""
    return ""
