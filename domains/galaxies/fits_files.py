"""FITS spectra through specutils' loaders (SDSS, DESI and the other surveys it knows), with their redshifts.

What no loader recognises is tried as a table with columns named as in `columns.NAMES`.
"""

import gzip
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.domains.galaxies.columns import (
    ReadSpectra,
    inverse_square,
    keep_usable,
    label_column,
    roles,
    scaled,
    spectra_of_columns,
)
from consilience.tokenizers.spectra_records import Spectrum

LABELS = {"z": "redshift", "redshift": "redshift", "zwarn": "zwarning", "zwarning": "zwarning"}
LABELS |= {"class": "spectral_class", "spectype": "spectral_class", "subclass": "subclass"}
"""Columns of pipeline tables (SDSS SPALL, DESI REDSHIFTS) that become labels, by lower-case name."""

LOADER_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError)
"""What specutils' loaders raise on a file that is not theirs, beside the registry's own error."""


def read_fits(
    path: Path, *, format: str | None = None, error: float | None = None, unit: str | None = None
) -> ReadSpectra:
    """Spectra of one FITS file.

    Args:
        path: the file.
        format: name of a specutils loader ("SDSS-III/IV spec", "DESI coadd"); None finds one.
        error: error of every pixel in the flux's unit, where the file gives none.
        unit: of the wavelengths, one of `columns.ANGSTROM`; None = what the file says, Å where it says nothing.

    Raises:
        ConsilienceError: the file is not FITS, or holds no spectrum that is understood.
    """
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # surveys' headers break the standard in harmless ways
        try:
            _check_gzip(path)
            with fits.open(path, memmap=False) as hdus:
                _check_whole(path, hdus)
                return _read(path, hdus, format, error, unit)
        except ConsilienceError:
            raise
        except (OSError, TypeError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as problem:
            raise ConsilienceError(f"{path}: not a FITS file, or cut short ({_told(problem)})") from problem


def _check_gzip(path: Path) -> None:
    """Raise where a .gz file ends too early: astropy says nothing and drops the extensions that are lost."""
    if path.suffix.lower() != ".gz":
        return
    try:
        with gzip.open(path, "rb") as file:
            while file.read(2**20):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise ConsilienceError(
            f"{path}: not a gzip file, or cut short or damaged ({_told(problem)}); fetch it again"
        ) from problem


def _check_whole(path: Path, hdus: Any) -> None:
    """Raise for the first extension whose header or data are not all there."""
    end = 0
    for place, hdu in enumerate(hdus):
        try:
            reason = "no data" if hdu.size and hdu.data is None else ""
        except (OSError, TypeError, ValueError) as problem:  # fewer bytes than the header says
            reason = _told(problem)
        if reason:
            raise _cut_short(path, hdu.name or str(place), reason)
        end = hdu.fileinfo()["datLoc"] + hdu.fileinfo()["datSpan"]
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            file.seek(end)
            if file.read(8) == b"XTENSION":  # astropy passes over a header without an end
                raise _cut_short(path, str(len(hdus)), "its header has no end")


def _cut_short(path: Path, extension: str, reason: str) -> ConsilienceError:
    return ConsilienceError(
        f"{path}: extension {extension} cannot be read ({reason}): the file is cut short or damaged; fetch it again"
    )


def _told(problem: Exception) -> str:
    """The first line of a message."""
    return str(problem).splitlines()[0] if str(problem) else type(problem).__name__


def _read(path: Path, hdus: Any, format: str | None, error: float | None, unit: str | None) -> ReadSpectra:
    chosen = format or _known_layout(hdus)
    table = None if chosen else _column_table(hdus, told=unit is None)
    if table is not None:
        return spectra_of_columns(table, str(path), error=error, unit=unit)
    loaded = _load(path, chosen)
    arms = [_rows(spectrum, path, error, unit) for spectrum in loaded]
    if len(arms) > 1 and all(spectrum.meta.get("band") for spectrum in loaded):
        spectra = join_arms(arms)
    else:
        spectra = [row for rows in arms for row in rows]
    ids = _ids(path, hdus, len(spectra))
    return keep_usable(spectra, ids, _labels(hdus, len(spectra)), believed=unit is not None)


def _known_layout(hdus: Any) -> str | None:
    """Layouts told by their extensions, which specutils' own tests miss when header cards are absent."""
    names = {hdu.name for hdu in hdus}
    if "FIBERMAP" in names and "B_WAVELENGTH" in names:
        return "DESI coadd"
    columns = {name.lower() for name in _names(hdus[1])} if len(hdus) > 1 else set()
    if {"loglam", "flux", "ivar", "and_mask"} <= columns:
        return "SDSS-III/IV spec"
    return None


def _names(hdu: Any) -> list[str]:
    """Column names of a table extension, none for an image."""
    return list(getattr(getattr(hdu, "columns", None), "names", None) or [])


def _column_table(hdus: Any, *, told: bool) -> dict[str, Any] | None:
    """Columns of the first table extension that has a flux and a wavelength, or None.

    Args:
        hdus: of the file.
        told: bring wavelengths into Å from the unit that the table names.
    """
    for hdu in hdus:
        found = roles(dict.fromkeys(_names(hdu)))
        if "flux" in found and {"wavelength", "log_wavelength"} & set(found):
            table = {name: hdu.data[name] for name in _names(hdu)}
            if told and "wavelength" in found:
                name = found["wavelength"]
                table[name] = scaled(table[name], _angstrom(hdu.columns[name].unit))
            return table
    return None


def _angstrom(unit: str | None) -> float:
    """A unit of length in Å; 1 where a table names none, or one that astropy does not know."""
    from astropy import units

    parsed = units.Unit(unit or "", parse_strict="silent")
    return float(parsed.to(units.AA)) if parsed.is_equivalent(units.AA) else 1.0


def _load(path: Path, format: str | None) -> list[Any]:
    """specutils spectra: by the loader named, else by the one that recognises the file."""
    import specutils
    from astropy.io.registry import IORegistryError

    single = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    reasons: list[str] = []
    for reader in (single, specutils.SpectrumList):
        try:
            loaded = reader.read(str(path), format=format)
        except (*LOADER_ERRORS, IORegistryError) as problem:
            reasons.append(str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem))
            continue
        spectra = list(loaded) if isinstance(loaded, specutils.SpectrumList) else [loaded]
        if spectra:
            return spectra
    raise ConsilienceError(
        f"{path}: no loader of specutils reads it ({reasons[0] if reasons else 'no spectra'}); name one with "
        "format=..., or save the spectra as npz or parquet with columns flux, ivar, wavelength"
    )


