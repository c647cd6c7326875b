"""Bonds of molecules in 3D: those of RDKit molecules, and those that distances and a SMILES agree on."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from rdkit.Geometry import Point3D

from consilience.core.errors import ConsilienceError
from consilience.core.records import Failure
from consilience.domains.points.source import Source
from consilience.tokenizers.point_bonds import ORDERS
from consilience.tokenizers.point_records import PointCloud, PointTable, element_numbers

logger = logging.getLogger(__name__)

CODES = {
    Chem.BondType.SINGLE: 1,
    Chem.BondType.DOUBLE: 2,
    Chem.BondType.TRIPLE: 3,
    Chem.BondType.AROMATIC: 4,
}


def bonds_of_mol(mol: Chem.Mol) -> np.ndarray:
    """(e, 3) bonds of a molecule, see `point_bonds`; dative and other rare bonds count as single."""
    return np.array(
        [
            (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), CODES.get(bond.GetBondType(), 1))
            for bond in mol.GetBonds()
        ],
        dtype=np.int64,
    ).reshape(-1, 3)


def bare_mol(types: Sequence[str] | np.ndarray, positions: np.ndarray) -> Chem.RWMol:
    """Atoms at these places (n, 3), in ångström, without bonds."""
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(positions))
    for i, (number, place) in enumerate(zip(element_numbers(types), positions.tolist())):
        mol.AddAtom(Chem.Atom(int(number)))
        conformer.SetAtomPosition(i, Point3D(*place))
    mol.AddConformer(conformer)
    return mol


def perceived_mol(cloud: PointCloud) -> Chem.Mol | None:
    """A neutral molecule with the bonds that distances and valences tell; None where they tell of none.

    Args:
        cloud: atoms with hydrogens, in ångström.
    """
    assert cloud.types is not None
    mol = bare_mol(cloud.types, cloud.positions)
    with rdBase.BlockLogs():
        try:
            rdDetermineBonds.DetermineBonds(mol, charge=0)
        except (ValueError, RuntimeError):
            return None
    return mol


def agreed_mol(cloud: PointCloud, smiles: str) -> Chem.Mol | None:
    """The perceived molecule where it is the one of the SMILES (stereochemistry aside), else None."""
    mol = perceived_mol(cloud)
    if mol is None:
        return None
    with rdBase.BlockLogs():
        wanted = Chem.MolFromSmiles(str(smiles))
        return mol if wanted is not None and _graph(mol) == _graph(wanted) else None


def _graph(mol: Chem.Mol) -> str:
    """Canonical SMILES of the graph alone. Plain removal keeps the hydrogen of an imine, which tells E from Z."""
    plain = Chem.Mol(mol)
    Chem.RemoveStereochemistry(plain)
    return str(Chem.MolToSmiles(Chem.RemoveAllHs(plain), isomericSmiles=False))


def with_bonds(source: Source, path: Path) -> Source:
    """The clouds of a source with bonds: those that it holds, or those that geometry and SMILES of QM9 agree on.

    QM9 gives no bonds. Molecules whose perceived bonds spell another SMILES than the source go to `failures`; about
    a minute for all of it.

    Raises:
        ConsilienceError: clouds without bonds that are not QM9's.
    """
    if not len(source.clouds) or source.clouds[0].bonds is not None:
        if len(source.clouds) and not any(
            len(cloud.bonds) for cloud in source.clouds if cloud.bonds is not None
        ):
            raise ConsilienceError(
                f"{path}: not one of its {len(source.clouds)} molecules has a bond; give a file with bonds, or leave "
                "bonds out"
            )
        return source
    table = PointTable.of(source.clouds)
    if source.origin != "computed" or source.groups is None or table.codes is None:
        raise ConsilienceError(
            f"{path}: there are no bonds in this file; give an .sdf file, or leave bonds out"
        )
    logger.info("finding the bonds of %d molecules from their geometries", len(table))
    clouds: list[PointCloud] = []
    kept: list[int] = []
    failures = list(source.failures)
    for i, (cloud, smiles) in enumerate(zip(table, source.groups)):
        mol = agreed_mol(cloud, smiles)
        if mol is None:
            reason = f"{path}: the bonds that its geometry tells of are not those of {smiles}"
            failures.append(Failure(index=source.places[i], id=source.ids[i], reason=reason))
            continue
        kept.append(i)
        clouds.append(replace(cloud, bonds=bonds_of_mol(mol)))
    if not clouds:
        raise ConsilienceError(f"{path}: no molecule's geometry tells the bonds of its SMILES")
    return replace(
        source,
        clouds=clouds,
        ids=[source.ids[i] for i in kept],
        places=[source.places[i] for i in kept],
        labels={name: np.asarray(column)[kept] for name, column in source.labels.items()},
        groups=source.groups[kept],
        failures=tuple(failures),
        smiles=None if source.smiles is None else source.smiles[kept],
    )


def without_bonds(clouds: Sequence[PointCloud]) -> Sequence[PointCloud]:
    """The same clouds without bonds."""
    if isinstance(clouds, PointTable):
        return clouds if clouds.bonds is None else replace(clouds, bonds=None)
    return [cloud if cloud.bonds is None else replace(cloud, bonds=None) for cloud in clouds]


def mol_of(cloud: PointCloud) -> Chem.Mol:
    """An RDKit molecule of a cloud with bonds, its places as the one conformer; not sanitised.

    Raises:
        ConsilienceError: a cloud without types or bonds.
    """
    if cloud.types is None or cloud.bonds is None:
        raise ConsilienceError("a molecule needs types and bonds, and this cloud lacks them")
    mol = bare_mol(cloud.types, cloud.positions)
    by_code = {code: kind for kind, code in CODES.items()}
    for first, second, order in cloud.bonds.tolist():
        mol.AddBond(first, second, by_code[order])
        if ORDERS[order - 1] == "aromatic":
            for atom in (first, second):
                mol.GetAtomWithIdx(atom).SetIsAromatic(True)
    return mol.GetMol()
