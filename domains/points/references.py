"""Atomic reference energies: what composition alone explains of an energy, fitted on training molecules."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.point_records import PointTable


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """One energy for each element; their sum over the atoms of a molecule is its reference.

    Args:
        elements: G names.
        energies: (G,) in the unit of the labels.
        residual: root mean squared error of the fit on the molecules it was fitted to, in the same unit.
    """

    elements: tuple[str, ...]
    energies: np.ndarray
    residual: float

    @classmethod
    def fit(cls, clouds: PointTable, labels: np.ndarray) -> Self:
        """Least squares of the labels (n,) on how many atoms of each element the n molecules have.

        Raises:
            ConsilienceError: clouds without types, or fewer molecules than elements.
        """
        elements, counts = composition(clouds)
        if len(clouds) < len(elements):
            raise ConsilienceError(
                f"{len(clouds)} molecules cannot fix the reference energies of {len(elements)} elements; give more"
            )
        # Where elements always occur together, the smallest energies that fit.
        energies = np.linalg.lstsq(counts, labels, rcond=None)[0]
        return cls(
            elements=elements,
            energies=energies,
            residual=float(np.sqrt(np.square(labels - counts @ energies).mean())),
        )

    def of(self, clouds: PointTable) -> np.ndarray:
        """(n,) reference of every molecule.

        Raises:
            ConsilienceError: an element that the fit never saw.
        """
        elements, counts = composition(clouds)
        known = dict(zip(self.elements, self.energies.tolist()))
        missing = [name for name, n in zip(elements, counts.sum(0)) if n and name not in known]
        if missing:
            raise ConsilienceError(
                f"no reference energy for {', '.join(missing)}: the training molecules hold {', '.join(known)}; "
                "drop these molecules or train on some like them"
            )
        return counts @ np.array([known.get(name, 0.0) for name in elements])


def composition(clouds: PointTable) -> tuple[tuple[str, ...], np.ndarray]:
    """Elements that occur, sorted, and how many atoms of each every molecule has, (n, G) float64."""
    if clouds.codes is None:
        raise ConsilienceError(
            "reference energies need the elements of the atoms, and these clouds have no types"
        )
    width = len(clouds.names)
    cells = np.repeat(np.arange(len(clouds)), clouds.sizes) * width + clouds.codes
    counts = np.bincount(cells, minlength=len(clouds) * width).reshape(len(clouds), width).astype(np.float64)
    present = sorted(np.flatnonzero(counts.sum(0)).tolist(), key=lambda code: clouds.names[code])
    return tuple(clouds.names[code] for code in present), counts[:, present]
