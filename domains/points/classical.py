"""Conformers without a model: ETKDG as the baseline, and MMFF94 for relaxing those of either."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.Geometry import Point3D

STEPS = 2000
"""Of the force field, at most. RDKit's own 200 leave one conformer in a hundred on its way."""


def etkdg(
    mol: Chem.Mol, n: int, *, seed: int = 0, force_field: bool = True, stereo: bool = False
) -> list[np.ndarray]:
    """Up to n conformers by ETKDGv3, the baseline; fewer where embedding fails.

    Args:
        mol: with explicit hydrogens.
        n: how many.
        seed: of the embedding.
        force_field: relax with MMFF94 where it has parameters.
        stereo: use the chirality of the molecule; a model that sees none is compared without.
    """
    copy = Chem.Mol(mol)
    if not stereo:
        Chem.RemoveStereochemistry(copy)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed + 1  # RDKit reads 0 and below otherwise
    with rdBase.BlockLogs():
        Chem.SanitizeMol(copy)
        if not len(rdDistGeom.EmbedMultipleConfs(copy, n, parameters)):
            parameters.useRandomCoords = True  # as RDKit advises where its own start fails
            rdDistGeom.EmbedMultipleConfs(copy, n, parameters)
    made = [conformer.GetPositions() for conformer in copy.GetConformers()]
    return relaxed(mol, made) if force_field else made


def relaxed(mol: Chem.Mol, conformers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Conformers at the nearest minimum of MMFF94, or as they are where it has no parameters for the molecule.

    Args:
        mol: with explicit hydrogens.
        conformers: arrays (atoms, 3) in ångström.
    """
    copy = with_conformers(mol, conformers)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(copy)
        if not len(conformers) or not rdForceFieldHelpers.MMFFHasAllMoleculeParams(copy):
            return list(conformers)
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(copy, maxIters=STEPS)
    return [conformer.GetPositions() for conformer in copy.GetConformers()]


def with_conformers(mol: Chem.Mol, conformers: Sequence[np.ndarray]) -> Chem.Mol:
    """A copy of the molecule with these conformers, arrays (atoms, 3) in ångström, and no others."""
    copy = Chem.Mol(mol)
    copy.RemoveAllConformers()
    for array in conformers:
        conformer = Chem.Conformer(len(array))
        for atom, place in enumerate(array.tolist()):
            conformer.SetAtomPosition(atom, Point3D(*place))
        copy.AddConformer(conformer, assignId=True)
    return copy
