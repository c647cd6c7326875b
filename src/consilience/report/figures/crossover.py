"""Little data: held-out loss against epochs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consilience.report.figures.common import PALE, SOFT, label_points, panels, row_colour
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset
from consilience.study.relations import crossover as crossing


def likelihoods(tables: Tables) -> pd.DataFrame:
    """The curves that are likelihoods, with a positive number of epochs."""
    table = tables.crossover
    return table[(table["kind"] != "surrogate") & (table["epochs"] > 0)] if len(table) else table


def draw(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """A panel for every number of training records, on one vertical axis."""
    table = likelihoods(tables)
    if table.empty:
        return None
    sizes = sorted(table["records"].unique())
    figure, axes = panels(len(sizes), columns=max(2, min(3, len(sizes))), height=3.0)
    for place, (axis, size) in enumerate(zip(axes, sizes)):
        part = table[table["records"] == size]
        for row, found in part.groupby("row", sort=False):
            shade = row_colour(preset, str(found["setting"].iloc[0]), str(row))
            for _, seed in found.groupby("seed"):
                seed = seed.sort_values("epochs")
                axis.plot(seed["epochs"], seed["loss"], color=shade, lw=0.8, alpha=0.5)
            mean = found.groupby("epochs")["loss"].mean()
            axis.plot(mean.index, mean, color=shade, lw=1.8)
        where = crossing_epochs(part)
        if where is not None:
            axis.axvline(where, color=SOFT, lw=0.9, ls=":")
            axis.text(
                where * 0.96, 0.98, f"they cross: {where:.2g} epochs", transform=axis.get_xaxis_transform(),
                fontsize=7.5, color=SOFT, ha="right", va="top",
            )  # fmt: skip
        axis.set_xscale("log")
        low, high = part["epochs"].min(), part["epochs"].max()
        axis.set_xlim(low * 0.9, high * (high / low) ** 0.5)
        axis.set_title(f"{int(size):,} training records")
        axis.set_xlabel("epochs (log scale)")
        axis.grid(color=PALE, lw=0.5)
        if place == 0:
            axis.set_ylabel("held-out loss, nats per token")
    top = _same_height(axes, table)
    figure.canvas.draw()
    for axis, size in zip(axes, sizes):
        _name(axis, table[table["records"] == size], top, preset)
    return figure


def _name(axis: Axes, part: pd.DataFrame, top: float, preset: StudyPreset | None) -> None:
    """Names at the last visible point of each curve."""
    x, y, names, colours = [], [], [], []
    for row, found in part.groupby("row", sort=False):
        mean = found.groupby("epochs")["loss"].mean()
        seen = mean[mean <= top]
        if len(seen):
            x.append(float(seen.index[-1]))
            y.append(float(seen.iloc[-1]))
            names.append(f"{row} ({found['kind'].iloc[0]})")
            colours.append(row_colour(preset, str(found["setting"].iloc[0]), str(row)))
    label_points(axis, x, y, names, colours, sides=(1,))


def crossing_epochs(
    part: pd.DataFrame, first: str = "next-token", second: str = "masked-diffusion"
) -> float | None:
    """Epochs after which the better of the two curves changes for the first time; None when it does not."""
    means = {row: found.groupby("epochs")["loss"].mean() for row, found in part.groupby("row")}
    if first not in means or second not in means:
        return None
    a, b = means[first], means[second]
    grid = np.geomspace(max(a.index.min(), b.index.min()), min(a.index.max(), b.index.max()), 200)
    if len(a) < 2 or len(b) < 2 or not np.diff(grid).all():
        return None
    lines = (np.interp(np.log(grid), np.log(c.index.to_numpy(float)), c.to_numpy(float)) for c in (a, b))
    return crossing(grid, *lines)


def notes(tables: Tables, preset: StudyPreset | None) -> str:
    """Rows whose curves are surrogates."""
    table = tables.crossover
    left = table[table["kind"] == "surrogate"]["row"].unique() if len(table) else []
    return f"Left out, as its loss is no likelihood: {', '.join(map(str, left))}." if len(left) else ""


def _same_height(axes: list[Axes], table: pd.DataFrame) -> float:
    """One vertical range; what diverges by overfitting is cut off at twice the range of the better half."""
    low, middle = float(table["loss"].min()), float(table["loss"].median())
    top = min(float(table["loss"].max()), low + 4 * max(middle - low, 1e-6))
    for axis in axes:
        axis.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))
    return top
