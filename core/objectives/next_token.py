"""Next-token: predict each token from those before it in an order, told which token is asked for.

p(x) = prod_i p(x_s(i) | x_s(<i), addresses). Sets and spectra have no next token unless one says whose content
comes next: every row holds a token's content and address, and the address of the token to predict (the double
address of sigma-GPT, Pannatier et al. 2024, arXiv:2404.09562). One stream of N rows and a causal mask, in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consilience.core.attention import Pattern
from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.objectives.base import Headed, Predictor, predictable
from consilience.core.objectives.orders import (
    Order,
    check_order,
    laid_out,
    permutation,
    unread_ahead,
    visible_first,
)
from consilience.core.objectives.scoring import nats_by_sample
from consilience.core.sampling import Sampling
from consilience.core.view import Kind, Targets, View


@dataclass(frozen=True, kw_only=True)
class NextToken(Headed):
    """Autoregression in a chosen order; the loss is an exact negative log-likelihood.

    Args:
        order: natural (as the tokenizer lays tokens out), reversed, centre-out, outside-in, or random (any-order
            autoregression, a new order for every sample and step); see `core.objectives.orders`.
    """

    order: Order = "natural"

    name = "next-token"
    kind = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.name, self.order)

    @property
    def ends_samples(self) -> bool:
        """In the natural order, yes."""
        return self.order == "natural"

    @property
    def has_steps(self) -> bool:
        """No: a token a step."""
        return False

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """Row i holds token i - 1 and asks for token i; the first row is a start mark."""
        ordered = tokens.permute(self.permutation(tokens, generator))
        targets = Targets(tokens=ordered, scored=predictable(ordered))
        return shifted_view(ordered, spec), self.with_noise(targets, generator)

    def permutation(self, tokens: TokenBatch, generator: torch.Generator) -> Tensor:
        """(B, N): given tokens first, then the order, then padding."""
        return permutation(tokens, self.order, generator)

    def observe(self, tokens: TokenBatch, spec: TokenSpec) -> View:
        """Start mark, then every token; each row asks for the next one, the last for itself.

        Tokens stand in the order of training; a model of random orders is shown the natural one.
        """
        tokens = laid_out(tokens, self.order)
        again = torch.arange(tokens.width + 1, device=tokens.device).clamp_max(tokens.width - 1)
        extra = tokens.permute(again.expand(tokens.size, -1))  # the last row twice: room for one more
        last = (torch.arange(extra.width, device=tokens.device)[None] == tokens.length[:, None])[..., None]

        def close(x: Tensor | None) -> Tensor | None:
            """Addresses with the row after the last token asking for that token again."""
            if x is None:
                return None
            wide = x if x.dim() == 3 else x[..., None]
            shifted = torch.cat([wide[:, :1], wide[:, :-1]], dim=1)
            return torch.where(last, shifted, wide).reshape(x.shape)

        longer = replace(
            extra,
            length=tokens.length + 1,
            address=close(extra.address),
            positions=close(extra.positions),
            given=None,
        )
        return shifted_view(longer, spec)

    def likelihood_kind(self, predict: Predictor, *, draws: int = 1) -> Kind:
        """Exact, of the order drawn in random orders; the mean of several is a bound of their mixture."""
        kind = super().likelihood_kind(predict, draws=draws)
        return "bound" if kind == "exact" and self.order == "random" and draws > 1 else kind

    def log_likelihood(
        self,
        predict: Predictor,
        tokens: TokenBatch,
        generators: Sequence[torch.Generator],
        *,
        draws: int = 1,
    ) -> Tensor:
        """By the chain rule; in a fixed order nothing is drawn."""
        if self.order == "random":
            return super().log_likelihood(predict, tokens, generators, draws=draws)
        view, targets = self.view(tokens, predict.spec, generators[0])
        return -nats_by_sample(predict, view, targets, generators, 1)

    def unread(self, tokens: TokenBatch, hidden: Tensor) -> str | None:
        """In a fixed order visible tokens must come first; in random orders they do."""
        if self.order == "random":
            return None
        place = self.permutation(tokens, torch.Generator()).argsort(dim=1)
        return unread_ahead(f"{self.name} in {self.order} order", place, tokens, hidden)

    def sample(
        self,
        predict: Predictor,
        template: TokenBatch,
        hidden: Tensor,
        generator: torch.Generator,
        sampling: Sampling,
    ) -> TokenBatch:
        """One token after another, with a key-value cache; in a random order visible tokens come first."""
        from consilience.core.samplers.autoregressive import autoregress
        from consilience.core.samplers.content import cut_at_end

        self.refuse_confidence(sampling)
        order = self.permutation(template, generator)
        if self.order == "random":
            order = visible_first(order, template, hidden)
        # In another order the end symbol may come first, and does not say that all is drawn.
        inner = sampling if self.ends_samples else replace(sampling, end_id=None)
        done = autoregress(predict, template.permute(order), torch.gather(hidden, 1, order), generator, inner)
        return cut_at_end(done.permute(order.argsort(dim=1)), sampling.end_id, template.length)


def shifted_view(tokens: TokenBatch, spec: TokenSpec) -> View:
    """The causal view of ordered tokens: row i holds token i - 1 and the address of token i."""

    def shift(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)

    positions = tokens.positions
    if positions is not None:
        # The start mark stands where the first token stands, not at the origin of the coordinates.
        positions = torch.cat([positions[:, :1], positions[:, :-1]], dim=1)
    seen = TokenBatch(
        length=tokens.length,
        ids=shift(tokens.ids),
        values=None if tokens.values is None else shift(spec.standardise(tokens.values)),
        weight=shift(tokens.weight),
        address=shift(tokens.address),
        positions=positions,
        exposure=tokens.exposure,
        conditions=tokens.conditions,
        context=tokens.context,
    )
    start = torch.zeros_like(tokens.real)
    start[:, 0] = True
    return View(
        tokens=seen,
        hidden=start,
        start=start,
        time=torch.ones(1, device=tokens.device),
        pattern=Pattern(kind="causal"),
        ask_address=tokens.address,
        ask_positions=tokens.positions,
    )
