"""Patches of point clouds: batched farthest-point sampling and nearest neighbours in plain numpy.

The working set is kept inside the processor's cache (a few clouds at a time), which is what makes it fast;
the squared distances that the sampling computes anyway are the ones that the neighbour search ranks.
"""

import numpy as np

CHUNK_POINTS = 32 * 1024
"""Points sampled together: large enough to hide the cost of a numpy call, small enough for the cache."""


def make_patches(
    positions: np.ndarray, real: np.ndarray, n_patches: int, patch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centres by farthest-point sampling and the points nearest to each.

    The first centre is the point farthest from the origin (the centroid of centred clouds), each next one the
    point farthest from all centres so far; equal distances go to the lower row, so results do not depend on
    the machine, and with rows in canonical order not on how the points were listed.

    Args:
        positions: (B, N, 3) float, centred.
        real: (B, N) bool; every cloud needs at least `patch_size` points.
        n_patches: S; a cloud with fewer points gets each of them once, its further centres mean nothing.
        patch_size: k.

    Returns:
        Rows of the centres (B, S) int64 and of each patch's points (B, S, k) int64, nearest first (the centre
        itself leads, save where another point stands at the same place in a lower row).
    """
    b, n = real.shape
    n_patches = min(n_patches, n)
    centres = np.empty((b, n_patches), dtype=np.int64)
    members = np.empty((b, n_patches, patch_size), dtype=np.int64)
    axes = np.ascontiguousarray(positions.transpose(0, 2, 1), dtype=np.float32)
    chunk = max(1, CHUNK_POINTS // max(n, 1))
    for start in range(0, b, chunk):
        part = slice(start, start + chunk)
        centres[part], squared = _farthest_points(axes[part], real[part], n_patches)
        for inner in range(0, len(squared), 4):  # keys of four clouds still fit the cache
            nearest = _nearest(squared[inner : inner + 4], real[part][inner : inner + 4], patch_size)
            members[start + inner : start + inner + len(nearest)] = nearest
    return centres, members


def _farthest_points(axes: np.ndarray, real: np.ndarray, n_patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (B, S) and the squared distances of all points to each (B, S, N). axes: (B, 3, N)."""
    b, _, n = axes.shape
    rows = np.arange(b)
    centres = np.empty((b, n_patches), dtype=np.int64)
    squared = np.empty((b, n_patches, n), dtype=np.float32)
    nearest = np.where(real, np.float32(np.inf), np.float32(-2))  # padding is never the farthest
    scratch = np.empty((b, n), dtype=np.float32)
    current = np.where(real, (axes**2).sum(1), -1).argmax(1)
    for step in range(n_patches):
        centres[:, step] = current
        place = axes[rows, :, current]
        distance = squared[:, step]
        np.subtract(axes[:, 0], place[:, 0:1], out=distance)
        np.multiply(distance, distance, out=distance)
        for axis in (1, 2):
            np.subtract(axes[:, axis], place[:, axis : axis + 1], out=scratch)
            np.multiply(scratch, scratch, out=scratch)
            np.add(distance, scratch, out=distance)
        np.minimum(nearest, distance, out=nearest)
        nearest[rows, current] = -1  # never twice, even where points coincide
        current = nearest.argmax(1)
    return centres, squared


def _nearest(squared: np.ndarray, real: np.ndarray, patch_size: int) -> np.ndarray:
    """Rows of the `patch_size` smallest distances (B, S, k), ascending, ties to the lower row.

    Non-negative floats are ordered like their bits, so distance and row pack into one integer key: the
    partial sort is exact and the same on every machine.
    """
    distances = np.where(real[:, None], squared, np.float32(np.inf)) if not real.all() else squared
    keys = distances.view(np.int32).astype(np.int64)
    keys <<= 32
    keys |= np.arange(squared.shape[2])
    if patch_size < squared.shape[2]:
        keys.partition(patch_size - 1, axis=2)
    return np.sort(keys[:, :, :patch_size], axis=2) & 0xFFFFFFFF
