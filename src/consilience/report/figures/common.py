"""What all figures share: colours of objectives, panels that fit the page, whiskers, labels that do not collide."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from consilience.study.plan import StudyPreset, Variant

COLOURS = {
    "next-token": "#0072b2",
    "any-order": "#4aa7de",
    "masked": "#d55e00",
    "masked-diffusion": "#b0558f",
    "denoising": "#009e73",
    "two-phase": "#c98a00",
    "block": "#6a51a3",
    "address-only": "#999999",
}
"""After Okabe and Ito (2008), told apart with any colour vision; labels say it too."""

INK, SOFT, PALE = "#1d2733", "#66727f", "#dde3e9"
WIDTH = 9.8
"""Inches, which the page shows at its full width."""

RC: Any = {
    "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "axes.edgecolor": SOFT, "axes.linewidth": 0.8, "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": SOFT, "ytick.color": SOFT, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False,
}  # fmt: skip


def panels(
    count: int, *, columns: int = 4, height: float = 2.5, width: float | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in reading order, as wide as the page when there are enough of them."""
    across = max(1, min(columns, count))
    down = math.ceil(count / across)
    wide = width or WIDTH * min(1.0, max(0.45, across / columns))
    figure = Figure(figsize=(wide, height * down), layout="constrained")
    axes = [figure.add_subplot(down, across, place + 1) for place in range(count)]
    return figure, axes


def styled() -> AbstractContextManager[None]:
    """The look of all figures; drawing happens inside it."""
    return matplotlib.rc_context(RC)


def variant_of(preset: StudyPreset | None, setting: str, row: str) -> Variant | None:
    """The variant behind a row; None when the preset does not know it."""
    for found in preset.settings if preset else ():
        if found.name == setting:
            return next((variant for variant in found.variants if variant.name == row), None)
    return None


def colour(row: str, objective: str | None = None) -> str:
    """The colour of a row: that of its objective, named or read from the beginning of its name."""
    if objective in COLOURS:
        return COLOURS[objective]
    matches = [name for name in COLOURS if row == name or row.startswith((f"{name} ", f"{name},"))]
    return COLOURS[max(matches, key=len)] if matches else SOFT


def row_colour(preset: StudyPreset | None, setting: str, row: str) -> str:
    """The colour of a row of a setting."""
    variant = variant_of(preset, setting, row)
    return colour(row, variant.objective if variant else None)


def whisker(
    axis: Axes, x: float, y: float, low: float, high: float, *, color: str, vertical: bool = True
) -> None:
    """The interval of a point; nothing where it is not known."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return
    ends = ([x, x], [low, high]) if vertical else ([low, high], [y, y])
    axis.plot(*ends, color=color, lw=1.3, solid_capstyle="butt", zorder=2)


def label_points(
    axis: Axes,
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str],
    colours: Sequence[str],
    sides: Sequence[int] = (1, -1),
) -> None:
    """Names beside points, each at the nearest free place; call after the limits of the axis are set.

    What finds no free place beside its point gets a thin line to it. `sides`: right (1), left (-1), best first.
    """
    room = axis.get_window_extent()
    points = [place for place in range(len(x)) if math.isfinite(x[place]) and math.isfinite(y[place])]
    if not points or room.height <= 0:
        return
    spots = axis.transData.transform(np.column_stack([np.asarray(x, float), np.asarray(y, float)]))
    pixel = float(axis.figure.dpi) / 72
    size = 7.5 * pixel
    taken = [
        Bbox.from_bounds(px - 0.4 * size, py - 0.4 * size, 0.8 * size, 0.8 * size) for px, py in spots[points]
    ]
    for place in sorted(points, key=lambda p: -spots[p, 1]):
        width, (px, py) = 0.55 * size * len(names[place]), spots[place]
        tries = [
            (side, level * 0.6 * size)
            for level in (1, -1, 0, 2, -2, 3, -3, 4, -4, 6, -6, 8, -8, 10, -10)
            for side in sides
        ]

        boxes = [_beside(px, py, width, size, *one) for one in tries]
        costs = [
            sum(box.overlaps(other) for other in taken)
            + 3 * (box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1)
            for box in boxes
        ]
        best = int(np.argmin(costs))
        side, shift = tries[best]
        taken.append(boxes[best])
        far = abs(shift) > 1.3 * size
        axis.annotate(
            names[place], (float(x[place]), float(y[place])), xytext=(side * 0.7 * size / pixel, shift / pixel),
            textcoords="offset points", ha="left" if side > 0 else "right", va="center", fontsize=7.5,
            color=colours[place], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colours[place], "shrinkA": 0} if far else None,
        )  # fmt: skip


def _beside(x: float, y: float, width: float, size: float, side: int, shift: float) -> Bbox:
    """Where a name of this width would lie, right (1) or left (-1) of a point and shifted up."""
    start = x + 0.7 * size if side > 0 else x - 0.7 * size - width
    return Bbox.from_bounds(start, y + shift - 0.5 * size, width, size)


def padded(axis: Axes, values: Sequence[float], *, x: bool = False, share: float = 0.12) -> None:
    """Limits around the finite values with room for labels."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    room = share * (high - low) or 0.05 * abs(high) or 0.05
    (axis.set_xlim if x else axis.set_ylim)(low - room, high + room)


def group(table: pd.DataFrame, by: str = "setting") -> list[tuple[str, pd.DataFrame]]:
    """Parts of a table by name, in the order of first appearance; none of an empty one."""
    return [(str(name), part) for name, part in table.groupby(by, sort=False)] if len(table) else []


def say(axis: Axes, text: str) -> None:
    """Words inside a panel where one part of a figure has no data."""
    axis.text(
        0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=SOFT, fontsize=8, wrap=True
    )
