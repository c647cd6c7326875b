"""Conformers of held-out QM9 molecules: a small denoising model with bonds beside RDKit's ETKDG and MMFF94.

    python -m consilience.domains.points.conformer_benchmark --data_file qm9.npz --out runs/conformers

Molecules are those of the usual split (`qm9_split`) whose geometry tells the bonds of their SMILES. The reference of a
molecule is its one DFT geometry. Nobody is told chirality: the model cannot be, and RDKit is not.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from consilience.core.errors import ConsilienceError
from consilience.core.files import replace_text, try_writing
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.records import Collection
from consilience.core.training import LAST
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.points import data
from consilience.domains.points.bonds import agreed_mol, bonds_of_mol
from consilience.domains.points.conformer_metrics import bonds_within, coverage, perceived
from consilience.domains.points.domain import DOMAIN
from consilience.domains.points.generate_conformers import TOKENIZER, etkdg, generate
from consilience.domains.points.qm9_split import TRAIN, VALIDATION, draw
from consilience.domains.preparation import prepare
from consilience.domains.pretraining import finished, pretrain
from consilience.domains.script import function_script, tell_row, write_rows
from consilience.domains.splits import Split
from consilience.tokenizers.point_records import PointTable


def bonded(collection: Collection, rows: np.ndarray) -> tuple[Collection, list[Chem.Mol]]:
    """These molecules of QM9 with their bonds, and as RDKit molecules; those without agreed bonds are left out."""
    if collection.groups is None:
        raise ConsilienceError(f"{collection.source}: bonds are checked against SMILES, and there are none")
    kept, clouds, mols = [], [], []
    for row in rows.tolist():
        cloud = collection.records[row]
        mol = agreed_mol(cloud, collection.groups[row])
        if mol is not None:
            kept.append(row)
            clouds.append(replace(cloud, bonds=bonds_of_mol(mol)))
            mols.append(mol)
    if not kept:
        raise ConsilienceError(f"{collection.source}: no molecule's geometry tells the bonds of its SMILES")
    return replace(collection.take(kept), records=PointTable.of(clouds)), mols


def scores(
    mols: Sequence[Chem.Mol], references: Sequence[np.ndarray], made: Sequence[Sequence[np.ndarray]]
) -> dict[str, float]:
    """Means over molecules; one without any conformer covers nothing and plays no part in the rest.

    Args:
        mols: n molecules.
        references: their geometries, (atoms, 3).
        made: conformers of each.

    Returns:
        molecules; without (any conformer); COV (share with a conformer within 0.5 Å) and MAT (Å, nearest conformer),
        heavy atoms; MAT of the median molecule; bond lengths within 0.1 Å of the reference; the share of conformers
        all of whose bonds are; and the share whose distances give the graph back.
    """
    some = [i for i, places in enumerate(made) if len(places)]
    if not some:
        raise ConsilienceError("there is not one conformer to score")
    found = [coverage(mols[i], made[i], [references[i]]) for i in some]
    close = [[bonds_within(mols[i], [places], [references[i]]) for places in made[i]] for i in some]
    graphs = [np.mean([perceived(mols[i], places) for places in made[i]]) for i in some]
    matching = np.array([one.matching for one in found])
    return {
        "molecules": len(mols),
        "without": len(mols) - len(some),
        "cov": float(sum(one.coverage for one in found) / len(mols)),
        "mat": float(matching.mean()),
        "mat_median": float(np.median(matching)),
        "bond_lengths": float(np.mean([np.mean(one) for one in close])),
        "all_bonds": float(np.mean([np.mean([share == 1 for share in one]) for one in close])),
        "graph": float(np.mean(graphs)),
    }


def train(
    collection: Collection,
    split: Split,
    *,
    align: bool,
    core: CoreConfig,
    training: TrainingConfig,
    folder: Path,
    progress: bool = True,
) -> FoundationModel:
    """A denoising model of geometries given types and bonds, saved in `folder`; an interrupted one goes on."""
    prepared = prepare(DOMAIN, collection, tokenizer=TOKENIZER, split=split)
    done = pretrain(
        {DOMAIN.name: prepared},
        Denoising(align=align),
        core=core,
        training=training,
        folder=folder,
        resume=(folder / LAST).is_file(),
        progress=progress,
    )
    return finished(done, training.steps).eval()


def run(
    data_file: str,
    out: str,
    *,
    molecules: int = 110_000,
    validation: int = 500,
    test: int = 200,
    n: int = 2,
    steps: int = 30,
    align: bool = True,
    split_seed: int = 0,
    core: CoreConfig | None = None,
    training: TrainingConfig | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train, generate and score; the table is `results.csv`. Called again, training goes on where it stopped.

    Args:
        data_file: QM9 as .npz or .csv.
        out: folder of the model and the results.
        molecules: of the training part.
        validation: of the validation part.
        test: molecules of the test part that are scored.
        n: conformers of each.
        steps: of the transport.
        align: see `Denoising`.
        split_seed: of the permutation that splits the molecules.
        core: size of the transformer.
        training: of the model.
        progress: show a bar.
    """
    core = core or CoreConfig(width=64, depth=4, heads=4)
    training = training or TrainingConfig(steps=3000, tokens_per_batch=2048, learning_rate=2e-3)
    folder = Path(out).expanduser()
    counts = {"molecules": molecules, "validation": validation, "test": test, "n": n, "steps": steps}
    for name, count in counts.items():
        if count < 1:
            raise ConsilienceError(f"{name} must be at least 1, not {count}")
    try_writing(folder / "settings.json", lambda path: path.touch())
    collection = data.read(Path(data_file).expanduser())
    # From the permutation itself: the parts of a Split are sorted, and QM9 begins with its smallest molecules.
    order = draw(len(collection), seed=split_seed, source=collection.source)
    parts = [
        order[:molecules][:TRAIN],
        order[TRAIN : TRAIN + VALIDATION][:validation],
        order[TRAIN + VALIDATION :][:test],
    ]
    held = [bonded(collection, rows) for rows in parts]
    ends = np.cumsum([len(mols) for _, mols in held])
    together = replace(
        collection,
        records=PointTable.of([cloud for part, _ in held for cloud in part.records]),
        ids=np.concatenate([part.ids for part, _ in held]),
        labels={},
        groups=None,
        beside={},
    )
    split = Split(*np.split(np.arange(ends[-1]), ends[:-1]))
    model = train(
        together, split, align=align, core=core, training=training, folder=folder / "model", progress=progress
    )
    tested, mols = held[2]
    references = [cloud.positions for cloud in tested.records]
    rows = compare(model, mols, references, n=n, steps=steps, seed=training.seed)
    settings = {"core": asdict(core), "training": asdict(training), "trained_on": int(ends[0]), "align": align, "n": n,
                "steps": steps, "parameters": sum(p.numel() for p in model.parameters()),
                "data": collection.fingerprint}  # fmt: skip
    replace_text(folder / "settings.json", json.dumps(settings, indent=1))
    write_rows(folder / "results.csv", rows)
    return rows


