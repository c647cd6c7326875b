"""Address-only: every predictable content is hidden, each token is predicted from addresses and given tokens alone.

-log p(x | addresses) = sum_i -log p(x_i | addresses): exact for the model that calls tokens independent given their
addresses, the marginal model. What it reaches above chance has leaked through the addresses (patch centres that
draw the shape, the length of a string), and what others reach beyond it is dependence that they captured: the
floor of a study.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.objectives.base import Headed, Predictor, predictable
from consilience.core.objectives.masked import masked_view
from consilience.core.sampling import Sampling
from consilience.core.view import Targets, View


@dataclass(frozen=True, kw_only=True)
class AddressOnly(Headed):
    """The factorised likelihood given addresses; attention without a mask."""

    name = "address-only"
    kind = "exact"

    @property
    def has_steps(self) -> bool:
        """No: all tokens at once."""
        return False

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """Everything that is not given is hidden and scored; nothing is random."""
        targets = Targets(tokens=tokens, scored=predictable(tokens))
        return self.observe(tokens, spec), self.with_noise(targets, generator)

    def observe(self, tokens: TokenBatch, spec: TokenSpec) -> View:
        """All hidden, as in training: embeddings of a leakage floor must not see content either."""
        return masked_view(tokens, predictable(tokens), spec)

    def unread(self, tokens: TokenBatch, hidden: Tensor) -> str | None:
        """Nothing that is visible informs anything."""
        if not bool((predictable(tokens) & ~hidden).any()):
            return None
        return f"{self.name} draws every token alone, whatever is kept: use any-order, masked or masked-diffusion"

    def sample(
        self,
        predict: Predictor,
        template: TokenBatch,
        hidden: Tensor,
        generator: torch.Generator,
        sampling: Sampling,
    ) -> TokenBatch:
        """One step of unmasking with everything hidden: independent draws, whatever stands in visible tokens."""
        from consilience.core.samplers.content import cut_at_end, draw

        self.refuse_confidence(sampling)
        where = hidden & predictable(template)
        parameters = {
            field: rows[where] for field, rows in predict(self.observe(template, predict.spec)).items()
        }
        drawn = draw(predict, template, parameters, where, generator, sampling)
        return cut_at_end(drawn, sampling.end_id, template.length)
