"""Puts a trained model into the package: half-precision weights, and a card with what was measured.

    python benchmarks/release.py --run runs/moses/models/next-token-seed0-x3 --scores runs/moses/scores
    python benchmarks/release.py --kind conformers --run runs/conformers --data qm9.npz

The first is a run of `moses.py`, the second of `consilience.domains.points.conformer_benchmark` whose model
`conformers.py` has scored; beside it stand some of the molecules on which it was tested.
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, options, show

from consilience import pretrained
from consilience.core.errors import ConsilienceError
from consilience.core.files import replace_text
from consilience.core.model import FoundationModel
from consilience.domains.molecules.moses.published import published
from consilience.domains.points import data as points
from consilience.domains.points.conformer_benchmark import bonded
from consilience.domains.points.generate_conformers import write_sdf
from consilience.domains.points.qm9_split import TRAIN, VALIDATION, draw

DATA = "MOSES training set (molecularsets/moses 1.0, MIT; from ZINC Clean Leads)"
QM9 = "QM9 (Ramakrishnan et al. 2014: B3LYP geometries, computed; CC0)"
HELD_OUT = 40
SHOWN = (
    "valid", "unique@1000", "unique@10000", "FCD/Test", "FCD/TestSF", "SNN/Test", "Frag/Test", "Scaf/Test",
    "Scaf/TestSF", "IntDiv", "Filters", "Novelty",
)  # fmt: skip


def without_places(provenance: dict[str, Any], data: str) -> dict[str, Any]:
    """The provenance with the name of the data in place of where they lay."""
    found: dict[str, Any] = json.loads(json.dumps(provenance))
    for part in found["data"].values():
        part["source"] = data
    return found


def card(model: FoundationModel, name: str, scores: dict[str, float], strings: int) -> str:
    """What a user should know before using it."""
    told = model.provenance
    outcome, training, size = told["outcome"], told["training"], model.core_config
    count = sum(parameter.numel() for parameter in model.parameters())
    records = next(iter(told["data"].values()))
    rows = "\n".join(f"| {column} | {scores[column]:.4f} |" for column in SHOWN if column in scores)
    peers = ", ".join(
        f"{row.model} {row.mean['FCD/Test']:.3f}"
        for row in published()
        if row.model in ("CharRNN", "VAE", "JTN-VAE")
    )
    trained = (
        f"{DATA}: {records['train']:,} of its {records['records']:,} molecules (the others, with other scaffolds, are "
        f"for the held-out loss), {outcome['tokens'] / 1e6:.1f} million tokens in {outcome['steps']:,} steps of at "
        f"most {training['tokens_per_batch']:,}, {training['optimizer']}, peak rate {training['learning_rate']:g}, "
        f"{training['precision']}, seed {training['seed']}. No label and no test molecule was seen. Weights are stored "
        "in half precision and computed in single precision."
    )
    return f"""---
library_name: consilience
license: bsd-3-clause
tags: [consilience, {model.objective.name}, molecules]
---
# {name}

A small transformer over SMILES for drug-like molecules: {count:,} parameters (width {size.width}, {size.depth} layers,
{size.heads} heads), objective `{model.objective.name}`. It embeds and generates out of the box:

```bash
consilience embed {name} molecules.smi --out vectors.parquet
consilience generate {name} --n 1000 --out new.csv
```

## Trained on

{textwrap.fill(trained, 120)}

## Measured

{strings:,} strings at temperature 1, drawn before the weights were stored in half precision, scored by
`consilience benchmark moses` (definitions in docs/molecules.md):

| column | value |
|---|---|
{rows}

Published FCD/Test: {peers}. What its embeddings are worth on measured properties
stands in docs/molecules.md, beside random forests.

## Use it for

Trying things out, as a start for fine-tuning, as a prior of drug-like molecules. Its training took
{outcome["seconds"] / 3600:.1f} hours of one CPU core.

## Do not expect

- Molecules outside what it saw: neutral, 250 to 350 Da, of C, N, O, S, F, Cl, Br, without stereochemistry and salts.
  Other symbols can be read and mean nothing to it.
- Judgement: a generated molecule is neither safe nor synthesisable because the model finds it likely.
"""


def conformer_card(model: FoundationModel, name: str, table: dict[str, Any]) -> str:
    """What a user should know before using it; the table is what `conformers.py` wrote."""
    told = model.provenance
    outcome, training, size = told["outcome"], told["training"], model.core_config
    count = sum(parameter.numel() for parameter in model.parameters())
    records = next(iter(told["data"].values()))
    trained = (
        f"{QM9}: {records['train']:,} molecules of the usual training part whose geometry spells the bonds of their "
        f"SMILES, {outcome['tokens'] / 1e6:.1f} million atoms in {outcome['steps']:,} steps of at most "
        f"{training['tokens_per_batch']:,}, {training['optimizer']}, peak rate {training['learning_rate']:g}, "
        f"{training['precision']}, seed {training['seed']}. Weights are stored in half precision and computed in "
        "single precision."
    )
    measured = (
        "On molecules of the test part of QM9, against its one geometry of each (definitions in docs/geometry.md). "
        f"{table['notes'][0]} {table['notes'][1]}"
    )
    rows = [[show(tuple(cell) if isinstance(cell, list) else cell) for cell in row] for row in table["rows"]]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    columns = f"| {' | '.join(table['columns'])} |\n|{'---|' * len(table['columns'])}"
    return f"""---
