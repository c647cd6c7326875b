"""Conformers of given molecules: types and bonds are known, a denoising model transports noise to places.

    python -m consilience.domains.points.generate_conformers --model runs/conformers --smiles CCO CCN --out a.sdf

The model is one of `--tokenizer-options '{geometry: invariant, bonds: true, order: given}'`. It sees no
stereochemistry, so that what it draws is mirrored, or drawn again, until it is that of the SMILES.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

from consilience.core.batch import TokenBatch
from consilience.core.embed import by_tokens
from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing, try_writing
from consilience.core.model import FoundationModel
from consilience.domains.points.bonds import bonds_of_mol
from consilience.domains.points.classical import relaxed, with_conformers
from consilience.domains.points.stereo import as_asked, has_stereo
from consilience.domains.script import function_script
from consilience.pretrained import model_folder
from consilience.tokenizers.molecule_notation import parse
from consilience.tokenizers.point_records import PointCloud, PointTable

TOKENIZER = {"geometry": "invariant", "bonds": True, "order": "given", "augment": "none"}
"""Options of a tokenizer whose models generate conformers."""
BUDGET = 4096
"""Tokens of one batch."""
ROUNDS = 32
"""How often conformers of another stereochemistry than the molecule's are drawn again."""


def cloud_of(mol: Chem.Mol) -> PointCloud:
    """Atoms and bonds of a molecule; places stand in a row, since they are to be generated."""
    rows = np.arange(mol.GetNumAtoms())
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    places = np.column_stack([rows, 0 * rows, 0 * rows]).astype(np.float32)
    return PointCloud(places, numbers, unit="angstrom", bonds=bonds_of_mol(mol))


def generate(
    model: FoundationModel,
    mols: Sequence[Chem.Mol],
    n: int,
    *,
    seed: int = 0,
    steps: int | None = None,
    stereo: bool = False,
) -> list[list[np.ndarray]]:
    """n conformers of every molecule, arrays (atoms, 3) in ångström in the order of its atoms.

    Args:
        model: a denoising model whose tokens have bonds.
        mols: with explicit hydrogens, if the model was trained with them.
        n: how many of each.
        seed: of the noise.
        steps: of the transport; default 50.
        stereo: keep to the stereochemistry of the molecules. The model does not see it: what it draws is mirrored, or
            drawn again up to `ROUNDS` times, so that there may be fewer than n.

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
    strict = np.array([stereo and has_stereo(mol) for mol in mols])
    found: list[list[np.ndarray]] = [[] for _ in mols]
    missing = np.full(len(mols), n)
    for round_ in range(ROUNDS):
        # From round to round other noise; the first is that of the seed alone.
        entropy = [seed, round_] if round_ else seed
        for row, places in _drawn(model, tokens, missing, np.random.SeedSequence(entropy), steps):
            kept = as_asked(mols[row], places) if strict[row] else places
            if kept is not None:
                found[row].append(kept)
        missing = np.array([n - len(own) for own in found])
        if not missing.any():
            break
    return found


def _drawn(
    model: FoundationModel,
    tokens: TokenBatch,
    times: np.ndarray,
    seed: np.random.SeedSequence,
    steps: int | None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, places) of `times` conformers of every row, short molecules first."""
    tokenizer = model.tokenizers["points"]
    rows = np.arange(len(times)).repeat(times)
    rows = rows[np.argsort(tokens.length.numpy()[rows], kind="stable")]
    # One seed a batch: with one for all, batches of one shape would start from the same noise.
    batches = by_tokens(tokens.length.numpy()[rows], BUDGET)
    for batch, own in zip(batches, seed.generate_state(len(batches)).tolist()):
        part = tokens.take(torch.from_numpy(rows[batch])).trim()
        with torch.no_grad():
            filled = model.fill(part, part.real, seed=own, steps=steps)
        for row, cloud in zip(rows[batch].tolist(), tokenizer.decode(filled)):
            yield row, cloud.positions


