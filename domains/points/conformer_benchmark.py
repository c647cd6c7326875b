"""Conformers of held-out QM9 molecules: a small denoising model with bonds beside RDKit's ETKDG and MMFF94.

    python -m consilience.domains.points.conformer_benchmark --data_file qm9.npz --out runs/conformers

Molecules are those of the usual split (`qm9_split`) whose geometry tells the bonds of their SMILES. The reference of a
molecule is its one DFT geometry. Nobody is told stereochemistry here; `benchmarks/conformers.py` has both.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from consilience.core.errors import ConsilienceError
from consilience.core.files import try_writing
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.records import Collection, fingerprint
from consilience.core.training import LAST
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.points import data
from consilience.domains.points.bonds import agreed_mol, bonds_of_mol
from consilience.domains.points.classical import etkdg, relaxed
from consilience.domains.points.conformer_metrics import bonds_within, coverage, perceived
from consilience.domains.points.domain import DOMAIN
from consilience.domains.points.generate_conformers import TOKENIZER, generate
from consilience.domains.points.qm9_split import TRAIN, VALIDATION, draw
from consilience.domains.points.stereo import with_stereo
from consilience.domains.preparation import prepare
from consilience.domains.pretraining import finished, pretrain
from consilience.domains.script import function_script, tell_row, write_rows
from consilience.domains.settings import same_or_new
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


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What conformers of n molecules are worth, one value a molecule; NaN where it has none, but for `covered`.

    Args:
        covered: (n,) share of references with a conformer within 0.5 Å, heavy atoms; 0 where there is none.
        matching: (n,) distance of the nearest conformer, Å, heavy atoms.
        bond_lengths: (n,) share of bond lengths within 0.1 Å of the reference.
        all_bonds: (n,) share of conformers all of whose bonds are.
        graph: (n,) share of conformers whose distances give the molecular graph back.
    """

    covered: np.ndarray
    matching: np.ndarray
    bond_lengths: np.ndarray
    all_bonds: np.ndarray
    graph: np.ndarray

    @property
    def means(self) -> dict[str, float]:
        """COV, MAT and the other columns of the table, over molecules with a conformer; COV is over all."""
        return {
            "molecules": len(self.covered),
            "without": int(np.isnan(self.matching).sum()),
            "cov": float(self.covered.mean()),
            "mat": float(np.nanmean(self.matching)),
            "mat_median": float(np.nanmedian(self.matching)),
            "bond_lengths": float(np.nanmean(self.bond_lengths)),
            "all_bonds": float(np.nanmean(self.all_bonds)),
            "graph": float(np.nanmean(self.graph)),
        }


def scores(
    mols: Sequence[Chem.Mol], references: Sequence[np.ndarray], made: Sequence[Sequence[np.ndarray]]
) -> Scores:
    """What conformers are worth against one reference geometry of each molecule.

    Args:
        mols: n molecules.
        references: their geometries, (atoms, 3).
        made: conformers of each.
    """
    if not any(len(places) for places in made):
        raise ConsilienceError("there is not one conformer to score")
    rows = []
    for mol, reference, places in zip(mols, references, made):
        if not len(places):
            rows.append([0.0] + 4 * [np.nan])
            continue
        near = coverage(mol, places, [reference])
        close = [bonds_within(mol, [one], [reference]) for one in places]
        graphs = [perceived(mol, one) for one in places]
        rows.append(
            [
                near.coverage,
                near.matching,
                sum(close) / len(close),
                sum(share == 1 for share in close) / len(close),
                sum(graphs) / len(graphs),
            ]
        )
    covered, matching, bond_lengths, all_bonds, graph = np.array(rows, dtype=np.float64).T
    return Scores(
        covered=covered, matching=matching, bond_lengths=bond_lengths, all_bonds=all_bonds, graph=graph
    )


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
        fingerprint=fingerprint([part.fingerprint for part, _ in held]),
    )
    settings = {"core": asdict(core), "training": asdict(training), "align": align, "molecules": molecules,
                "validation": validation, "split_seed": split_seed, "data": collection.fingerprint}  # fmt: skip
    same_or_new(folder / "settings.json", settings)
    split = Split(*np.split(np.arange(ends[-1]), ends[:-1]))
    model = train(
        together, split, align=align, core=core, training=training, folder=folder / "model", progress=progress
    )
    tested, mols = held[2]
    references = [cloud.positions for cloud in tested.records]
    rows = compare(model, mols, references, n=n, steps=steps, seed=training.seed)
    write_rows(folder / "results.csv", rows)
    return rows


def measured(
    model: FoundationModel,
    mols: Sequence[Chem.Mol],
    references: Sequence[np.ndarray],
    *,
    n: int,
    steps: int | None = None,
    seed: int = 0,
    stereo: bool = False,
) -> Iterator[tuple[str, float, Scores]]:
    """(name, CPU seconds of a conformer, scores) of the model and of ETKDG, each as drawn and relaxed with MMFF94.

    Args:
        model: of `train`.
        mols: n molecules.
        references: their geometries.
        n: conformers of each.
        steps: of the transport.
        seed: of noise and embedding.
        stereo: tell everybody the stereochemistry of the reference, and keep to it.
    """
    if stereo:
        mols = [with_stereo(mol, places) for mol, places in zip(mols, references)]
    ways: Mapping[str, Callable[[], list[list[np.ndarray]]]] = {
        "denoising": lambda: generate(model, mols, n, seed=seed, steps=steps, stereo=stereo),
        "ETKDG": lambda: [etkdg(mol, n, seed=seed, force_field=False, stereo=stereo) for mol in mols],
    }
    for name, way in ways.items():
        begun = time.process_time()
        drawn = way()
        between = time.process_time()
        yield name, (between - begun) / (n * len(mols)), scores(mols, references, drawn)
        again = time.process_time()
        made = [relaxed(mol, places) for mol, places in zip(mols, drawn)]
        seconds = time.process_time() - again + between - begun
        yield f"{name} + MMFF94", seconds / (n * len(mols)), scores(mols, references, made)


def compare(
    model: FoundationModel, mols: Sequence[Chem.Mol], references: Sequence[np.ndarray], *, n: int, **how: Any
) -> list[dict[str, Any]]:
    """Rows of the table; the arguments are those of `measured`."""
    rows = []
    for name, seconds, found in measured(model, mols, references, n=n, **how):
        told = {key: round(value, 4) for key, value in found.means.items()}
        rows.append({"method": name, "conformers": n, **told, "cpu_s_each": round(seconds, 4)})
        tell_row(rows[-1])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; the exit code."""
    kept = "the same command goes on with the training where it stood"
    return function_script(run, "consilience.domains.points.conformer_benchmark", argv, kept=kept)


if __name__ == "__main__":
    raise SystemExit(main())
