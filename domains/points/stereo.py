"""Stereochemistry of conformers: a model of distances sees none, so what it draws is compared with what was asked."""

import numpy as np
from rdkit import Chem, rdBase

from consilience.domains.points.classical import with_conformers


def has_stereo(mol: Chem.Mol) -> bool:
    """Whether a molecule says how its centres or double bonds stand; see `as_asked` for the centres that count."""
    return bool(_centres(mol) or _double_bonds(mol))


def with_stereo(mol: Chem.Mol, places: np.ndarray) -> Chem.Mol:
    """A copy of the molecule with the stereochemistry of these places, (atoms, 3), and no conformer."""
    copy = with_conformers(mol, [places])
    with rdBase.BlockLogs():
        Chem.RemoveStereochemistry(copy)
        Chem.AssignStereochemistryFrom3D(copy)
    copy.RemoveAllConformers()
    return copy


def as_asked(mol: Chem.Mol, places: np.ndarray) -> np.ndarray | None:
    """The conformer, or its mirror image, whose stereochemistry is what the molecule says; None = neither is.

    Centres and double bonds of which the molecule says nothing may stand as they like. So may nitrogen with three
    neighbours: RDKit reads no centre there from places, and outside of cages it turns over by itself.

    Args:
        mol: with explicit hydrogens.
        places: (atoms, 3).
    """
    wanted = _with_centres(Chem.Mol(mol), _centres(mol))
    mirrored = places * np.array([-1.0, 1.0, 1.0], dtype=places.dtype)
    return next((image for image in (places, mirrored) if _read(mol, image) == wanted), None)


def _read(mol: Chem.Mol, places: np.ndarray) -> str:
    """The molecule's SMILES with the stereochemistry of these places where the molecule has some."""
    double_bonds = _double_bonds(mol)
    copy = with_stereo(mol, places)
    for bond in copy.GetBonds():
        if bond.GetIdx() not in double_bonds:
            bond.SetStereo(Chem.BondStereo.STEREONONE)
            bond.SetBondDir(Chem.BondDir.NONE)
    return _with_centres(copy, _centres(mol))


def _with_centres(mol: Chem.Mol, centres: set[int]) -> str:
    """The SMILES without the other centres, which the molecule loses."""
    for atom in mol.GetAtoms():
        if atom.GetIdx() not in centres:
            atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    return str(Chem.MolToSmiles(mol))


def _centres(mol: Chem.Mol) -> set[int]:
    unknown = Chem.ChiralType.CHI_UNSPECIFIED
    return {
        atom.GetIdx()
        for atom in mol.GetAtoms()
        if atom.GetChiralTag() != unknown and not (atom.GetAtomicNum() == 7 and atom.GetDegree() == 3)
    }


def _double_bonds(mol: Chem.Mol) -> set[int]:
    unknown = (Chem.BondStereo.STEREONONE, Chem.BondStereo.STEREOANY)
    return {bond.GetIdx() for bond in mol.GetBonds() if bond.GetStereo() not in unknown}
