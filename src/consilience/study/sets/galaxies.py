"""Spectra of the study: simulated galaxies, supernovae, and real photometry as spectra of eight bands."""

from pathlib import Path

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, fingerprint
from consilience.domains.galaxies.photometry import SPEED_OF_LIGHT, package_file, photometry
from consilience.domains.galaxies.tables import read_columns
from consilience.study.sets.common import OFFICIAL, draw
from consilience.tokenizers.spectra_records import SpectrumTable

SIMULATED_RECORDS = 8000

SIMULATED_LABELS = {
    "z": "redshift",
    "logmass": "log_stellar_mass",
    "log_ssfr": "log_ssfr",
    "age_mw": "age_gyr",
    "metallicity": "metallicity_solar",
    "av": "av_mag",
    "sigma_v": "sigma_v_km_s",
    "dn4000": "dn4000",
}
"""Name in the file (after "label_") -> label; what went into the simulation, without noise."""

BAND_ANGSTROM = np.array([3551.0, 4686.0, 6166.0, 7480.0, 8932.0, 12350.0, 16620.0, 21590.0])
"""Effective wavelengths of SDSS u g r i z and 2MASS J H Ks (Cohen et al. 2003)."""

VEGA_TO_AB = np.array([0.91, 1.39, 1.85])
"""AB minus Vega magnitudes of J H Ks (Blanton & Roweis 2007)."""

DUST = np.array([0.902, 0.576, 0.367])
"""Galactic extinction of J H Ks in units of E(B-V); that of SDSS r is 2.751 (Schlegel et al. 1998)."""

NEAR_INFRARED_FLOOR = 0.03
"""Fractional error added in quadrature to J H Ks, as kcorrect does for optical bands."""

ARTEFACT = 50.0
"""Continuum-removed supernova fluxes beyond this are artefacts: cut to it and not counted as measured."""

GAP = 5
"""This many exact zeros in a row inside a supernova spectrum are a gap; fewer are rounding."""


def galaxies_simulated(path: Path) -> Collection:
    """8,000 of 20,000 SIMULATED galaxies, the published test rows and the others in their proportion."""
    held = _arrays(
        path, ["wave_A", "flux", "ivar", "is_test", *(f"label_{name}" for name in SIMULATED_LABELS)]
    )
    is_test = held["is_test"].astype(bool)
    share = min(1.0, SIMULATED_RECORDS / len(is_test))
    parts = [np.flatnonzero(is_test == part) for part in (False, True)]
    rows = np.sort(np.concatenate([part[draw(len(part), round(share * len(part)))] for part in parts]))
    ids = np.array([f"simulated-{row:05d}" for row in rows])
    labels = {
        label: held[f"label_{name}"][rows].astype(np.float64) for name, label in SIMULATED_LABELS.items()
    }
    table = SpectrumTable(
        wavelength_angstrom=held["wave_A"],
        flux=held["flux"][rows].astype(np.float32),
        inverse_variance=held["ivar"][rows].astype(np.float32),
        ids=ids,
    )
    labels[OFFICIAL] = np.where(is_test[rows], "test", "train")
    return _collection(table, ids, path, "simulated", labels)


def supernovae(path: Path) -> Collection:
    """Real supernova spectra in the rest frame, continuum removed; a group is one supernova.

    The file holds no errors. Each spectrum gets one: the scatter of its pixels around the mean of their two
    neighbours (1.48 x median absolute deviation / sqrt(1.5)), at least 1 % of the spectrum's own scatter. It is a
    lower limit, since binning has correlated neighbours.
    """
    held = _arrays(path, ["wave", "flux", "type", "age", "group"])
    flux = held["flux"].astype(np.float32)
    measured = np.array([_covered(row) for row in flux]) & (np.abs(flux) <= ARTEFACT)
    flux = np.clip(flux, -ARTEFACT, ARTEFACT)
    sigma = np.array([_noise(row[good]) for row, good in zip(flux, measured)])
    ids = np.array([f"supernova-{row:05d}" for row in range(len(flux))])
    table = SpectrumTable(
        wavelength_angstrom=held["wave"],
        flux=flux,
        inverse_variance=(measured / sigma[:, None] ** 2).astype(np.float32),
        ids=ids,
    )
    fine = held["type"].astype(str)
    labels = {
        "type": fine,
        "broad_type": np.array([_broad(name) for name in fine.tolist()]),
        "phase_days": held["age"].astype(np.float64),
    }
    return _collection(table, ids, path, "real", labels, held["group"].astype(str))


