"""Spectrum and SpectrumTable: a galaxy's light on the wavelength grid of the instrument that took it.

Fluxes keep float32 or float64, whichever they came in (FITS byte order and integers are converted); a list of
`Spectrum` and a `SpectrumTable` of the same rows give the same tokens to the bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

from consilience.core.errors import ConsilienceError


def as_floats(values: Any) -> np.ndarray:
    """The values as a native float32 array where they are 32 bits or less of float, else as float64."""
    array = np.asarray(values)
    small = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return np.ascontiguousarray(array, dtype=np.float32 if small else np.float64)


def wavelength_problem(wavelength_angstrom: np.ndarray) -> str | None:
    """Why a wavelength grid cannot be used, or None when it can: it must be positive and increasing."""
    if wavelength_angstrom.ndim != 1 or not wavelength_angstrom.size:
        return "it has no pixels"
    falls = ~(wavelength_angstrom[1:] > wavelength_angstrom[:-1])  # NaN is not greater than anything
    if wavelength_angstrom[0] > 0 and wavelength_angstrom[-1] < np.inf and not falls.any():
        return None
    bad = ~(np.isfinite(wavelength_angstrom) & (wavelength_angstrom > 0))
    if bad.any():
        pixel = int(np.argmax(bad))
        return f"the wavelength of pixel {pixel} is {wavelength_angstrom[pixel]}; give positive numbers in Å"
    pixel = int(np.argmax(falls))
    before, after = wavelength_angstrom[pixel : pixel + 2]
    return (
        f"wavelengths must increase, but {before:g} Å at pixel {pixel} is followed by {after:g} Å; "
        "sort the pixels and drop repeats"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """One spectrum. Whether it can be used is said by `problem`, so that bad ones can be listed.

    Args:
        wavelength_angstrom: (n,) observed wavelengths in Å, increasing.
        flux: (n,) flux density per unit wavelength, in any unit; NaN where not measured.
        inverse_variance: (n,) 1 / error**2 in the flux's unit; 0 (or NaN) where not measured.
        mask: (n,) bool, True = bad pixel; None when the inverse variance says it all.
        id: a name.
    """

    wavelength_angstrom: np.ndarray
    flux: np.ndarray
    inverse_variance: np.ndarray
    mask: np.ndarray | None = None
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "wavelength_angstrom", np.asarray(self.wavelength_angstrom, dtype=np.float64)
        )
        object.__setattr__(self, "flux", as_floats(self.flux))
        object.__setattr__(self, "inverse_variance", as_floats(self.inverse_variance))
        if self.mask is not None:
            object.__setattr__(self, "mask", np.asarray(self.mask, dtype=bool))

    def __len__(self) -> int:
        return len(self.flux)

    @property
    def measured(self) -> np.ndarray:
        """(n,) bool: pixels with a finite flux and a positive, finite inverse variance, not masked."""
        return measured_pixels(self.flux, self.inverse_variance, self.mask)

    def problem(self) -> str | None:
        """Why it cannot be tokenized, or None when it can."""
        problem = self.shape_problem() or wavelength_problem(self.wavelength_angstrom)
        if problem is None and not self.measured.any():
            return nothing_measured(self.flux)
        return problem

    def shape_problem(self) -> str | None:
        """Names the array whose length differs, or None."""
        shape = self.flux.shape
        for name in ("wavelength_angstrom", "inverse_variance", "mask"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                return f"`{name}` has shape {array.shape}, but `flux` has {shape}"
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumTable:
    """n spectra on one wavelength grid: arrays instead of objects, for speed.

    Args:
        wavelength_angstrom: (n_pix,) observed wavelengths in Å, increasing.
        flux: (n, n_pix); see `Spectrum`.
        inverse_variance: (n, n_pix); see `Spectrum`.
        mask: (n, n_pix) bool, True = bad pixel, or None.
        ids: (n,) names, or None for the row numbers.

    Raises:
        ConsilienceError: shapes that do not fit, or a grid that does not increase.
    """

    wavelength_angstrom: np.ndarray
    flux: np.ndarray
    inverse_variance: np.ndarray
    mask: np.ndarray | None = None
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        wavelength = np.asarray(self.wavelength_angstrom, dtype=np.float64)
        object.__setattr__(self, "wavelength_angstrom", wavelength)
        object.__setattr__(self, "flux", as_floats(self.flux))
        object.__setattr__(self, "inverse_variance", as_floats(self.inverse_variance))
        if self.mask is not None:
            object.__setattr__(self, "mask", np.asarray(self.mask, dtype=bool))
        shape = (len(self.flux), *wavelength.shape)
        for name in ("flux", "inverse_variance", "mask"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ConsilienceError(
                    f"spectra: `{name}` has shape {array.shape}; a grid of {wavelength.size} wavelengths "
                    f"and {len(self.flux)} rows need {shape}"
                )
        problem = wavelength_problem(wavelength)
        if problem:
            raise ConsilienceError(f"spectra on one grid: {problem}")

    def __len__(self) -> int:
        return len(self.flux)

    def __getitem__(self, row: int) -> Spectrum:
        if not -len(self) <= row < len(self):
            raise IndexError(f"spectrum {row} of {len(self)}")
        return Spectrum(
            wavelength_angstrom=self.wavelength_angstrom,
            flux=self.flux[row],
            inverse_variance=self.inverse_variance[row],
            mask=None if self.mask is None else self.mask[row],
            id=str(row if self.ids is None else self.ids[row]),
        )

    @property
    def flux_type(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.flux.dtype

    @property
    def inverse_variance_type(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.inverse_variance.dtype

    def read(self, rows: slice, flux: np.ndarray, inverse_variance: np.ndarray) -> np.ndarray | None:
        """Copy these rows into the given arrays; returns their mask."""
        np.copyto(flux, self.flux[rows])
        np.copyto(inverse_variance, self.inverse_variance[rows])
        return None if self.mask is None else self.mask[rows]

    def __iter__(self) -> Iterator[Spectrum]:
        return (self[row] for row in range(len(self)))

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The rows with these indices, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        return type(self)(
            wavelength_angstrom=self.wavelength_angstrom,
            flux=self.flux[index],
            inverse_variance=self.inverse_variance[index],
            mask=None if self.mask is None else self.mask[index],
            ids=None if self.ids is None else np.asarray(self.ids)[index],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumGroup:
    """Spectra of a list that share one grid, one precision and having a mask or not; read in blocks, never stacked.

    Args:
        spectra: at least one.
    """

    spectra: Sequence[Spectrum]

    def __len__(self) -> int:
        return len(self.spectra)

    @property
    def wavelength_angstrom(self) -> np.ndarray:
        """(n_pix,) observed wavelengths in Å."""
        return self.spectra[0].wavelength_angstrom

    @property
    def flux_type(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.spectra[0].flux.dtype

    @property
    def inverse_variance_type(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.spectra[0].inverse_variance.dtype

    def read(self, rows: slice, flux: np.ndarray, inverse_variance: np.ndarray) -> np.ndarray | None:
        """Copy these rows into the given arrays; returns their mask."""
        masks = []
        for row, spectrum in enumerate(self.spectra[rows]):
            flux[row], inverse_variance[row] = spectrum.flux, spectrum.inverse_variance
            if spectrum.mask is not None:
                masks.append(spectrum.mask)
        return np.stack(masks) if masks else None

    def table(self) -> SpectrumTable:
        """The same spectra as a table."""
        masks = [spectrum.mask for spectrum in self.spectra if spectrum.mask is not None]
        return SpectrumTable(
            wavelength_angstrom=self.wavelength_angstrom,
            flux=np.stack([spectrum.flux for spectrum in self.spectra]),
            inverse_variance=np.stack([spectrum.inverse_variance for spectrum in self.spectra]),
            mask=np.stack(masks) if masks else None,
            ids=np.array([spectrum.id for spectrum in self.spectra]),
        )


SpectraOnGrid: TypeAlias = SpectrumTable | SpectrumGroup
SpectrumRecords: TypeAlias = Sequence[Spectrum] | SpectrumTable


def measured_pixels(flux: np.ndarray, inverse_variance: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Pixels that count: finite flux, finite positive inverse variance, not masked."""
    good = np.isfinite(flux)
    good &= inverse_variance > 0
    good &= inverse_variance < np.inf
    if mask is not None:
        good &= ~mask
    return good


