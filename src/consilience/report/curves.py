"""Loss curves: likelihoods and surrogates on separate axes, never on one."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from consilience.study.results import Result

COLOURS = {
    "next-token": "#1b6ca8",
    "masked": "#d1495b",
    "denoising": "#2e8b57",
    "masked-diffusion": "#8a5fbf",
}


def loss_curves(results: Sequence[Result]) -> Figure:
    """Held-out training loss against steps, one column a science; upper row likelihoods, lower row surrogates."""
    trained = [r for r in results if r.role == "pre-trained" and r.curve]
    domains = list(dict.fromkeys(r.domain for r in trained))
    figure = Figure(figsize=(3.1 * max(len(domains), 1), 5.0), layout="constrained")
    axes = figure.subplots(2, max(len(domains), 1), squeeze=False, sharex=True)
    for column, domain in enumerate(domains):
        for row, likelihood in enumerate((True, False)):
            axis = axes[row][column]
            seen: set[str] = set()
            for result in trained:
                if result.domain != domain or (result.curve_kind != "surrogate") != likelihood:
                    continue
                steps, values = zip(*result.curve)
                label = None if result.row in seen else result.row
                seen.add(result.row)
                axis.plot(
                    steps, values, color=COLOURS.get(result.row, "#555"), alpha=0.8, lw=1.4, label=label
                )
            if seen:
                axis.legend(frameon=False, fontsize=8)
            else:
                axis.text(0.5, 0.5, "no such objective here", ha="center", va="center",
                          transform=axis.transAxes, color="#888", fontsize=8)  # fmt: skip
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
        axes[0][column].set_title(domain, fontsize=10)
        axes[1][column].set_xlabel("step", fontsize=9)
    axes[0][0].set_ylabel("nats per token\n(exact or bound)", fontsize=9)
    axes[1][0].set_ylabel("surrogate loss\n(no likelihood)", fontsize=9)
    return figure
