"""How much is known of a token as more is seen: erasure and Gaussian channel, beside sources known exactly."""

from functools import cache

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consilience.core.information import exact_erasure, exact_gaussian
from consilience.core.synthetic import GaussianAR1, MarkovChain
from consilience.report.figures.common import INK, PALE, SOFT, group, panels, row_colour, variant_of
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset

TC, DTC = "#e9edf1", "#d3e4f2"
DENSITIES = ("galaxies", "points")
"""Sciences whose tokens hold real values: their nats depend on the unit and may be negative, differences do not."""


def draw(tables: Tables, preset: StudyPreset | None) -> Figure | None:
    """Erasure panels first, then Gaussian ones; each kind begins with exact curves of synthetic sources."""
    erasure = likelihoods(tables)
    gaussian = tables.gaussian if {"log_snr", "mmse"} <= set(tables.gaussian) else pd.DataFrame()
    above, below = group(erasure), group(gaussian)
    if not above and not below:
        return None
    count = (1 + len(above) if above else 0) + (1 + len(below) if below else 0)
    figure, axes = panels(count, height=2.6)
    places = iter(axes)
    if above:
        _exact_erasure(next(places))
        for name, part in above:
            _erasure(next(places), name, part, preset)
    if below:
        _exact_gaussian(next(places))
        for name, part in below:
            _gaussian(next(places), name, part, preset)
    return figure


def likelihoods(tables: Tables) -> pd.DataFrame:
    """The erasure curves that are bounds: those of surrogate kind belong on no axis of nats."""
    erasure, information = tables.erasure, tables.information
    if not {"rates", "nats"} <= set(erasure):
        return pd.DataFrame()
    if "kind" in information:
        keys = ["setting", "row", "seed"]
        kinds = information[[*keys, "kind"]].drop_duplicates(keys)
        erasure = erasure.merge(kinds, on=keys, how="left")
        erasure = erasure[erasure["kind"] != "surrogate"]
    return erasure


def notes(tables: Tables, preset: StudyPreset | None) -> str:
    """Which profiles were left out because their losses are no likelihoods."""
    if "kind" not in tables.information or not len(tables.erasure):
        return ""
    left = tables.information[tables.information["kind"] == "surrogate"]
    keys = set(map(tuple, tables.erasure[["setting", "row"]].to_numpy()))
    names = dict.fromkeys(f"{s}, {r}" for s, r in left[["setting", "row"]].to_numpy() if (s, r) in keys)
    return f"Left out, as their masked losses are no likelihoods: {'; '.join(names)}." if names else ""


