"""Conformers of given molecules: types and bonds are known, a denoising model transports noise to places.

    python -m consilience.domains.points.generate_conformers --model runs/conformers --smiles CCO CCN --out a.sdf

The model is one of `--tokenizer-options '{geometry: invariant, bonds: true, order: given}'`. It sees no chirality, so
both mirror images come out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.Geometry import Point3D

from consilience.core.embed import by_tokens
from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing, try_writing
from consilience.core.model import FoundationModel
from consilience.domains.points.bonds import bonds_of_mol
from consilience.domains.script import function_script
from consilience.pretrained import model_folder
from consilience.tokenizers.point_records import PointCloud, PointTable

TOKENIZER = {"geometry": "invariant", "bonds": True, "order": "given", "augment": "none"}
"""Options of a tokenizer whose models generate conformers."""
BUDGET = 4096
"""Tokens of one batch."""


def cloud_of(mol: Chem.Mol) -> PointCloud:
    """Atoms and bonds of a molecule; places stand in a row, since they are to be generated."""
    rows = np.arange(mol.GetNumAtoms())
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    places = np.column_stack([rows, 0 * rows, 0 * rows]).astype(np.float32)
    return PointCloud(places, numbers, unit="angstrom", bonds=bonds_of_mol(mol))


def generate(
    model: FoundationModel, mols: Sequence[Chem.Mol], n: int, *, seed: int = 0, steps: int | None = None
) -> list[list[np.ndarray]]:
    """n conformers of every molecule, arrays (atoms, 3) in ångström in the order of its atoms.

    Args:
        model: a denoising model whose tokens have bonds.
        mols: with explicit hydrogens, if the model was trained with them.
        n: how many of each.
        seed: of the noise.
        steps: of the transport; default 50.

    Raises:
        ConsilienceError: a model without bonds, or a molecule that it cannot take.
    """
    tokenizer = model.tokenizers.get("points")
    if tokenizer is None:
        raise ConsilienceError(
            f"this model knows {', '.join(model.domains)}: conformers need one that was trained on points"
        )
    if not tokenizer.spec.pairs:
        raise ConsilienceError(
            "this model was trained without bonds and cannot be told which atoms are bound: train denoising with "
            "tokenizer options {geometry: invariant, bonds: true, order: given} on data with bonds"
        )
    if n < 1 or not mols:
        raise ConsilienceError(f"give molecules and a number of conformers, not {len(mols)} and {n}")
    if seed < 0:
        raise ConsilienceError(f"seed must not be negative, not {seed}")
    tokens = tokenizer.encode(PointTable.of([cloud_of(mol) for mol in mols]))
    length = tokens.length.numpy().repeat(n)
    order = np.argsort(length, kind="stable")
    found: list[list[np.ndarray]] = [[] for _ in mols]
    # One seed a batch: with one for all, batches of one shape would start from the same noise.
    batches = by_tokens(length[order], BUDGET)
    seeds = np.random.SeedSequence(seed).generate_state(len(batches)).tolist()
    for batch, own in zip(batches, seeds):
        rows = order[batch] // n
        part = tokens.take(torch.from_numpy(rows)).trim()
        with torch.no_grad():
            filled = model.fill(part, part.real, seed=own, steps=steps)
        for row, cloud in zip(rows.tolist(), tokenizer.decode(filled)):
            found[row].append(cloud.positions)
    return found


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
    copy.RemoveAllConformers()
    if not stereo:
        Chem.RemoveStereochemistry(copy)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed + 1  # RDKit reads 0 and below otherwise
    with rdBase.BlockLogs():
        Chem.SanitizeMol(copy)
        rdDistGeom.EmbedMultipleConfs(copy, n, parameters)
        if force_field and copy.GetNumConformers() and rdForceFieldHelpers.MMFFHasAllMoleculeParams(copy):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(copy)
    return [conformer.GetPositions() for conformer in copy.GetConformers()]


def write_sdf(path: Path, mols: Sequence[Chem.Mol], conformers: Sequence[Sequence[np.ndarray]]) -> None:
    """One entry a conformer; the file is there whole or not at all."""
    with replacing(path) as part, Chem.SDWriter(str(part)) as writer:
        for mol, places in zip(mols, conformers):
            for array in places:
                copy = Chem.Mol(mol)
                copy.RemoveAllConformers()
                conformer = Chem.Conformer(len(array))
                for atom, place in enumerate(array.tolist()):
                    conformer.SetAtomPosition(atom, Point3D(*place))
                copy.AddConformer(conformer)
                writer.write(copy)


def usable(model: FoundationModel, smiles: Sequence[str]) -> tuple[list[Chem.Mol], list[str]]:
    """Molecules that a model can take, hydrogens added, and one line about each of the others.

    Args:
        model: a denoising model whose tokens have bonds.
        smiles: one string a molecule.
    """
    tokenizer, mols, told = model.tokenizers.get("points"), [], []
    for text in smiles:
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(text) if text.strip() and len(text.split()) == 1 else None
        if mol is None:
            told.append(f"{text!r} is no SMILES that RDKit can read")
            continue
        if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
            told.append(f"{text!r} has an atom *, which is no element")
            continue
        mol = Chem.AddHs(mol)
        refused = tokenizer.check([cloud_of(mol)]) if tokenizer is not None else ()
        if refused:
            told.append(f"{text!r}: {refused[0].reason}")
        else:
            mols.append(mol)
    return mols, told


def run(
    model: str, smiles: list[str], out: str, *, n: int = 1, seed: int = 0, steps: int | None = None
) -> int:
    """Write conformers of molecules; those that cannot be read are left out and named.

    Args:
        model: folder of a trained model, or the name of one that comes with the package: conformers-small.
        smiles: the molecules, one or several, in quotes where the shell needs them; hydrogens are added.
        out: .sdf file; coordinates are in ångström, one entry a conformer.
        n: conformers of each; default 1.
        seed: of the noise, 0 or more; default 0.
        steps: of the transport from noise to places, each a prediction; default 50.
    """
    target = Path(out).expanduser()
    if target.suffix != ".sdf":
        raise ConsilienceError(f"{target}: conformers are written as .sdf")
    try_writing(target, lambda path: path.touch())
    network = FoundationModel.load(model_folder(model))
    mols, left_out = usable(network, smiles)
    if smiles and not mols:
        raise ConsilienceError(f"none of {len(smiles)} molecules can be taken; {left_out[0]}")
    made = generate(network, mols, n, seed=seed, steps=steps)
    write_sdf(target, mols, made)
    count = sum(len(places) for places in made)
    sys.stdout.write(f"{count} conformers in {target}\n")
    for line in left_out:
        sys.stdout.write(f"left out: {line}\n")
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; the exit code."""
    return function_script(run, "consilience.domains.points.generate_conformers", argv, words=["smiles"])


if __name__ == "__main__":
    raise SystemExit(main())
