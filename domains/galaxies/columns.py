"""From named columns to spectra: which column is the flux, which the wavelength, what is a label.

Shared by npz, HDF5, parquet and FITS tables. Names are matched without regard to case, to a leading group
("spectrum.flux") and to a leading "label_".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Failure
from consilience.tokenizers.spectra_records import (
    Spectrum,
    SpectrumRecords,
    SpectrumTable,
    measured_pixels,
    nothing_measured,
)

NAMES: dict[str, tuple[str, ...]] = {
    "wavelength": (
        "wavelength_angstrom",
        "wavelength",
        "wave",
        "wave_a",
        "lambda",
        "lam",
        "wl",
        "wavelengths",
    ),
    "log_wavelength": ("loglam", "log_wavelength", "log_lambda", "loglambda"),
    "flux": ("flux", "flam", "flux_lambda", "flux_density", "fluxes"),
    "inverse_variance": ("inverse_variance", "ivar", "invvar", "flux_ivar", "ivars"),
    "error": ("error", "err", "sigma", "flux_error", "flux_err", "fluxerr", "uncertainty", "std"),
    "mask": ("mask", "and_mask", "bad", "masked"),
    "redshift": ("redshift", "z", "z_spec", "zspec", "z_hp"),
    "id": ("id", "ids", "object_id", "targetid", "specobjid", "objid", "name"),
}
"""Role -> accepted names, the best first. Wavelengths are in Å unless said otherwise; log_wavelength is their log10."""

ANGSTROM = {"angstrom": 1.0, "nm": 10.0, "um": 1e4, "m": 1e10}
"""Units of wavelengths that a reader may be told, in Å; the names are astropy's."""

OBSERVED = (912.0, 3e5)
"""Å: from the Lyman limit, below which the hydrogen of our Galaxy lets nothing through, to the far infrared."""

_PARTS = ("flux", "wavelength", "inverse_variance", "mask")


@dataclass(frozen=True, kw_only=True)
class ReadSpectra:
    """What a file gave.

    Args:
        records: usable spectra, a list or a table.
        ids: one a record.
        labels: name -> one entry a record.
        failures: unusable rows; `index` is the row in the file.
    """

    records: SpectrumRecords
    ids: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()


def short_name(name: str) -> str:
    """The bare lower-case name of a column: "spectrum.FLUX" -> "flux", "label_z" -> "z"."""
    return name.lower().rsplit("/", 1)[-1].rsplit(".", 1)[-1].removeprefix("label_")


def roles(names: Mapping[str, Any]) -> dict[str, str]:
    """Role -> the column that plays it, the best-ranked name first."""
    found: dict[str, str] = {}
    for role, accepted in NAMES.items():
        ranked = sorted((accepted.index(short_name(n)), n) for n in names if short_name(n) in accepted)
        if ranked:
            found[role] = ranked[0][1]
    return found


def spectra_of_columns(
    columns: Mapping[str, Any],
    source: str,
    *,
    error: float | None = None,
    unit: str | None = None,
    before: int = 0,
) -> ReadSpectra:
    """Spectra from named columns; see NAMES for the names that are understood.

    Args:
        columns: name -> array. Flux is (n, n_pix), (n,) of arrays of any length, or (n_pix,) for one spectrum;
            wavelength and inverse variance are the same, or (n_pix,) for all rows. Other one-dimensional columns
            with n entries become labels.
        source: file name for messages.
        error: error of every pixel in the flux's unit, where the file gives none.
        unit: of the wavelengths, one of ANGSTROM; None = Å, and grids of another are refused (see `keep_usable`).
        before: rows of the file that stand before these: spectra without an id are named by their row.

    Raises:
        ConsilienceError: a missing column, or columns that do not fit together.
    """
    found = roles(columns)
    columns, missing = _without_gaps(columns, found)
    flux = columns[_require(found, "flux", columns, source)]
    if not len(flux):
        raise ConsilienceError(f"{source}: it holds no spectra; its flux is empty")
    if _flat(flux):
        flux = np.asarray(flux)[None, :]
    n = len(flux)
    parts = {
        "flux": flux,
        "wavelength": scaled(_wavelength(columns, found, source), ANGSTROM[unit or "angstrom"]),
        "inverse_variance": _inverse_variance(columns, found, flux, error, source),
        "mask": columns[found["mask"]] if "mask" in found else None,
    }
    for role, part in parts.items():
        if part is not None and not _flat(part) and len(part) != n:
            raise ConsilienceError(f"{source}: `{role}` has {len(part)} rows for {n} spectra")
    names = np.atleast_1d(columns[found["id"]]) if "id" in found else np.empty(0)
    ids = np.array(
        [_text(name) for name in names] if len(names) == n else [str(before + row) for row in range(n)]
    )
    labels = labels_of_columns(columns, found, n)
    kept = np.setdiff1d(np.arange(n), list(missing))
    try:
        records = _records(_rows(parts, kept), ids[kept]) if len(kept) else []
    except ConsilienceError as problem:
        raise ConsilienceError(f"{source}: {problem}") from problem
    read = keep_usable(
        records, ids[kept], {name: column[kept] for name, column in labels.items()}, believed=unit is not None
    )
    failures = [replace(failure, index=int(kept[failure.index])) for failure in read.failures]
    failures += [Failure(index=row, id=str(ids[row]), reason=why) for row, why in missing.items()]
    return replace(read, failures=tuple(sorted(failures, key=lambda failure: failure.index)))


