"""Masked diffusion: hide a random number of tokens, weight the loss so that it bounds the likelihood.

With k hidden of n tokens, k uniform in 1..n, and every hidden token weighted by 1/k, n times the expected
weighted sum is the negative log-likelihood averaged over all orders in which the tokens could be revealed, an
upper bound of -log p(x). This is the absorbing diffusion bound (MDLM, Sahoo et al. 2024, arXiv:2406.07524; Shi et al.
2024, arXiv:2406.04329) in its any-order autoregressive form (Hoogeboom et al. 2021, arXiv:2110.02037), which
has no 1/t to blow up, and holds for symbols, counts and real values alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.likelihoods import Field, Likelihood
from consilience.core.objectives.base import (
    predictable,
    stratified,
    uniform_like,
    weighted_bound,
)
from consilience.core.objectives.masked import Hiding, masked_view
from consilience.core.view import Loss, Scored, Targets, View


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Hiding):
    """Absorbing-state diffusion; the loss is an upper bound of the negative log-likelihood in expectation."""

    name = "masked-diffusion"
    kind = "bound"

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """Hide k of the n predictable tokens of every sample, k uniform in 1..n and spread over the batch."""
        free = predictable(tokens)
        n = free.sum(1)
        k = (stratified(tokens.size, generator, tokens.device) * n).long().clamp(max=n - 1) + 1
        noise = uniform_like(free, generator).masked_fill(~free, 2.0)
        rank = noise.argsort(dim=1).argsort(dim=1)
        hidden = free & (rank < k[:, None])
        # n nats-weights of n / k on k rows: the scored rows of a sample stand for all n of its tokens.
        weight = (n / k.clamp_min(1))[:, None].expand_as(noise)
        targets = Targets(tokens=tokens, scored=hidden, weight=weight)
        return masked_view(tokens, hidden, spec), self.with_noise(targets, generator)

    def reduce(self, nats: Tensor, likelihoods: Mapping[Field, Likelihood], scored: Scored) -> Loss:
        """The bound in nats, over all predictable tokens (n per sample), not over the hidden ones."""
        return weighted_bound(nats, likelihoods, scored, self.kind)
