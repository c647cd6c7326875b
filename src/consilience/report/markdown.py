"""The main tables as Markdown, for pages of documentation and for papers: both families of outcome side by side."""

import math

import pandas as pd

from consilience.report.effects import bracket
from consilience.report.tables import Cell, cell, columns_of, metric_name, number, rows_of
from consilience.study.analysis import Tables

MARK = {"win": "**{}**", "behind": "{}", "lose": "{} °"}
LEGEND = (
    "Mean over seeds [95% interval over test groups and seeds]. Bold: above the best classical row (paired, corrected "
    "for the number of comparisons). °: not above the same core with random weights. Captured: nats per token below "
    "the address-only core; ≥ marks a bound, which may be too low; a dash no likelihood."
)


def as_markdown(tables: Tables) -> str:
    """A legend and a table a setting: every row of the study against captured dependence and probe scores."""
    parts = [LEGEND]
    for setting in dict.fromkeys(setting for setting, _, _ in columns_of(tables.scores)):
        parts.append(f"### {setting}\n\n{_setting(tables, setting)}")
    return "\n\n".join(parts) + "\n"


def _setting(tables: Tables, setting: str) -> str:
    scores = tables.scores[tables.scores["setting"] == setting]
    columns = columns_of(scores)
    lines = [["", "captured", *(f"{task}, {metric_name(metric)}" for _, task, metric in columns)]]
    lines.append(["---"] * len(lines[0]))
    for _, row in rows_of(scores):
        found = [cell(scores, row, column) for column in columns]
        lines.append([row, _captured(tables.losses, setting, row), *(_written(one) for one in found)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _written(found: Cell | None) -> str:
    if found is None:
        return "-"
    text = number(found.line["score"]) + bracket(found.line["low"], found.line["high"])
    return MARK.get(found.style, "{}").format(text) + (f" ({found.method})" if found.method else "")


def _captured(losses: pd.DataFrame, setting: str, row: str) -> str:
    if losses.empty or "captured" not in losses:
        return "-"
    found = losses[(losses["setting"] == setting) & (losses["row"] == row)]
    if found.empty or not math.isfinite(found.iloc[0]["captured"]):
        return "-"
    line = found.iloc[0]
    sign = "≥ " if line["kind"] == "bound" else ""
    return f"{sign}{line['captured']:.3f}{bracket(line['captured_low'], line['captured_high'])}"
