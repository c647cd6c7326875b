"""Two outcomes of every row against each other: likelihood and probe; and the same for heads of the likelihood."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consilience.report.figures.common import (
    PALE,
    SOFT,
    group,
    label_points,
    padded,
    panels,
    row_colour,
    variant_of,
    whisker,
)
from consilience.report.tables import metric_name
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset

LEAST = 3
"""Rows of a setting that make a panel; with two, any line fits."""


def draw(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """Probe score against captured dependence, a panel a setting."""
    parts = [(name, part) for name, part in group(_both(tables, "captured")) if len(part) >= LEAST]
    if not parts:
        return None
    figure, axes = panels(len(parts), columns=2, height=3.1)
    for axis, (name, part) in zip(axes, parts):
        _panel(axis, name, part, "captured", preset)
        axis.set_xlabel("captured dependence, nats per token")
        text = _correlation(tables.correlation, name)
        axis.set_title(f"{name}{text}")
    _label(figure, axes, parts, "captured", preset)
    return figure


def heads(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """Probe score against nats per token for heads of one objective."""
    both = _both(tables, "loss")
    wanted = [
        (name, part[[_in(preset, name, row, "heads") for row in part["row"]]]) for name, part in group(both)
    ]
    parts = [(name, part) for name, part in wanted if len(part) > 1]
    if not parts:
        return None
    figure, axes = panels(len(parts), columns=max(2, min(3, len(parts))), height=2.7)
    for axis, (name, part) in zip(axes, parts):
        _panel(axis, name, part, "loss", preset)
        axis.set_xlabel("nats per token (less is better)")
        axis.set_title(name)
    _label(figure, axes, parts, "loss", preset)
    return figure


def rates(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """Probe score against the mask rate; losses at different rates are not comparable and not shown."""
    scores = tables.scores
    if scores.empty or preset is None:
        return None
    parts = []
    for (name, task), part in scores.groupby(["setting", "task"], sort=False):
        there = part[[_in(preset, str(name), row, "rates") for row in part["row"]]]
        if len(there) > 1:
            parts.append((str(name), str(task), there))
    if not parts:
        return None
    figure, axes = panels(len(parts), columns=4, height=2.3)
    for axis, (name, task, part) in zip(axes, parts):
        rows = []
        for line in part.to_dict("records"):
            variant = variant_of(preset, name, line["row"])
            rate = variant.options.get("rate") if variant else None
            rows.append((math.inf if rate is None else float(rate), line))
        rows.sort(key=lambda pair: pair[0])
        for x, (rate, line) in enumerate(rows):
            shade = "#d55e00" if math.isfinite(rate) else "#8c2d04"
            whisker(axis, x, line["score"], line["low"], line["high"], color=shade)
            axis.plot(x, line["score"], "o" if math.isfinite(rate) else "D", color=shade, ms=6)
        axis.set_xticks(range(len(rows)), [f"{r:g}" if math.isfinite(r) else "random" for r, _ in rows])
        axis.set_xlim(-0.5, len(rows) - 0.5)
        axis.set_title(name)
        axis.set_xlabel("mask rate")
        axis.set_ylabel(f"{task}\n{metric_name(str(part['metric'].iloc[0]))}")
        axis.grid(axis="y", color=PALE, lw=0.5)
    return figure


def _in(preset: StudyPreset | None, setting: str, row: str, figure: str) -> bool:
    variant = variant_of(preset, setting, row)
    return variant is not None and figure in variant.figures


def _both(tables: Tables, value: str) -> pd.DataFrame:
    """Likelihoods beside the first task's score; surrogates never."""
    losses, scores = tables.losses, tables.scores
    if losses.empty or scores.empty or value not in losses:
        return pd.DataFrame()
    ends = ("captured_low", "captured_high") if value == "captured" else ("low", "high")
    proper = losses[(losses["kind"] != "surrogate") & losses[value].notna()]
    proper = proper[proper["objective"] != "address-only"]
    part = pd.DataFrame(
        {"setting": proper["setting"], "row": proper["row"], value: proper[value].astype(float)}
    )
    for name, end in zip(("x_low", "x_high"), ends):
        part[name] = proper[end].astype(float) if end in proper else math.nan
    first = scores[scores["role"] == "pre-trained"].drop_duplicates(["setting", "row"])
    return part.merge(
        first[["setting", "row", "task", "metric", "score", "low", "high"]], on=["setting", "row"]
    )


def _panel(axis: Axes, name: str, part: pd.DataFrame, value: str, preset: StudyPreset | None) -> None:
    for line in part.to_dict("records"):
        shade = row_colour(preset, name, line["row"])
        x, y = line[value], line["score"]
        whisker(axis, x, y, line["low"], line["high"], color=shade)
        whisker(axis, x, y, line["x_low"], line["x_high"], color=shade, vertical=False)
        axis.plot(x, y, "o", color=shade, ms=5.5, zorder=3)
    padded(axis, part[[value, "x_low", "x_high"]].to_numpy(float).ravel().tolist(), x=True, share=0.18)
    padded(axis, part[["score", "low", "high"]].to_numpy(float).ravel().tolist())
    axis.set_ylabel(f"{part['task'].iloc[0]}, {metric_name(str(part['metric'].iloc[0]))}")
    axis.grid(color=PALE, lw=0.5)


def _label(
    figure: Figure,
    axes: list[Axes],
    parts: list[tuple[str, pd.DataFrame]],
    value: str,
    preset: StudyPreset | None,
) -> None:
    figure.canvas.draw()
    for axis, (name, part) in zip(axes, parts):
        colours = [row_colour(preset, name, row) for row in part["row"]]
        colours = [SOFT if shade == "#999999" else shade for shade in colours]
        label_points(axis, part[value].tolist(), part["score"].tolist(), part["row"].tolist(), colours)


def _correlation(correlation: pd.DataFrame, setting: str) -> str:
    found = correlation[correlation["setting"] == setting] if len(correlation) else correlation
    if found.empty or not math.isfinite(found["spearman"].iloc[0]):
        return ""
    line = found.iloc[0]
    ends = f" [{line['low']:+.2f}, {line['high']:+.2f}]" if math.isfinite(line["low"]) else ""
    return f":  Spearman {line['spearman']:+.2f}{ends}"
