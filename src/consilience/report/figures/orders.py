"""Which order is natural: what every other order costs, in nats per token."""

import math

from matplotlib.figure import Figure

from consilience.report.figures.common import PALE, SOFT, group, panels, whisker
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset

BAR, RANDOM = "#0072b2", "#4aa7de"


def draw(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """A panel of bars for every setting with at least two orders."""
    parts = [(name, part) for name, part in group(tables.orders) if len(part) > 1]
    if not parts:
        return None
    most = max(len(part) for _, part in parts)
    figure, axes = panels(len(parts), columns=min(4, max(2, len(parts))), height=0.9 + 0.32 * most)
    for axis, (name, part) in zip(axes, parts):
        part = part.sort_values("excess", ascending=False)
        reach = max([0.0, *(v for v in part[["excess", "high"]].to_numpy(float).ravel() if math.isfinite(v))])
        for y, line in enumerate(part.to_dict("records")):
            shade = RANDOM if str(line["order"]) in ("any-order", "random points") else BAR
            if line["excess"] == 0:
                axis.plot(0, y, marker="o", color=shade, ms=6, zorder=3, clip_on=False)
            axis.barh(y, line["excess"], height=0.62, color=shade, alpha=0.75)
            whisker(axis, line["excess"], y, line["low"], line["high"], color="#1d2733", vertical=False)
        axis.set_yticks(range(len(part)), part["order"].tolist())
        floor = float(part["floor"].iloc[0])
        if math.isfinite(floor) and floor > 0:
            if floor <= 4 * reach or reach == 0:
                axis.axvline(floor, color=SOFT, ls="--", lw=1)
                axis.set_xlim(right=1.12 * max(floor, reach))
            else:
                axis.set_xlim(right=1.25 * reach)
                axis.plot([1, 1], [0, 1], transform=axis.transAxes, color=SOFT, ls="--", lw=1, clip_on=False)
                text = f"addresses alone: {floor:.2f} →"
                axis.text(
                    0.99,
                    1.01,
                    text,
                    transform=axis.transAxes,
                    ha="right",
                    va="bottom",
                    fontsize=7,
                    color=SOFT,
                )
        low = min([0.0, *(v for v in part["low"].astype(float) if math.isfinite(v))])
        axis.set_xlim(left=low - 0.03 * max(reach, 1e-9))
        axis.axvline(0, color=SOFT, lw=0.8)
        axis.set_title(name, pad=14)
        axis.set_xlabel("excess, nats per token")
        axis.grid(axis="x", color=PALE, lw=0.5)
        axis.set_axisbelow(True)
    return figure


def notes(tables: Tables, preset: StudyPreset | None) -> str:
    """Settings whose orders were asked for and cannot be told apart by likelihood."""
    shown = set(tables.orders["setting"]) if len(tables.orders) else set()
    out = []
    for setting in preset.settings if preset else ():
        asked = {v.name for v in setting.variants if "orders" in v.figures}
        if setting.name in shown or len(asked) < 2 or tables.losses.empty:
            continue
        rows = tables.losses[(tables.losses["setting"] == setting.name) & tables.losses["row"].isin(asked)]
        if len(rows) and (rows["kind"] == "surrogate").all():
            out.append(f"{setting.name} is not measurable: its losses are surrogates")
        else:
            out.append(f"{setting.name} has no two orders with a likelihood and an address-only run")
    return f"Not shown: {'; '.join(out)}." if out else ""
