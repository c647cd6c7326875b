"""Tasks of point clouds, and two classical representations: sorted distances with composition, and voxels."""

from itertools import pairwise

import numpy as np

from consilience.core.records import Collection
from consilience.domains.base import Task
from consilience.tokenizers.point_records import PointTable

KNOWN = {
    "gap_ev": "HOMO-LUMO gap (eV)",
    "homo_ev": "HOMO (eV)",
    "lumo_ev": "LUMO (eV)",
    "dipole_debye": "dipole moment (D)",
    "polarizability_bohr3": "polarizability (bohr³)",
}
SHAPES = {"radius_of_gyration": "radius of gyration", "asphericity": "asphericity", "npr1": "NPR1"}
NOT_TASKS = ("n_points", "index", "id", "ids", "name")
QUANTILES = 32
BINS = 32
VOXELS = 16
"""A side of the grid."""
MOST_POINTS = 128
"""Distances of larger clouds are taken between this many of their points, evenly spaced in order of radius."""


def tasks(collection: Collection) -> list[Task]:
    """QM9's properties, then labels of the user, then the shape of the clouds.

    The radius of gyration is nearly a function of the number of points; asphericity and NPR1 (the ratio of the
    smallest to the largest moment of inertia) are not, and say more about what a model knows of shape.
    """
    angstrom = isinstance(collection.records, PointTable) and collection.records.unit == "angstrom"
    units = {"radius_of_gyration": " (Å)" if angstrom else ""}
    known = [
        Task(name=name, label=label, kind="regression")
        for label, name in KNOWN.items()
        if label in collection.labels
    ]
    shapes = [
        Task(name=name + units.get(label, ""), label=label, kind="regression")
        for label, name in SHAPES.items()
        if label in collection.labels
    ]
    own = []
    for label, column in collection.labels.items():
        if label in KNOWN or label in SHAPES or label in NOT_TASKS:
            continue
        values = np.unique(column[column != ""] if column.dtype.kind in "US" else column[np.isfinite(column)])
        if column.dtype.kind not in "US" and len(values) > 1:
            own.append(Task(name=label, label=label, kind="regression"))
        elif 1 < len(values) <= len(column) // 2:
            own.append(Task(name=label, label=label, kind="classification"))
    return [*known, *own, *shapes]


def baseline(collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
    """Sorted pairwise distances of every cloud at a fixed length, and how many points of each type it has.

    Invariant to rotation, translation and the order of the points. The distances enter as `QUANTILES` evenly
    spaced values of their sorted list and as a histogram per point, whose bins reach the longest distance of
    the training records.

    Returns:
        Name and features (n, QUANTILES + BINS + 1 + types) float64.
    """
    table = PointTable.of(collection.records)
    longest = max(distances.max() for _, distances in _distances(table.take(train)))
    edges = np.linspace(0, longest, BINS + 1)[1:-1]
    features = np.zeros((len(table), QUANTILES + BINS))
    for rows, distances in _distances(table):
        count = distances.shape[1]
        place = np.linspace(0, count - 1, QUANTILES)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, count - 1)
        features[rows, :QUANTILES] = distances[:, low] + (place - low) * (
            distances[:, high] - distances[:, low]
        )
        bins = np.searchsorted(edges, distances) + BINS * np.arange(len(rows))[:, None]
        histogram = np.bincount(bins.ravel(), minlength=BINS * len(rows)).reshape(len(rows), BINS)
        features[rows, QUANTILES:] = histogram / table.sizes[rows][:, None]
    counts = [table.sizes[:, None].astype(np.float64)]
    if table.codes is None:
        return "sorted distances", np.hstack([features, *counts])
    cells = np.repeat(np.arange(len(table)), table.sizes) * len(table.names) + table.codes
    composition = np.bincount(cells, minlength=len(table) * len(table.names)).reshape(len(table), -1)
    seen = composition[train].sum(0) > 0
    return "sorted distances + composition", np.hstack([features, *counts, composition[:, seen]])


def occupancy(collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
    """The share of a cloud's points in every voxel of a cube around its centre, as a square root.

    It depends on how a cloud lies, so it is for clouds in a frame of their own, such as furniture that stands upright.
    The cube holds all training clouds; what lies beyond counts at its border. Voxels that no training cloud fills are
    left out. The square root makes differences of shares Hellinger distances.

    Returns:
        Name and features (n, at most VOXELS³) float32.
    """
    table = PointTable.of(collection.records)
    owner = np.repeat(np.arange(len(table)), table.sizes)
    x = table.positions.astype(np.float64)
    centre = np.stack([np.bincount(owner, column) for column in x.T], axis=1) / table.sizes[:, None]
    x -= centre[owner]
    half = float(np.abs(x[np.isin(owner, train)]).max()) or 1.0
    cell = np.clip(((x / half + 1) / 2 * VOXELS).astype(int), 0, VOXELS - 1)
    flat = (cell[:, 0] * VOXELS + cell[:, 1]) * VOXELS + cell[:, 2]
    held = np.zeros(VOXELS**3, dtype=bool)
    held[flat[np.isin(owner, train)]] = True
    column = np.cumsum(held) - 1
    inside = held[flat]
    cells = owner[inside] * int(held.sum()) + column[flat[inside]]
    counts = np.bincount(cells, minlength=len(table) * int(held.sum())).reshape(len(table), -1)
    return f"occupancy of {VOXELS}³ voxels", np.sqrt(counts / table.sizes[:, None]).astype(np.float32)


def _distances(table: PointTable) -> list[tuple[np.ndarray, np.ndarray]]:
    """(indices of clouds, their sorted distances (B, pairs)), clouds of one size together."""
    parts = []
    for size in np.unique(table.sizes):
        every = np.flatnonzero(table.sizes == size)
        chunk = max(1, 2**22 // int(min(size, MOST_POINTS)) ** 2)
        for start, stop in pairwise([*range(0, len(every), chunk), len(every)]):
            rows = every[start:stop]
            sub = table.take(rows)
            x = sub.padded(sub.positions).astype(np.float64)
            if size > MOST_POINTS:
                radius = np.square(x - x.mean(1, keepdims=True)).sum(2)
                spaced = np.linspace(0, size - 1, MOST_POINTS).round().astype(int)
                picks = np.argsort(radius, axis=1, kind="stable")[:, spaced]
                x = np.take_along_axis(x, picks[..., None], axis=1)
            first, second = np.triu_indices(x.shape[1], k=1)
            parts.append((rows, np.sort(np.linalg.norm(x[:, first] - x[:, second], axis=2), axis=1)))
    return parts
