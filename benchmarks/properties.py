"""Does the model that ships help on measured properties? Four MoleculeNet tables, every row of `evaluate --task`.

Frozen, adapters, full fine-tuning and from scratch, beside random forest + ECFP4 on the same scaffold split. Finished
rows are kept in `--work`: the same command goes on.

    python benchmarks/properties.py --data FOLDER_OF_MOLECULENET
"""

import sys
from pathlib import Path

import torch
from harness import Report, options

import consilience
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked
from consilience.core.transformer import CoreConfig
from consilience.properties.table import PropertyTable

TASKS = (
    ("freesolv.csv.gz", "expt", "smiles"),
    ("esol.csv.gz", "measured log solubility in mols per litre", "smiles"),
    ("bace.csv.gz", "Class", "mol"),
    ("bbbp.csv.gz", "p_np", "smiles"),
)
"""File, label column, column of the SMILES; the quickest first: minutes to an hour of one core each."""
MADE = "made.csv"


def add(report: Report, name: str, found: PropertyTable) -> None:
    """The rows of one table."""
    metric = found.metric
    parts = " / ".join(f"{found.molecules[part]:,}" for part in ("train", "validation", "test"))
    for row in found.rows:
        value, against = row.metrics[metric], row.against_forest
        seeds = torch.tensor(row.per_seed)
        report.add(
            f"{name}, {parts}", metric, row.title, value.value,
            f"{float(seeds.std()):.3f}" if len(seeds) > 1 else "",
            f"{value.low:.3f} to {value.high:.3f}",
            "" if against is None else f"{against.value:+.3f} ({against.low:+.3f} to {against.high:+.3f})",
        )  # fmt: skip


def made_task(folder: Path) -> tuple[str, Path]:
    """Without data and without a model worth measuring, to see that everything runs: a folder of each."""
    from consilience import registry

    domain = registry.domain("molecules")
    collection = domain.bundled()
    few = collection.take(list(range(150)))
    lines = [f"{text},{value}" for text, value in zip(few.records, few.labels["logP"])]
    (folder / MADE).write_text("\n".join(["smiles,logP", *lines]) + "\n")
    torch.manual_seed(0)
    tokenizer = domain.tokenizer.fit(collection.records)
    core = CoreConfig(width=16, depth=1, heads=2)
    FoundationModel(core, {"molecules": tokenizer}, Masked()).save(folder / "model")
    return str(folder / "model"), folder


def main() -> int:
    """Go on with whatever is left, then write the table."""
    chosen = options(
        __doc__, work="runs/properties", data="", model="molecules-small", seeds=3, epochs=20, only=""
    )
    work = Path(chosen.work)
    work.mkdir(parents=True, exist_ok=True)
    tasks, model, data = TASKS, chosen.model, Path(chosen.data)
    if chosen.quick:
        model, data = made_task(work)
        tasks, chosen.seeds, chosen.epochs = ((MADE, "logP", "smiles"),), 1, 1
    elif not chosen.data:
        print("give --data: the folder with " + ", ".join(file for file, _, _ in TASKS))
        return 2
    report = Report(
        "properties", f"MoleculeNet with {Path(model).name}, scaffold split",
        ["table, train / validation / test", "metric", "row", "value", "sd of seeds", "95% interval", "above forest"],
        packages=("rdkit", "peft", "scikit-learn"), notes=[
            f"{chosen.seeds} seeds of every row with chance in it; learning rate and epoch (of at most "
            f"{chosen.epochs}) are chosen on validation. Intervals resample test scaffolds and seeds; 'above forest' "
            "is paired, and positive where the row is better. The splits (SHA-256 below) are those of `consilience "
            "evaluate --task`, not DeepChem's: compare within a table only.",
        ],
    )  # fmt: skip
    for file, target, column in tasks:
        done = (work / file.split(".")[0] / "table.json").is_file()  # what was measured stays in the report
        if chosen.only not in file and not done:
            continue
        found = consilience.evaluate_task(
            model, data / file, target, smiles_column=column, seeds=chosen.seeds, epochs=chosen.epochs,
            out=work / file.split(".")[0], progress=False,
        )  # fmt: skip
        add(report, f"{file.split('.')[0]} ({found.kind})", found)
        report.notes.append(f"{file.split('.')[0]}: split {found.split}.")
        report.write(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
