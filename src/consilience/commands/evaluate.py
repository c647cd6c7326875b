"""Probe a trained model beside trivial, random and classical baselines."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.commands.choices import check_names, options_by_science, parse_files
from consilience.commands.console import console, loss_in_words, say
from consilience.commands.embed import embed
from consilience.commands.files import replacing
from consilience.commands.models import load, read_collection, science_of
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError
from consilience.domains.settings import read_settings

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.core.model import FoundationModel
    from consilience.core.view import Loss
    from consilience.domains.base import Task
    from consilience.domains.preparation import Prepared
    from consilience.study.results import Score

logger = logging.getLogger(__name__)

EVALUATION = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task read out of one representation.

    Args:
        features: what the probe saw.
        score: its headline metric on the test part with a 95% interval over test groups, and all others.
    """

    features: str
    score: "Score"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model on the data of one science.

    Args:
        domain: the science.
        data: source, fingerprint and split of the data.
        trained_on: whether the model was trained on the training part of these data.
        loss: per token on held-out records.
        kind: what the loss is: exact, bound or surrogate.
        loss_records: how many held-out records the loss is of.
        rows: the probes.
        skipped: tasks that could not be scored, with the reason.
    """

    domain: str
    data: Mapping[str, Any]
    trained_on: bool
    loss: float
    kind: str
    loss_records: int
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]


def evaluate(
    model: str | Path,
    *,
    data: str | Path | None = None,
    domain: str | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    loss_records: int = 256,
    read_options: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: bool = False,
) -> tuple[Evaluation, ...]:
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
    folder = Path(model).expanduser()
    network = load(folder, device=device)
    names = network.domains if domain is None else [domain]
    if data is not None and len(names) > 1:
        raise ConsilienceError(f"--data needs --domain: this model knows {', '.join(names)}")
    done = []
    for name in names:
        prepared = _prepare(network, folder, name, data, limit, read_options)
        done.append(_evaluate(network, prepared, tasks, loss_records, device, progress))
    with replacing(folder / EVALUATION) as part:
        part.write_text(json.dumps([asdict(found) for found in done], indent=1))
    return tuple(done)


def new_parser() -> CommandParser:
    """The options of `consilience evaluate`."""
    parser = CommandParser("evaluate", evaluate, "MODEL [--data FILE] [options]")
    parser.option("model", type=Path, metavar="MODEL")
    parser.option("--data", type=str | None, metavar="FILE")
    parser.option("--domain", type=str | None)
    parser.option("--tasks", nargs="+", type=str)
    parser.option("--limit", type=int | None)
    parser.option("--loss-records", type=int)
    parser.option("--read-options", type=dict[str, Any] | None)
    parser.option("--device", type=str)
    return parser


def run(options: "Namespace") -> None:
    """`consilience evaluate`."""
    for found in evaluate(**options.as_dict(), progress=True):
        console().print(_table(found))
        held = "held-out" if found.trained_on else "test part of data it was not trained on"
        say(
            f"{found.domain}: {loss_in_words(found.loss, found.kind)} on {found.loss_records} records, {held}"
        )
        for task, reason in found.skipped.items():
            say(f"{found.domain}: {task} was skipped: {reason}")
    say(str(options.model / EVALUATION))


def _prepare(
    model: "FoundationModel",
    folder: Path,
    name: str,
    data: str | Path | None,
    limit: int | None,
    read_options: Mapping[str, Any] | None,
) -> "Prepared":
    """The data of the run as it was split for training, or other data split by the same rule."""
    from consilience.domains.preparation import prepare

    science = science_of(model, folder, name)
    settings = read_settings(folder)
    own = data is None
    if own:
        files = parse_files(settings.get("data") or [])
        data = files.get(science.name) if isinstance(files, dict) else None
        limit = settings.get("limit") if limit is None else limit
        saved = options_by_science(settings.get("read_options"), model.domains, "read_options")
        read_options = saved.get(science.name) if read_options is None else read_options
    collection = read_collection(science, data, read_options)
    prepared = prepare(science, collection, tokenizer=model.tokenizers[science.name], limit=limit)
    before = model.provenance.get("data", {}).get(science.name, {})
    if own and before and before.get("fingerprint") != prepared.collection.fingerprint:
        raise ConsilienceError(
            f"{folder} was trained on {before.get('records')} records of {before.get('source')}, which are not "
            f"those of {collection.source} (fingerprints {before.get('fingerprint')} and "
            f"{prepared.collection.fingerprint}): name the data with --data, and --limit if there was one"
        )
    return prepared


def _evaluate(
    model: "FoundationModel",
    prepared: "Prepared",
    wanted: Sequence[str] | None,
    loss_records: int,
    device: str,
    progress: bool,
) -> Evaluation:
    """Loss and probes on one science."""
    science, collection = prepared.domain, prepared.collection
    tasks = _tasks(prepared, wanted)
    held = prepared.split.test[:loss_records]
    loss = _held_out_loss(model, prepared, held)

    def features(network: "FoundationModel") -> np.ndarray:
        """(n, D) embeddings of all records."""
        made = embed(network, collection, domain=science.name, device=device, progress=progress)
        return made.vectors

    table: dict[str, np.ndarray | None] = {"majority / mean": None}
    if tasks:
        table["random-init core"] = features(_untrained(model))
        classical, rows = science.baseline(collection, prepared.split.train)
        table[classical] = np.asarray(rows)
        table[f"this model ({model.objective.name})"] = features(model)
    found, skipped = _score(prepared, tasks, table)
    provenance = prepared.provenance()
    before = model.provenance.get("data", {}).get(science.name, {})
    return Evaluation(
        domain=science.name,
        data=provenance,
        trained_on=all(provenance[key] == before.get(key) for key in ("fingerprint", "split")),
        loss=loss.nats_per_token,
        kind=loss.kind,
        loss_records=len(held),
        rows=found,
        skipped=skipped,
    )


def _tasks(prepared: "Prepared", wanted: Sequence[str] | None) -> list["Task"]:
    known = {task.name: task for task in prepared.domain.tasks(prepared.collection)}
    if wanted is None:
        if len(known) > 3:
            logger.info("%s: %d tasks have labels; the first 3 are shown, --tasks names others: %s",
                        prepared.domain.name, len(known), ", ".join(known))  # fmt: skip
        return list(known.values())[:3]
    check_names(dict.fromkeys(wanted), list(known), f"tasks of {prepared.collection.source}")
    return [known[name] for name in wanted]


def _score(
    prepared: "Prepared", tasks: Iterable["Task"], table: Mapping[str, np.ndarray | None]
) -> tuple[tuple[Row, ...], dict[str, str]]:
    """Probes of every task on every row of features; a task without enough labels is skipped with its reason."""
    from consilience.study.readout import score_features, score_trivial

    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for task in tasks:
        try:
            rows += [
                Row(features=name, score=score)
                for name, values in table.items()
                for score in (
                    score_trivial(prepared, [task])
                    if values is None
                    else score_features(prepared, values, [task])
                )
            ]
        except ConsilienceError as error:
            skipped[task.name] = str(error)
    return tuple(rows), skipped


def _untrained(model: "FoundationModel") -> "FoundationModel":
    """The same model with random weights (seed 0): what architecture and tokenizer give for nothing."""
    import torch

    from consilience.core.model import FoundationModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = FoundationModel(model.core_config, model.tokenizers, model.objective)
    return fresh.to(model.device).eval()


def _held_out_loss(model: "FoundationModel", prepared: "Prepared", index: np.ndarray) -> "Loss":
    """The loss of the strongest kind that the objective can claim, averaged over four draws."""
    from consilience.core.records import take_records

    if not len(index):
        raise ConsilienceError(f"{prepared.collection.source}: no record is held out; give more records")
    parts = []
    for first in range(0, len(index), 64):
        records = take_records(prepared.collection.records, index[first : first + 64])
        tokens = prepared.tokenizer.encode(records)
        parts.append(model.evaluate(tokens, domain=prepared.domain.name, seed=first, draws=4))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _table(found: Evaluation) -> Any:
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
