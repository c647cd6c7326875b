"""Information profiles: the curves that `core.information` measures, and what their areas say."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

from consilience.core.view import Kind


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its standard error over samples (NaN for a single sample)."""

    value: float
    error: float


def ratio(values: np.ndarray, counts: np.ndarray) -> Estimate:
    """sum(values) / sum(counts) over independent samples."""
    value = values.sum() / counts.sum()
    rest, n = values - value * counts, len(values)
    error = math.sqrt(n / (n - 1) * np.square(rest).sum()) / counts.sum() if n > 1 else math.nan
    return Estimate(value=float(value), error=float(error))


def _mean(values: np.ndarray) -> Estimate:
    return ratio(values, np.ones(len(values)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ErasureProfile:
    """The curve H_r of a model's cross-entropy. B samples, R rates.

    Every point of the curve bounds that of the data from above, so the area bounds the entropy. The two
    correlations are differences of bounds: estimates, with no side that they err to.

    Args:
        rates: (R,) ascending, 0 and 1 included.
        weights: (R,) of the quadrature over [0, 1]; 0 at both ends.
        nats: (B, R) summed over the predictable tokens of a sample: unbiased for N_b H_r of that sample.
        tokens: (B,) predictable tokens of every sample, N_b.
        kind: bound, or surrogate where the content has no proper density.
    """

    rates: np.ndarray
    weights: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray
    kind: Kind

    @property
    def curve(self) -> np.ndarray:
        """(R,) H_r, nats per token."""
        return self.nats.sum(0) / self.tokens.sum()

    @property
    def curve_error(self) -> np.ndarray:
        """(R,) standard errors of `curve`."""
        return np.array([ratio(column, self.tokens).error for column in self.nats.T])

    @property
    def area(self) -> np.ndarray:
        """(B,) the area of every sample, nats: on average its negative log-likelihood over all orders."""
        return self.nats @ self.weights

    @property
    def entropy(self) -> Estimate:
        """Area of the curve, nats per token."""
        return ratio(self.area, self.tokens)

    @property
    def marginal(self) -> Estimate:
        """H_1: a token when no other is seen, nats per token."""
        return ratio(self.nats[:, -1], self.tokens)

    @property
    def leave_one_out(self) -> Estimate:
        """H_0: a token when all others are seen, nats per token."""
        return ratio(self.nats[:, 0], self.tokens)

    @property
    def total_correlation(self) -> Estimate:
        """N (H_1 - area), nats per sample: what the tokens say about one another."""
        return _mean(self.nats[:, -1] - self.area)

    @property
    def total_correlation_per_token(self) -> Estimate:
        """H_1 - area, nats per token."""
        return ratio(self.nats[:, -1] - self.area, self.tokens)

    @property
    def dual_total_correlation(self) -> Estimate:
        """N (area - H_0), nats per sample: all that is not private to one token."""
        return _mean(self.area - self.nats[:, 0])

    @property
    def dual_total_correlation_per_token(self) -> Estimate:
        """area - H_0, nats per token."""
        return ratio(self.area - self.nats[:, 0], self.tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianProfile:
    """The error of a denoiser against the signal-to-noise ratio g, standardised. B samples, G ratios.

    Args:
        log_snr: (G,) ascending and equally spaced, log g.
        errors: (B, G) unbiased for the squared error of the denoised sample, summed over its dimensions.
        dimensions: (B,) measured channels of predictable tokens.
        tokens: (B,) predictable tokens.
        value_scale: original units per standardised unit.
        kind: bound, or surrogate where the values have no density under this model.
    """

    log_snr: np.ndarray
    errors: np.ndarray
    dimensions: np.ndarray
    tokens: np.ndarray
    value_scale: float
    kind: Kind

    @property
    def mmse(self) -> np.ndarray:
        """(G,) mean squared error per dimension; between that of the perfect denoiser and infinity."""
        return self.errors.sum(0) / self.dimensions.sum()

    @property
    def mmse_error(self) -> np.ndarray:
        """(G,) standard errors of `mmse`."""
        return np.array([ratio(column, self.dimensions).error for column in self.errors.T])

    @property
    def nats(self) -> np.ndarray:
        """(B,) negative log-likelihood in original units (Guo, Shamai and Verdu 2005; Kong et al. 2023).

        n/2 log(2 pi e) - 1/2 integral of D dg over g > 0, with D(g) = n / (1 + g) - error(g) for n dimensions.
        On the grid D dg = g D dlog g by the trapezoid rule, which converges exponentially where g D is smooth in
        log g (for a Gaussian it is a sum of logistic steps). Below the grid D is taken as constant: what that
        neglects is at most tr(S^2) g^2 / 2, S the covariance. Above it D is taken to fall as 1 / g^2, as it does
        for a smooth density and a perfect denoiser once the noise is well below the finest scale of the data:
        choose the grid so that g D has died out there. A trained model's excess error is counted as if it did too.
        """
        g = np.exp(self.log_snr)
        gain = g * (self.dimensions[:, None] / (1 + g) - self.errors)
        area = trapezoid(gain, self.log_snr, axis=1) + gain[:, 0] + gain[:, -1]
        white = self.dimensions * (0.5 * math.log(2 * math.pi * math.e) + math.log(self.value_scale))
        return white - area / 2

    @property
    def entropy(self) -> Estimate:
        """Nats per token in original units; an upper bound, as no denoiser is better than the perfect one."""
        return ratio(self.nats, self.tokens)
