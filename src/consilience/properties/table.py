"""The table: every row computed once and kept at once, scored beside the others, and written for people and programs.

A folder holds `rows/ROW.npz` (predictions and what was chosen), `split.csv`, `table.json` and `table.md`. A row whose
question is the same as before is taken from its file.
"""

import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.files import replace_text, replacing, without_nan
from consilience.domains.labelled_split import write_split
from consilience.properties.question import OF_DATA_ALONE, Question
from consilience.properties.rows import TITLES, Predicted, Tell, predict_row
from consilience.properties.scores import LOWER_IS_BETTER, METRICS, Scored, score
from consilience.study.statistics import interval

BAR = "forest"
"""The row that others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number with its 95% interval; NaN where the data cannot give one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PropertyRow:
    """One row.

    Args:
        row: its short name.
        title: for people.
        metrics: metric -> mean over targets and seeds.
        per_target: target -> metric -> mean over seeds.
        per_seed: the first metric, mean over targets, one a seed.
        against_forest: paired difference of the first metric to the random forest, above 0 where this row is better;
            None without that row.
        chosen: what was chosen on validation.
        unread: ids of test molecules that the model cannot read and that have the trivial prediction.
        seconds: that it took when it was computed.
    """

    row: str
    title: str
    metrics: Mapping[str, Value]
    per_target: Mapping[str, Mapping[str, float]]
    per_seed: tuple[float, ...]
    against_forest: Value | None
    chosen: tuple[str, ...]
    unread: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PropertyTable:
    """What `evaluate --task` found.

    Args:
        file: the table of molecules.
        targets: label columns.
        kind: of the targets.
        classes: target -> names of class 0 and 1.
        molecules: in all, and by part.
        left_out: rows of the file that were not used, by reason.
        unread_by_model: molecules that the model's tokenizer cannot read; they have no part in its training.
        split: SHA-256 of the split.
        model: SHA-256 of the model's weights.
        seeds: of every row with chance in it.
        rows: in the order of the table.
        folder: where everything is written.
    """

    file: str
    targets: tuple[str, ...]
    kind: str
    classes: Mapping[str, tuple[str, str]]
    molecules: Mapping[str, int]
    left_out: Mapping[str, int]
    unread_by_model: int
    split: str
    model: str
    seeds: int
    rows: tuple[PropertyRow, ...]
    folder: str

    @property
    def metric(self) -> str:
        """The metric that stands for the table."""
        return next(iter(self.rows[0].metrics))


def fill_table(question: Question, rows: Sequence[str], folder: Path, tell: Tell) -> PropertyTable:
    """Compute or take back every row; the table on disk is complete after each of them."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    with replacing(folder / "split.csv") as part:
        write_split(part, question.split, question.data)
    done: dict[str, tuple[Predicted, float]] = {}
    table = None
    for row in rows:
        path, key = folder / "rows" / f"{row}.npz", question.key(row)
        kept = _read(path, key)
        if kept is None:
            begin = time.perf_counter()
            tell(TITLES[row])
            found = predict_row(question, row, tell)
            kept = found, round(time.perf_counter() - begin, 1)
            _write(path, key, *kept)
        done[row] = kept
        table = _table(question, done, folder)
        replace_text(folder / "table.json", json.dumps(without_nan(asdict(table)), indent=1))
        replace_text(folder / "table.md", markdown(table))
    assert table is not None
    return table


def _read(path: Path, key: str) -> tuple[Predicted, float] | None:
    """A row that answers the same question; None where there is none."""
    try:
        with np.load(path, allow_pickle=False) as found:
            about = json.loads(str(found["about"]))
            scores = found["scores"]
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
    ):  # none yet, or cut off: computed again
        return None
    if about.get("key") != key:
        return None
    kept = Predicted(scores=scores, chosen=tuple(about["chosen"]), unread=tuple(about["unread"]))
    return kept, float(about["seconds"])


def _write(path: Path, key: str, found: Predicted, seconds: float) -> None:
    about = {"key": key, "chosen": found.chosen, "unread": found.unread, "seconds": seconds}
    with replacing(path) as part:
        np.savez(part, scores=found.scores, about=np.array(json.dumps(about)))


