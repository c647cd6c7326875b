"""The bundled galaxies: MODEL SPECTRA constrained by the photometry of 10,000 real galaxies at their real redshift.

They are not observations. For every galaxy, kcorrect's five templates are fitted to its measured u g r i z fluxes
at its spectroscopic redshift; the sum of the templates is put on a wavelength grid like that of a survey and gets
noise from a stated law. Shapes and redshifts follow real galaxies; lines and small features are the templates'.
Galactic dust is corrected for; the flux is that of the whole galaxy in 1e-17 erg / s / cm2 / Å.
"""

from functools import cache

import numpy as np

from consilience.core.records import Collection, fingerprint
from consilience.domains.galaxies.photometry import fit_coefficients, photometry, templates
from consilience.tokenizers.spectra_records import SpectrumTable

N_PIXELS = 1024
"""Pixels of the grid, close to the templates' own resolution (9.8e-4 in log wavelength; theirs is 8.6e-4)."""

WAVELENGTH_RANGE = (3600.0, 9800.0)
"""In Å, observed: what SDSS and DESI share."""

FLUX_UNIT = 1e-17
"""erg / s / cm2 / Å."""

# fmt: off
SKY_LINES = (
    5577.3, 5891.6, 6300.3, 6363.8, 6864.0, 7276.4, 7340.9, 7750.6, 7821.5, 7913.7, 7993.3, 8344.6,
    8399.2, 8430.2, 8465.4, 8827.1, 8885.8, 8919.6, 8958.1, 9375.9, 9439.7, 9476.9, 9567.6, 9790.0,
)
# fmt: on
"""Bright lines of the night sky in Å ([O I], Na, OH)."""

PHOTONS = 2.0
"""Photons a pixel for one unit of flux where the instrument is most sensitive: sets the signal-to-noise
(median over galaxies of 6.5 a pixel of 290 km/s, 3 to 18 for 90 % of them)."""

MASKED_FRACTION = 0.004
"""Pixels lost to cosmic rays and bad columns."""

SEED = 20250301


def observed_grid() -> np.ndarray:
    """(N_PIXELS,) wavelengths in Å, evenly spaced in their log."""
    first, last = WAVELENGTH_RANGE
    return np.geomspace(first, last, N_PIXELS)


def model_flux(coefficients: np.ndarray, redshift: np.ndarray, wavelength_angstrom: np.ndarray) -> np.ndarray:
    """Templates summed, redshifted and averaged over pixels, so that narrow lines keep their flux.

    flux(wavelength) = sum_k c_k T_k(wavelength / (1 + z)) / (1 + z).

    Args:
        coefficients: (n, 5).
        redshift: (n,).
        wavelength_angstrom: (n_pix,) centres of pixels, evenly spaced in their log.

    Returns:
        (n, n_pix) float64 in FLUX_UNIT.
    """
    template = templates()
    rest = template.wavelength_angstrom
    steps = (template.flux[:, 1:] + template.flux[:, :-1]) / 2 * np.diff(rest)
    cumulative = np.concatenate([np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)], axis=1)
    half = np.log(wavelength_angstrom[1] / wavelength_angstrom[0]) / 2
    edges = np.exp(np.append(np.log(wavelength_angstrom) - half, np.log(wavelength_angstrom[-1]) + half))
    out = np.empty((len(redshift), len(wavelength_angstrom)))
    for row, (coefficient, z) in enumerate(zip(coefficients, redshift, strict=True)):
        rest_edges = edges / (1 + z)
        light = np.interp(rest_edges, rest, coefficient @ cumulative)
        out[row] = np.diff(light) / np.diff(rest_edges) / (1 + z)
    return out / FLUX_UNIT


def noise_variance(flux: np.ndarray, wavelength_angstrom: np.ndarray) -> np.ndarray:
    """The noise law: photons of the galaxy and of the sky, and 1 % of the sky left after its subtraction.

    variance = (flux + sky) / photons + (0.01 sky)**2, in FLUX_UNIT**2, with photons = PHOTONS x throughput.

    Args:
        flux: (n, n_pix) in FLUX_UNIT.
        wavelength_angstrom: (n_pix,).
    """
    log_wavelength = np.log(wavelength_angstrom)
    throughput = np.exp(-0.5 * ((log_wavelength - np.log(6800)) / 0.32) ** 2)
    sky = 30 * (1 + 1.5 * np.clip((wavelength_angstrom - 6500) / 3300, 0, None) ** 2)
    for line in SKY_LINES:
        sky = sky + 90 * np.exp(-0.5 * ((log_wavelength - np.log(line)) / 6e-4) ** 2)
    return (np.clip(flux, 0, None) + sky) / (PHOTONS * throughput) + (0.01 * sky) ** 2


def _with_noise(flux: np.ndarray, wavelength: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(observed flux, inverse variance) as float32; a galaxy's noise depends on its catalogue row alone."""
    variance = noise_variance(flux, wavelength)
    noisy, ivar = np.empty(flux.shape, dtype=np.float32), np.empty(flux.shape, dtype=np.float32)
    for i, galaxy in enumerate(row):
        generator = np.random.default_rng([SEED, int(galaxy)])
        good = generator.random(flux.shape[1]) >= MASKED_FRACTION
        noisy[i] = good * (flux[i] + np.sqrt(variance[i]) * generator.standard_normal(flux.shape[1]))
        ivar[i] = good / variance[i]
    return noisy, ivar


@cache
def model_spectra(n: int | None = None) -> Collection:
    """Model spectra of n galaxies (None = all 10,000), drawn with a fixed seed; a larger n begins with a smaller.

    Labels: redshift (spectroscopic, real); g_r (observed colour in AB magnitudes, real, from the photometry);
    log_stellar_mass (log10 solar masses of the fitted templates, Planck 2018 distances, so model-dependent).
    """
    from astropy.cosmology import Planck18

    table = photometry()
    drawn = np.random.default_rng(SEED).permutation(len(table.row))[:n]
    maggies, redshift, row = table.maggies[drawn], table.redshift[drawn], table.row[drawn]
    coefficients, _ = fit_coefficients(maggies, table.inverse_variance[drawn], redshift)
    wavelength = observed_grid()
    flux, ivar = _with_noise(model_flux(coefficients, redshift, wavelength), wavelength, row)
    distance_factor = (Planck18.luminosity_distance(redshift).to_value("Mpc") * 1e5) ** 2  # in units of 10 pc
    with np.errstate(divide="ignore", invalid="ignore"):
        g_r = -2.5 * np.log10(maggies[:, 1] / maggies[:, 2])
        mass = np.log10(coefficients @ templates().remaining_mass * distance_factor)
    ids = np.array([f"gst-{galaxy:05d}" for galaxy in row])
    return Collection(
        records=SpectrumTable(wavelength_angstrom=wavelength, flux=flux, inverse_variance=ivar, ids=ids),
        ids=ids,
        source=f"kcorrect's {len(ids):,} galaxies: model spectra fitted to real photometry at the real redshift",
        origin="model",
        fingerprint=fingerprint([wavelength, flux, ivar]),
        labels={
            "redshift": redshift,
            "g_r": np.where(np.isfinite(g_r), g_r, np.nan),
            "log_stellar_mass": np.where(np.isfinite(mass), mass, np.nan),
        },
        groups=ids,
    )