library_name: consilience
license: bsd-3-clause
tags: [consilience, {model.objective.name}, points, conformers]
---
# {name}

A small model of molecular geometry: {count:,} parameters (width {size.width}, {size.depth} layers, {size.heads} heads),
trained to denoise the places of atoms given elements and bonds. It sees distances alone, so that a turned or mirrored
molecule has the same embedding, and it draws conformers:

```bash
python -m consilience.domains.points.generate_conformers --model {name} --smiles CCO c1ccccc1O --n 5 --out new.sdf
python -m consilience.domains.points.generate_conformers --model {name} --smiles 'C[C@H](N)C(=O)O' --n 5 --steps 10 \\
    --relax true --out relaxed.sdf
```

## Trained on

{textwrap.fill(trained, 120)}

## Measured

{textwrap.fill(measured, 120)}

{columns}
{lines}

## Use it for

Trying things out, and as a start for fine-tuning on properties of small molecules with hydrogens. Its training took
{outcome["seconds"] / 3600:.1f} hours of one CPU core.

## Do not expect

- Molecules outside what it saw: at most nine heavy atoms of C, N, O and F, neutral or zwitterionic, with hydrogens.
- Stereochemistry of its own: it sees distances. The command above mirrors what it draws, or draws again, until it is
  that of the SMILES; with many centres there may be fewer conformers than asked for.
- Exact bonds: about one in four of its conformers has a bond that is more than 0.1 Å off. `--relax true` mends that.
- Energies, or the low-energy part of an ensemble: QM9 has one geometry a molecule.
"""


def write_held_out(data: Path, target: Path) -> None:
    """The first molecules of the test part with their geometry."""
    collection = points.read(data)
    rows = draw(len(collection), seed=0, source=collection.source)[TRAIN + VALIDATION :][:HELD_OUT]
    tested, mols = bonded(collection, rows)
    for mol, name in zip(mols, tested.ids.tolist()):
        mol.SetProp("_Name", name)
    write_sdf(target, mols, [[cloud.positions] for cloud in tested.records])


def main() -> int:
    """Write the folder of the package."""
    chosen = options(
        __doc__, run="", kind="molecules", scores="runs/moses/scores", name="", strings=30_000, data=""
    )
    if chosen.quick:
        return _quick(chosen.out)
    if chosen.kind not in ("molecules", "conformers"):
        raise ConsilienceError(f"unknown kind {chosen.kind!r}; known: molecules, conformers")
    run, name = Path(chosen.run), chosen.name or f"{chosen.kind}-small"
    model = FoundationModel.load(run / "model" if chosen.kind == "conformers" else run)
    if model.provenance["outcome"]["interrupted"]:
        raise ConsilienceError(f"{run} is not trained to its end")
    if chosen.kind == "conformers":
        table = json.loads((RESULTS / "conformers.json").read_text())
        release(model, QM9, conformer_card(model, name, table), pretrained.FOLDER / name)
        write_held_out(Path(chosen.data), pretrained.FOLDER / name / "held-out.sdf")
        return 0
    scores = json.loads((Path(chosen.scores) / f"{run.name}.json").read_text())["mean"]
    release(model, DATA, card(model, name, scores, chosen.strings), pretrained.FOLDER / name)
    return 0


def release(model: FoundationModel, data: str, told: str, folder: Path) -> None:
    """Save the model with its card."""
    model.provenance = without_places(model.provenance, data)
    model.save(folder, dtype=torch.float16)
    replace_text(folder / "README.md", told)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 2**20:.1f} MiB")


def _quick(out: Path) -> int:
    """With a model of random weights, to see that it runs."""
    from harness import Report

    from consilience import registry
    from consilience.core.objectives import NextToken
    from consilience.core.transformer import CoreConfig

    domain = registry.domain("molecules")
    tokenizer = domain.tokenizer.fit(domain.bundled().records)
    told = {
        "data": {"molecules": {"source": "here", "records": 2, "train": 1}},
        "training": {"tokens_per_batch": 1, "optimizer": "muon", "learning_rate": 1.0, "precision": "", "seed": 0},
        "outcome": {"tokens": 1, "steps": 1, "seconds": 1.0, "interrupted": False},
    }  # fmt: skip
    model = FoundationModel(
        CoreConfig(width=16, depth=1, heads=2), {"molecules": tokenizer}, NextToken(), provenance=told
    )
    release(model, DATA, card(model, "none", {"valid": 0.5}, 10), out / "none")
    assert "here" not in (out / "none" / "config.json").read_text()
    report = Report("release", "A folder of the package", ["file", "bytes"])
    for path in sorted((out / "none").iterdir()):
        report.add(path.name, path.stat().st_size)
    report.write(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
