"""Where tokens stand: rotary angles and Fourier features of one to three float coordinates.

Rotary encoding (Su et al. 2021, arXiv:2104.09864) lets attention see differences of coordinates; Fourier
features (Tancik et al. 2020, arXiv:2006.10739) let the token itself see its absolute place. Redshift is a
translation in log wavelength, so a spectrum needs the second; a string needs the first only.
"""

import math

import torch
from torch import Tensor


def frequencies(periods: tuple[float, float], count: int, *, device: torch.device | None = None) -> Tensor:
    """`count` angular frequencies, geometric from the shortest to the longest period."""
    shortest, longest = periods
    steps = torch.linspace(math.log(shortest), math.log(longest), max(count, 1), device=device)[:count]
    return 2 * math.pi * torch.exp(-steps)


def rotary_angles(positions: Tensor, periods: tuple[float, float], head_width: int) -> Tensor:
    """Angles by which queries and keys are turned.

    The d / 2 planes of a head are shared equally by the P coordinates; planes left over do not turn.

    Args:
        positions: (B, N, P) float coordinates.
        periods: shortest and longest period in units of the coordinates.
        head_width: d, even.

    Returns:
        (B, N, d / 2) angles in radians, float32.
    """
    planes = head_width // 2
    n_coordinates = positions.shape[-1]
    each = planes // n_coordinates
    turn = frequencies(periods, each, device=positions.device)
    angles = (positions.float()[..., None] * turn).flatten(-2)
    return torch.nn.functional.pad(angles, (0, planes - each * n_coordinates))


def fourier_features(values: Tensor, periods: tuple[float, float], count: int) -> Tensor:
    """Sines and cosines of the values. values: (..., C) -> (..., 2 * C * count)."""
    phase = (values.float()[..., None] * frequencies(periods, count, device=values.device)).flatten(-2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
