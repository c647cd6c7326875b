"""Template fits to the photometry that ships with kcorrect: 10,000 real galaxies, five templates, SDSS filters.

Only data files of the installed package are read; kcorrect's own classes, which take long to tabulate their
projections, are not run (a test checks that both agree). Source: Blanton & Roweis 2007, AJ 133, 734.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from consilience.core.errors import ConsilienceError

BANDS = ("u", "g", "r", "i", "z")

AB_OFFSETS = np.array([-0.036, 0.012, 0.010, 0.028, 0.040])
"""AB minus SDSS magnitudes of the five bands, as kcorrect applies them (its utils.sdss_ab_correct)."""

ERROR_FLOOR = np.array([0.05, 0.02, 0.02, 0.02, 0.03])
"""Fractional errors added in quadrature: calibration, and templates that do not fit perfectly."""

SPEED_OF_LIGHT = 2.99792458e18
"""In Å/s."""

REDSHIFT_NODES = np.arange(0, 1.0001, 0.001)
"""Redshifts at which the templates are projected on the filters; between them linear interpolation."""


@dataclass(frozen=True, kw_only=True)
class Photometry:
    """Real measurements of n galaxies.

    Args:
        maggies: (n, 5) AB fluxes in u g r i z, corrected for Galactic dust; 1 maggie is magnitude 0.
        inverse_variance: (n, 5) of maggies, with the error floor.
        redshift: (n,) spectroscopic.
        ra: (n,) right ascension in degrees.
        dec: (n,) declination in degrees.
        row: (n,) row in the package's file.
    """

    maggies: np.ndarray
    inverse_variance: np.ndarray
    redshift: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    row: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Templates:
    """kcorrect's default templates in the rest frame, between 1,000 and 15,000 Å.

    Args:
        wavelength_angstrom: (m,) in Å, close to evenly spaced in its log (8.58e-4).
        flux: (5, m) erg / s / cm2 / Å of a solar mass formed, at 10 pc.
        remaining_mass: (5,) stellar mass that remains, a solar mass formed.
    """

    wavelength_angstrom: np.ndarray
    flux: np.ndarray
    remaining_mass: np.ndarray


def package_file(*parts: str) -> Path:
    """A data file of the installed kcorrect, found without importing it."""
    spec = find_spec("kcorrect")
    path = Path(spec.origin).parent.joinpath("data", *parts) if spec and spec.origin else None
    if path is None or not path.exists():
        raise ConsilienceError(
            f"the bundled galaxies need the data of kcorrect 5.1 ({'/'.join(parts)}); pip install 'kcorrect>=5.1'"
        )
    return path


@cache
def photometry() -> Photometry:
    """The galaxies that ship with kcorrect: one row a position on the sky, all five bands measured."""
    from astropy.io import fits

    with fits.open(package_file("test", "gst_tests_small.fits")) as hdus:
        table = hdus[1].data
        flux, ivar = (table[name].astype(np.float64) for name in ("MODELFLUX", "MODELFLUX_IVAR"))
        to_ab = 1e-9 * 10 ** (0.4 * (table["EXTINCTION"].astype(np.float64) - AB_OFFSETS))
        redshift, ra, dec = (table[name].astype(np.float64) for name in ("Z", "RA", "DEC"))
    maggies, ivar = flux * to_ab, ivar / to_ab**2
    with np.errstate(divide="ignore"):
        ivar = np.where(ivar > 0, 1 / (1 / ivar + (ERROR_FLOOR * maggies) ** 2), 0)
    place = np.round(np.stack([ra, dec], axis=1) * 3600)  # one arcsecond
    first = np.zeros(len(ra), dtype=bool)
    first[np.unique(place, axis=0, return_index=True)[1]] = True
    good = first & (ivar > 0).all(axis=1) & (maggies[:, 2] > 0) & (redshift > 0)
    row = np.flatnonzero(good)
    return Photometry(
        maggies=maggies[row],
        inverse_variance=ivar[row],
        redshift=redshift[row],
        ra=ra[row],
        dec=dec[row],
        row=row,
    )


@cache
def templates() -> Templates:
    """The five default templates of kcorrect."""
    from astropy.io import fits

    with fits.open(package_file("templates", "kcorrect-default-v4.fits")) as hdus:
        wavelength = hdus["FLUX"].data["wave"][0].astype(np.float64)
        flux = hdus["FLUX"].data["flux"][0].astype(np.float64)
        remaining_mass = hdus["MREMAIN"].data.astype(np.float64)
    inside = (wavelength > 1000) & (wavelength < 15000)
    return Templates(
        wavelength_angstrom=wavelength[inside], flux=flux[:, inside], remaining_mass=remaining_mass
    )


@cache
def _filter(band: str) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths (Å) and response per photon of an SDSS filter."""
    lines = package_file("responses", f"sdss_{band}0.dat").read_text().splitlines()
    table = [line.strip("| ").split("|") for line in lines if not line.startswith("#") and "|" in line]
    columns = [name.strip() for name in table[0]]
    rows = np.array([[float(cell) for cell in row] for row in table[1:]])
    return rows[:, columns.index("lambda")], rows[:, columns.index("pass")]


def project(redshift: float) -> np.ndarray:
    """(5 bands, 5 templates) AB maggies of the templates seen at this redshift (distance left out)."""
    template = templates()
    observed = template.wavelength_angstrom * (1 + redshift)
    out = np.empty((len(BANDS), len(template.flux)))
    for b, band in enumerate(BANDS):
        wavelength, response = _filter(band)
        inside = slice(*np.searchsorted(observed, wavelength[[0, -1]] + np.array([-20.0, 20.0])))
        grid = observed[inside]
        photons = np.interp(grid, wavelength, response, left=0, right=0) * grid
        reference = np.trapezoid(response * 3.631e-20 * SPEED_OF_LIGHT / wavelength, wavelength)
        light = template.flux[:, inside] / (1 + redshift) * photons
        out[b] = np.trapezoid(light, grid, axis=1) / reference
    return out


@cache
def _projections() -> np.ndarray:
    """(nodes, 5, 5): `project` at every node of REDSHIFT_NODES."""
    return np.stack([project(redshift) for redshift in REDSHIFT_NODES])


def projections(redshift: np.ndarray) -> np.ndarray:
    """(n, 5 bands, 5 templates) maggies at these redshifts, interpolated between nodes."""
    step = REDSHIFT_NODES[1]
    left = np.clip((redshift / step).astype(np.int64), 0, len(REDSHIFT_NODES) - 2)
    fraction = (redshift / step - left)[:, None, None]
    table = _projections()
    return (1 - fraction) * table[left] + fraction * table[left + 1]


def fit_coefficients(
    maggies: np.ndarray, inverse_variance: np.ndarray, redshift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative template coefficients that best match the photometry at the known redshift.

    Args:
        maggies: (n, 5) AB.
        inverse_variance: (n, 5).
        redshift: (n,).

    Returns:
        (n, 5) coefficients (solar masses formed at 10 pc) and (n, 5) model maggies.
    """
    matrix = projections(redshift)
    error = np.sqrt(inverse_variance)
    left, right = matrix * error[:, :, None], maggies * error
    column, size = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    # Columns and right sides of length one: the solver's tolerance is absolute.
    left, right = left / column[:, None, :], right / size[:, None]
    solved = np.stack([nnls(a, b, maxiter=100)[0] for a, b in zip(left, right, strict=True)])
    coefficients = solved / column * size[:, None]
    return coefficients, np.einsum("nbk,nk->nb", matrix, coefficients)
