"""SpectrumTokenizer: a spectrum as a scale token and flux patches on the instrument's own wavelength grid.

Token 0 is the scale: its channel 0 holds the standardised log of the spectrum's typical flux (times the spread of
all other values, so that one standardisation serves every token); normalising loses no luminosity. Tokens 1..N
hold P neighbouring pixels each, blue to red: flux / scale - 1 with its inverse variance as weight (0 where not
measured, so that a bad pixel says "as bright as typical, unknown").
The address of a patch is the natural log of its central wavelength: a redshift moves a spectrum along it, and
Fourier features make the absolute place visible. Nothing is resampled; instruments may differ from row to row.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.records import Failure
from consilience.core.tokenizer import Tokenizer
from consilience.tokenizers.spectra_describe import describe_patches
from consilience.tokenizers.spectra_grids import StoredGrid, TrainingStatistics, training_statistics
from consilience.tokenizers.spectra_options import SpectrumOptions
from consilience.tokenizers.spectra_patches import cut, grid_of_centres, n_patches, patch_centres
from consilience.tokenizers.spectra_records import (
    Spectrum,
    SpectrumRecords,
    SpectrumTable,
    groups_of,
    measured_pixels,
    nothing_measured,
    tables_of,
    wavelength_problem,
)

logger = logging.getLogger(__name__)

SCALE, PATCH = 0, 1
"""The discrete addresses."""

_OVERFLOW = "flux times inverse variance is beyond the range of numbers; give the flux in a larger unit"

SCALE_PRECISION = 1e4
"""Inverse variance of the standardised log scale: its error is 1 % of the spread in training."""


class SpectrumTokenizer(Tokenizer[SpectrumRecords]):
    """Spectra <-> tokens; see the module docstring.

    Args:
        options: see SpectrumOptions.
        statistics: what training rows look like.
    """

    science: ClassVar[str] = "galaxies"
    takes: ClassVar[str] = (
        "a SpectrumTable, or a list of Spectrum(wavelength_angstrom=..., flux=..., inverse_variance=...)"
    )

    def __init__(self, *, options: SpectrumOptions, statistics: TrainingStatistics) -> None:
        self.options = options
        self.statistics = statistics
        self.grids = statistics.grids
        self._centres = [patch_centres(grid.wavelength_angstrom, options.patch_size) for grid in self.grids]
        self._unit = statistics.log_scale_std / statistics.value_spread  # log scale a unit of value
        self._scale_weight = SCALE_PRECISION / statistics.value_spread**2
        self._warned = False

    @property
    def spec(self) -> TokenSpec:
        """Patches of pixels at log wavelengths. Periods run from two patches to twice the whole range."""
        log_ends = [np.log(grid.wavelength_angstrom[[0, -1]]) for grid in self.grids]
        whole = float(max(ends[1] for ends in log_ends) - min(ends[0] for ends in log_ends))
        shortest = 2 * self.options.patch_size * self.grids[0].pixel_step
        return TokenSpec(
            name=self.science,
            channels=self.options.patch_size,
            addresses=2,
            coordinates=1,
            position_encoding="both",
            periods=(shortest, 2 * max(whole, shortest)),
            value_likelihood="gaussian",
            value_scale=self.statistics.value_spread,
            weighted=True,
        )

    @classmethod
    def fit(cls, records: SpectrumRecords, **options: Any) -> Self:
        """Learn scales, spread and wavelength grids from these training rows; options as in SpectrumOptions.

        Unusable rows are passed over (`check` names them); ConsilienceError when none is usable.
        """
        known = [field.name for field in fields(SpectrumOptions)]
        for name in options:
            if name not in known:
                raise ConsilienceError(
                    f"unknown option `{name}` of the spectra tokenizer; known: {', '.join(known)}"
                )
        chosen = SpectrumOptions(**options)
        usable = records
        if not isinstance(records, SpectrumTable):
            usable = [record for record in records if record.problem() is None]
        statistics = training_statistics(
            tables_of(usable),
            chosen.patch_size,
            max_grids=chosen.max_grids,
            max_weight=chosen.max_weight,
            min_weight=chosen.min_weight,
        )
        if statistics is None:
            first = next(iter(_failures(records)), None)
            why = f"; record {first.index}: {first.reason}" if first else " (none were given)"
            raise ConsilienceError(f"no usable spectrum to fit the tokenizer on{why}")
        return cls(options=chosen, statistics=statistics)

    def encode(self, records: SpectrumRecords, *, generator: torch.Generator | None = None) -> TokenBatch:
        """Tokens, scale first, then patches blue to red. There is no training-time randomness.

        Raises:
            UnreadableRecordError: the first record that `check` would name.
        """
        _refuse_misshapen(records)
        size = self.options.patch_size
        lengths = self.lengths(records)
        parts, unmeasured, overflown = [], [], []
        for rows, group in groups_of(records):
            self._warn_of_range(group.wavelength_angstrom)
            patches = cut(
                group,
                size,
                max_weight=self.options.max_weight,
                min_weight=self.options.min_weight,
                first=1,
            )
            unmeasured += rows[np.isnan(patches.scale)].tolist()
            overflown += rows[np.isinf(patches.scale)].tolist()
            patches.values[:, 0, 0] = self._scale_values(patches.scale)
            patches.weight[:, 0, 0] = self._scale_weight
            centres = patch_centres(group.wavelength_angstrom, size)
            parts.append((rows, patches.values, patches.weight, _positions(centres)))
        if unmeasured:
            row = min(unmeasured)
            raise UnreadableRecordError(row, nothing_measured(records[row].flux))
        if overflown:
            raise UnreadableRecordError(min(overflown), _OVERFLOW)
        n, width = len(lengths), int(lengths.max(initial=1))
        if len(parts) == 1:  # one grid, all rows in order: no copies
            values, weight = parts[0][1], parts[0][2]
            positions = np.broadcast_to(parts[0][3], (n, width)).copy()
        else:
            values = np.zeros((n, width, size), dtype=np.float32)
            weight, positions = np.zeros_like(values), np.zeros((n, width), dtype=np.float32)
            for rows, some_values, some_weight, some_positions in parts:
                values[rows, : len(some_positions)] = some_values
                weight[rows, : len(some_positions)] = some_weight
                positions[rows, : len(some_positions)] = some_positions
        # Not validated: with scales that are numbers, `cut` leaves no value beyond LARGEST_VALUE and no weight beyond
        # max_weight, and looking at all of them again would take a quarter of the time.
        return self._batch(lengths, values, weight, positions)

    def _warn_of_range(self, wavelength_angstrom: np.ndarray) -> None:
        """Say once that a grid lies wholly outside of those of training: such addresses were never seen."""
        low = min(grid.wavelength_angstrom[0] for grid in self.grids)
        high = max(grid.wavelength_angstrom[-1] for grid in self.grids)
        first, last = wavelength_angstrom[[0, -1]]
        if self._warned or (first <= high and last >= low):
            return
        self._warned = True
        logger.warning(
            "galaxies: wavelengths from %g to %g Å lie wholly outside of %g to %g Å, what the tokenizer was fitted on; "
            "are they in another unit (wavelength_unit of the reader)?", first, last, low, high,
        )  # fmt: skip

    def _scale_values(self, scale: np.ndarray) -> np.ndarray:
        """Scales as values of token 0."""
        return (np.log(scale) - self.statistics.log_scale_mean) / self._unit

    def _scales(self, value: float) -> float:
        """The inverse of `_scale_values` for one value."""
        return math.exp(float(value) * self._unit + self.statistics.log_scale_mean)

    def _batch(
        self, lengths: np.ndarray, values: np.ndarray, weight: np.ndarray, positions: np.ndarray
    ) -> TokenBatch:
        length = torch.from_numpy(lengths)
        address = (torch.arange(values.shape[1])[None, :] < length[:, None]).long() * PATCH
        address[:, 0] = SCALE
        return TokenBatch(
            length=length,
            values=torch.from_numpy(values),
            weight=torch.from_numpy(weight),
            address=address,
            positions=torch.from_numpy(positions)[..., None],
        )

    def is_record(self, record: Any) -> bool:
        """A Spectrum."""
        return isinstance(record, Spectrum)

    def decode(self, tokens: TokenBatch) -> list[Spectrum]:
        """Spectra with flux = scale * (value + 1) on the grid of their patches.

        Measured pixels come back to about 1e-6 of the scale; not measured ones have flux NaN and inverse variance
        0. The grid is the stored one with the same patch centres, else interpolated between them (exact for
        logarithmic grids), where unmeasured pixels at the red end of the last patch are dropped.
        """
        assert tokens.values is not None and tokens.positions is not None
        values = tokens.values.detach().cpu().double().numpy()
        weight = (
            np.zeros_like(values) if tokens.weight is None else tokens.weight.detach().cpu().double().numpy()
        )
        positions = tokens.positions.detach().cpu().numpy()[:, :, 0]
        spectra = []
        for row, length in enumerate(tokens.length.tolist()):
            scale = self._scales(values[row, 0, 0])
            flat, ivar = values[row, 1:length].ravel(), weight[row, 1:length].ravel()
            wavelength = self._wavelengths(positions[row, 1:length], ivar)
            flat, ivar = flat[: wavelength.size], ivar[: wavelength.size]
            spectra.append(
                Spectrum(
                    wavelength_angstrom=wavelength,
                    flux=np.where(ivar > 0, (flat + 1) * scale, np.nan).astype(np.float32),
                    inverse_variance=(ivar / scale / scale).astype(np.float32),
                    id=str(row),
                )
            )
        return spectra

    def _wavelengths(self, centres: np.ndarray, weight: np.ndarray) -> np.ndarray:
        for grid, known in zip(self.grids, self._centres, strict=True):
            if np.array_equal(known, centres):
                return grid.wavelength_angstrom
        measured = np.flatnonzero(weight)
        last = centres.size * self.options.patch_size - self.options.patch_size + 1
        size = max(last, int(measured[-1]) + 1) if measured.size else weight.size
        return grid_of_centres(centres, self.options.patch_size, self.grids[0].pixel_step)[:size]

    def lengths(self, records: SpectrumRecords) -> np.ndarray:
        """(n,) int64: one scale token and one token a patch."""
        size = self.options.patch_size
        if isinstance(records, SpectrumTable):
            return np.full(
                len(records), 1 + n_patches(records.wavelength_angstrom.size, size), dtype=np.int64
            )
        return np.array([1 + n_patches(len(record), size) for record in records], dtype=np.int64)

    def check(self, records: SpectrumRecords) -> list[Failure]:
        """Spectra without a measured pixel, with wavelengths that do not increase, or with unequal lengths."""
        return list(_failures(records))

    def template(self, n: int, *, generator: torch.Generator, open_end: bool = False) -> TokenBatch:
        """n empty spectra on training grids (drawn as often as they occurred) with each grid's typical weights.

        The content is zero and to be generated; the weight tells how well a pixel would be measured.
        """
        counts = torch.tensor([float(grid.count) for grid in self.grids])
        drawn = torch.multinomial(counts, n, replacement=True, generator=generator).numpy()
        size = self.options.patch_size
        lengths = np.array([1 + len(self._centres[i]) for i in drawn], dtype=np.int64)
        weight = np.zeros((n, int(lengths.max(initial=1)), size), dtype=np.float32)
        positions = np.zeros(weight.shape[:2], dtype=np.float32)
        for i, grid in enumerate(self.grids):
            rows, length = drawn == i, 1 + len(self._centres[i])
            padded = np.zeros(length * size, dtype=np.float32)
            padded[0] = self._scale_weight
            padded[size : size + grid.weight.size] = grid.weight
            weight[rows, :length] = padded.reshape(length, size)
            positions[rows, :length] = _positions(self._centres[i])
        return self._batch(lengths, np.zeros_like(weight), weight, positions).validate(self.spec)

    def describe(self, record: Spectrum) -> str:
        """The scale, the patches with their wavelength ranges and mean fluxes, and how much is not measured."""
        tokens = self.encode([record])
        assert tokens.values is not None and tokens.weight is not None
        first = float(tokens.values[0, 0, 0])
        return describe_patches(
            record,
            tokens.values[0, 1:].numpy(),
            tokens.weight[0, 1:].numpy(),
            scale=self._scales(first),
            deviation=first / self.statistics.value_spread,
        )

    def state(self) -> dict[str, Any]:
        """Options, statistics and grids, as JSON types."""
        return {
            "options": asdict(self.options),
            "log_scale_mean": self.statistics.log_scale_mean,
            "log_scale_std": self.statistics.log_scale_std,
            "value_spread": self.statistics.value_spread,
            "grids": [grid.state() for grid in self.grids],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        statistics = TrainingStatistics(
            log_scale_mean=state["log_scale_mean"],
            log_scale_std=state["log_scale_std"],
            value_spread=state["value_spread"],
            grids=tuple(StoredGrid.from_state(grid) for grid in state["grids"]),
        )
        return cls(options=SpectrumOptions(**state["options"]), statistics=statistics)


def _positions(centres: np.ndarray) -> np.ndarray:
    """(1 + N,) float32: the scale token stands at the mean of the patches, then the patches."""
    return np.concatenate([[centres.mean(dtype=np.float64)], centres]).astype(np.float32)


def _failures(records: SpectrumRecords) -> Iterable[Failure]:
    if isinstance(records, SpectrumTable):
        good = measured_pixels(records.flux, records.inverse_variance, records.mask).any(axis=1)
        for row in np.flatnonzero(~good).tolist():
            yield Failure(index=row, id="", reason=nothing_measured(records.flux[row]))
        return
    for index, record in enumerate(records):
        if not isinstance(record, Spectrum):
            yield Failure(
                index=index, id="", reason=f"a {type(record).__name__} is no Spectrum; make one of it"
            )
            continue
        problem = record.problem()
        if problem:
            yield Failure(index=index, id=record.id, reason=problem)


def _refuse_misshapen(records: SpectrumRecords) -> None:
    """Raise on the first unusable record if some record's arrays or wavelengths cannot be read.

    Tables were checked when built; rows without a measured pixel are found while patches are cut.
    """
    if isinstance(records, SpectrumTable):
        return
    fine: dict[int, np.ndarray] = {}  # wavelengths that were looked at; held, so that an id stays theirs
    for record in records:
        if not isinstance(record, Spectrum) or _misshapen(record, fine):
            first = next(iter(_failures(records)))
            raise UnreadableRecordError(first.index, first.reason)
        fine[id(record.wavelength_angstrom)] = record.wavelength_angstrom


def _misshapen(record: Spectrum, fine: Mapping[int, np.ndarray]) -> bool:
    """Whether its arrays or wavelengths cannot be read; `fine` are wavelengths that were looked at before."""
    wavelength = record.wavelength_angstrom
    return bool(record.shape_problem() or (id(wavelength) not in fine and wavelength_problem(wavelength)))