def write_sdf(path: Path, mols: Sequence[Chem.Mol], conformers: Sequence[Sequence[np.ndarray]]) -> None:
    """One entry a conformer; the file is there whole or not at all."""
    with replacing(path) as part, Chem.SDWriter(str(part)) as writer:
        for mol, places in zip(mols, conformers):
            for array in places:
                writer.write(with_conformers(mol, [array]))


def usable(model: FoundationModel, smiles: Sequence[str]) -> tuple[list[Chem.Mol], list[str]]:
    """Molecules that a model can take, hydrogens added, and one line about each of the others.

    Args:
        model: a denoising model whose tokens have bonds.
        smiles: one string a molecule.
    """
    tokenizer, mols, told = model.tokenizers.get("points"), [], []
    for text in smiles:
        try:
            mol = parse(text)
        except ConsilienceError as error:
            told.append(str(error))
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
    model: str,
    smiles: list[str],
    out: str,
    *,
    n: int = 1,
    seed: int = 0,
    steps: int = 30,
    stereo: bool = True,
    relax: bool = False,
) -> int:
    """Write conformers of molecules; those that cannot be read are left out and named.

    Args:
        model: folder of a trained model, or the name of one that comes with the package: conformers-small.
        smiles: the molecules, one or several, in quotes where the shell needs them; hydrogens are added.
        out: .sdf file; coordinates are in ångström, one entry a conformer.
        n: conformers of each; default 1.
        seed: of the noise, 0 or more; default 0.
        steps: of the transport from noise to places, each a prediction; default 30.
        stereo: keep to the centres and double bonds that the SMILES specify; default true.
        relax: move every conformer to the nearest minimum of MMFF94, where that knows the molecule and the
            stereochemistry stays; default false.
    """
    target = Path(out).expanduser()
    if target.suffix != ".sdf":
        raise ConsilienceError(f"{target}: conformers are written as .sdf")
    try_writing(target, lambda path: path.touch())
    network = FoundationModel.load(model_folder(model))
    mols, left_out = usable(network, smiles)
    if smiles and not mols:
        raise ConsilienceError(f"none of {len(smiles)} molecules can be taken; {left_out[0]}")
    made = generate(network, mols, n, seed=seed, steps=steps, stereo=stereo)
    if not any(made):
        raise ConsilienceError(
            f"not one conformer of {_name(mols[0])} in {ROUNDS} rounds has its stereochemistry; --stereo false writes "
            "what is drawn"
        )
    if relax:
        made = [_relaxed(mol, places, stereo) for mol, places in zip(mols, made)]
    write_sdf(target, mols, made)
    count = sum(len(places) for places in made)
    sys.stdout.write(f"{count} conformers in {target}\n")
    for line in left_out:
        sys.stdout.write(f"left out: {line}\n")
    longest = max(network.tokenizers["points"].state()["learned"]["lengths"])
    for mol, places in zip(mols, made):
        if mol.GetNumAtoms() > longest:
            size = f"{mol.GetNumAtoms()} atoms, the largest training molecule has {longest}"
            sys.stdout.write(f"{_name(mol)}: {size}: look at what is drawn\n")
        if len(places) < n:
            sys.stdout.write(
                f"{_name(mol)}: {len(places)} of {n} conformers, since the others had another stereochemistry\n"
            )
    return count


def _relaxed(mol: Chem.Mol, conformers: Sequence[np.ndarray], stereo: bool) -> list[np.ndarray]:
    """Conformers after the force field; as they are drawn where it would give a molecule another stereochemistry."""
    moved = relaxed(mol, conformers)
    if not stereo or not has_stereo(mol):
        return moved
    return [drawn if as_asked(mol, after) is None else after for drawn, after in zip(conformers, moved)]


def _name(mol: Chem.Mol) -> str:
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; the exit code."""
    return function_script(run, "consilience.domains.points.generate_conformers", argv, words=["smiles"])


if __name__ == "__main__":
    raise SystemExit(main())
