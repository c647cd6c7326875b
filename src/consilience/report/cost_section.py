"""What every variant cost, and what its likelihood says."""

import math
from html import escape

import pandas as pd

from consilience.report import html
from consilience.report.effects import bracket
from consilience.report.figures.common import group
from consilience.report.tables import number
from consilience.study.analysis import Tables

CLOSE = 0.01
"""Numbers of parameters that differ by more than this share are flagged."""

BUDGETS = (
    "Matched: floating-point operations (measured on the whole model, every variant takes as many steps as the first "
    "one's cost pays for), the core and its trunk, the optimiser and its schedule, the grid of learning rates "
    "and the "
    "number of trials. Not matched, and shown for that reason: records seen, tokens seen and tokens that carried "
    "loss "
    "(all of them for next-token, a part for masking), seconds. Red: parameters more than 1% from the first "
    "variant's."
)

LIKELIHOODS = (
    "Held-out negative log-likelihood in nats per token given the addresses, 95% interval over groups of records and "
    "seeds. Exact is the likelihood itself, a bound lies above it. Captured dependence is the marginal (the "
    "address-only core with the same head) minus the row: what a token learns from the others. It is free of "
    "units, so "
    "it may be compared between settings; nats of real values may not. A surrogate is no likelihood: it has no "
    "nats here. "
    "Masked diffusion is also told the number of tokens, which next-token over strings has to predict."
)


def budget_section(tables: Tables) -> str:
    """Operations, samples, tokens, steps, learning rate, parameters and seconds of every variant."""
    losses = tables.losses
    if losses.empty:
        return "<h2>What it cost</h2><p class='absent'>No pre-trained run has finished.</p>"
    head = ["", "operations", "steps", "records seen", "tokens seen", "tokens with loss", "learning rate",
            "parameters", "trunk", "seconds"]  # fmt: skip
    body = []
    for setting, part in group(losses):
        body.append(f"<tr><th colspan='{len(head)}'>{escape(setting)}</th></tr>")
        first = float(part["parameters"].iloc[0])
        body += [_budget(line, first) for _, line in part.iterrows()]
    flagged = uneven(losses)
    note = (
        "Parameters differ by more than 1% from the first variant's in: " + "; ".join(flagged) + "."
        if flagged
        else "All variants of a setting have as many parameters as the first one, within 1%."
    )
    table = html.table(head, body, style="dense", label="budgets")
    return (
        f"<h2>What it cost</h2>{html.paragraph(f'{BUDGETS} {note}', 'caption')}"
        f"<details><summary>Operations, tokens, learning rates and parameters of every run</summary>{table}</details>"
    )


def uneven(losses: pd.DataFrame) -> list[str]:
    """Variants whose whole model has over 1% more or fewer parameters than the first of their setting."""
    found = []
    for setting, part in group(losses):
        first = float(part["parameters"].iloc[0])
        for line in part.to_dict("records"):
            off = line["parameters"] / first - 1 if first else 0.0
            if abs(off) > CLOSE:
                found.append(f"{setting}, {line['row']} ({off:+.1%})")
    return found


def _budget(line: pd.Series, first: float) -> str:
    rate = line["learning_rate"]
    flag = "flag" if first and abs(line["parameters"] / first - 1) > CLOSE else ""
    cells = [
        html.cell(f"{line['flops']:.2e}"),
        *(html.cell(f"{line[name]:,.0f}") for name in ("steps", "samples", "tokens", "scored")),
        html.cell("–" if rate is None or pd.isna(rate) else f"{rate:g}"),
        html.cell(f"{line['parameters']:,.0f}", style=flag),
        html.cell(f"{line['trunk']:,.0f}"),
        html.cell(f"{line['seconds']:,.0f}"),
    ]
    return html.row(str(line["row"]), cells)


def likelihood_section(tables: Tables) -> str:
    """Kind, nats, marginal and captured dependence of every variant; surrogates by name alone."""
    losses = tables.losses
    if losses.empty:
        return ""
    head = ["", "kind", "nats per token", "marginal", "captured dependence", "share of the best row"]
    body = []
    for setting, part in group(losses):
        body.append(f"<tr><th colspan='{len(head)}'>{escape(setting)}</th></tr>")
        proper = part[part["kind"] != "surrogate"]
        known = "captured" in proper and proper["captured"].notna().any()
        best = float(proper["captured"].max()) if known else math.nan
        proper = proper.sort_values("captured", ascending=False) if known else proper
        body += [_likelihood(line, best) for _, line in proper.iterrows()]
        names = part[part["kind"] == "surrogate"]["row"].tolist()
        if names:
            text = f"surrogates, no likelihood: {', '.join(map(str, names))}"
            body.append(
                f"<tr class='surrogate'><td colspan='{len(head)}' style='text-align:left'>{escape(text)}</td></tr>"
            )
    table = html.table(head, body, style="dense", caption=LIKELIHOODS, label="likelihoods")
    return f"<h2>How much of the data is captured</h2>{table}"


def _likelihood(line: pd.Series, best: float) -> str:
    captured = float(line.get("captured", math.nan))
    share = captured / best if math.isfinite(captured) and best > 0 else math.nan
    ends = bracket(line.get("captured_low", math.nan), line.get("captured_high", math.nan))
    cells = [
        html.cell(str(line["kind"])),
        html.cell(number(line["loss"]) + bracket(line.get("low", math.nan), line.get("high", math.nan))),
        html.cell(number(float(line.get("marginal", math.nan)))),
        html.cell(number(captured) + ends),
        html.cell("–" if not math.isfinite(share) else f"{share:.0%}"),
    ]
    return html.row(str(line["row"]), cells, style=str(line["kind"]))
