"""Predict properties of new molecules with a fine-tuned model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.commands.console import say
from consilience.commands.files import failures_path, write_failures
from consilience.commands.models import find_data, read_collection
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing, try_writing

if TYPE_CHECKING:
    import pandas as pd
    from jsonargparse import Namespace

    from consilience.core.records import Failure


@dataclass(frozen=True, kw_only=True, eq=False)
class PropertyPredictions:
    """What a fine-tuned model says of new molecules.

    Args:
        table: a row a molecule: id, smiles, prediction and, of classes, the probability of class 1; with several
            targets these two once each, as prediction_TARGET and probability_TARGET.
        failures: molecules that could not be read, with reasons; they have no row.
    """

    table: "pd.DataFrame"
    failures: "tuple[Failure, ...]"


def predict(
    run: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    base: str | Path | None = None,
    read_options: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> PropertyPredictions:
    """Predict properties of the molecules of a file.

    Args:
        run: the folder that `consilience finetune` wrote.
        data: a file of molecules.
        out: where to write, .csv; molecules that cannot be read go beside it.
        base: the folder of the base model of adapters, where it was moved.
        read_options: of the reader of the file, such as --read-options.column structure.
        device: cpu, cuda, or auto: a GPU when there is one.

    Returns:
        The predictions and what could not be read.
    """
    import pandas as pd

    from consilience import registry
    from consilience.domains.pieces import failures_of
    from consilience.properties.tuned import load_tuned

    target = None if out is None else Path(out).expanduser()
    if target is not None and target.suffix != ".csv":
        raise ConsilienceError(f"{target}: predictions are written as .csv")
    if target is not None:
        source = find_data(data)
        if target.exists() and source.exists() and target.samefile(source):
            raise ConsilienceError(f"{target} is the input itself; write the predictions to another file")
        try_writing(target, lambda path: path.touch())
    model = load_tuned(
        Path(run).expanduser(), base=None if base is None else Path(base).expanduser(), device=device
    )
    science = registry.domain(model.headed.name)
    options = {"scaffolds": False, "properties": False, **(read_options or {})}
    collection = read_collection(science, data, options)
    values, index, refused = model.predict(collection.records)
    failures = sorted(
        [*collection.failures, *failures_of(collection, refused)], key=lambda failure: failure.index
    )
    if target is not None:
        write_failures(failures, target)
    if not len(index):
        listed = f" (all in {failures_path(target)})" if target is not None else ""
        raise ConsilienceError(
            f"{data}: none of {len(failures)} molecules can be predicted{listed}; first: {failures[0].reason}"
        )
    smiles = science.embedding_columns(collection, index)["smiles"]
    columns: dict[str, Any] = {"id": collection.ids[index], "smiles": smiles}
    for number, name in enumerate(model.targets):
        suffix = f"_{name}" if len(model.targets) > 1 else ""
        own = values[:, number]
        if name in model.classes:
            negative, positive = model.classes[name]
            columns[f"prediction{suffix}"] = [positive if value >= 0.5 else negative for value in own]
            columns[f"probability{suffix}"] = own
        else:
            columns[f"prediction{suffix}"] = own
    table = pd.DataFrame(columns)
    if target is not None:
        with replacing(target) as part:
            table.to_csv(part, index=False)
    return PropertyPredictions(table=table, failures=tuple(failures))


def new_parser() -> CommandParser:
    """The options of `consilience predict`."""
    parser = CommandParser("predict", predict, "RUN FILE --out FILE [options]")
    parser.option("run", type=str, metavar="RUN")
    parser.option("data", type=str, metavar="FILE")
    parser.option("--out", type=str, required=True, metavar="FILE")
    parser.option("--base", type=str | None, metavar="MODEL")
    parser.option("--read-options", type=dict[str, Any] | None)
    parser.option("--device", type=str)
    return parser


def run(options: "Namespace") -> None:
    """`consilience predict`."""
    found = predict(**options.as_dict())
    say(f"{options.out}: {len(found.table)} molecules")
    if found.failures:
        listed = failures_path(Path(options.out).expanduser())
        say(f"{len(found.failures)} could not be read, see {listed}; first: {found.failures[0].reason}")
