"""Denoising of held-out clouds with a flow-matching model, with the way there kept for the eye."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.objectives.denoising import noise_of, noisy_view

if TYPE_CHECKING:
    from consilience.core.objectives.base import Predictor


@torch.no_grad()
def denoise(
    predict: "Predictor", tokens: TokenBatch, *, start: float, seed: int = 0, steps: int = 40, keep: int = 4
) -> tuple[list[tuple[float, TokenBatch]], Tensor]:
    """Mix clouds with noise up to time `start` and transport them back along the learned flow (Heun).

    Args:
        predict: the model seen through the points science.
        tokens: clean clouds.
        start: 0 is pure noise, 1 the clean cloud.
        seed: of the noise.
        steps: steps from `start` to 1.
        keep: states returned, evenly spaced, the first noisy one and the last included.

    Returns:
        (time, tokens) of the states kept, and the best that a model without knowledge of shape can do:
        the noisy values scaled to least expected error, in original units (B, N, C).
    """
    assert tokens.values is not None
    spec = predict.spec
    clean = spec.standardise(tokens.values)
    noise = noise_of(tokens, spec, torch.Generator().manual_seed(seed))
    x = (1 - start) * noise + start * clean
    shrunk = spec.restore(x * start / (start**2 + (1 - start) ** 2))
    times = np.linspace(start, 1, steps + 1)
    shown = {round(step) for step in np.linspace(0, steps, keep)}
    states = []
    for step, t in enumerate(times):
        if step in shown:
            states.append((float(t), replace(tokens, values=spec.restore(x) * tokens.real[..., None])))
        if step < steps:
            h = float(times[step + 1] - t)
            v = _velocity(predict, tokens, x, float(t))
            if step + 1 < steps:
                v = (v + _velocity(predict, tokens, x + h * v, float(t) + h)) / 2
            x = x + h * v
    return states, shrunk


def _velocity(predict: "Predictor", tokens: TokenBatch, x: Tensor, t: float) -> Tensor:
    time = torch.full((tokens.size,), t, device=tokens.device)
    view = noisy_view(tokens, x, time, torch.zeros_like(tokens.real), predict.spec)
    return predict(view)["values"].float()


def root_mean_square(values: Tensor, truth: TokenBatch) -> np.ndarray:
    """(B,) root of the mean squared distance between points, in the unit of the clouds. values: (B, N, C)."""
    assert truth.values is not None
    squared = (values - truth.values)[..., :3].square().sum(-1) * truth.real
    return (squared.sum(1) / truth.length).sqrt().cpu().numpy()


def nearest_distances(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Distance of every point to its nearest neighbour, all clouds end to end. clouds: (n, 3) each."""
    from scipy.spatial import cKDTree

    found = [cKDTree(x).query(x, k=2)[0][:, 1] for x in clouds if len(x) > 1]
    return np.concatenate(found) if found else np.zeros(0)
