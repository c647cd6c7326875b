"""Molecules with a conformer, for the tests of point clouds."""

from collections.abc import Callable, Mapping

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from consilience.tokenizers.point_records import PointCloud

SMILES = ("CCO", "c1ccccc1O", "CC(=O)NC", "CCCCCC", "C1CCNCC1", "OC(=O)c1ccccc1", "CC(C)(C)Cl", "N#CCCBr")


def embedded(smiles: str, seed: int = 1) -> Chem.Mol:
    """A molecule with hydrogens and one conformer."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=seed) == 0
    return mol


@pytest.fixture
def conformer() -> Callable[..., Chem.Mol]:
    """(SMILES, seed) -> the molecule with hydrogens and one conformer."""
    return embedded


@pytest.fixture(scope="session")
def molecules() -> Mapping[str, Chem.Mol]:
    """SMILES -> the molecule with hydrogens and one conformer."""
    return {smiles: embedded(smiles) for smiles in SMILES}


@pytest.fixture
def clouds(molecules: Mapping[str, Chem.Mol]) -> list[PointCloud]:
    """Their atoms, in the order of `molecules`."""
    return [
        PointCloud(
            mol.GetConformer().GetPositions(), [a.GetAtomicNum() for a in mol.GetAtoms()], unit="angstrom"
        )
        for mol in molecules.values()
    ]
