"""Frames of point clouds: the centroid, principal axes with a sign rule, random rotations.

Padded arrays: positions (B, N, 3) float64 with zeros in padding, real (B, N) bool.
"""

import numpy as np
import torch


def centred(positions: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The clouds with their centroid (unweighted mean) at the origin; padding stays zero."""
    if real.all():
        return positions - positions.sum(1, keepdims=True) / max(positions.shape[1], 1)
    count = np.maximum(real.sum(1), 1)[:, None, None]
    middle = np.where(real[..., None], positions, 0.0).sum(1, keepdims=True) / count
    return np.where(real[..., None], positions - middle, 0.0)


def principal_frames(positions: np.ndarray) -> np.ndarray:
    """Rotations (B, 3, 3) into the principal axes: `positions @ frames` has its longest axis along x.

    The signs of the first two axes make the sum of cubed coordinates positive, the third axis makes the frame
    right-handed, so mirror images stay apart. Where the shape leaves an axis or a sign open (two equal
    moments, a mirror or inversion centre) the choice follows rounding and is not stable under rotation.

    Args:
        positions: centred clouds.
    """
    scatter = positions.transpose(0, 2, 1) @ positions
    _, axes = np.linalg.eigh(scatter)
    axes = axes[:, :, ::-1]  # descending moments
    skewness = ((positions @ axes) ** 3).sum(1)
    axes = axes * np.where(skewness < 0, -1.0, 1.0)[:, None, :]
    third = np.cross(axes[:, :, 0], axes[:, :, 1])
    return np.stack([axes[:, :, 0], axes[:, :, 1], third], axis=2)


def random_rotations(n: int, generator: torch.Generator) -> np.ndarray:
    """n uniform random rotations, (n, 3, 3) float64, from normal quaternions."""
    q = torch.randn(n, 4, generator=generator, device=generator.device, dtype=torch.float64).cpu().numpy()
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def random_half_turns(n: int, generator: torch.Generator) -> np.ndarray:
    """(n, 3, 3) draws from the rotations that keep the axes: none, half a turn about x, y or z."""
    choice = torch.randint(4, (n,), generator=generator, device=generator.device).cpu().numpy()
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=np.float64)
    return signs[choice][:, :, None] * np.eye(3)
