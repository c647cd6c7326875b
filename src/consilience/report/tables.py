"""The main table: which rows and columns it has, what stands in a cell, and its form for the terminal."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilience.report.effects import Effect, bracket
from consilience.study.analysis import Tables, analyse
from consilience.study.plan import StudyPreset

if TYPE_CHECKING:
    from consilience.study.runner import Study

METRIC_NAME = {
    "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy", "r2": "R²", "accuracy": "accuracy",
    "mae": "mean abs. error", "nmad": "σ NMAD",
}  # fmt: skip
PCA = "PCA of tokens"
BEST_CLASSICAL = "best classical baseline"

Column = tuple[str, str, str]
"""(setting, task, metric)."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the main table.

    Args:
        line: of `Tables.scores`.
        style: win (above the best classical row), behind (below it), lose (not above the random-init core), or "".
        method: name of the baseline, where the row of the table does not say it.
    """

    line: pd.Series
    style: str = ""
    method: str = ""


def metric_name(metric: str) -> str:
    """The metric as people write it."""
    return METRIC_NAME.get(metric, metric)


def columns_of(scores: pd.DataFrame) -> list[Column]:
    """(setting, task, metric) in the order of first appearance."""
    if scores.empty:
        return []
    return list(dict.fromkeys(zip(scores["setting"], scores["task"], scores["metric"])))


def shown_variants(preset: StudyPreset | None) -> list[str] | None:
    """Names of the variants of the main comparison; None when all are shown."""
    if preset is None:
        return None
    return list(dict.fromkeys(v.name for s in preset.settings for v in s.variants if "table" in v.figures))


def rows_of(scores: pd.DataFrame, shown: list[str] | None = None) -> list[tuple[str, str]]:
    """(role, row) of the main table: baselines, then variants, then the supervised core."""
    if scores.empty:
        return []
    found = list(dict.fromkeys(zip(scores["role"], scores["row"])))
    classical = [row for role, row in found if role == "classical"]
    rows = [(role, row) for role, row in found if role == "trivial"]
    rows += [("classical", BEST_CLASSICAL)] if classical else []
    rows += [("classical", PCA)] if PCA in classical else []
    rows += [(role, row) for role, row in found if role == "random-init"]
    trained = [row for role, row in found if role == "pre-trained" and (shown is None or row in shown)]
    if shown is not None:
        trained.sort(key=shown.index)
    rows += [("pre-trained", row) for row in trained]
    return rows + [(role, row) for role, row in found if role == "supervised"]


def over(line: pd.Series, reference: str) -> Effect:
    """The paired difference of a row with the best classical row ("classical") or the random core ("random")."""
    names = (f"over_{reference}", f"over_{reference}_low", f"over_{reference}_high", f"over_{reference}_p")
    value, low, high, p = (float(line.get(name, math.nan)) for name in names)
    return Effect(value=value, low=low, high=high, p=p)


def cell(scores: pd.DataFrame, row: str, column: Column) -> Cell | None:
    """What stands at this place; None when nothing was computed."""
    here = scores[(scores["setting"] == column[0]) & (scores["task"] == column[1])]
    if row == BEST_CLASSICAL:
        classical = here[here["role"] == "classical"]
        if classical.empty:
            return None
        best = classical.loc[classical["score"].idxmax()]
        return Cell(line=best, method=str(best["row"]))
    found = here[here["row"] == row]
    if found.empty:
        return None
    line = found.iloc[0]
    return Cell(line=line, style=_style(line) if line["role"] == "pre-trained" else "")


def _style(line: pd.Series) -> str:
    random = over(line, "random")
    if random.side in ("unclear", "below"):
        return "lose"
    return {"above": "win", "below": "behind"}.get(over(line, "classical").side, "")


def number(value: object, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if not isinstance(value, (int, float)) or not math.isfinite(value) else f"{value:.{digits}f}"


def print_table(study: "Study | Tables", console: Console | None = None) -> None:
    """The main table in the terminal; as in the page, green is above the best classical row by a paired test."""
    tables = study if isinstance(study, Tables) else analyse(study)
    shown_rows = None if isinstance(study, Tables) else shown_variants(study.preset)
    scores = tables.scores
    console = console or Console()
    width = max(console.width, 110)
    columns, rows = columns_of(scores), rows_of(scores, shown_rows)
    across = max(1, (width - 26) // 23)
    for start in range(0, max(len(columns), 1), across):
        table = _printed(scores, rows, columns[start : start + across])
        console.print(table, width=width, crop=False, no_wrap=True)


def _printed(scores: pd.DataFrame, rows: list[tuple[str, str]], columns: list[Column]) -> Table:
    title = "Frozen embeddings, linear probe, test groups: score [95% interval]"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for setting, task, metric in columns:
        table.add_column(Text(f"{setting}\n{task}\n{metric_name(metric)}"), justify="right", no_wrap=True)
    for place, (role, row) in enumerate(rows):
        ends = role != "pre-trained" and place + 1 < len(rows) and rows[place + 1][0] == "pre-trained"
        cells = (_text(cell(scores, row, column)) for column in columns)
        table.add_row(Text(row), *cells, end_section=ends)
    return table


def _text(found: Cell | None) -> Text:
    if found is None:
        return Text("–", style="dim")
    line = found.line
    interval = bracket(line["low"], line["high"])
    style = {"win": "bold green", "behind": "dim", "lose": "red"}.get(found.style, "")
    return Text(f"{line['score']:.3f}{interval}".replace(", ", " "), style=style)
