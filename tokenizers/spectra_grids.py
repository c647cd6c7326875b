"""What the tokenizer learns from training rows: the spread of scales and values, and the wavelength grids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from consilience.tokenizers.spectra_patches import Patches, cut
from consilience.tokenizers.spectra_records import SpectrumTable

ROWS_FOR_TYPICAL = 1024
"""Typical weights and the spread of values are taken from at most about this many rows a grid, evenly spaced."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredGrid:
    """One wavelength grid seen in training.

    Args:
        wavelength_angstrom: (n_pix,) in Å.
        weight: (n_pix,) median weight of the training rows, as `cut` scales it.
        count: number of training rows on this grid.
    """

    wavelength_angstrom: np.ndarray
    weight: np.ndarray
    count: int

    @property
    def pixel_step(self) -> float:
        """Typical difference of log wavelength between neighbouring pixels; 1e-4 for a single pixel."""
        if self.wavelength_angstrom.size < 2:
            return 1e-4
        return float(np.median(np.diff(np.log(self.wavelength_angstrom))))

    def state(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "wavelength_angstrom": self.wavelength_angstrom.tolist(),
            "weight": [float(f"{value:.4g}") for value in self.weight.tolist()],
            "count": self.count,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        return cls(
            wavelength_angstrom=np.array(state["wavelength_angstrom"], dtype=np.float64),
            weight=np.array(state["weight"], dtype=np.float32),
            count=int(state["count"]),
        )


@dataclass(frozen=True, kw_only=True)
class TrainingStatistics:
    """What training rows look like.

    Args:
        log_scale_mean: mean of the natural log of the scales.
        log_scale_std: its standard deviation, at least 0.01.
        value_spread: half the range from the 16th to the 84th percentile of flux / scale, at least 0.01.
        grids: wavelength grids, the most common first.
    """

    log_scale_mean: float
    log_scale_std: float
    value_spread: float
    grids: tuple[StoredGrid, ...]


def training_statistics(
    groups: Sequence[tuple[np.ndarray, SpectrumTable]],
    patch_size: int,
    *,
    max_grids: int,
    max_weight: float,
    min_weight: float,
) -> TrainingStatistics | None:
    """Learn from training rows; rows without a measured pixel are passed over. None when no row is left.

    Args:
        groups: rows and their table, one a grid, as `tables_of` gives them.
        patch_size: pixels a patch.
        max_grids: how many grids are kept; ties go to the one seen first.
        max_weight: see `cut`.
        min_weight: see `cut`.
    """
    log_scales, values, grids = [], [], dict[bytes, StoredGrid]()
    for _, table in groups:
        every = max(1, len(table) // ROWS_FOR_TYPICAL)
        weights = []
        for start in range(0, len(table), 4096):  # bounded memory for large tables
            chunk = table.take(np.arange(start, min(start + 4096, len(table))))
            patches = cut(chunk, patch_size, max_weight=max_weight, min_weight=min_weight)
            usable = np.isfinite(patches.scale)
            log_scales.append(np.log(patches.scale[usable]))
            picked = np.flatnonzero(usable & ((np.arange(len(chunk)) + start) % every == 0))
            weights.append(_pixels(patches, picked, table.wavelength_angstrom.size))
            values.append(patches.values[picked][patches.weight[picked] > 0])
        typical = np.concatenate(weights)
        if len(typical):
            _add_grid(grids, table, np.median(typical, axis=0))
    log_scale = np.concatenate(log_scales) if log_scales else np.empty(0)
    if not log_scale.size or not grids:
        return None
    low, high = np.percentile(np.concatenate(values), [16, 84])
    return TrainingStatistics(
        log_scale_mean=float(log_scale.mean()),
        log_scale_std=max(float(log_scale.std()), 0.01),
        value_spread=max(float(f"{(high - low) / 2:.4g}"), 0.01),
        grids=tuple(sorted(grids.values(), key=lambda grid: -grid.count)[:max_grids]),
    )


def _pixels(patches: Patches, rows: np.ndarray, n_pixels: int) -> np.ndarray:
    """(len(rows), n_pixels) weights without the filling of the last patch."""
    return patches.weight[rows].reshape(len(rows), -1)[:, :n_pixels]


def _add_grid(grids: dict[bytes, StoredGrid], table: SpectrumTable, weight: np.ndarray) -> None:
    """Count a table's rows to its grid. Rows of another precision or without masks form tables of their own:
    the first of them tells the typical weight."""
    key = table.wavelength_angstrom.tobytes()
    known = grids.get(key)
    rounded = np.array([float(f"{value:.4g}") for value in weight], dtype=np.float32)  # as in `state`
    grids[key] = StoredGrid(
        wavelength_angstrom=table.wavelength_angstrom,
        weight=known.weight if known else rounded,
        count=len(table) + (known.count if known else 0),
    )
