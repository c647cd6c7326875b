"""One core on all sciences, and trunks carried from science to science."""

import math
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from consilience.report.figures.common import PALE, SOFT, WIDTH, panels, row_colour, whisker
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset


def sharing(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """Own core and shared core joined by a line; beside it the nats that sharing saves."""
    table = tables.sharing
    if table.empty:
        return None
    saved = "nats_saved" in table and table["nats_saved"].notna().any()
    height = 1.0 + 0.34 * len(table)
    figure, axes = panels(2 if saved else 1, columns=2, height=height, width=WIDTH)
    names = []
    for y, line in enumerate(table.iloc[::-1].to_dict("records")):
        shade = row_colour(preset, line["setting"], line["row"])
        axes[0].plot([line["alone"], line["alone"] + line["gain"]], [y, y], color=shade, lw=2.4, alpha=0.35)
        low, high = line["alone"] + line["gain_low"], line["alone"] + line["gain_high"]
        whisker(axes[0], line["shared"], y, low, high, color=shade, vertical=False)
        axes[0].plot(line["alone"], y, "o", mfc="white", mec=shade, ms=6.5, zorder=3)
        axes[0].plot(line["shared"], y, "o", color=shade, ms=6.5, zorder=3)
        names.append(f"{line['setting']}: {line['task']}, {line['row']}")
        if saved and math.isfinite(line["nats_saved"]):
            whisker(axes[1], 0, y, line["nats_low"], line["nats_high"], color=shade, vertical=False)
            axes[1].plot(line["nats_saved"], y, "o", color=shade, ms=6.5)
    for axis in axes:
        axis.set_ylim(-0.6, len(table) - 0.4)
        axis.set_yticks(range(len(table)), names if axis is axes[0] else [""] * len(table))
        axis.grid(axis="x", color=PALE, lw=0.5)
    axes[0].set_xlabel("probe score: own core hollow, shared core filled")
    if saved:
        axes[1].axvline(0, color=SOFT, lw=0.9)
        axes[1].set_xlabel("nats per token saved by sharing")
    return figure


def transfer(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """Target by source: what a frozen trunk of another science gains over a random trunk."""
    table = tables.transfer
    table = table[table["source"] != "random trunk"] if len(table) else table
    if table.empty or not table["gain"].notna().any():
        return None
    wanted = [("gain", "gain in probe score")]
    if table["loss_saved"].notna().any():
        surrogate = (table["kind"] == "surrogate").any()
        wanted.append(
            ("loss_saved", "surrogate loss saved per token" if surrogate else "nats saved per token")
        )
    targets = list(dict.fromkeys(table["target"]))
    sources = list(dict.fromkeys(table["source"]))
    figure, axes = panels(len(wanted), columns=2, height=0.9 + 0.62 * len(targets), width=WIDTH)
    for axis, (name, title) in zip(axes, wanted):
        _matrix(axis, table, targets, sources, name)
        axis.set_title(title)
    return figure


def _matrix(axis: Axes, table: pd.DataFrame, targets: list[str], sources: list[str], name: str) -> None:
    scale = {target: table[table["target"] == target][name].abs().max() or 1.0 for target in targets}
    if name == "gain":
        scale = dict.fromkeys(targets, table[name].abs().max() or 1.0)
    shades = colormaps["PuOr"]
    for line in table.to_dict("records"):
        x, y = sources.index(line["source"]), targets.index(line["target"])
        value, low, high = line[name], line[f"{name}_low"], line[f"{name}_high"]
        if not math.isfinite(value):
            continue
        clear = math.isfinite(low) and (low > 0 or high < 0)
        face = shades(0.5 - 0.42 * value / scale[line["target"]]) if clear else "white"
        axis.add_patch(_square(x, y, face))
        dark = clear and abs(value) > 0.75 * scale[line["target"]]
        ink = "white" if dark else "#1d2733"
        axis.text(x, y - 0.12, f"{value:+.3f}", ha="center", va="center", fontsize=8.5, color=ink,
                  fontweight="bold" if clear else "normal")  # fmt: skip
        if math.isfinite(low):
            axis.text(
                x, y + 0.22, f"[{low:+.3f}, {high:+.3f}]", ha="center", va="center", fontsize=6.3, color=ink
            )
    axis.set_xlim(-0.5, len(sources) - 0.5)
    axis.set_ylim(len(targets) - 0.5, -0.5)
    axis.set_xticks(range(len(sources)), sources)
    axis.set_yticks(range(len(targets)), targets)
    axis.set_xlabel("trunk trained on")
    axis.set_ylabel("read out on")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _square(x: float, y: float, face: Any) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=face, edgecolor=PALE, lw=1)