def compare(
    model: FoundationModel,
    mols: Sequence[Chem.Mol],
    references: Sequence[np.ndarray],
    *,
    n: int,
    steps: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of the table: the model, ETKDG, and ETKDG relaxed with MMFF94.

    Args:
        model: of `train`.
        mols: n molecules.
        references: their geometries.
        n: conformers of each.
        steps: of the transport.
        seed: of noise and embedding.
    """
    ways: Mapping[str, Any] = {
        "denoising": lambda: generate(model, mols, n, seed=seed, steps=steps),
        "ETKDG": lambda: [etkdg(mol, n, seed=seed, force_field=False) for mol in mols],
        "ETKDG + MMFF94": lambda: [etkdg(mol, n, seed=seed) for mol in mols],
    }
    rows = []
    for name, way in ways.items():
        begun = time.process_time()
        made = way()
        seconds = time.process_time() - begun
        told = {key: round(value, 4) for key, value in scores(mols, references, made).items()}
        each = round(seconds / (n * len(mols)), 4)
        rows.append({"method": name, "conformers": n, **told, "cpu_s_each": each})
        tell_row(rows[-1])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; the exit code."""
    kept = "the same command goes on with the training where it stood"
    return function_script(run, "consilience.domains.points.conformer_benchmark", argv, kept=kept)


if __name__ == "__main__":
    raise SystemExit(main())