@cache
def _exact() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Exact curves of three sources: a chain of symbols and two Gaussian chains."""
    rates, log_snr = np.linspace(0, 1, 41), np.linspace(-6, 8, 57)
    chains = {
        "Gaussian, ρ = 0.5": GaussianAR1(correlation=0.5),
        "Gaussian, ρ = 0.9": GaussianAR1(correlation=0.9),
    }
    sources = {"Markov chain": MarkovChain(), **chains}
    erasure = {name: exact_erasure(source, rates) for name, source in sources.items()}
    gaussian = {name: exact_gaussian(source, log_snr) for name, source in chains.items()}
    return rates, erasure, log_snr, gaussian


STYLES = {"Markov chain": "-", "Gaussian, ρ = 0.5": "--", "Gaussian, ρ = 0.9": "-."}


def _exact_erasure(axis: Axes) -> None:
    rates, curves, _, _ = _exact()
    shown = curves["Markov chain"] / curves["Markov chain"][-1]
    _shade(axis, rates, shown, words=True)
    for name, curve in curves.items():
        axis.plot(rates, curve / curve[-1], color=INK, ls=STYLES[name], lw=1.2, label=name)
    axis.legend(loc="lower left", fontsize=7, handlelength=2.2, labelspacing=0.25, borderaxespad=0.2)
    axis.set_title("known sources (exact)")
    _erasure_axis(axis, scaled=True)


def _erasure(axis: Axes, name: str, part: pd.DataFrame, preset: StudyPreset | None) -> None:
    part = part.assign(rates=part["rates"].astype(float), nats=part["nats"].astype(float))
    curves = {row: found.groupby("rates")["nats"].mean() for row, found in part.groupby("row", sort=False)}
    domain = next((s.domain for s in preset.settings if s.name == name), name) if preset else name
    scaled = domain not in DENSITIES and all(curve.min() > 0 for curve in curves.values())

    def of(curve: "pd.Series", top: float) -> np.ndarray:
        values: np.ndarray = curve.to_numpy(float)
        return values / top if scaled else values - top

    tops = {row: float(curve.iloc[-1]) for row, curve in curves.items()}
    tightest = min(curves, key=lambda row: np.trapezoid(curves[row].to_numpy(), curves[row].index.to_numpy()))
    _shade(
        axis,
        curves[tightest].index.to_numpy(),
        of(curves[tightest], tops[tightest]),
        top=1.0 if scaled else 0.0,
    )
    for row, curve in curves.items():
        shade = row_colour(preset, name, row)
        for _, seed in part[part["row"] == row].groupby("seed"):
            line = seed.sort_values("rates").set_index("rates")["nats"]
            axis.plot(line.index, of(line, tops[row]), color=shade, lw=0.7, alpha=0.55)
        axis.plot(curve.index, of(curve, tops[row]), color=shade, lw=1.6, marker="o", ms=2.5, label=row)
    axis.legend(loc="lower left" if scaled else "upper left", fontsize=7, handlelength=1.2)
    axis.set_title(name)
    _erasure_axis(axis, scaled=scaled)


def _shade(
    axis: Axes, rates: np.ndarray, curve: np.ndarray, *, top: float = 1.0, words: bool = False
) -> None:
    axis.fill_between(rates, curve, top, color=TC, lw=0, zorder=0)
    axis.fill_between(rates, curve[0], curve, color=DTC, lw=0, zorder=0)
    if words:
        axis.text(0.03, 0.95, "total correlation", fontsize=7, color=SOFT, va="center")
        axis.text(0.98, float(curve[0]) + 0.03, "dual total corr.", fontsize=7, color="#44729a", ha="right")


def _erasure_axis(axis: Axes, *, scaled: bool) -> None:
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of hidden tokens, r")
    axis.set_ylabel("$H_r$ / $H_1$" if scaled else "$H_r - H_1$, nats per token")
    if scaled:
        axis.set_ylim(0, 1.03)


def _exact_gaussian(axis: Axes) -> None:
    _, _, log_snr, curves = _exact()
    for name, curve in curves.items():
        axis.plot(log_snr, curve, color=INK, ls=STYLES[name], lw=1.2, label=name)
    axis.set_title("known sources (exact)")
    _gaussian_axis(axis, log_snr)
    axis.legend(loc="lower left", fontsize=7, handlelength=2)


def _gaussian(axis: Axes, name: str, part: pd.DataFrame, preset: StudyPreset | None) -> None:
    for row, found in part.groupby("row", sort=False):
        variant = variant_of(preset, name, str(row))
        shade = row_colour(preset, name, str(row)) if variant else "#009e73"
        for _, seed in found.groupby("seed"):
            seed = seed.sort_values("log_snr")
            axis.plot(seed["log_snr"], seed["mmse"], color=shade, lw=0.7, alpha=0.55)
        mean = found.groupby("log_snr")["mmse"].mean()
        axis.plot(mean.index, mean, color=shade, lw=1.6, label=str(row))
    axis.set_title(name)
    _gaussian_axis(axis, np.linspace(part["log_snr"].min(), part["log_snr"].max(), 60))
    axis.legend(loc="lower left", fontsize=7, handlelength=1.2)


def _gaussian_axis(axis: Axes, log_snr: np.ndarray) -> None:
    axis.plot(log_snr, 1 / (1 + np.exp(log_snr)), color=SOFT, lw=1, ls=":", label="1 / (1 + g)")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("log signal-to-noise, log g")
    axis.set_ylabel("squared error / channel")
    axis.grid(axis="y", color=PALE, lw=0.5)
