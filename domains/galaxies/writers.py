"""Writing spectra as npz, FITS or parquet, so that `data.py` can read them back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.domains.galaxies.data import tabled
from consilience.tokenizers.spectra_records import Spectrum, SpectrumRecords, SpectrumTable


def write_spectra(records: SpectrumRecords, path: Path, columns: Mapping[str, Any] | None = None) -> None:
    """Write spectra with columns id, wavelength (Å), flux, ivar and any further ones.

    `.npz` holds one grid (n_pix,) for all rows and needs spectra that share it; `.fits` is a binary table with one
    row a spectrum; `.parquet` has list columns.
    """
    spectra = list(records)
    ids = np.array([spectrum.id or str(i) for i, spectrum in enumerate(spectra)])
    extra = {name: np.asarray(column) for name, column in (columns or {}).items()}
    for name, column in extra.items():
        if len(column) != len(spectra):
            raise ConsilienceError(
                f"{path}: column `{name}` has {len(column)} entries for {len(spectra)} spectra"
            )
    writers = {".npz": _npz, ".fits": _fits, ".parquet": _parquet}
    if path.suffix.lower() not in writers:
        raise ConsilienceError(
            f"{path}: spectra are written as .npz, .fits or .parquet; choose one of these endings"
        )
    if not spectra:
        raise ConsilienceError(f"{path}: no spectra to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    writers[path.suffix.lower()](spectra, ids, extra, path)


def _ivar(spectrum: Spectrum) -> np.ndarray:
    """Inverse variance with masked and unmeasured pixels at 0."""
    return np.where(spectrum.measured, spectrum.inverse_variance, 0).astype(spectrum.inverse_variance.dtype)


def _npz(spectra: list[Spectrum], ids: np.ndarray, extra: Mapping[str, np.ndarray], path: Path) -> None:
    table = tabled(spectra, ids)
    if not isinstance(table, SpectrumTable):
        raise ConsilienceError(
            f"{path}: these spectra are on different wavelength grids; write .parquet or .fits"
        )
    ivar = np.stack([_ivar(spectrum) for spectrum in spectra])
    wavelength = table.wavelength_angstrom
    arrays: dict[str, Any] = {"id": ids, "wavelength": wavelength, "flux": table.flux, "ivar": ivar, **extra}
    np.savez_compressed(path, **arrays)


def _fits(spectra: list[Spectrum], ids: np.ndarray, extra: Mapping[str, np.ndarray], path: Path) -> None:
    from astropy.io import fits

    parts = {
        "wavelength": ("D", [spectrum.wavelength_angstrom for spectrum in spectra]),
        "flux": ("E", [spectrum.flux.astype(np.float32) for spectrum in spectra]),
        "ivar": ("E", [_ivar(spectrum).astype(np.float32) for spectrum in spectra]),
    }
    sizes = {len(spectrum) for spectrum in spectra}
    columns = [fits.Column(name="id", format=f"{max(map(len, ids))}A", array=ids)]
    for name, (kind, rows) in parts.items():
        if len(sizes) == 1:
            columns.append(fits.Column(name=name, format=f"{sizes.copy().pop()}{kind}", array=np.stack(rows)))
        else:
            ragged = np.empty(len(rows), dtype=object)
            ragged[:] = rows
            columns.append(fits.Column(name=name, format=f"P{kind}()", array=ragged))
    for name, column in extra.items():
        text = column.dtype.kind in "OSU"
        width = max((len(str(value)) for value in column), default=1) or 1
        array = column.astype(str) if text else column.astype(np.float64)
        columns.append(fits.Column(name=name, format=f"{width}A" if text else "D", array=array))
    fits.BinTableHDU.from_columns(columns, name="SPECTRA").writeto(path, overwrite=True)


def _parquet(spectra: list[Spectrum], ids: np.ndarray, extra: Mapping[str, np.ndarray], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "id": pa.array(ids.tolist()),
        "wavelength": pa.array([spectrum.wavelength_angstrom for spectrum in spectra]),
        "flux": pa.array([spectrum.flux for spectrum in spectra]),
        "ivar": pa.array([_ivar(spectrum) for spectrum in spectra]),
    }
    columns |= {name: pa.array(column.tolist()) for name, column in extra.items()}
    pq.write_table(pa.table(columns), path)