def _table(question: Question, done: Mapping[str, tuple[Predicted, float]], folder: Path) -> PropertyTable:
    data, test = question.data, question.split.test
    truth, groups = data.labels[test], data.collection.group_of[test]
    scored = {row: score(data.kind, truth, groups, found.scores) for row, (found, _) in done.items()}
    return PropertyTable(
        file=data.collection.source,
        targets=data.targets,
        kind=data.kind,
        classes=data.classes,
        molecules={
            "all": len(data.collection),
            **{name: len(index) for name, index in question.split.parts().items()},
        },
        left_out={
            **data.left_out,
            "not in the given split": question.aside.unplaced,
            "unreadable in the given split": len(question.aside.unreadable),
        },
        unread_by_model=0 if set(done) <= set(OF_DATA_ALONE) else len(question.refused),
        split=question.digest,
        model=question.model_digest,
        seeds=question.seeds,
        rows=tuple(_row(question, row, found, seconds, scored) for row, (found, seconds) in done.items()),
        folder=str(folder),
    )


def _row(
    question: Question, row: str, found: Predicted, seconds: float, scored: Mapping[str, Scored]
) -> PropertyRow:
    own, metrics = scored[row], METRICS[question.data.kind]
    against = None
    if BAR in scored and row != BAR:
        sign, bar = (-1 if metrics[0] in LOWER_IS_BETTER else 1), scored[BAR]
        low, high = interval(sign * (own.draws[metrics[0]] - bar.draws[metrics[0]]))
        against = Value(value=sign * (own.value(metrics[0]) - bar.value(metrics[0])), low=low, high=high)
    per_target = {
        name: {metric: float(own.per_target(metric)[place]) for metric in metrics}
        for place, name in enumerate(question.data.targets)
    }
    return PropertyRow(
        row=row,
        title=TITLES[row],
        metrics={metric: Value(value=own.value(metric), low=low, high=high)
                 for metric in metrics for low, high in [own.interval(metric)]},
        per_target=per_target,
        per_seed=tuple(float(np.nanmean(line)) for line in own.seeds[metrics[0]]),
        against_forest=against,
        chosen=found.chosen,
        unread=found.unread,
        seconds=seconds,
    )  # fmt: skip


def cells(table: PropertyTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text, for the terminal and for Markdown."""
    first, *others = table.rows[0].metrics
    header = ["row", first, "95% interval", "sd of seeds", f"better than {BAR} by", *others, "seconds"]
    lines = []
    for row in table.rows:
        value, against = row.metrics[first], row.against_forest
        sd = f"{np.std(row.per_seed, ddof=1):.3f}" if len(row.per_seed) > 1 else ""
        lines.append(
            [
                row.title,
                f"{value.value:.3f}",
                f"{value.low:.3f} to {value.high:.3f}",
                sd,
                ""
                if against is None
                else f"{against.value:+.3f} ({against.low:+.3f} to {against.high:+.3f})",
                *(f"{row.metrics[other].value:.3f}" for other in others),
                f"{row.seconds:.0f}",
            ]
        )
    return header, lines


def caption(table: PropertyTable) -> str:
    """What the table stands on, in a few sentences."""
    count, out = table.molecules, {reason: n for reason, n in table.left_out.items() if n}
    parts = [
        f"{count['all']} molecules: {count['train']} to train, {count['validation']} to choose, {count['test']} to test"
    ]
    if out:
        parts.append("rows left out: " + ", ".join(f"{n} {reason}" for reason, n in out.items()))
    if table.classes and len(table.targets) == 1:
        parts.append(f"class 1 is {table.classes[table.targets[0]][1]!r}")
    silent = [name for name in table.targets if np.isnan(table.rows[0].per_target[name][table.metric])]
    if silent:
        parts.append(f"no score for {', '.join(silent)}: the test part has one class of it")
    unread = max(len(row.unread) for row in table.rows)
    if table.unread_by_model:
        parts.append(
            f"the model cannot read {table.unread_by_model} molecules, {unread} of them test molecules, which count "
            "with the trivial prediction"
        )
    parts.append("intervals resample test scaffolds and seeds")
    parts.append(f"split {table.split}")
    return "; ".join(parts)


def markdown(table: PropertyTable) -> str:
    """The table as a page."""
    header, lines = cells(table)
    title = f"# {Path(table.file).name}: {', '.join(table.targets)} ({table.kind})"
    page = [title, "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    page += [f"| {' | '.join(line)} |" for line in lines]
    if len(table.targets) > 1:
        metric = table.metric
        page += [
            "",
            f"| {metric} | {' | '.join(row.row for row in table.rows)} |",
            "|---|" + "---|" * len(table.rows),
        ]
        for name in table.targets:
            values = " | ".join(f"{row.per_target[name][metric]:.3f}" for row in table.rows)
            page.append(f"| {name} | {values} |")
    page += ["", caption(table) + ".", ""]
    chosen: list[Any] = [row for row in table.rows if row.chosen]
    page += [f"- {row.title}: {'; '.join(row.chosen)}" for row in chosen]
    return "\n".join(page) + "\n"
