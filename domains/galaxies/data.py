"""Reading galaxies: one file, a folder or a pattern of files, into one Collection."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, Failure, fingerprint
from consilience.domains.galaxies.columns import (
    ANGSTROM,
    ReadSpectra,
    labels_of_columns,
    roles,
    spectra_of_columns,
)
from consilience.domains.galaxies.fits_files import read_fits
from consilience.domains.galaxies.tables import parquet_pieces, read_columns
from consilience.domains.pieces import Piece, end_to_end, pieces_of, regroup
from consilience.tokenizers.spectra_records import Spectrum, SpectrumRecords, SpectrumTable

FITS_ENDINGS = (".fits", ".fit", ".fits.gz", ".fit.gz")
TABLE_ENDINGS = (".npz", ".h5", ".hdf5", ".parquet")


def read_spectra(
    path: Path,
    *,
    format: str | None = None,
    error: float | None = None,
    wavelength_unit: str | None = None,
) -> Collection:
    """Spectra of a file (FITS, npz, HDF5, parquet), of all such files in a folder, or of a pattern like `a/*.fits`.

    Args:
        path: file, folder or pattern.
        format: name of a specutils loader for FITS files; None finds one.
        error: error of every pixel in the flux's unit, for files that give none.
        wavelength_unit: angstrom, nm, um or m; None = what a FITS file says, else Å, and files whose wavelengths can
            hardly be in Å are refused (see `columns.unit_problem`).

    Raises:
        ConsilienceError: no such file, a file that cannot be read alone, or no usable spectrum in it. Among several
            files, one that cannot be read goes to `failures` and the others are kept.
    """
    _check_options(error, wavelength_unit)
    files = _files(path)
    if len(files) == 1:
        return _collection(_read_file(files[0], format, error, wavelength_unit), [files[0]], str(path))
    parts: list[ReadSpectra] = []
    failures: list[Failure] = []
    row = 0
    for file in files:
        try:
            part = _read_file(file, format, error, wavelength_unit)
        except ConsilienceError as problem:
            failures.append(Failure(index=row, id=file.name, reason=str(problem)))
            row += 1
            continue
        failures += [Failure(index=row + f.index, id=f.id, reason=f.reason) for f in part.failures]
        row += len(part.records) + len(part.failures)
        parts.append(part)
    return _collection(_join(parts, tuple(failures)), files, str(path))


def stream_spectra(
    path: Path,
    size: int,
    *,
    format: str | None = None,
    error: float | None = None,
    wavelength_unit: str | None = None,
) -> Iterator[Piece]:
    """Spectra in pieces of `size`; arguments and errors as in `read_spectra`.

    A .parquet file with a spectrum a row is read piece by piece, its labels once before; all else as a whole.
    """
    if path.suffix.lower() != ".parquet" or not path.is_file() or not _spectrum_a_row(path):
        whole = read_spectra(path, format=format, error=error, wavelength_unit=wavelength_unit)
        yield from pieces_of(whole, size)
        return
    _check_options(error, wavelength_unit)
    kept = _telling_labels(path)

    def pieces() -> Iterator[Piece]:
        before = 0
        for columns in parquet_pieces(path, size):
            n = len(next(iter(columns.values())))
            found = spectra_of_columns(columns, str(path), error=error, unit=wavelength_unit, before=before)
            failures = tuple(replace(failure, index=before + failure.index) for failure in found.failures)
            unread = [failure.index for failure in failures]
            collection = Collection(
                records=found.records,
                ids=found.ids,
                source=str(path),
                origin="user",
                fingerprint="",
                labels={name: found.labels[name] for name in kept},
                failures=failures,
            )
            yield Piece(collection=collection, places=np.setdiff1d(np.arange(before, before + n), unread))
            before += n

    yield from regroup(pieces(), size, join=end_to_end)


def _spectrum_a_row(path: Path) -> bool:
    """Whether the flux of a .parquet file has many numbers a row (else its rows are the pixels of one spectrum)."""
    first = next(parquet_pieces(path, 1), {})
    name = roles(first).get("flux")
    return name is not None and np.ndim(first[name][0]) > 0


def _telling_labels(path: Path) -> list[str]:
    """The labels that `_labels` keeps, found without reading a spectrum."""
    first: dict[str, Any] = {}
    telling: dict[str, bool] = {}
    broken: set[str] = set()
    found = roles(next(parquet_pieces(path, 1), {}))
    for columns in parquet_pieces(path, 65_536, nested=False):
        n = len(next(iter(columns.values()), ()))
        labels = labels_of_columns(columns, found, n)
        broken |= set(telling) - set(labels)
        for name, column in labels.items():
            value = first.setdefault(name, column[0])
            known = telling.setdefault(name, name == "redshift")
            telling[name] = known or bool((column[1:] != value).any() or column[0] != value)
    return [name for name, tells in telling.items() if tells and name not in broken]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        endings = FITS_ENDINGS + TABLE_ENDINGS
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith(endings))
        if not files:
            raise ConsilienceError(
                f"{path}: no spectra in this folder; it needs files ending in {', '.join(endings)}"
            )
        return files
    if path.exists():
        return [path]
    files = sorted(path.parent.glob(path.name)) if any(mark in path.name for mark in "*?[") else []
    if not files:
        raise ConsilienceError(f"{path}: no such file or folder")
    return files


def _check_options(error: float | None, wavelength_unit: str | None) -> None:
    if error is not None and not error > 0:
        raise ConsilienceError(f"error must be positive, not {error}")
    if wavelength_unit is not None and wavelength_unit not in ANGSTROM:
        raise ConsilienceError(
            f"wavelength_unit must be one of {', '.join(ANGSTROM)}, not {wavelength_unit!r}"
        )


def _read_file(path: Path, format: str | None, error: float | None, unit: str | None) -> ReadSpectra:
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise ConsilienceError(f"{path}: the file is empty")
    if name.endswith(FITS_ENDINGS):
        return read_fits(path, format=format, error=error, unit=unit)
    if name.endswith(TABLE_ENDINGS):
        return spectra_of_columns(read_columns(path), str(path), error=error, unit=unit)
    known = ", ".join(FITS_ENDINGS + TABLE_ENDINGS)
    raise ConsilienceError(f"{path}: unknown kind of file for spectra; use {known}")


def _join(parts: Sequence[ReadSpectra], failures: tuple[Failure, ...]) -> ReadSpectra:
    """All files' spectra in one list, or in one table where every file has the same grid."""
    if not parts:
        return ReadSpectra(records=[], ids=np.array([], dtype=str), failures=failures)
    names = {name for part in parts for name in part.labels}
    ids = np.concatenate([part.ids for part in parts])
    if len(set(ids)) < len(ids):
        ids = np.array([f"{i}:{name}" for i, name in enumerate(ids)])
    return ReadSpectra(
        records=_one_table([part.records for part in parts], ids),
        ids=ids,
        labels={
            name: np.concatenate([_column(part, name, parts) for part in parts]) for name in sorted(names)
        },
        failures=failures,
    )


