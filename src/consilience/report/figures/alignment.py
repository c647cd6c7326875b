"""Do objectives see one science alike: agreement of neighbours between their representations."""

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from consilience.report.figures.common import INK, PALE, SOFT, group, panels
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset

LEVEL = 0.05


def draw(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """The lower triangle for every science; hollow where the agreement is not above that of shuffled records."""
    parts = group(tables.alignment)
    if not parts:
        return None
    shades = matplotlib.colormaps["viridis_r"]
    most = max(len(set(part["first"]) | set(part["second"])) for _, part in parts)
    columns = 2 if most > 4 else min(4, max(2, len(parts)))
    figure, axes = panels(len(parts), columns=columns, height=1.0 + 0.42 * most)
    for axis, (name, part) in zip(axes, parts):
        rows = list(dict.fromkeys([*part["first"], *part["second"]]))
        p = "p_holm" if "p_holm" in part else "p"
        for line in part.to_dict("records"):
            a, b = sorted((rows.index(line["first"]), rows.index(line["second"])))
            clear = line[p] <= LEVEL and line["calibrated"] > 0
            value = min(max(float(line["calibrated"]), 0.0), 1.0)
            face = shades(0.05 + 0.9 * value) if clear else "white"
            axis.add_patch(Rectangle((a - 0.47, b - 0.47), 0.94, 0.94, facecolor=face, edgecolor=PALE, lw=1))
            ink = "white" if clear and value > 0.45 else INK if clear else SOFT
            axis.text(a, b, f"{line['calibrated']:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
        axis.set_xlim(-0.5, len(rows) - 1.5)
        axis.set_ylim(len(rows) - 0.5, 0.5)
        axis.set_xticks(range(len(rows) - 1), rows[:-1], rotation=35, ha="right")
        axis.set_yticks(range(1, len(rows)), rows[1:])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.set_title(name)
    return figure