def _rows(spectrum: Any, path: Path, error: float | None, unit: str | None) -> list[Spectrum]:
    """One Spectrum a row of a specutils spectrum, wavelengths in Å."""
    from astropy import units

    axis = spectrum.spectral_axis if unit is None else units.Quantity(spectrum.spectral_axis.value, unit)
    wavelength = np.asarray(axis.to_value(units.AA, equivalencies=units.spectral()), dtype=np.float64)
    flux = np.asarray(spectrum.flux.value)
    if flux.ndim > 2:
        raise ConsilienceError(f"{path}: the flux has {flux.ndim} axes; give spectra, one a row, not a cube")
    ivar = _inverse_variance(spectrum, path, error)
    mask = None if spectrum.mask is None else np.atleast_2d(np.asarray(spectrum.mask) != 0)
    # Frequencies and energies run the other way; a wavelength axis that falls is a fault, told by `problem`.
    order = (
        slice(None, None, -1)
        if axis.unit.physical_type != "length" and wavelength[0] > wavelength[-1]
        else slice(None)
    )
    return [
        Spectrum(
            wavelength_angstrom=wavelength[order],
            flux=row[order],
            inverse_variance=row_ivar[order],
            mask=None if mask is None else mask[i][order],
        )
        for i, (row, row_ivar) in enumerate(zip(np.atleast_2d(flux), np.atleast_2d(ivar), strict=True))
    ]


def _inverse_variance(spectrum: Any, path: Path, error: float | None) -> np.ndarray:
    uncertainty = spectrum.uncertainty
    if uncertainty is None:
        if error is None:
            raise ConsilienceError(
                f"{path}: no errors in it; read with error=VALUE, one error for all pixels in the flux's unit"
            )
        return np.full(spectrum.flux.shape, 1 / error**2)
    array = np.asarray(uncertainty.array)
    if uncertainty.uncertainty_type == "ivar":
        return array
    return inverse_square(np.sqrt(array) if uncertainty.uncertainty_type == "var" else array)


def join_arms(arms: Sequence[Sequence[Spectrum]]) -> list[Spectrum]:
    """Join the arms of a spectrograph (DESI's b, r, z), object by object.

    Pixels at the same wavelength (to 0.001 Å) are averaged with their inverse variances; all others are kept as
    they are, so nothing is resampled.

    Args:
        arms: for each arm, its spectra in the same order of objects.
    """
    joined = []
    grids = [arm[0].wavelength_angstrom for arm in arms]
    whole, place = np.unique(np.round(np.concatenate(grids), 3), return_inverse=True)
    for parts in zip(*arms, strict=True):
        good = np.concatenate([part.measured for part in parts])
        flux = np.concatenate([part.flux for part in parts]).astype(np.float64)
        ivar = np.where(good, np.concatenate([part.inverse_variance for part in parts]), 0).astype(np.float64)
        total = np.bincount(place, weights=ivar, minlength=whole.size)
        light = np.bincount(place, weights=np.where(good, flux, 0) * ivar, minlength=whole.size)
        joined.append(
            Spectrum(
                wavelength_angstrom=whole,
                flux=np.where(total > 0, light / np.where(total > 0, total, 1), np.nan).astype(np.float32),
                inverse_variance=total.astype(np.float32),
            )
        )
    return joined


def _ids(path: Path, hdus: Any, n: int) -> np.ndarray:
    """TARGETIDs where there are, else the file's name, numbered when it holds several."""
    for hdu in hdus:
        if hdu.name == "FIBERMAP" and "TARGETID" in _names(hdu) and len(hdu.data) == n:
            return np.array([str(target) for target in hdu.data["TARGETID"]])
    stem = path.name.split(".fit")[0]
    return np.array([stem] if n == 1 else [f"{stem}[{row}]" for row in range(n)])


def _labels(hdus: Any, n: int) -> dict[str, np.ndarray]:
    """Redshift, class and warning from a pipeline's table with one row an object, else from the header."""
    labels: dict[str, np.ndarray] = {}
    for hdu in hdus:
        for name in _names(hdu):
            label = LABELS.get(name.lower())
            if label and label not in labels and len(hdu.data) == n and hdu.data[name].ndim == 1:
                labels[label] = label_column(hdu.data[name])
    if "redshift" not in labels and n == 1:
        header = hdus[0].header
        value = next((header[key] for key in ("REDSHIFT", "Z") if key in header), None)
        if isinstance(value, float | int):
            labels["redshift"] = np.array([float(value)])
    return labels
