"""Masked: hide tokens, each with probability r, and predict them all at once from the rest.

The loss at a fixed rate is H_r, the mean uncertainty of a token when every other is kept with probability
1 - r. That is one point of a curve whose area is the entropy, not the entropy itself: a surrogate.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.objectives.base import Headed, Predictor, predictable, stratified, uniform_like
from consilience.core.sampling import Sampling
from consilience.core.view import Targets, View


@dataclass(frozen=True, kw_only=True)
class Hiding(Headed):
    """What objectives that hide tokens share: the clean view, and unmasking as the way back."""

    def observe(self, tokens: TokenBatch, spec: TokenSpec) -> View:
        """Nothing hidden, every row sees every row."""
        return masked_view(tokens, torch.zeros_like(tokens.real), spec)

    def sample(
        self,
        predict: Predictor,
        template: TokenBatch,
        hidden: Tensor,
        generator: torch.Generator,
        sampling: Sampling,
    ) -> TokenBatch:
        """Iterative unmasking in random order; a mean is predicted in one step."""
        from consilience.core.samplers.unmasking import unmask

        return unmask(
            predict, template, hidden, generator, replace(sampling, steps=1) if sampling.mean else sampling
        )


@dataclass(frozen=True, kw_only=True)
class Masked(Hiding):
    """BERT-style hiding (Devlin et al. 2019, arXiv:1810.04805); a random rate as in R2MAE (arXiv:2509.21650).

    Args:
        rate: probability of hiding a token; None draws a rate uniformly in [0, 1] for every sample.
    """

    rate: float | None = None

    name = "masked"
    kind = "surrogate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ConsilienceError(
                f"masked: rate must lie in (0, 1], not {self.rate}; leave it out for a random rate"
            )

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """Hide tokens at the rate; only hidden tokens are scored."""
        free = predictable(tokens)
        if self.rate is None:
            rate = stratified(tokens.size, generator, tokens.device)[:, None]
        else:
            rate = torch.full((tokens.size, 1), self.rate, device=tokens.device)
        hidden = free & (uniform_like(free, generator) < rate)
        targets = Targets(tokens=tokens, scored=hidden)
        return masked_view(tokens, hidden, spec), self.with_noise(targets, generator)


def masked_view(tokens: TokenBatch, hidden: Tensor, spec: TokenSpec) -> View:
    """The view of a set of hidden tokens, attention without a mask.

    The content of hidden rows is blanked as well, so that nothing downstream could read it by mistake. Time is 1
    for all rows: that a row is hidden stands in its content already, and levels of time per row cost 6% of a step.
    """
    keep = ~hidden
    seen = replace(
        tokens,
        ids=None if tokens.ids is None else tokens.ids * keep,
        values=None if tokens.values is None else spec.standardise(tokens.values) * keep[..., None],
        weight=None if tokens.weight is None else tokens.weight * keep[..., None],
        given=None,
    )
    return View(
        tokens=seen,
        hidden=hidden,
        time=torch.ones(1, device=tokens.device),
    )
