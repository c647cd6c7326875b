"""The main table of the page, and the detailed one below it."""

import math
from html import escape

import pandas as pd

from consilience.report import html
from consilience.report.effects import bracket, p_text
from consilience.report.tables import (
    Cell,
    Column,
    cell,
    columns_of,
    metric_name,
    number,
    over,
    rows_of,
    shown_variants,
)
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset

ACROSS = 5
"""Columns that fit the page; more are cut into several tables."""

CAPTION = (
    "Frozen embeddings read out by a linear probe on test groups that training never saw: mean over seeds with "
    "its 95% "
    "interval (test groups and seeds resampled); s is the normalised score, 0 the trivial row and 1 the same core "
    "trained on the labels. Bold green: the paired interval against the best classical row excludes 0 upward and the "
    "Holm-corrected p-value is below 0.05. Grey: it excludes 0 downward. Red: not above the core with random "
    "weights. "
    "The best classical row is chosen on the test part, in its own favour. IQM: interquartile mean of s over all "
    "settings and tasks; P(best): how often a row has the highest one over the resamples, of those present "
    "everywhere. "
    "A row that is best here was picked among several: look at its Holm-corrected comparison, not at its rank."
)


def score_section(tables: Tables, preset: StudyPreset | None) -> str:
    """Rows x settings, cut into as many tables as the page needs, then all details."""
    scores = tables.scores
    if scores.empty:
        return "<h2>What the frozen embeddings know</h2><p class='absent'>No probe has finished.</p>"
    columns, rows = columns_of(scores), rows_of(scores, shown_variants(preset))
    size = math.ceil(len(columns) / math.ceil(len(columns) / ACROSS))
    chunks = [columns[i : i + size] for i in range(0, len(columns), size)]
    found = [
        _main(tables, rows, chunk, summary=place == 0 and not tables.summary.empty)
        for place, chunk in enumerate(chunks)
    ]
    return (
        f"<h2>What the frozen embeddings know</h2>{''.join(found)}{html.paragraph(CAPTION, 'caption')}"
        f"<details><summary>All rows in detail: nearest neighbours, fewer labels, differences, read-outs</summary>"
        f"{_details(scores)}</details>"
    )


def _main(tables: Tables, rows: list[tuple[str, str]], columns: list[Column], *, summary: bool) -> str:
    head = [""]
    if summary:
        head += ["all settings<small>IQM of s</small>", "<small>P(best)</small>"]
    head += [
        f"{escape(s)}<small>{escape(task)}<br>{escape(metric_name(metric))}</small>"
        for s, task, metric in columns
    ]
    body = []
    for place, (role, name) in enumerate(rows):
        cells = [_shown(cell(tables.scores, name, column)) for column in columns]
        if summary:
            cells = _summary(tables.summary, name) + cells
        elif all(text.startswith("<td class='none'") for text in cells):
            continue
        following = rows[place + 1][0] if place + 1 < len(rows) else role
        turns = (role == "pre-trained") != (following == "pre-trained")
        body.append(html.row(name, cells, style=f"{role} baselines-end" if turns else role))
    return html.table(head, body, label="scores by row and setting")


def _summary(summary: pd.DataFrame, name: str) -> list[str]:
    found = summary[summary["row"] == name]
    if found.empty:
        return [html.cell("–", style="none")] * 2
    line = found.iloc[0]
    ends = bracket(line["low"], line["high"]).strip()
    return [html.cell(number(line["iqm"], 2), (ends,)), html.cell(number(line["p_best"], 2))]


def _shown(found: Cell | None) -> str:
    if found is None:
        return html.cell("–", style="none")
    line = found.line
    scaled = float(line.get("normalised", math.nan))
    small = [
        bracket(line["low"], line["high"]).strip(),
        f"s = {scaled:.2f}" if math.isfinite(scaled) else "",
        found.method,
    ]
    return html.cell(number(line["score"]), small, found.style)


def _details(scores: pd.DataFrame) -> str:
    head = ["", "row", "score", "s", "over best classical", "over random core", "kNN", "10% labels", "1% labels",
            "seeds", "read-out"]  # fmt: skip
    parts = []
    for setting, task, metric in columns_of(scores):
        here = scores[(scores["setting"] == setting) & (scores["task"] == task)]
        body = [_detail(line) for _, line in here.iterrows()]
        records = here["test_records"].iloc[0] if "test_records" in here else 0
        limit = float(here["detectable"].iloc[0]) if "detectable" in here else math.nan
        text = f"{setting}, {task}: {metric_name(metric)} on {records:,} test records"
        if math.isfinite(limit):
            text += f"; the smallest difference of two rows that its seeds can find is {limit:.3f}"
        parts.append(f"<h3>{escape(text)}</h3>" + html.table(head, body, style="dense"))
    return "".join(parts)


def _detail(line: pd.Series) -> str:
    scaled = float(line.get("normalised", math.nan))
    cells = [
        f"<td style='text-align:left'>{escape(line['role'])}</td>",
        html.cell(number(line["score"]) + bracket(line["low"], line["high"])),
        html.cell(number(scaled, 2)),
        *(_difference(line, reference) for reference in ("classical", "random")),
        *(html.cell(number(float(line.get(name, math.nan)))) for name in ("knn", "labels_10", "labels_1")),
        html.cell(str(line["seeds"])),
        f"<td style='text-align:left;white-space:normal'>{escape(str(line.get('readout') or ''))}</td>",
    ]
    return html.row(str(line["row"]), cells, style=str(line["role"]))


def _difference(line: pd.Series, reference: str) -> str:
    effect = over(line, reference)
    if not math.isfinite(effect.value):
        return html.cell("–", style="none")
    style = {"above": "win", "below": "lose"}.get(effect.side, "")
    return html.cell(str(effect), (p_text(effect.p) if math.isfinite(effect.p) else "",), style)
