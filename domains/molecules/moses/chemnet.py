"""Frechet ChemNet distance: how far the activations of a trained network are apart on two sets of molecules.

Preuer et al. 2018, doi:10.1021/acs.jcim.8b00234. Network, weights and symbols are those of the package `fcd_torch`,
which MOSES uses too. Its weights are read as plain tensors (`weights_only`); nothing in the file is run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilience.core.errors import ConsilienceError

WIDTH = 512
"""Activations of the last layer."""
LENGTH = 350
"""Symbols that the network reads; shorter strings are padded, longer ones cut."""
BATCH = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and covariance of the activations.

    Args:
        n: molecules, at least 2.
        mean: (512,) float64.
        covariance: (512, 512) float64, divided by n - 1.
    """

    n: int
    mean: np.ndarray
    covariance: np.ndarray


class ChemNet:
    """The network of `fcd_torch`.

    Args:
        device: where it runs.

    Raises:
        ConsilienceError: the package is not installed.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        try:
            from fcd_torch import utils
        except ImportError as error:
            raise ConsilienceError(
                "the Frechet ChemNet distance needs fcd_torch: pip install 'consilience[moses]', or leave it out "
                "with --fcd false (fcd=False)"
            ) from error
        weights = Path(utils.__file__).with_name("ChemNet_v0.13_pretrained.pt")
        config = torch.load(weights, map_location="cpu", weights_only=True)
        self._one_hot: Callable[[str, int], np.ndarray] = utils.get_one_hot
        self.device = torch.device(device)
        self.network: Any = utils.load_imported_model(config).eval().to(self.device)

    @torch.inference_mode()
    def activations(self, smiles: Sequence[str]) -> np.ndarray:
        """Activations of canonical SMILES; n of them give (n, 512) float64."""
        done = [np.zeros((0, WIDTH))]
        for first in range(0, len(smiles), BATCH):
            symbols = np.stack([self._one_hot(text, LENGTH) for text in smiles[first : first + BATCH]])
            # The network was trained on one-hot vectors divided by the number of symbols.
            inputs = torch.from_numpy(symbols).float().to(self.device) / symbols.shape[2]
            done.append(self.network(inputs.transpose(1, 2)).double().cpu().numpy())
        return np.concatenate(done)

    def moments(self, smiles: Sequence[str], *, on_strings: Callable[[int], object] | None = None) -> Moments:
        """Moments of the activations of n canonical SMILES, with memory that does not grow with n.

        Raises:
            ConsilienceError: fewer than two molecules.
        """
        if len(smiles) < 2:
            raise ConsilienceError(
                f"the Frechet ChemNet distance needs 2 molecules at least, not {len(smiles)}"
            )
        shift = self.activations(smiles[:BATCH]).mean(
            0
        )  # a variance is taken near zero, not as a small difference
        total, squares = np.zeros(WIDTH), np.zeros((WIDTH, WIDTH))
        for first in range(0, len(smiles), BATCH):
            part = self.activations(smiles[first : first + BATCH]) - shift
            total += part.sum(0)
            squares += part.T @ part
            if on_strings is not None:
                on_strings(len(part))
        mean = total / len(smiles)
        covariance = (squares - len(smiles) * np.outer(mean, mean)) / (len(smiles) - 1)
        return Moments(n=len(smiles), mean=mean + shift, covariance=covariance)


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Frechet distance of two Gaussians: |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no
    complex root of a nearly singular product is needed.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    between = np.linalg.eigvalsh(root @ other.covariance @ root).clip(0)
    apart = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    return float(apart @ apart + traces - 2 * np.sqrt(between).sum())
