"""Held-out spectra with a gap that a model has filled in from the rest: truth, mean, spread and known lines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, take_records
from consilience.tokenizers.spectra import SpectrumTokenizer
from consilience.tokenizers.spectra_records import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from consilience.core.model import FoundationModel

LINES = {"[O II]": 3728.5, "Ca H, K": 3952.0, "Hβ": 4862.7, "[O III]": 5008.2, "Hα": 6564.6}
"""Features of galaxies: rest wavelengths in vacuum, Å."""

GAPS = (5008.2, 4000.0)
"""Rest wavelengths (Å) about which the two examples are hidden: emission lines, and the 4000 Å break."""

GAP_FRACTION = 0.125
"""Part of the patches that is hidden."""

SAMPLES = 32
"""Draws that show the spread."""

FEW = 32
"""Spectra of at most so many pixels are fluxes in broad bands: points with errors, and no lines."""

PREFERRED = ("masked", "masked-diffusion", "denoising")
"""Objectives that see both sides of a gap, the best suited first."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """One spectrum with a gap; all arrays belong to the gap's pixels except `spectrum`.

    Args:
        spectrum: the truth.
        pixels: (m,) pixel numbers of the gap.
        mean: (m,) expected flux.
        low: (m,) 16th percentile of the draws.
        high: (m,) 84th percentile of the draws.
        straight: (m,) flux of a straight line between the patches beside the gap, for comparison.
    """

    spectrum: Spectrum
    pixels: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    straight: np.ndarray

    def chi2(self, flux: np.ndarray) -> float:
        """Mean squared distance from the measured pixels of the gap in units of their errors; 1 is noise alone."""
        good = self.spectrum.measured[self.pixels]
        error2 = 1 / self.spectrum.inverse_variance[self.pixels][good]
        return float(np.mean((self.spectrum.flux[self.pixels][good] - flux[good]) ** 2 / error2))


def filled_spectra(
    models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray
) -> "Figure":
    """Two held-out spectra with a gap, filled in by the model that suits best (masked, else what there is)."""
    from matplotlib.figure import Figure

    if not models or not len(test):
        raise ConsilienceError("the figure of galaxies needs a model and at least one held-out spectrum")
    name = next((name for name in PREFERRED if name in models), next(iter(models)))
    rows = examples(collection, test)
    figure = Figure(figsize=(11, 3.4 * len(rows)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(rows), 1, squeeze=False)[:, 0])
    for panel, row, rest in zip(panels, rows, GAPS, strict=False):
        redshift = _redshift(collection, row)
        spectrum = take_records(collection.records, [row])[0]
        filled = fill_gap(models[name], spectrum, rest if redshift is None else rest * (1 + redshift))
        draw = _draw_bands if len(spectrum) <= FEW else _draw
        draw(panel, filled, redshift, f"{collection.ids[row]}")
        panel.set_ylabel("flux (1e-17 erg / s / cm² / Å)" if collection.origin == "model" else "flux")
    panels[-1].set_xlabel("observed wavelength (Å)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=5)
    kind = (
        "Model spectra (fitted to real photometry, not observed)"
        if collection.origin == "model"
        else "Spectra"
    )
    figure.suptitle(f"{kind}: hidden parts of held-out objects, filled in by the {name} model", fontsize=11)
    return figure


def examples(collection: Collection, test: np.ndarray) -> list[int]:
    """Up to two held-out rows, chosen without looking at any model.

    The one with the strongest emission line at GAPS[0], and the clearest other (by signal-to-noise) of the farther
    half; without redshifts the clearest two.
    """
    rows = [int(row) for row in test[:400]]
    clear = sorted(rows, key=lambda row: (-_signal_to_noise(collection.records[row]), row))
    lines = {row: _line_strength(collection, row) for row in clear}
    first = max(clear, key=lambda row: lines[row])  # the clearest where there is no line to be seen
    others = sorted((row for row in clear if row != first), key=lambda row: _redshift(collection, row) or 0.0)
    farther = others[len(others) // 2 :]
    return [first, *[row for row in clear if row in farther][:1]]


def _line_strength(collection: Collection, row: int) -> float:
    """Excess of the flux at the line of GAPS[0] over the pixels beside it, in errors; 0 where it cannot be told."""
    redshift, spectrum = _redshift(collection, row), collection.records[row]
    if redshift is None:
        return 0.0
    distance = np.abs(spectrum.wavelength_angstrom / (1 + redshift) - GAPS[0])
    on, beside = spectrum.measured & (distance < 8), spectrum.measured & (distance > 15) & (distance < 40)
    if not on.any() or not beside.any():
        return 0.0
    excess = spectrum.flux[on].mean() - spectrum.flux[beside].mean()
    return float(excess * np.sqrt(spectrum.inverse_variance[on].mean() * on.sum()))


def fill_gap(model: "FoundationModel", spectrum: Spectrum, centre_angstrom: float) -> Filled:
    """Hide a run of patches about a wavelength and let the model fill it in: once its mean, and SAMPLES draws."""
    tokenizer = model.tokenizers["galaxies"]
    assert isinstance(tokenizer, SpectrumTokenizer)
    size = tokenizer.options.patch_size
    tokens = tokenizer.encode([spectrum])
    n_patches = int(tokens.length[0]) - 1
    width = max(1, round(GAP_FRACTION * n_patches))
    middle = int(np.searchsorted(spectrum.wavelength_angstrom, centre_angstrom)) // size
    first = int(np.clip(middle - width // 2, 1, max(1, n_patches - width - 1)))
    hidden = torch.zeros(1, tokens.width, dtype=torch.bool)
    hidden[0, 1 + first : 1 + first + width] = True
    pixels = np.arange(first * size, min((first + width) * size, len(spectrum)))

    def flux_of(filled: TokenBatch) -> np.ndarray:
        values = filled.values
        assert values is not None
        # Weights of one: pixels that were not measured get the model's value, not NaN.
        everywhere = replace(filled, weight=torch.ones_like(values))
        return np.stack([decoded.flux[pixels] for decoded in tokenizer.decode(everywhere)])

    mean = model.fill(tokens, hidden, domain="galaxies", mean=True)
    draws = model.fill(tokens.take([0] * SAMPLES), hidden.expand(SAMPLES, -1), domain="galaxies", seed=0)
    low, high = np.percentile(flux_of(draws), [16, 84], axis=0)
    return Filled(
        spectrum=spectrum,
        pixels=pixels,
        mean=flux_of(mean)[0],
        low=low,
        high=high,
        straight=_straight(spectrum, pixels, size),
    )


def _straight(spectrum: Spectrum, pixels: np.ndarray, size: int) -> np.ndarray:
    """A straight line between the weighted mean fluxes of the patches to the left and right of the gap."""
    ends = []
    for start in (pixels[0] - size, pixels[-1] + 1):
        beside = np.arange(max(start, 0), min(start + size, len(spectrum)))
        beside = beside[spectrum.measured[beside]]
        if beside.size:
            weight = spectrum.inverse_variance[beside]
            ends.append((beside.mean(), np.average(spectrum.flux[beside], weights=weight)))
    if not ends:
        return np.full(pixels.size, np.nan)
    return np.interp(pixels, [place for place, _ in ends], [flux for _, flux in ends])


def _draw(panel: "Axes", filled: Filled, redshift: float | None, name: str) -> None:
    spectrum, wavelength = filled.spectrum, filled.spectrum.wavelength_angstrom
    flux = np.where(spectrum.measured, spectrum.flux, np.nan)
    gap = wavelength[filled.pixels]
    panel.axvspan(gap[0], gap[-1], color="#f3e6c8", lw=0, label="hidden from the model")
    panel.plot(wavelength, flux, color="0.72", lw=0.5, label="truth with noise")
    panel.plot(wavelength, _smooth(spectrum), color="0.25", lw=0.9, label="truth, 7-pixel mean")
    panel.fill_between(gap, filled.low, filled.high, color="C0", alpha=0.25, lw=0, label="68 % of draws")
    panel.plot(gap, filled.mean, color="C0", lw=1.6, label="model's mean")
    low, high = np.nanpercentile(_smooth(spectrum), [0.5, 99.5])
    panel.set_ylim(min(0.0, low) - 0.05 * (high - low), high + 0.35 * (high - low))
    panel.set_xlim(wavelength[0], wavelength[-1])
    _title(panel, filled, redshift, name)
    for line, rest in LINES.items() if redshift is not None else ():
        place = rest * (1 + (redshift or 0.0))
        if wavelength[0] < place < wavelength[-1]:
            panel.axvline(place, color="C3", lw=0.6, ls=":")
            panel.text(place, 0.02, f" {line}", transform=panel.get_xaxis_transform(), fontsize=7, color="C3")


def _draw_bands(panel: "Axes", filled: Filled, redshift: float | None, name: str) -> None:
    """Fluxes in bands: every point a band, hidden ones beside what the model says of them."""
    spectrum, wavelength = filled.spectrum, filled.spectrum.wavelength_angstrom
    seen = np.setdiff1d(np.flatnonzero(spectrum.measured), filled.pixels)
    truth = filled.pixels[spectrum.measured[filled.pixels]]
    error = np.full(len(spectrum), np.nan)
    error[spectrum.measured] = spectrum.inverse_variance[spectrum.measured] ** -0.5
    for index, colour, label in (
        (seen, "0.4", "seen by the model"),
        (truth, "#c98a00", "hidden, as measured"),
    ):
        panel.errorbar(
            wavelength[index], spectrum.flux[index], error[index], fmt="o", color=colour, label=label
        )
    spread = np.abs(np.stack([filled.mean - filled.low, filled.high - filled.mean]))
    gap = wavelength[filled.pixels]
    panel.errorbar(
        gap, filled.mean, spread, fmt="D", mfc="none", color="C0", label="model's mean, 68 % of draws"
    )
    panel.set_xscale("log")
    panel.set_xticks(wavelength, [f"{place:,.0f}" for place in wavelength])
    panel.set_xticks([], minor=True)
    _title(panel, filled, redshift, name)


def _title(panel: "Axes", filled: Filled, redshift: float | None, name: str) -> None:
    known = "" if redshift is None else f", z = {redshift:.4f}"
    panel.set_title(
        f"{name}{known}; gap: chi² per pixel {filled.chi2(filled.mean):.2f} "
        f"(straight line {filled.chi2(filled.straight):.2f}, noise alone 1)",
        fontsize=9,
        loc="right",
    )


def _smooth(spectrum: Spectrum, width: int = 7) -> np.ndarray:
    """Inverse-variance weighted running mean."""
    good = spectrum.measured
    weight = np.where(good, spectrum.inverse_variance, 0).astype(np.float64)
    kernel = np.ones(width)
    light = np.convolve(np.where(good, spectrum.flux, 0) * weight, kernel, mode="same")
    total = np.convolve(weight, kernel, mode="same")
    return np.where(total > 0, light / np.where(total > 0, total, 1), np.nan)


def _signal_to_noise(spectrum: Spectrum) -> float:
    good = spectrum.measured
    return float(np.median(spectrum.flux[good] * np.sqrt(spectrum.inverse_variance[good])))


def _redshift(collection: Collection, row: int) -> float | None:
    column = collection.labels.get("redshift")
    return None if column is None or not np.isfinite(column[row]) else float(column[row])
