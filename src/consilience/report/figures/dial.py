"""From next-token to denoising: captured dependence and probe score against the size of a block."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consilience.report.figures.common import PALE, SOFT, WIDTH, group, label_points, padded, panels, say
from consilience.report.tables import metric_name
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset

NOISES = {"erasure": ("#b0558f", "-", "o"), "gaussian": ("#009e73", "--", "D")}
NEXT = "#0072b2"
LEAST = 3
"""Sizes of a block; settings that have the two ends alone stand in the table."""


def draw(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """A line of two panels for every setting with blocks between the two ends."""
    parts = [(name, part) for name, part in group(tables.dial) if part["size"].nunique() >= LEAST]
    if not parts:
        return None
    figure, axes = panels(2 * len(parts), columns=2, height=2.35, width=WIDTH)
    for place, (name, part) in enumerate(parts):
        left, right = axes[2 * place], axes[2 * place + 1]
        proper = part[(part["kind"] != "surrogate") & part["captured"].notna()]
        if len(proper):
            _panel(left, proper, "captured", "captured_low", "captured_high")
        else:
            say(left, "no captured dependence: surrogates only, or no address-only run")
        left.set_ylabel("captured, nats per token")
        known = part[part["score"].notna()] if "score" in part else part.iloc[:0]
        if len(known):
            _panel(right, known, "score", "low", "high")
            right.set_ylabel(f"{known['task'].iloc[0]}, {metric_name(str(known['metric'].iloc[0]))}")
        else:
            say(right, "no probe score")
        for axis in (left, right):
            axis.set_title(name)
            most = float(part["size"].max())
            axis.axvline(most, color=SOFT, lw=0.8, ls=":", zorder=0)
            axis.set_xscale("log", base=2)
            axis.set_xlim(0.8, most * 1.9)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.text(
                most * 1.04, 0.02, "b = N", transform=axis.get_xaxis_transform(), fontsize=7, color=SOFT
            )
            if place == len(parts) - 1:
                axis.set_xlabel("tokens in a block, b")
            axis.grid(axis="y", color=PALE, lw=0.5)
    figure.canvas.draw()
    for (_, part), left, right in zip(parts, axes[::2], axes[1::2]):
        proper = part[(part["kind"] != "surrogate") & part["captured"].notna()]
        _name(left, proper, "captured")
        _name(right, part[part["score"].notna()] if "score" in part else part.iloc[:0], "score")
    return figure


def _panel(axis: Axes, part: pd.DataFrame, value: str, low: str, high: str) -> None:
    for noise, (shade, style, marker) in NOISES.items():
        line = part[(part["noise"] == noise) & (part["row"] != "next-token")].sort_values("size")
        if noise == "erasure" and not (line["size"] == 1).any():
            line = pd.concat([part[part["row"] == "next-token"], line])
        if len(line) == 0:
            continue
        axis.plot(line["size"], line[value], color=shade, ls=style, lw=1.4, marker=marker, ms=4)
        ends = line[[low, high]].astype(float)
        if ends.notna().all(axis=None):
            axis.fill_between(line["size"], ends[low], ends[high], color=shade, alpha=0.15, lw=0)
    for _, point in part[part["row"] == "next-token"].iterrows():
        axis.plot(point["size"], point[value], color=NEXT, marker="s", ms=7, zorder=3)
        if math.isfinite(point[low]):
            axis.plot([point["size"]] * 2, [point[low], point[high]], color=NEXT, lw=1.3)
    padded(axis, part[[value, low, high]].to_numpy(float).ravel().tolist(), share=0.15)


def _name(axis: Axes, part: pd.DataFrame, value: str) -> None:
    colours = [
        NEXT if row == "next-token" else NOISES[noise][0] for row, noise in zip(part["row"], part["noise"])
    ]
    label_points(axis, part["size"].tolist(), part[value].tolist(), part["row"].tolist(), colours)
