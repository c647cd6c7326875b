"""What `evaluate --task`, `finetune` and `predict` share, and the first of them in Python."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from consilience.commands.choices import check_names
from consilience.commands.console import bar
from consilience.commands.files import write_failures
from consilience.commands.models import find_data, load, science_of
from consilience.core.errors import ConsilienceError
from consilience.core.files import try_writing
from consilience.pretrained import model_folder, results_folder

if TYPE_CHECKING:
    from consilience.domains.penalties import Kind
    from consilience.properties.question import Question
    from consilience.properties.table import PropertyTable


def evaluate_task(
    model: str | Path,
    task: str | Path,
    target: str | Sequence[str],
    *,
    smiles_column: str | None = None,
    split: str | Path | None = None,
    kind: "Kind | None" = None,
    rows: Sequence[str] | None = None,
    seeds: int = 3,
    epochs: int = 20,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = False,
) -> "PropertyTable":
    """Compare a model with what must be beaten on a table of molecules, frozen, fine-tuned and from scratch.

    Args:
        model: the folder of a run that knows molecules.
        task: a .csv or .tsv (also .gz) with SMILES and label columns, instead of the data of the run.
        target: the label columns of the task.
        smiles_column: of the task; default: by the usual names.
        split: a split.csv that another run wrote (columns part and smiles); default: by scaffold, 80/10/10.
        kind: classification or regression; default: from the labels.
        rows: some of trivial, forest, descriptors, linear, random, frozen, lora, full, scratch; default: all.
        seeds: runs of every row with chance in it.
        epochs: of fine-tuning, at most; validation chooses.
        out: folder of the table; default: tasks/ in the folder of the model. The same question asked again there
            takes finished rows from it.
        device: cpu, cuda, or auto: a GPU when there is one.
        progress: show what is being done.

    Returns:
        The table; it stands in `table.json` and `table.md` of the folder too, beside `split.csv` and the rows left out.
    """
    from consilience.properties.question import OF_DATA_ALONE, ROWS
    from consilience.properties.rows import check_row
    from consilience.properties.table import fill_table

    chosen = list(dict.fromkeys(ROWS if rows is None else rows))
    check_names(dict.fromkeys(chosen), ROWS, "rows")
    for row in chosen:
        check_row(row)
    targets = [target] if isinstance(target, str) else list(target)
    question = ask_about(
        model, task, targets, smiles_column=smiles_column, split=split, kind=kind,
        seeds=seeds, epochs=epochs, device=device,
    )  # fmt: skip
    place = folder_of_task(model, task, targets) if out is None else Path(out).expanduser()
    if any(row not in OF_DATA_ALONE for row in chosen):
        question.readable()  # refused before any row is computed
    check_table_folder(place)
    try_writing(place / "table.json", lambda path: path.touch())
    write_failures(question.left_out, place / "molecules")
    with telling("row", shown=progress) as tell:
        return fill_table(question, [row for row in ROWS if row in chosen], place, tell)


def ask_about(
    model: str | Path,
    task: str | Path,
    targets: Sequence[str],
    *,
    smiles_column: str | None,
    split: str | Path | None,
    kind: "Kind | None",
    seeds: int,
    epochs: int,
    device: str,
) -> "Question":
    """The question that these options ask."""
    from consilience.properties.question import ask

    if kind not in (None, "classification", "regression"):
        raise ConsilienceError(f"kind must be classification or regression, not {kind!r}")
    folder = model_folder(model)
    network = load(folder, device=device)
    if "molecules" not in network.domains:
        raise ConsilienceError(
            f"{folder} knows {', '.join(network.domains)}; a table of SMILES needs a model trained on molecules"
        )
    return ask(
        network,
        folder,
        science_of(network, folder, "molecules"),
        find_data(task),
        targets,
        smiles_column=smiles_column,
        split=None if split is None else Path(split).expanduser(),
        kind=kind,
        seeds=seeds,
        epochs=epochs,
    )


def check_table_folder(folder: Path) -> None:
    """Raise ConsilienceError for a folder that holds something else than a table, such as a model."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    begun = {"molecules.failures.csv", "split.csv"}
    foreign = {name for name in held - begun if not name.startswith(".") and not name.endswith(".part")}
    if foreign and not held & {"rows", "table.json"}:
        raise ConsilienceError(
            f"{folder} is not empty and holds no table of this command: choose another --out"
        )


def folder_of_task(model: str | Path, task: str | Path, targets: Sequence[str]) -> Path:
    """Where a table stands unless the user says: tasks/FILE-TARGET in the folder of the model."""
    words = [
        Path(task).name.split(".")[0],
        *targets[:1],
        *([f"{len(targets)}-targets"] if targets[1:] else []),
    ]
    name = "-".join(re.sub(r"[^A-Za-z0-9]+", "-", word).strip("-") for word in words)
    return results_folder(model) / "tasks" / name


@contextmanager
def telling(unit: str, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A line in the terminal that says what is being done."""
    with bar(unit, shown=shown) as line:
        work = line.add_task("", total=None, note="")
        yield lambda text: line.update(work, description=text)
