"""What makes a point cloud unreadable: found for many clouds at once, told as one clear line each."""

import numpy as np
from scipy.spatial import cKDTree

from consilience.tokenizers.point_records import PointTable

COINCIDENT_ANGSTROM = 1e-3
"""Two atoms closer than this stand at one place (the shortest bond, H-H, measures 0.74 Å)."""


def problems(table: PointTable) -> dict[int, str]:
    """Cloud index -> why it cannot be used: no points, one point, NaN, two typed points at one place."""
    found: dict[int, str] = {}
    sizes = table.sizes
    for index in np.flatnonzero(sizes < 2):
        found[int(index)] = (
            "no points"
            if sizes[index] == 0
            else ("one point alone: nothing is left of it once the centroid is removed; drop it")
        )
    broken = ~np.isfinite(table.positions).all(1)
    for row in np.flatnonzero(broken):
        index = _cloud_of(table, row)
        found.setdefault(index, f"coordinates of point {row - table.starts[index]} are NaN or infinite")
    if table.features is not None:
        for row in np.flatnonzero(~np.isfinite(table.features).all(1)):
            index = _cloud_of(table, row)
            found.setdefault(index, f"features of point {row - table.starts[index]} are NaN or infinite")
    if table.codes is not None:
        clean = np.array([i for i in range(len(table)) if i not in found], dtype=np.int64)
        for index, first, second in _coincident(table, clean):
            found[index] = (
                f"points {first} and {second} stand at one place "
                f"(closer than {COINCIDENT_ANGSTROM:g}); remove one"
            )
    return dict(sorted(found.items()))


def _cloud_of(table: PointTable, row: int) -> int:
    return int(np.searchsorted(table.starts, row, side="right") - 1)


def _coincident(table: PointTable, indices: np.ndarray, chunk: int = 2**20) -> list[tuple[int, int, int]]:
    """(cloud, point, point) of the first coinciding pair of every cloud that has one."""
    found = []
    small = indices[table.sizes[indices] <= 128]
    small = small[np.argsort(table.sizes[small], kind="stable")]  # equal sizes together: little padding
    start = 0
    while start < len(small):
        width = int(table.sizes[small[min(start + 64, len(small)) - 1]])
        part = small[start : start + max(64, chunk // max(width, 1) ** 2)]
        start += len(part)
        sub = table.take(part)
        x = sub.padded(sub.positions, fill=np.nan)
        squared = ((x[:, :, None] - x[:, None]) ** 2).sum(-1)
        close = np.triu(squared < COINCIDENT_ANGSTROM**2, k=1)
        for cloud in np.flatnonzero(close.any((1, 2))):
            first, second = np.argwhere(close[cloud])[0]
            found.append((int(part[cloud]), int(first), int(second)))
    for index in indices[table.sizes[indices] > 128]:
        cloud = table.positions[table.starts[index] : table.starts[index + 1]]
        pairs = cKDTree(cloud).query_pairs(COINCIDENT_ANGSTROM, output_type="ndarray")
        if len(pairs):
            first, second = sorted(map(tuple, pairs.tolist()))[0]
            found.append((int(index), int(first), int(second)))
    return found
