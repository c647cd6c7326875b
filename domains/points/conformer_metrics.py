"""How good generated conformers are: coverage and matching of references, bonds, bond lengths.

COV is the share of reference conformers with a generated one within a threshold, MAT the mean over references of the
distance to the nearest generated one (Xu et al. 2021, arXiv:2102.10240). Distances are root mean square ones after
the best rotation and over the symmetries of the molecular graph, heavy atoms only unless said otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from consilience.core.errors import ConsilienceError
from consilience.domains.points.bonds import bare_mol

THRESHOLD = 0.5
"""Ångström; the usual one of COV for small molecules."""
BOND_TOLERANCE = 0.1
"""Ångström: a bond length counts as right within this of that of the references."""
MOST_SYMMETRIES = 512
"""Symmetries of a graph that are tried; beyond, distances are upper bounds."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """COV and MAT of one molecule.

    Args:
        coverage: share of references with a generated conformer within the threshold.
        matching: mean over references of the distance to the nearest generated one, in ångström.
    """

    coverage: float
    matching: float


def coverage(
    mol: Chem.Mol,
    generated: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    *,
    threshold: float = THRESHOLD,
    hydrogens: bool = False,
) -> Coverage:
    """COV and MAT of generated conformers against references.

    Args:
        mol: the molecule, its atoms in the order of the arrays; conformers of its own play no part.
        generated: arrays (n, 3) in ångström.
        references: the same.
        threshold: of COV, in ångström.
        hydrogens: compare them too.

    Raises:
        ConsilienceError: no conformer on one side, or arrays that do not fit the molecule.
    """
    if not len(generated) or not len(references):
        raise ConsilienceError(
            f"coverage needs conformers on both sides, not {len(generated)} generated and {len(references)} references"
        )
    for array in (*generated, *references):
        if array.shape != (mol.GetNumAtoms(), 3):
            raise ConsilienceError(
                f"a conformer of shape {array.shape} does not fit a molecule of {mol.GetNumAtoms()} atoms"
            )
    keep, orders = symmetries(mol, hydrogens=hydrogens)
    nearest = np.array(
        [
            min(best_distance(made[keep], reference[keep], orders) for made in generated)
            for reference in references
        ]
    )
    return Coverage(coverage=float((nearest <= threshold).mean()), matching=float(nearest.mean()))


def symmetries(mol: Chem.Mol, *, hydrogens: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Atoms that are compared (m,), and the reorderings of these that leave the graph as it is (s, m), both int64.

    Bond orders and charges play no part, so that mesomeric forms of a nitro or carboxylate group are the same.
    """
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    keep = np.arange(len(numbers)) if hydrogens else np.flatnonzero(numbers > 1)
    if not len(keep):
        keep = np.arange(len(numbers))
    place = {int(atom): i for i, atom in enumerate(keep)}
    graph = Chem.RWMol()
    for atom in keep:
        bare = Chem.Atom(int(numbers[atom]))
        bare.SetNoImplicit(True)
        graph.AddAtom(bare)
    for bond in mol.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if all(end in place for end in ends):
            graph.AddBond(place[ends[0]], place[ends[1]], Chem.BondType.SINGLE)
    plain = graph.GetMol()
    with rdBase.BlockLogs():
        found = plain.GetSubstructMatches(plain, uniquify=False, maxMatches=MOST_SYMMETRIES)
    return keep, np.array(found or [range(len(keep))], dtype=np.int64)


def best_distance(first: np.ndarray, second: np.ndarray, orders: np.ndarray) -> float:
    """Root mean square distance after the best rotation, the least over these reorderings of the first.

    Args:
        first: (m, 3).
        second: (m, 3).
        orders: (s, m) of `symmetries`.
    """
    a = first - first.mean(0)
    b = second - second.mean(0)
    moved = a[orders]
    # Kabsch: of the covariance U S V' the best proper rotation keeps trace(S), the last value with the sign of det.
    covariance = np.einsum("smi,mj->sij", moved, b)
    values = np.linalg.svd(covariance, compute_uv=False)
    values[:, 2] *= np.sign(np.linalg.det(covariance))
    squared = np.square(a).sum() + np.square(b).sum() - 2 * values.sum(1)
    return float(np.sqrt(max(squared.min(), 0.0) / len(a)))


def bond_lengths(mol: Chem.Mol, positions: np.ndarray) -> np.ndarray:
    """(bonds,) lengths in the order of the molecule's bonds. positions: (n, 3)."""
    ends = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]).reshape(
        -1, 2
    )
    return np.linalg.norm(positions[ends[:, 0]] - positions[ends[:, 1]], axis=1)


def bonds_within(
    mol: Chem.Mol,
    generated: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    *,
    tolerance: float = BOND_TOLERANCE,
) -> float:
    """Share of bonds of the generated conformers whose length is that of the references, on average, within tolerance.

    Args:
        mol: the molecule.
        generated: arrays (n, 3) in ångström.
        references: the same; their mean length of each bond is what is wanted.
        tolerance: in ångström.
    """
    if not mol.GetNumBonds():
        raise ConsilienceError("a molecule without bonds has no bond lengths; leave it out")
    wanted = np.mean([bond_lengths(mol, positions) for positions in references], axis=0)
    close = [np.abs(bond_lengths(mol, positions) - wanted) <= tolerance for positions in generated]
    return float(np.mean(close))


def perceived(mol: Chem.Mol, positions: np.ndarray) -> bool:
    """Whether distances alone give the molecule's bonds back: the same pairs of atoms, whatever the orders."""
    bare = bare_mol([atom.GetSymbol() for atom in mol.GetAtoms()], positions)
    with rdBase.BlockLogs():
        rdDetermineBonds.DetermineConnectivity(bare)
    return _pairs(bare) == _pairs(mol)


def _pairs(mol: Chem.Mol) -> set[frozenset[int]]:
    return {frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in mol.GetBonds()}
