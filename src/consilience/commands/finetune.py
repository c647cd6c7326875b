"""Fine-tune a model on a table of labelled molecules, to predict new ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from consilience.commands.choices import check_names
from consilience.commands.console import say
from consilience.commands.files import write_failures
from consilience.commands.parser import CommandParser
from consilience.commands.properties import ask_about, telling
from consilience.core.files import new_folder, replacing
from consilience.pretrained import model_folder

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.domains.finetuning import Method, Tuned
    from consilience.domains.penalties import Kind


def finetune(
    model: str | Path,
    task: str | Path,
    target: str | Sequence[str],
    *,
    out: str | Path,
    method: "Method" = "lora",
    smiles_column: str | None = None,
    split: str | Path | None = None,
    kind: "Kind | None" = None,
    epochs: int = 20,
    rank: int = 8,
    device: str = "auto",
    progress: bool = False,
) -> "Tuned":
    """Train a model on labels; `predict` uses what this writes.

    Args:
        model: the folder of a run that knows molecules.
        task: a .csv or .tsv (also .gz) with SMILES and label columns.
        target: the label columns.
        out: the folder of the new model; new or empty.
        method: lora (adapters of a few hundred KB, which need the base model), full (all weights), or scratch.
        smiles_column: default: by the usual names.
        split: a split.csv (columns part and smiles); default: by scaffold, 80/10/10.
        kind: classification or regression; default: from the labels.
        epochs: at most; validation chooses, as it does the learning rate.
        rank: of the adapters.
        device: cpu, cuda, or auto: a GPU when there is one.
        progress: show what is being done.

    Returns:
        The model with its head, learning rate, epoch and validation loss.
    """
    from consilience.core.lora import LoraOptions
    from consilience.domains.finetuning import METHODS, tune_by_validation
    from consilience.domains.labelled_split import write_split
    from consilience.properties.rows import check_row
    from consilience.properties.scores import score
    from consilience.properties.tuned import save_tuned

    check_names({method: None}, METHODS, "method")
    check_row(method)
    targets = [target] if isinstance(target, str) else list(target)
    folder, lora = Path(out).expanduser(), LoraOptions(rank=rank, alpha=2.0 * rank)
    new_folder(folder)
    question = ask_about(
        model, task, targets, smiles_column=smiles_column, split=split, kind=kind,
        seeds=1, epochs=epochs, device=device,
    )  # fmt: skip
    prepared, places = question.readable()
    with telling("run", shown=progress) as tell:
        (tuned,) = tune_by_validation(
            prepared, targets, question.data.kind, question.model, method,
            seeds=1, epochs=epochs, lora=lora, tell=tell,
        )  # fmt: skip
    test = question.split.test[places]
    scored = score(
        question.data.kind,
        question.data.labels[test],
        question.data.collection.group_of[test],
        tuned.predict(prepared.records("test"))[None],
    )
    with replacing(folder) as part:  # a folder of this name is whole, however the command ends
        part.mkdir()
        write_failures(question.left_out, part / "molecules")
        write_split(part / "split.csv", question.split, question.data)
        save_tuned(
            part, tuned, question, model_folder(model),
            lora=lora, test={metric: scored.value(metric) for metric in scored.seeds},
        )  # fmt: skip
    return tuned


def new_parser() -> CommandParser:
    """The options of `consilience finetune`."""
    parser = CommandParser(
        "finetune", finetune, "MODEL --task FILE --target COL [COL ...] --out RUN [options]"
    )
    parser.option("model", type=str, metavar="MODEL")
    parser.option("--task", type=str, required=True, metavar="FILE")
    parser.option("--target", nargs="+", type=str, required=True, metavar="COL")
    parser.option("--out", type=str, required=True, metavar="RUN")
    parser.option("--method", type=str)
    parser.option("--smiles-column", type=str | None)
    parser.option("--split", type=str | None, metavar="FILE")
    parser.option("--kind", type=str | None)
    parser.option("--epochs", type=int)
    parser.option("--rank", type=int)
    parser.option("--device", type=str)
    return parser


def run(options: "Namespace") -> None:
    """`consilience finetune`."""
    import json

    tuned = finetune(**options.as_dict(), progress=True)
    test = json.loads((Path(options.out).expanduser() / "property.json").read_text())["test"]
    say(
        f"{options.out}: {tuned.method}, learning rate {tuned.learning_rate:g}, {tuned.epoch} epochs; test part: "
        + ", ".join(f"{metric} {value:.3f}" for metric, value in test.items())
    )
