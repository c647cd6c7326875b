"""Probe a trained model beside trivial, random and classical baselines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.commands.choices import file_words, options_by_science, parse_files
from consilience.commands.console import Interrupted, console, loss_in_words, say
from consilience.commands.models import load, read_collection, science_of
from consilience.commands.parser import CommandParser
from consilience.commands.properties import evaluate_task
from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing
from consilience.domains.settings import read_settings
from consilience.pretrained import model_folder, results_folder

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.commands.readout import Evaluation
    from consilience.core.model import FoundationModel
    from consilience.domains.preparation import Prepared

EVALUATION = "evaluation.json"
OF_RUN = ("data", "domain", "tasks", "limit", "loss_records", "read_options")
"""Options that mean nothing for a table of one's own (`--task`)."""
DEFAULT_OF_RUN = {"loss_records": 128}


def evaluate(
    model: str | Path,
    *,
    data: str | Path | None = None,
    domain: str | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    loss_records: int = 128,
    read_options: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: bool = False,
) -> "tuple[Evaluation, ...]":
    """Probe frozen embeddings beside trivial, random-init and classical features, on held-out records.

    Args:
        model: the folder of a run.
        data: a file; default: the data the model was trained on, with the same split.
        domain: only this science, for models that know several.
        tasks: names of the tasks; default: the first three of the science.
        limit: use at most this many records; default: as in training.
        loss_records: held-out records on which the loss is measured.
        read_options: of the reader of the file; default: as in training.
        device: cpu, cuda, or auto: a GPU when there is one.
        progress: show bars.

    Returns:
        One evaluation a science; all stand in `evaluation.json` of the folder too.
    """
    from consilience.commands.readout import read_out

    folder = model_folder(model)
    network = load(folder, device=device)
    names = network.domains if domain is None else [domain]
    if data is not None and len(names) > 1:
        raise ConsilienceError(f"--data needs --domain: this model knows {', '.join(names)}")
    done = []
    for name in names:
        prepared = _prepare(network, folder, name, data, limit, read_options)
        done.append(read_out(network, prepared, tasks, loss_records=loss_records, progress=progress))
    results = results_folder(model)
    results.mkdir(parents=True, exist_ok=True)
    with replacing(results / EVALUATION) as part:
        part.write_text(json.dumps([asdict(found) for found in done], indent=1))
    return tuple(done)


def new_parser() -> CommandParser:
    """The options of `consilience evaluate`."""
    parser = CommandParser(
        "evaluate", evaluate, "MODEL [--data FILE | --task FILE --target COL [COL ...]] [options]"
    )
    parser.adopt(evaluate_task)
    parser.option("model", type=str, metavar="MODEL")
    parser.option("--data", type=str | None, metavar="FILE")
    parser.option("--domain", type=str | None)
    parser.option("--tasks", nargs="+", type=str)
    parser.option("--limit", type=int | None)
    parser.option("--loss-records", type=int)
    parser.option("--read-options", type=dict[str, Any] | None)
    parser.option("--device", type=str)
    parser.option("--task", type=str | None, metavar="FILE")
    parser.option("--target", nargs="+", type=str, metavar="COL")
    parser.option("--smiles-column", type=str | None)
    parser.option("--split", type=str | None, metavar="FILE")
    parser.option("--kind", type=str | None)
    parser.option("--rows", nargs="+", type=str)
    parser.option("--seeds", type=int)
    parser.option("--epochs", type=int)
    parser.option("--out", type=str | None, metavar="FOLDER")
    return parser


