"""Orders of unordered points: Morton and Hilbert curves, radial, random; and one canonical row order.

All work on padded arrays: positions (B, N, 3), real (B, N) bool. An order is (B, N) int64: token i of sample
b is row `order[b, i]`; padding comes last.
"""

import numpy as np

BITS = 16
"""Bits per axis of the grid under the Morton and Hilbert curves: 65,536 cells along the longest side."""


def grid_cells(positions: np.ndarray, real: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Cells (B, N, 3) int64 in 0..2^bits - 1 of a cubic grid over each cloud's own bounding box.

    Minimum and maximum do not depend on the order of the rows, so neither do the cells.
    """
    axes = np.ascontiguousarray(positions.transpose(0, 2, 1))  # numpy reduces a last axis ten times faster
    low, high = axes, axes
    if not real.all():
        low, high = (np.where(real[:, None], axes, end) for end in (np.inf, -np.inf))
    low, high = low.min(2)[:, None], high.max(2)[:, None]
    side = (high - low).max(2, keepdims=True)
    scale = (2**bits - 1) / np.where(side > 0, side, 1.0)
    cells = np.where(real[..., None], (positions - low) * scale, 0.0)
    return np.clip(np.rint(cells), 0, 2**bits - 1).astype(np.int64)


def morton_codes(cells: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Place on the Z-order curve: bits of x, y, z interleaved, x first. cells: (..., 3), at most 20 bits."""
    x, y, z = (_spread(cells[..., axis]) for axis in range(3))
    return (x << 2) | (y << 1) | z


def _spread(values: np.ndarray) -> np.ndarray:
    """Insert two zero bits after every bit of 21-bit integers."""
    v = values.astype(np.int64) & 0x1FFFFF
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        v = (v | (v << shift)) & mask
    return v


def hilbert_codes(cells: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Place on the 3D Hilbert curve, along which neighbours are adjacent cells.

    cells: (..., 3) int64, at most 20 bits. Source: J. Skilling, "Programming the Hilbert curve", AIP Conf.
    Proc. 707 (2004): axes to transpose.
    """
    x = [cells[..., axis].astype(np.int64).copy() for axis in range(3)]
    q = 1 << (bits - 1)
    while q > 1:
        p = q - 1
        for axis in range(3):
            high = (x[axis] & q) != 0
            swap = np.where(high, 0, (x[0] ^ x[axis]) & p)  # exchange the low bits of x[0] and x[axis] ...
            x[0] = np.where(high, x[0] ^ p, x[0] ^ swap)  # ... or invert the low bits of x[0]
            if axis:
                x[axis] = x[axis] ^ swap
        q >>= 1
    x[1] ^= x[0]
    x[2] ^= x[1]
    gray = np.zeros_like(x[0])
    q = 1 << (bits - 1)
    while q > 1:
        gray = np.where((x[2] & q) != 0, gray ^ (q - 1), gray)
        q >>= 1
    return morton_codes(np.stack([axis ^ gray for axis in x], axis=-1), bits)


def hash_codes(shape: tuple[int, int]) -> np.ndarray:
    """Pseudo-random int64 keys (B, N), a function of the row number alone (splitmix64)."""
    v = np.arange(1, shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys = ((v ^ (v >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
    return np.broadcast_to(keys, shape)


def sort_rows(keys: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The order of ascending keys (B, N); equal keys keep the order of their rows; padding last."""
    last = np.inf if keys.dtype.kind == "f" else np.iinfo(keys.dtype).max
    return np.argsort(np.where(real, keys, last), axis=1, kind="stable")


def canonical_order(positions: np.ndarray, real: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
    """The lexicographic order of the rows by x, y, z (on a fine grid), then by `extra` (B, N, E).

    Two listings of the same points give the same sequence, so that sums, ties and starts that follow it are
    equal to the bit whatever order the points arrived in.
    """
    cells = grid_cells(positions, real, bits=20)
    keys = (cells[..., 0] << 40) | (cells[..., 1] << 20) | cells[..., 2]
    keys[~real] = np.iinfo(np.int64).max
    order = np.argsort(keys, axis=1)
    ranked = np.take_along_axis(keys, order, axis=1)
    equal = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != np.iinfo(np.int64).max)
    for b in np.flatnonzero(equal.any(1)):  # points within one cell: compare the floats themselves
        columns = [*positions[b].T, *(() if extra is None else extra[b].T)]
        order[b] = np.lexsort([*columns[::-1], keys[b]])
    return order


def gather_rows(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows of a padded array (B, N, ...) in this order: (B, ...), rows of N."""
    b, n = array.shape[:2]
    # One index into all rows: numpy copies whole rows with it, five times faster than with two.
    firsts = (np.arange(b) * n).reshape(b, *[1] * (order.ndim - 1))
    return array.reshape(b * n, *array.shape[2:]).take(order + firsts, axis=0)
