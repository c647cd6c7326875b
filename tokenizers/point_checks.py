"""What makes a point cloud unreadable: found for many clouds at once, told as one clear line each."""

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from consilience.tokenizers.point_options import PointOptions, PointState
from consilience.tokenizers.point_records import PointTable

COINCIDENT_ANGSTROM = 1e-3
"""Two atoms closer than this stand at one place (the shortest bond, H-H, measures 0.74 Å)."""
FARTHEST = {"angstrom": 1e6, "": 1e12}
"""Unit -> coordinates beyond are taken for a fault: a tenth of a millimetre for atoms. Squares stay in float32."""
LARGEST_FEATURE = 1e30
"""Features beyond leave no room in float32 once they are standardised."""

_NO_HYDROGENS = (
    "the model was trained without hydrogens: leave them out with --read-options '{hydrogens: false}'"
)


def problems(table: PointTable) -> dict[int, str]:
    """Cloud index -> why it cannot be used: few points, numbers that are none, two typed points at one place."""
    found: dict[int, str] = {}
    sizes = table.sizes
    for index in np.flatnonzero(sizes < 2).tolist():
        found[index] = (
            "no points"
            if sizes[index] == 0
            else ("one point alone: nothing is left of it once the centroid is removed; drop it")
        )
    limited = [("coordinates", table.positions, FARTHEST[table.unit])]
    if table.features is not None:
        limited.append(("features", table.features, LARGEST_FEATURE))
    for what, array, most in limited:
        for index, point, bad in _beyond(table, array, most):
            finite = f"hold {bad:g}; beyond {most:g} they are taken for a fault"
            told = finite if np.isfinite(bad) else "are NaN or infinite"
            found.setdefault(index, f"{what} of point {point} {told}")
    if table.codes is not None:
        clean = np.array([i for i in range(len(table)) if i not in found], dtype=np.int64)
        for index, first, second in _coincident(table, clean):
            found[index] = (
                f"points {first} and {second} stand at one place "
                f"(closer than {COINCIDENT_ANGSTROM:g}); remove one"
            )
    return dict(sorted(found.items()))


def _beyond(table: PointTable, array: np.ndarray, most: float) -> Iterator[tuple[int, int, float]]:
    """(cloud, point, the number) of every point with a number in its row (T, C) that is NaN or beyond `most`."""
    bad = ~(np.abs(array) <= most)  # NaN is not less than anything
    for row in np.flatnonzero(bad.any(1)).tolist():
        index = _cloud_of(table, row)
        yield index, row - int(table.starts[index]), float(array[row][bad[row]][0])


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
        for cloud in np.flatnonzero(close.any((1, 2))).tolist():
            first, second = np.argwhere(close[cloud])[0]
            found.append((int(part[cloud]), int(first), int(second)))
    for index in indices[table.sizes[indices] > 128].tolist():
        points = table.positions[table.starts[index] : table.starts[index + 1]]
        pairs = cKDTree(points).query_pairs(COINCIDENT_ANGSTROM, output_type="ndarray")
        if len(pairs):
            first, second = sorted(map(tuple, pairs.tolist()))[0]
            found.append((int(index), int(first), int(second)))
    return found


def codes_of(table: PointTable, types: tuple[str, ...]) -> np.ndarray:
    """Codes of a fitted vocabulary (T,) int64; -1 for unknown types, 0 where types play no part."""
    if not types or table.codes is None:
        return np.zeros(len(table.positions), dtype=np.int64)
    known = {name: code for code, name in enumerate(types)}
    return np.array([known.get(name, -1) for name in table.names], dtype=np.int64)[table.codes]


def limits(table: PointTable, options: PointOptions, learned: PointState) -> dict[int, str]:
    """Cloud index -> why a tokenizer with these options and this state cannot take it."""
    found: dict[int, str] = {}
    everything = range(len(table))
    if table.unit != learned.unit:
        units = [unit or "none" for unit in (table.unit, learned.unit)]
        found = dict.fromkeys(everything, f"unit is {units[0]}, the tokenizer knows {units[1]}")
    if learned.types and table.codes is None:
        found |= dict.fromkeys(everything, "has no types, but the tokenizer was fitted on typed points")
    if options.bonds and table.bonds is None:
        found |= dict.fromkeys(
            everything,
            (
                "has no bonds, and the tokenizer has bonds=True: read them from an .sdf file with "
                "--read-options '{bonds: true}'"
            ),
        )
    columns = 0 if table.features is None else table.features.shape[1]
    if learned.feature_shift and columns != len(learned.feature_shift):
        found |= dict.fromkeys(everything, f"has {columns} features, expected {len(learned.feature_shift)}")
    for row in np.flatnonzero(codes_of(table, learned.types) < 0).tolist():
        assert table.codes is not None
        name = table.names[table.codes[row]]
        reason = f"unknown type {name!r}; known: {', '.join(learned.types)}"
        if name == "H" and table.unit == "angstrom":
            reason += f"; {_NO_HYDROGENS}"
        found.setdefault(_cloud_of(table, row), reason)
    if options.tokens == "points":
        for i in np.flatnonzero(table.sizes > options.max_points):
            found[int(i)] = (
                f"{table.sizes[i]} points, more than max_points={options.max_points}; "
                "choose tokens='patches' or raise max_points"
            )
    else:
        for i in np.flatnonzero(table.sizes < options.patch_size):
            found[int(i)] = (
                f"{table.sizes[i]} points, fewer than patch_size={options.patch_size}; "
                "choose a smaller patch_size or tokens='points'"
            )
    return dict(sorted(found.items()))
