"""What it costs to reveal several tokens at once: read off the erasure profile."""

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.optimize import nnls

from consilience.core.errors import ConsilienceError
from consilience.core.information import binomial
from consilience.core.profiles import ErasureProfile


def parallel_unmasking_gap(profile: ErasureProfile, n_tokens: int, steps: int) -> float:
    """What it costs to reveal n tokens in a random order in k equal steps, nats per sample.

    Tokens of one step are drawn independently given those before. A step of m tokens that starts with j known
    ones costs the KL divergence sum over i of H(x_i | known) - H(x_step | known). With Z_j = H(x_i | j random
    others), averaged over orders, that is m Z_j - (Z_j + ... + Z_{j+m-1}): the area between the level at the start of
    the step and the curve (Chen, Cong and Li 2025, arXiv:2511.04647; Lavenant and Zanella 2025, arXiv:2510.25544).
    One step costs the total correlation, n steps nothing.

    It is the cost of a perfect model with these curves, averaged over orders; what the model lacks comes on top.
    """
    if not 1 <= steps <= n_tokens:
        raise ConsilienceError(f"steps must lie in 1..{n_tokens} for {n_tokens} tokens, not {steps}")
    return _gap(_unmasking_curve(profile, n_tokens), steps)


def steps_needed(profile: ErasureProfile, n_tokens: int, tolerance_nats: float) -> int:
    """The fewest equal steps whose `parallel_unmasking_gap` is within the tolerance, nats per sample."""
    if n_tokens < 1 or tolerance_nats < 0:
        raise ConsilienceError(f"no steps for {n_tokens} tokens within {tolerance_nats} nats")
    curve = _unmasking_curve(profile, n_tokens)
    rounding = 1e-9  # n steps cost nothing, but for the last digit
    return next(k for k in range(1, n_tokens + 1) if _gap(curve, k) <= tolerance_nats + rounding)


def _unmasking_curve(profile: ErasureProfile, n: int) -> np.ndarray:
    """(n,) Z_j, the uncertainty of a token when j random others of n are known, from H_r.

    H_r is the mean of Z_j over j ~ Binomial(n - 1, 1 - r), and its area is the plain mean of Z. Knots of Z at
    the rates, a line between them, are fitted to the curve, its area and its ends so that Z never rises:
    information cannot hurt. A smooth monotone curve then runs through the knots. With as many knots as tokens
    it is exact.
    """
    curve, area = profile.curve, profile.entropy.value
    if n == 1:
        return curve[-1:]
    knots = np.unique(np.round((n - 1) * (1 - profile.rates)).astype(int))
    # Column k: what the curve gains over H_0 by one nat of fall between knots k and k + 1.
    falling = np.tri(len(knots), len(knots) - 1, -1) == 0
    lines = np.stack([np.interp(np.arange(n), knots, column.astype(float)) for column in falling.T], axis=1)
    kept = binomial(torch.full(curve.shape, n - 1), torch.from_numpy(1 - profile.rates)).numpy()
    rows = np.concatenate([kept @ lines, lines.mean(0, keepdims=True)])
    wanted = np.append(curve, area) - curve[0]
    trust = np.ones(len(wanted))
    trust[[-2, -1]] = 1e3  # H_1 and the area are kept, so that one step costs the total correlation
    falls, _ = nnls(rows * trust[:, None], wanted * trust)
    fitted = curve[0] + lines[knots] @ falls
    return PchipInterpolator(knots, fitted)(np.arange(n))


def _gap(curve: np.ndarray, steps: int) -> float:
    """Steps as `core.samplers.unmasking` takes them."""
    bounds = len(curve) * np.arange(steps + 1) // steps
    return float((np.diff(bounds) * curve[bounds[:-1]]).sum() - curve.sum())