def run(options: "Namespace") -> None:
    """`consilience evaluate`."""
    given = options.as_dict()
    of_run = {name: given.pop(name) for name in OF_RUN}
    if given["task"] is not None:
        for name, value in of_run.items():
            if value is not None and value != DEFAULT_OF_RUN.get(name):
                raise ConsilienceError(
                    f"--{name.replace('_', '-')} is for the data of the run; leave it out with --task"
                )
        _show_task(**given)
        return
    for name in ("target", "smiles_column", "split", "kind", "rows", "out"):
        if given[name] is not None:
            raise ConsilienceError(f"--{name.replace('_', '-')} needs --task FILE")
    for found in evaluate(options.model, **of_run, device=options.device, progress=True):
        console().print(_table(found))
        held = "held-out" if found.trained_on else "test part of data it was not trained on"
        say(
            f"{found.domain}: {loss_in_words(found.loss, found.kind)} on {found.loss_records} records, {held}"
        )
        for task, reason in found.skipped.items():
            say(f"{found.domain}: {task} was skipped: {reason}")
    say(str(results_folder(options.model) / EVALUATION))


def _show_task(**options: Any) -> None:
    """`consilience evaluate --task`."""
    from rich.table import Table

    from consilience.properties.table import caption, cells

    options["target"] = options["target"] or []
    try:
        found = evaluate_task(**options, progress=True)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; finished rows are kept: the same command goes on from them") from None
    header, lines = cells(found)
    table = Table(title=f"{Path(found.file).name}: {', '.join(found.targets)}", caption=caption(found))
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left")
    for line in lines:
        table.add_row(*line)
    console().print(table)
    say(str(Path(found.folder) / "table.md"))


def _prepare(
    model: "FoundationModel",
    folder: Path,
    name: str,
    data: str | Path | None,
    limit: int | None,
    read_options: Mapping[str, Any] | None,
) -> "Prepared":
    """The data of the run as it was split for training, or other data split by the same rule."""
    from consilience.commands.given import pairs_of_run
    from consilience.domains.preparation import cached_parts, prepare

    science = science_of(model, folder, name)
    settings = read_settings(folder)
    own, parts = data is None, None
    if own:
        files = parse_files(file_words(settings.get("data")))
        data = files.get(science.name) if isinstance(files, dict) else None
        limit = settings.get("limit") if limit is None else limit
        saved = options_by_science(settings.get("read_options"), model.domains, "read_options")
        read_options = saved.get(science.name) if read_options is None else read_options
        parts = settings.get("parts") or cached_parts(None if data is None else Path(data))
    if own and settings.get("pairs"):
        prepared = pairs_of_run(model, folder, limit=limit)[science.name]
    else:
        collection = read_collection(science, data, read_options)
        prepared = prepare(
            science, collection, tokenizer=model.tokenizers[science.name], limit=limit, fractions=parts
        )
    if not len(prepared.split.test):
        raise ConsilienceError(
            f"{folder} was trained with no test part (--parts {' '.join(map(str, parts or ()))}): name other data "
            "with --data"
        )
    before = model.provenance.get("data", {}).get(science.name, {})
    if own and before and before.get("fingerprint") != prepared.collection.fingerprint:
        raise ConsilienceError(
            f"{folder} was trained on {before.get('records')} records of {before.get('source')}, which are not "
            f"those of {prepared.collection.source} (fingerprints {before.get('fingerprint')} and "
            f"{prepared.collection.fingerprint}): name the data with --data, and --limit if there was one"
        )
    return prepared


def _table(found: "Evaluation") -> Any:
    """The rows as a table for the terminal."""
    from rich.table import Table

    table = Table(
        title=f"{found.domain}: probes on frozen features, test part of {found.data['source']}",
        caption="95% intervals over test groups; kNN: 10 neighbours, the same metric",
    )
    for name in ("task", "features", "metric", "linear probe", "95% interval", "kNN", "other metrics"):
        table.add_column(name, justify="left" if name in ("task", "features", "metric") else "right")
    task = ""
    for row in found.rows:
        score = row.score
        if task and score.task != task:
            table.add_section()
        others = ", ".join(f"{k} {v:.3f}" for k, v in score.metrics.items() if k != score.metric)
        table.add_row(
            "" if score.task == task else score.task,
            row.features,
            score.metric,
            f"{score.value:.3f}",
            f"{score.low:.3f} to {score.high:.3f}",
            "" if score.knn is None else f"{score.knn:.3f}",
            others,
        )
        task = score.task
    return table