def photometry_spectra() -> Collection:
    """Real galaxies of kcorrect's file: flux density in eight bands, 3,551 to 21,590 Å, with errors.

    Corrected for Galactic dust; 1e-17 erg / s / cm2 / Å. Bands that a galaxy lacks have inverse variance 0.
    """
    from astropy.io import fits

    table = photometry()
    with fits.open(package_file("test", "gst_tests_small.fits")) as hdus:
        rows = hdus[1].data[table.row]
        reddening = rows["EXTINCTION"][:, 2].astype(np.float64) / 2.751
        magnitude, error = (
            np.stack([rows[f"{band}_{kind}_EXT"].astype(np.float64) for band in "JHK"], axis=1)
            for kind in ("M", "MSIG")
        )
    known = (magnitude > 0) & (error > 0)
    infrared = np.where(
        known, 10 ** (-0.4 * (magnitude + VEGA_TO_AB - DUST * reddening[:, None])), 0.0
    )  # maggies
    fraction = np.hypot(error * 0.4 * np.log(10), NEAR_INFRARED_FLOOR)
    weight = np.where(known, 1 / np.where(known, fraction * infrared, 1) ** 2, 0.0)
    to_flux = 3.631e-20 * SPEED_OF_LIGHT / BAND_ANGSTROM**2 / 1e-17
    ids = np.array([f"gst-{row:05d}" for row in table.row])
    spectra = SpectrumTable(
        wavelength_angstrom=BAND_ANGSTROM,
        flux=np.hstack([table.maggies, infrared]) * to_flux,
        inverse_variance=np.hstack([table.inverse_variance, weight]) / to_flux**2,
        ids=ids,
    )
    path = Path("kcorrect") / "gst_tests_small.fits"
    return _collection(spectra, ids, path, "real", {"redshift": table.redshift}, ids)


def _covered(flux: np.ndarray) -> np.ndarray:
    """(n_pix,) bool: False in runs of zeros at both ends and in longer runs of zeros inside."""
    zero = flux == 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], zero, [False]]).astype(np.int8)))
    covered = np.ones(len(flux), dtype=bool)
    for start, stop in edges.reshape(-1, 2):
        if stop - start >= GAP or start == 0 or stop == len(flux):
            covered[start:stop] = False
    return covered


def _noise(flux: np.ndarray) -> float:
    """Standard deviation of the noise of neighbouring pixels; see `supernovae`."""
    if len(flux) < 3:
        return 1.0
    difference = flux[1:-1] - (flux[:-2] + flux[2:]) / 2
    scatter = 1.4826 * float(np.median(np.abs(difference))) / np.sqrt(1.5)
    return max(scatter, 0.01 * float(flux.std())) or 1.0


def _broad(name: str) -> str:
    """Ia, Ib, Ic or II of a subtype such as Ia-91bg, IIb, Ibn."""
    return next(kind for kind in ("II", "Ia", "Ib", "Ic", name) if name.startswith(kind))


def _arrays(path: Path, wanted: list[str]) -> dict[str, np.ndarray]:
    held = read_columns(path)
    for name in wanted:
        if name not in held:
            raise ConsilienceError(f"{path}: no array `{name}`; it has {', '.join(sorted(held))}")
    return {name: held[name] for name in wanted}


def _collection(
    table: SpectrumTable,
    ids: np.ndarray,
    path: Path,
    origin: str,
    labels: dict[str, np.ndarray],
    groups: np.ndarray | None = None,
) -> Collection:
    return Collection(
        records=table,
        ids=ids,
        source=str(path),
        origin="simulated" if origin == "simulated" else "real",
        fingerprint=fingerprint([table.wavelength_angstrom, table.flux, table.inverse_variance]),
        labels=labels,
        groups=groups,
    )
