"""The arithmetic of spectrum tokens: the robust scale, patches of pixels, and the way back.

Everything works on blocks of rows that fit in a core's cache, and never mixes rows.
"""

from dataclasses import dataclass

import numpy as np

from consilience.tokenizers.spectra_records import SpectraOnGrid, measured_pixels

BLOCK_BYTES = 1 << 18
"""Rows are processed in blocks of about this many bytes of flux, so that every pass after the first is in cache."""

LARGEST_VALUE = 1e4
"""A pixel this many times brighter than the spectrum's scale is an artefact and counts as not measured."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Scaled spectra of one grid, cut into patches of P pixels.

    Args:
        values: (n, N, P) float32, flux / scale - 1; 0 where not measured.
        weight: (n, N, P) float32, inverse variance of the values; 0 where not measured.
        scale: (n,) float64, in the flux's unit; NaN for a spectrum without a measured pixel.
    """

    values: np.ndarray
    weight: np.ndarray
    scale: np.ndarray


def n_patches(n_pixels: int, patch_size: int) -> int:
    """How many patches hold this many pixels; the last one may be partial."""
    return -(-n_pixels // patch_size)


def patch_centres(wavelength_angstrom: np.ndarray, patch_size: int) -> np.ndarray:
    """(N,) float32: mean natural log of the wavelengths (Å) of each patch's pixels, computed in float64."""
    starts = np.arange(0, wavelength_angstrom.size, patch_size)
    log_wavelength = np.log(wavelength_angstrom)
    counts = np.diff(np.append(starts, wavelength_angstrom.size))
    return (np.add.reduceat(log_wavelength, starts) / counts).astype(np.float32)


def grid_of_centres(centres: np.ndarray, patch_size: int, pixel_step: float) -> np.ndarray:
    """Pixel wavelengths (Å) of full patches with these centres, by interpolation; exact for logarithmic grids.

    The last patch may be partial, its centre nearer than a full patch away: it continues the step before it.
    A single patch takes `pixel_step`, the typical difference of log wavelengths between pixels.
    """
    log_centres = centres.astype(np.float64)
    steps = np.diff(log_centres)
    if steps.size > 1:
        steps[-1] = steps[-2]
        log_centres[-1] = log_centres[-2] + steps[-1]
    elif steps.size == 0:
        steps = np.array([pixel_step * patch_size])
    place = (np.arange(centres.size * patch_size) - (patch_size - 1) / 2) / patch_size
    left = np.clip(np.floor(place).astype(np.int64), 0, steps.size - 1)
    return np.exp(log_centres[left] + (place - left) * steps[left])


def cut(
    table: SpectraOnGrid, patch_size: int, *, max_weight: float, min_weight: float, first: int = 0
) -> Patches:
    """Scale the spectra and cut them into patches.

    The scale of a spectrum is the median over its patches of the inverse-variance weighted mean |flux|: robust
    against lines and cosmic rays (each spoils one patch), positive also for pure noise.

    Args:
        table: n spectra on one grid.
        patch_size: P, pixels a patch.
        max_weight: weights above are cut to it.
        min_weight: pixels below are taken as not measured.
        first: leave this many empty patches in front of every spectrum (for other tokens).

    Returns:
        Patches with N = first + ceil(n_pixels / P).
    """
    n, n_pixels = len(table), table.wavelength_angstrom.size
    width = n_patches(n_pixels, patch_size)
    values = np.empty((n, first + width, patch_size), dtype=np.float32)
    weight = np.empty_like(values)
    values[:, :first], weight[:, :first] = 0, 0
    scale = np.empty(n)
    step = min(n, max(1, BLOCK_BYTES // (table.flux_type.itemsize * n_pixels)))
    # One block's pixels, filled up to whole patches; every block reuses them, so they stay in the cache.
    block_flux = np.zeros((step, width * patch_size), dtype=table.flux_type)
    block_ivar = np.zeros((step, width * patch_size), dtype=table.inverse_variance_type)
    bad = np.ones((step, width * patch_size), dtype=bool)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        flux, ivar, unusable = (part[: rows.stop - start] for part in (block_flux, block_ivar, bad))
        pixels = flux[:, :n_pixels], ivar[:, :n_pixels]
        mask = table.read(rows, *pixels)
        np.logical_not(measured_pixels(*pixels, mask), out=unusable[:, :n_pixels])
        np.copyto(flux, 0, where=unusable)
        np.copyto(ivar, 0, where=unusable)
        scale[rows] = _scale(flux, ivar, patch_size, width)
        unit = scale[rows, None].astype(flux.dtype)
        ivar *= unit
        ivar *= unit
        flux /= unit
        # Not "<": a spectrum without a measured pixel has scale NaN, and all its pixels are bad.
        unusable |= ~(ivar >= min_weight)
        unusable |= ~(np.abs(flux) <= LARGEST_VALUE)
        flux -= 1
        np.clip(ivar, 0, max_weight, out=ivar)
        np.copyto(flux, 0, where=unusable)
        np.copyto(ivar, 0, where=unusable)
        values[rows, first:] = flux.reshape(-1, width, patch_size)
        weight[rows, first:] = ivar.reshape(-1, width, patch_size)
        unusable[:, n_pixels:] = True
    return Patches(values=values, weight=weight, scale=scale)


def _scale(flux: np.ndarray, inverse_variance: np.ndarray, patch_size: int, width: int) -> np.ndarray:
    """(n,) float64: see `cut`. NaN where nothing is measured.

    Args:
        flux: (n, width * patch_size), zero where not measured.
        inverse_variance: the same.
        patch_size: pixels a patch.
        width: patches a spectrum.
    """
    n, shape = len(flux), (len(flux), width, patch_size)
    weight = inverse_variance.reshape(shape)
    total = np.einsum("npc->np", weight)
    light = np.einsum("npc,npc->np", np.abs(flux).reshape(shape), weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        level = np.where(total > 0, light.astype(np.float64) / total, np.inf)
    known = (total > 0).sum(axis=1)
    level.sort(axis=1)
    middle = level[np.arange(n), np.maximum(known - 1, 0) // 2]
    dark = middle == 0
    if dark.any():  # flux is exactly zero over half the patches: scaled by the error instead
        middle[dark] = 1 / np.sqrt(inverse_variance[dark].max(axis=1).astype(np.float64))
    return np.where(known == 0, np.nan, middle)
