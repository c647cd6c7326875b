"""Two-phase: next-token for the first part of training, then masked.

At a fixed budget a masked model that began as a causal one can beat one that was masked throughout
(Gisserot-Boukhlef et al. 2025, arXiv:2507.00994; for proteins Cheng et al. 2024, arXiv:2411.02142). The general
mechanism is `Objective.at`: what is trained with at a progress.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.likelihoods import Field, Likelihood
from consilience.core.objectives.base import Headed, Objective, Predictor
from consilience.core.objectives.masked import Masked
from consilience.core.objectives.next_token import NextToken
from consilience.core.objectives.orders import Order
from consilience.core.sampling import Sampling
from consilience.core.view import Targets, View


@dataclass(frozen=True, kw_only=True)
class TwoPhase(Headed):
    """Next-token, then masked; validation, evaluation, embedding and sampling are those of masked.

    Args:
        switch: the share of training after which it is masked, in (0, 1).
        order: of the next-token phase.
        rate: of the masked phase; None draws a rate uniformly in [0, 1] for every sample.
    """

    switch: float = 0.5
    order: Order = "natural"
    rate: float | None = None

    name = "two-phase"
    kind = "surrogate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.switch < 1:
            raise ConsilienceError(
                f"two-phase: switch must lie in (0, 1), not {self.switch}; use next-token or masked for one phase"
            )
        _ = self.first, self.last  # they check their own options

    @property
    def first(self) -> Objective:
        """What training begins with; refuses an unknown order."""
        return NextToken(order=self.order, head=self.head)

    @property
    def last(self) -> Objective:
        """What training ends with; refuses a rate out of bounds."""
        return Masked(rate=self.rate, head=self.head)

    def at(self, progress: float) -> Objective:
        """The phase of this progress in [0, 1)."""
        return self.first if progress < self.switch else self.last

    def likelihoods(self, spec: TokenSpec) -> dict[Field, Likelihood]:
        """Those of both phases, which share one head."""
        first, last = self.first.likelihoods(spec), self.last.likelihoods(spec)
        if first != last:
            raise ConsilienceError(
                f"{self.name}: {self.first.name} and {self.last.name} need different heads for {spec.name} tokens; "
                "both phases must score the same parameters"
            )
        return last

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """That of the last phase."""
        return self.last.view(tokens, spec, generator)

    def observe(self, tokens: TokenBatch, spec: TokenSpec) -> View:
        """That of the last phase."""
        return self.last.observe(tokens, spec)

    def sample(
        self,
        predict: Predictor,
        template: TokenBatch,
        hidden: Tensor,
        generator: torch.Generator,
        sampling: Sampling,
    ) -> TokenBatch:
        """That of the last phase."""
        return self.last.sample(predict, template, hidden, generator, sampling)
