"""Conformers at hand without a download: those that RDKit ships, and ETKDG conformers of NCI molecules.

All are computed, none is measured: the shipped ones come from CORINA, force fields and docking, the others are
embedded here with ETKDGv3 (Riniker & Landrum 2015; Wang et al. 2020) under a fixed seed. Heavy atoms only.
"""

import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rdkit
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import rdDistGeom

from consilience.core.files import cache_folder
from consilience.core.records import fingerprint
from consilience.tokenizers.point_records import PointCloud, PointTable

logger = logging.getLogger(__name__)

SHIPPED = {
    "egfr": "PBF/testData/egfr.sdf",
    "cdk2": "Fastcluster/testdata/cdk2.sdf",
    "cmet": "FreeWilson/data/cmet_ligands.sdf",
}
"""Name -> SDF file with 3D coordinates inside RDKit's Contrib folder."""

HEAVY_ATOMS = (6, 20)
"""Smallest and largest NCI molecule that is embedded: ETKDG needs 4 to 9 ms for each of these."""

ELEMENTS = frozenset({5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53})
"""Heavy elements of embedded molecules (B C N O F Si P S Cl Br I): what the force field of ETKDG knows well."""

SEED = 2015


@dataclass(frozen=True, kw_only=True)
class Conformers:
    """Conformers with the names and the SMILES of their molecules, n each."""

    clouds: PointTable
    ids: tuple[str, ...]
    smiles: tuple[str, ...]


def heavy_cloud(mol: Chem.Mol) -> PointCloud:
    """The heavy atoms of a molecule's first conformer."""
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    heavy = numbers > 1
    return PointCloud(mol.GetConformer().GetPositions()[heavy], numbers[heavy], unit="angstrom")


def flat_smiles(mol: Chem.Mol) -> str:
    """Canonical SMILES without hydrogens and stereochemistry: the same for all conformers of a molecule."""
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False))


def shipped() -> Conformers:
    """The 436 ligands in 3D that RDKit ships for its contributed examples (EGFR, CDK2 and c-Met)."""
    clouds, ids, smiles = [], [], []
    for name, path in SHIPPED.items():
        file = Path(RDConfig.RDContribDir) / path
        if not file.exists():  # distributions of RDKit without Contrib
            logger.warning("%s is not part of this RDKit; its conformers are left out", file)
            continue
        with rdBase.BlockLogs():
            mols = [mol for mol in Chem.SDMolSupplier(str(file)) if mol is not None]
        for place, mol in enumerate(mols):
            if mol.GetConformer().Is3D():
                clouds.append(heavy_cloud(mol))
                ids.append(f"{name}-{place + 1}")
                smiles.append(flat_smiles(mol))
    return Conformers(clouds=PointTable.of(clouds), ids=tuple(ids), smiles=tuple(smiles))


def embedded(n: int) -> Conformers:
    """ETKDGv3 conformers of the first n suitable NCI molecules: organic, one fragment, 6 to 20 heavy atoms.

    About 7 ms of one core each the first time, then read from the cache folder.
    """
    source = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    key = fingerprint([source.read_bytes(), f"{n} {HEAVY_ATOMS} {SEED} {rdkit.__version__} 2"])
    file = cache_folder() / f"nci-etkdg-{key}.npz"
    cached = _load(file)
    if cached is None:
        logger.info("embedding %d molecules in 3D; the next time they come from %s", n, file)
        cached = embed(_suitable(source, n))
        _save(cached, file)
    return cached


def embed(molecules: Sequence[tuple[str, str]], seed: int = SEED) -> Conformers:
    """One ETKDGv3 conformer for each (id, SMILES); molecules that cannot be embedded are left out.

    Every molecule is embedded on its own with the same seed, so results depend neither on the others nor on
    the number of threads.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda item: _embed_one(item[1], seed), molecules))
    kept = [(name, smiles, cloud) for (name, smiles), cloud in zip(molecules, found) if cloud is not None]
    return Conformers(
        clouds=PointTable.of([cloud for _, _, cloud in kept]),
        ids=tuple(name for name, _, _ in kept),
        smiles=tuple(smiles for _, smiles, _ in kept),
    )


def _embed_one(smiles: str, seed: int) -> PointCloud | None:
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed
    parameters.maxIterations = 20
    with rdBase.BlockLogs():
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        return heavy_cloud(mol) if rdDistGeom.EmbedMolecule(mol, parameters) == 0 else None


def _suitable(source: Path, n: int) -> list[tuple[str, str]]:
    """(id, SMILES without stereochemistry) of the first n molecules that fit."""
    found: dict[str, str] = {}
    for name, mol in _molecules(source):
        organic = ELEMENTS.issuperset(atom.GetAtomicNum() for atom in Chem.RemoveHs(mol).GetAtoms())
        fits = HEAVY_ATOMS[0] <= mol.GetNumHeavyAtoms() <= HEAVY_ATOMS[1]
        if organic and fits and len(Chem.GetMolFrags(mol)) == 1:
            found.setdefault(flat_smiles(mol), name)
        if len(found) == n:
            break
    return [(name, smiles) for smiles, name in found.items()]


def _molecules(source: Path) -> Iterator[tuple[str, Chem.Mol]]:
    with rdBase.BlockLogs():
        for line in source.read_text().splitlines():
            smiles, _, name = line.partition("\t")
            mol = Chem.MolFromSmiles(smiles)
            if mol is not None:
                yield f"NCI-{name.strip()}", mol


def _save(conformers: Conformers, file: Path) -> None:
    """Write the cache; a folder that cannot be written costs time only."""
    clouds = conformers.clouds
    assert clouds.codes is not None
    partial = file.with_name(f"{file.stem}-{os.getpid()}.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            partial,
            positions=clouds.positions,
            starts=clouds.starts,
            codes=clouds.codes,
            names=np.array(clouds.names),
            ids=np.array(conformers.ids),
            smiles=np.array(conformers.smiles),
        )
        partial.replace(file)  # whole or not at all, also when two processes write
    except OSError as error:
        logger.warning("%s cannot be written (%s); conformers will be computed again", file, error)


def _load(file: Path) -> Conformers | None:
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            names = tuple(held["names"].tolist())
            clouds = PointTable(held["positions"], held["starts"], held["codes"], names, None, "angstrom")
            return Conformers(
                clouds=clouds, ids=tuple(held["ids"].tolist()), smiles=tuple(held["smiles"].tolist())
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s); conformers are computed again", file, error)
        return None