def nothing_measured(flux: np.ndarray) -> str:
    """The message for a spectrum without a single measured pixel."""
    if not np.isfinite(flux).any():
        return "every flux is NaN or infinite; drop this spectrum"
    return "the inverse variance is zero (or every pixel is masked) everywhere; drop this spectrum"


def groups_of(records: SpectrumRecords) -> list[tuple[np.ndarray, SpectraOnGrid]]:
    """Group usable records by wavelength grid: [(their (m,) indices, the spectra)], in order of first use.

    Fluxes of different precision form groups of their own, so that a neighbour never changes a record's tokens.
    """
    if isinstance(records, SpectrumTable):
        return [(np.arange(len(records)), records)] if len(records) else []
    groups: dict[tuple[object, ...], list[int]] = {}
    seen: dict[int, tuple[np.ndarray, bytes]] = {}  # holds the arrays, so that an id stays theirs
    for index, record in enumerate(records):
        wavelength = record.wavelength_angstrom
        grid = seen.get(id(wavelength), (wavelength, b""))[1]
        if not grid:
            grid = wavelength.tobytes()
            seen[id(wavelength)] = (wavelength, grid)
        key = (grid, record.flux.dtype, record.inverse_variance.dtype, record.mask is None)
        groups.setdefault(key, []).append(index)
    return [(np.array(rows), SpectrumGroup(spectra=[records[i] for i in rows])) for rows in groups.values()]


def tables_of(records: SpectrumRecords) -> list[tuple[np.ndarray, SpectrumTable]]:
    """`groups_of`, each as a table."""
    return [
        (rows, group if isinstance(group, SpectrumTable) else group.table())
        for rows, group in groups_of(records)
    ]