def _column(part: ReadSpectra, name: str, parts: Sequence[ReadSpectra]) -> np.ndarray:
    if name in part.labels:
        return part.labels[name]
    text = any(other.labels[name].dtype.kind == "U" for other in parts if name in other.labels)
    return np.full(len(part.records), "" if text else np.nan)


def _one_table(parts: Sequence[SpectrumRecords], ids: np.ndarray) -> SpectrumRecords:
    spectra = [spectrum for part in parts for spectrum in part]
    return tabled(spectra, ids)


def tabled(spectra: Sequence[Spectrum], ids: np.ndarray) -> SpectrumRecords:
    """A table of the spectra if they share grid and precision, else the list itself."""
    first = spectra[0] if spectra else None
    if first is None or not all(
        spectrum.flux.dtype == first.flux.dtype
        and spectrum.inverse_variance.dtype == first.inverse_variance.dtype
        and np.array_equal(spectrum.wavelength_angstrom, first.wavelength_angstrom)
        for spectrum in spectra
    ):
        return list(spectra)
    masks = [np.zeros(len(s), dtype=bool) if s.mask is None else s.mask for s in spectra]
    return SpectrumTable(
        wavelength_angstrom=first.wavelength_angstrom,
        flux=np.stack([spectrum.flux for spectrum in spectra]),
        inverse_variance=np.stack([spectrum.inverse_variance for spectrum in spectra]),
        mask=np.stack(masks) if any(mask.any() for mask in masks) else None,
        ids=ids,
    )


def _collection(read: ReadSpectra, files: Sequence[Path], source: str) -> Collection:
    if not len(read.records):
        why = f"; first reason: {read.failures[0].reason}" if read.failures else ""
        raise ConsilienceError(f"{source}: no usable spectrum in it{why}")
    records = read.records if isinstance(read.records, SpectrumTable) else tabled(read.records, read.ids)
    return Collection(
        records=records,
        ids=read.ids,
        source=source,
        origin="user",
        fingerprint=fingerprint(_content(records)),
        labels=_labels(read.labels),
        failures=read.failures,
    )


def _content(records: SpectrumRecords) -> list[bytes | str | np.ndarray]:
    if isinstance(records, SpectrumTable):
        return [records.wavelength_angstrom, records.flux, records.inverse_variance]
    return [part for s in records for part in (s.wavelength_angstrom, s.flux, s.inverse_variance)]


def _labels(labels: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Drops columns that say nothing (one value everywhere, or all missing)."""
    return {
        name: column for name, column in labels.items() if name == "redshift" or len(set(column.tolist())) > 1
    }
