"""Shape numbers of point clouds: radius of gyration, asphericity, a ratio of principal moments."""

import numpy as np
from ase.data import atomic_masses

from consilience.tokenizers.point_records import PointTable, element_numbers


def masses(table: PointTable) -> np.ndarray:
    """(T,) weight of every point: atomic masses in u for elements, 1 for all points of other clouds."""
    if table.codes is None or table.unit != "angstrom":
        return np.ones(len(table.positions))
    numbers = element_numbers(table.names)
    return np.where(numbers > 0, atomic_masses[numbers], 1.0)[table.codes]


def shape_labels(table: PointTable) -> dict[str, np.ndarray]:
    """Shape of every cloud, (n,) float64 each; mass-weighted for atoms.

    radius_of_gyration: root of the mean squared distance from the centre of mass, in the unit of the clouds.
    asphericity: 0 for a ball, 1 for a rod; as RDKit's (Baumgaertner, J. Chem. Phys. 98, 7496, 1993).
    npr1: smallest over largest principal moment of inertia, 0 rod, 0.5 disc, 1 ball (Sauer & Schwarz 2003).
    n_points: the number of points.
    """
    sizes = table.sizes
    weight = masses(table)
    total = np.add.reduceat(weight, table.starts[:-1])
    x = table.positions.astype(np.float64)
    middle = np.add.reduceat(x * weight[:, None], table.starts[:-1], axis=0) / total[:, None]
    x = x - np.repeat(middle, sizes, axis=0)
    products = (weight[:, None, None] * x[:, :, None] * x[:, None, :]).reshape(-1, 9)
    gyration = (np.add.reduceat(products, table.starts[:-1], axis=0) / total[:, None]).reshape(-1, 3, 3)
    low, mid, high = np.clip(np.linalg.eigvalsh(gyration), 0, None).T
    spread = (high - mid) ** 2 + (high - low) ** 2 + (mid - low) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "radius_of_gyration": np.sqrt(low + mid + high),
            "asphericity": 0.5 * spread / (low + mid + high) ** 2,
            "npr1": (low + mid) / (mid + high),
            "n_points": sizes.astype(np.float64),
        }
