"""Coverage, matching, bonds: references against themselves, random clouds, symmetric atoms, RDKit's own distance."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem, rdDistGeom, rdMolAlign

from consilience.core.errors import ConsilienceError
from consilience.domains.points.conformer_metrics import (
    best_distance,
    bond_lengths,
    bonds_within,
    coverage,
    perceived,
    symmetries,
)

SMILES = ["CCO", "CC(C)(C)C(=O)O", "c1ccccc1C#N", "OCC(F)CN", "C1CC1C(=O)N"]


def conformers(smiles: str, count: int, seed: int = 7) -> tuple[Chem.Mol, list[np.ndarray]]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=seed)
    AllChem.MMFFOptimizeMoleculeConfs(mol)
    return mol, [conformer.GetPositions() for conformer in mol.GetConformers()]


def turned(positions: np.ndarray, seed: int, *, mirror: bool = False) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.linalg.det(q))
    return positions @ (-q if mirror else q) + 3.0


@pytest.mark.parametrize("smiles", SMILES)
def test_references_cover_themselves_and_random_clouds_nothing(smiles):
    mol, references = conformers(smiles, 3)
    same = coverage(mol, [turned(x, i) for i, x in enumerate(references)], references)
    assert same.coverage == 1 and same.matching < 1e-5
    rng = np.random.default_rng(0)
    # Twice as wide as molecules, so that no cloud is near by chance, also none of three heavy atoms.
    clouds = [4 * rng.normal(size=references[0].shape) for _ in range(3)]
    random = coverage(mol, clouds, references)
    assert random.coverage == 0 and random.matching > 0.5
    assert (
        bonds_within(mol, references, references[:1]) > 0.99 and bonds_within(mol, clouds, references) < 0.2
    )
    assert all(perceived(mol, x) for x in references) and not any(perceived(mol, x) for x in clouds)


@pytest.mark.parametrize("smiles", SMILES)
def test_distances_are_those_of_rdkit(smiles):
    mol, (first, second, *_) = conformers(smiles, 3)
    keep, orders = symmetries(mol)
    bare = Chem.RemoveHs(mol)
    # RDKit's match by the graph with bond orders; a carboxylic acid's oxygens are not alike there.
    wanted = rdMolAlign.GetBestRMS(Chem.Mol(bare), Chem.Mol(bare), 0, 1)
    found = best_distance(first[keep], second[keep], orders)
    if smiles == "CC(C)(C)C(=O)O":
        assert found <= wanted + 1e-4
    else:
        assert found == pytest.approx(wanted, abs=1e-4)


def test_symmetric_atoms_may_change_places():
    mol, references = conformers("CC(C)(C)C(=O)O", 1)
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    order = np.arange(mol.GetNumAtoms())
    order[[heavy[0], heavy[2]]] = order[[heavy[2], heavy[0]]]  # two methyl carbons
    assert coverage(mol, [references[0][order]], references).matching < 1e-5
    assert len(symmetries(mol)[1]) == 12  # three methyls times two oxygens
    one_way = best_distance(references[0][order], references[0], np.arange(mol.GetNumAtoms())[None])
    assert one_way > 0.1, "control: without symmetries they differ"


def test_a_mirror_image_is_another_conformer():
    mol, references = conformers("C[C@H](F)N", 1)
    assert coverage(mol, [turned(references[0], 2)], references).matching < 1e-5
    assert coverage(mol, [turned(references[0], 2, mirror=True)], references).matching > 0.1


def test_coverage_counts_references_and_matching_takes_the_nearest():
    mol, references = conformers("OCCCCN", 6)
    keep, orders = symmetries(mol)
    table = np.array([[best_distance(a[keep], b[keep], orders) for a in references[:2]] for b in references])
    found = coverage(mol, references[:2], references, threshold=0.3)
    assert found.matching == pytest.approx(table.min(1).mean())
    assert found.coverage == (table.min(1) <= 0.3).mean() >= 2 / 6


def test_bond_lengths_and_their_tolerance():
    mol, references = conformers("CCO", 1)
    lengths = bond_lengths(mol, references[0])
    assert len(lengths) == mol.GetNumBonds() and 0.9 < lengths.min() < lengths.max() < 1.6
    longer = [1.05 * references[0]]  # 0.05 Å on O-H, more on C-C
    assert bonds_within(mol, longer, references, tolerance=0.06) == (0.05 * lengths <= 0.06).mean()
    assert 0 < bonds_within(mol, longer, references, tolerance=0.06) < 1


def test_what_does_not_fit_is_told():
    mol, references = conformers("CCO", 1)
    with pytest.raises(ConsilienceError, match="not 0 generated and 1 references"):
        coverage(mol, [], references)
    with pytest.raises(ConsilienceError, match=r"shape \(4, 3\) does not fit a molecule of 9 atoms"):
        coverage(mol, [np.zeros((4, 3))], references)
    with pytest.raises(ConsilienceError, match="without bonds"):
        bonds_within(Chem.MolFromSmiles("[He]"), [np.zeros((1, 3))], [np.zeros((1, 3))])