def _without_gaps(
    columns: Mapping[str, Any], found: Mapping[str, str]
) -> tuple[Mapping[str, Any], dict[int, str]]:
    """The columns with an empty row for each that is null or no list of numbers, and row -> why it cannot be used."""
    filled, missing = dict(columns), dict[int, str]()
    for role in (*_PARTS, "log_wavelength", "error"):
        column = columns.get(found.get(role, ""))
        if column is None or (isinstance(column, np.ndarray) and column.dtype != object):
            continue
        if not all(row is None or np.ndim(row) for row in column):
            continue  # one spectrum, a pixel a row
        bad = {
            i for i, row in enumerate(column) if np.ndim(row) != 1 or np.asarray(row).dtype.kind not in "biuf"
        }
        filled[found[role]] = [np.empty(0) if i in bad else row for i, row in enumerate(column)]
        for i in bad:
            what = "missing (null)" if column[i] is None else "no list of numbers"
            missing.setdefault(i, f"its `{found[role]}` is {what}; give one number a pixel")
    return (filled if missing else columns), missing


def _rows(parts: Mapping[str, Any], kept: np.ndarray) -> dict[str, Any]:
    """These rows of the parts that have one a row."""
    return {
        name: part
        if part is None or _flat(part)
        else part[kept]
        if isinstance(part, np.ndarray)
        else [part[row] for row in kept]
        for name, part in parts.items()
    }


def scaled(column: Any, factor: float) -> Any:
    """A column times a number, one array a row or one for all; as it is where the number is 1."""
    if factor == 1:
        return column
    if _flat(column) or (isinstance(column, np.ndarray) and column.dtype != object):
        return np.asarray(column, dtype=np.float64) * factor
    return [np.asarray(row, dtype=np.float64) * factor for row in column]


def keep_usable(
    records: SpectrumRecords, ids: np.ndarray, labels: Mapping[str, np.ndarray], *, believed: bool = False
) -> ReadSpectra:
    """Move spectra that cannot be tokenized into `failures`, and drop their ids and labels.

    Args:
        records: spectra as they were read.
        ids: one a record.
        labels: name -> one entry a record.
        believed: take all wavelengths for Å; else grids that can hardly be (see OBSERVED) are failures.
    """
    if isinstance(records, SpectrumTable):
        odd = None if believed else unit_problem(records.wavelength_angstrom)
        good = measured_pixels(records.flux, records.inverse_variance, records.mask).any(axis=1)
        reasons = {int(row): nothing_measured(records.flux[row]) for row in np.flatnonzero(~good)}
        reasons |= dict.fromkeys(range(len(records)), odd) if odd else {}
    else:
        problems = [
            record.problem() or (None if believed else unit_problem(record.wavelength_angstrom))
            for record in records
        ]
        reasons = {row: problem for row, problem in enumerate(problems) if problem}
    if not reasons:
        return ReadSpectra(records=records, ids=ids, labels=labels)
    kept = np.array([row for row in range(len(records)) if row not in reasons], dtype=np.int64)
    usable = records.take(kept) if isinstance(records, SpectrumTable) else [records[i] for i in kept]
    return ReadSpectra(
        records=usable,
        ids=ids[kept],
        labels={name: column[kept] for name, column in labels.items()},
        failures=tuple(Failure(index=i, id=str(ids[i]), reason=why) for i, why in sorted(reasons.items())),
    )


def unit_problem(wavelength_angstrom: np.ndarray) -> str | None:
    """Why increasing wavelengths can hardly be in Å, or None: half of the pixels lie outside of OBSERVED."""
    low, high = OBSERVED
    if low <= np.median(wavelength_angstrom) <= high:
        return None
    first, last = wavelength_angstrom[[0, -1]]
    return (
        f"its wavelengths run from {first:g} to {last:g} Å, but spectra of galaxies lie between {low:g} and {high:g} Å;"
        f" name the file's unit with wavelength_unit, one of {', '.join(ANGSTROM)}"
    )


