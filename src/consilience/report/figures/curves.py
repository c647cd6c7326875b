"""Loss curves: likelihoods and surrogates on separate axes, never on one."""

from collections.abc import Collection, Sequence

from matplotlib.figure import Figure

from consilience.report.figures.common import PALE, colour, panels
from consilience.study.results import Result


def loss_curves(results: Sequence[Result], rows: Collection[str] | None = None) -> Figure | None:
    """Held-out training loss against steps: a panel a setting for likelihoods, then one a setting for surrogates.

    Args:
        results: of the study.
        rows: names of the variants to show; None = all.
    """
    trained = [r for r in results if r.role == "pre-trained" and r.curve and (rows is None or r.row in rows)]
    kinds = {True: "likelihood (exact or bound)", False: "surrogate (no likelihood)"}
    wanted = [
        (setting, proper)
        for proper in kinds
        for setting in dict.fromkeys(r.setting for r in trained)
        if any(r.setting == setting and (r.curve_kind != "surrogate") == proper for r in trained)
    ]
    if not wanted:
        return None
    figure, axes = panels(len(wanted), columns=4 if len(wanted) < 13 else 5, height=2.2)
    for axis, (setting, proper) in zip(axes, wanted):
        seen: set[str] = set()
        for result in trained:
            if result.setting != setting or (result.curve_kind != "surrogate") != proper:
                continue
            steps, values = zip(*result.curve)
            label = None if result.row in seen else result.row
            seen.add(result.row)
            style = "-" if result.row in ("next-token", "masked", "masked-diffusion", "denoising") else "--"
            axis.plot(steps, values, color=colour(result.row), ls=style, alpha=0.8, lw=1.2, label=label)
        axis.set_title(setting)
        axis.set_xlabel("step")
        axis.set_ylabel("nats per token" if proper else "surrogate loss")
        axis.set_facecolor("white" if proper else "#f6f4ee")
        axis.grid(color=PALE, lw=0.5)
        axis.legend(fontsize=6.8, handlelength=1.4, labelspacing=0.2)
    return figure