def _flat(column: Any) -> bool:
    """Whether a column is one array for all rows rather than one a row."""
    return np.ndim(column[0]) == 0


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value).strip()


def _require(found: Mapping[str, str], role: str, columns: Mapping[str, Any], source: str) -> str:
    if role not in found:
        raise ConsilienceError(
            f"{source}: no column for the {role}; name it one of {', '.join(NAMES[role][:4])} "
            f"(the file has {', '.join(sorted(columns)) or 'no columns'})"
        )
    return found[role]


def _wavelength(columns: Mapping[str, Any], found: Mapping[str, str], source: str) -> Any:
    if "wavelength" in found or "log_wavelength" not in found:
        return columns[_require(found, "wavelength", columns, source)]
    logs = columns[found["log_wavelength"]]
    if _flat(logs) or (isinstance(logs, np.ndarray) and logs.dtype != object):
        return 10 ** np.asarray(logs, dtype=np.float64)
    return [10 ** np.asarray(row, dtype=np.float64) for row in logs]


def _inverse_variance(
    columns: Mapping[str, Any], found: Mapping[str, str], flux: Any, error: float | None, source: str
) -> Any:
    if "inverse_variance" in found:
        return columns[found["inverse_variance"]]
    if "error" in found:
        errors = columns[found["error"]]
        whole = _flat(errors) or (isinstance(errors, np.ndarray) and errors.dtype != object)
        return inverse_square(errors) if whole else [inverse_square(row) for row in errors]
    if error is None:
        raise ConsilienceError(
            f"{source}: no inverse variance; add a column `ivar` (or `error`), or read with error=VALUE, "
            "one error for all pixels in the flux's unit"
        )
    return [np.full(len(row), 1 / error**2) for row in flux]


def inverse_square(error: Any) -> np.ndarray:
    """1 / error**2, and 0 where the error is not a positive number."""
    error = np.asarray(error, dtype=np.float64)
    good = np.isfinite(error) & (error > 0)
    return np.where(good, 1 / np.where(good, error, 1) ** 2, 0)


def _records(parts: Mapping[str, Any], ids: np.ndarray) -> SpectrumRecords:
    """A table where all rows share one grid, else a list."""
    wavelength = parts["wavelength"]
    grid = wavelength if _flat(wavelength) else wavelength[0]
    shared = _flat(wavelength) or all(np.array_equal(row, grid) for row in wavelength)
    width = len(grid)
    rows = [
        part for name, part in parts.items() if part is not None and name != "wavelength" and not _flat(part)
    ]
    if shared and all(len(row) == width for part in rows for row in part):

        def stacked(name: str) -> np.ndarray:
            return np.stack([np.asarray(row) for row in _spread(parts[name], len(ids))])

        return SpectrumTable(
            wavelength_angstrom=np.asarray(grid),
            flux=stacked("flux"),
            inverse_variance=stacked("inverse_variance"),
            mask=None if parts["mask"] is None else stacked("mask") != 0,
            ids=ids,
        )
    spread = {name: _spread(part, len(ids)) for name, part in parts.items()}
    return [
        Spectrum(
            wavelength_angstrom=spread["wavelength"][i],
            flux=spread["flux"][i],
            inverse_variance=spread["inverse_variance"][i],
            mask=None if spread["mask"][i] is None else np.asarray(spread["mask"][i]) != 0,
            id=str(ids[i]),
        )
        for i in range(len(ids))
    ]


def _spread(part: Any, n: int) -> Any:
    """One entry a row, whether the column has one a row or one for all."""
    return [part] * n if part is None or _flat(part) else part


def labels_of_columns(columns: Mapping[str, Any], found: Mapping[str, str], n: int) -> dict[str, np.ndarray]:
    """Other one-dimensional columns with one number or text a row; the redshift under that name."""
    used = {name for role, name in found.items() if role != "redshift"}
    labels: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        array = np.atleast_1d(np.asarray(column)) if name not in used and np.ndim(column) <= 1 else None
        if array is None or array.shape != (n,) or not _plain(array):
            continue
        labels["redshift" if found.get("redshift") == name else short_name(name)] = label_column(array)
    return labels


def label_column(array: np.ndarray) -> np.ndarray:
    """A column as labels: numbers as float64, text stripped, "" for None."""
    if array.dtype.kind in "OSU":
        return np.array(["" if value is None else _text(value) for value in array])
    return array.astype(np.float64)


def _plain(array: np.ndarray) -> bool:
    """Whether every entry is a number, a truth value or text."""
    return array.dtype.kind in "biufSU" or all(value is None or isinstance(value, str) for value in array)
