"""Block: the dial from next-token (blocks of one token) to masked diffusion or denoising (one block of all).

Tokens are put in order and cut into blocks; each block is predicted all at once, as in masked diffusion (erasure)
or flow matching (gaussian), from the clean blocks before it:

    -log p(x) = sum_b -log p(x_b | x_<b, addresses).

Block diffusion of symbols is BD3-LM (Arriola et al. 2025, arXiv:2503.09573); for continuous tokens compare MAR (Li
et al. 2024, arXiv:2406.11838). The view has two streams, interleaved: row 2i holds token i clean (context), row
2i + 1 holds it corrupted (query). Context sees the context of its own and earlier blocks, a query that of earlier
blocks and the queries of its own (`Pattern` "block"). Given tokens are a clean block before all others.

A block shows how many tokens it has: the loss is conditional on the length of a sample from size 2 on, as that of
masked diffusion is, and generation is told lengths. Blocks of one token end samples themselves, like next-token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from consilience.core.attention import Pattern
from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.likelihoods import Field, Likelihood
from consilience.core.objectives.base import (
    Headed,
    Objective,
    Predictor,
    predictable,
    stratified,
    uniform_like,
    weakened,
    weighted_bound,
)
from consilience.core.objectives.denoising import Denoising, has_density
from consilience.core.objectives.masked import masked_view
from consilience.core.objectives.masked_diffusion import MaskedDiffusion
from consilience.core.objectives.orders import (
    Order,
    check_order,
    laid_out,
    permutation,
    unread_ahead,
    visible_first,
)
from consilience.core.sampling import Sampling
from consilience.core.view import Kind, Loss, Scored, Targets, View

Noise = Literal["erasure", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class Block(Headed):
    """Blocks one after another, each at once.

    Args:
        size: tokens a block; None = all of them, which is masked diffusion (erasure) or denoising (gaussian).
        order: in which blocks are cut; see `core.objectives.orders`. Within a block there is none.
        noise: erasure hides k of the n tokens of a block, k uniform in 1..n, each weighted n / k: a bound of the
            likelihood, exact at size 1. gaussian mixes values with noise at a time of each block, and erases
            symbols beside them with probability 1 - time: a surrogate in training, exact by an ODE per block.
    """

    size: int | None = 4
    order: Order = "natural"
    noise: Noise = "erasure"

    name = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.name, self.order)
        if self.size is not None and self.size < 1:
            raise ConsilienceError(f"block: size must be at least 1, or None for all tokens, not {self.size}")
        if self.noise not in get_args(Noise):
            raise ConsilienceError(
                f"block: unknown noise '{self.noise}'; known: {', '.join(get_args(Noise))}"
            )

        if self.noise == "gaussian" and self.head != "gaussian":
            raise ConsilienceError(
                f"block: with noise gaussian there is no choice of head, so not '{self.head}'"
            )

    @property
    def kind(self) -> Kind:
        """A bound, exact where a block is one hidden token; a surrogate with noise."""
        if self.noise == "gaussian":
            return "surrogate"
        return "exact" if self.size == 1 else "bound"

    @property
    def whole(self) -> Objective:
        """What this is when a block holds all tokens."""
        return Denoising() if self.noise == "gaussian" else MaskedDiffusion(head=self.head)

    @property
    def ends_samples(self) -> bool:
        """In the natural order with blocks of one token: larger ones show how many tokens are left."""
        return self.order == "natural" and self.size == 1

    def likelihoods(self, spec: TokenSpec) -> dict[Field, Likelihood]:
        """Those of masked diffusion or of denoising."""
        return self.whole.likelihoods(spec)

    def number(self, ordered: TokenBatch) -> Tensor:
        """(B, N) int64, the block of every token in order: given ones in block 0, then 1, 2, ..."""
        assert self.size is not None
        given = ordered.is_given.sum(1, keepdim=True)
        place = torch.arange(ordered.width, device=ordered.device)[None] - given
        return torch.where(place < 0, 0, place.div(self.size, rounding_mode="floor") + 1)

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """Both streams, each block corrupted on its own; only queries are scored."""
        if self.size is None:
            return self.whole.view(tokens, spec, generator)
        ordered = tokens.permute(permutation(tokens, self.order, generator))
        if self.noise == "erasure":
            return self._erased(ordered, spec, generator)
        assert ordered.values is not None
        number, free = self.number(ordered), predictable(ordered)
        clean = spec.standardise(ordered.values)
        noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean.device)
        time = self._uniform(number, generator)
        own = torch.gather(time, 1, number)
        lost = free & (uniform_like(free, generator) >= own)
        t = own[..., None]
        noisy = torch.where(free[..., None], (1 - t) * noise + t * clean, clean)
        return self.noisy_view(ordered, noisy, time, lost, spec), Targets(
            tokens=doubled(ordered),
            scored=queries(free),
            velocity=(clean - noise).repeat_interleave(2, dim=1),
            erased=queries(lost) if spec.vocabulary else None,
        )

    def _uniform(self, number: Tensor, generator: torch.Generator) -> Tensor:
        """(B, K + 1) uniform numbers in [0, 1) by block, spread over blocks and samples."""
        shape = number.shape[0], int(number.max()) + 1
        return stratified(shape[0] * shape[1], generator, number.device).reshape(shape)

    def _erased(
        self, ordered: TokenBatch, spec: TokenSpec, generator: torch.Generator
    ) -> tuple[View, Targets]:
        assert self.size is not None
        number, free = self.number(ordered), predictable(ordered)
        first = ordered.is_given.sum(1, keepdim=True) + (number - 1) * self.size
        n = (ordered.length[:, None] - first).clamp(1, self.size)
        share = torch.gather(self._uniform(number, generator), 1, number)
        k = (share * n).long().minimum(n - 1) + 1
        # Blocks lie one after another, so one sort by block and noise gives the rank within each; in float64,
        # where the number of a block leaves enough digits to the noise.
        key = torch.where(free, number + uniform_like(free, generator).double(), 2.0 * number.max() + 2)
        key = key.masked_fill(ordered.is_given, -1.0)
        rank = key.argsort(dim=1, stable=True).argsort(dim=1) - first
        hidden = free & (rank < k)
        targets = Targets(
            tokens=doubled(ordered),
            scored=queries(hidden),
            weight=(n / k).repeat_interleave(2, dim=1),
        )
        return self.erased_view(ordered, hidden, spec), self.with_noise(targets, generator)

    def noisy_view(
        self, ordered: TokenBatch, noisy: Tensor, time: Tensor, lost: Tensor, spec: TokenSpec
    ) -> View:
        """Both streams of values with noise.

        Args:
            ordered: tokens in order.
            noisy: (B, N, C) standardised values of the queries.
            time: (B, K + 1) of every block; that of block 0, the given tokens, is not read.
            lost: (B, N) bool, erased symbols.
            spec: the tokens.
        """
        assert ordered.values is not None
        number, free = self.number(ordered), predictable(ordered)
        values = torch.stack([spec.standardise(ordered.values), noisy], dim=2)
        ids = ordered.ids
        if ids is not None:
            ids = torch.stack([ids, ids.masked_fill(lost, spec.vocabulary)], dim=2).flatten(1, 2)
        level = torch.arange(time.shape[0], device=time.device)[:, None] * time.shape[1] + number
        return View(
            tokens=replace(doubled(ordered), ids=ids, values=values.flatten(1, 2), given=None),
            hidden=torch.zeros_like(free).repeat_interleave(2, dim=1),
            time=torch.cat([time.flatten(), time.new_ones(1)]),
            time_index=torch.where(queries(free), level.repeat_interleave(2, dim=1), time.numel()),
            pattern=two_streams(number),
        )

    def observe(self, tokens: TokenBatch, spec: TokenSpec) -> View:
        """The clean stream alone: embeddings see what the context saw in training, each block those before it."""
        if self.size is None:
            return self.whole.observe(tokens, spec)
        ordered = laid_out(tokens, self.order)
        shown = masked_view(ordered, torch.zeros_like(ordered.real), spec)
        return replace(shown, pattern=Pattern(kind="block", block=self.number(ordered)))

    def reduce(self, nats: Tensor, likelihoods: Mapping[Field, Likelihood], scored: Scored) -> Loss:
        """With erasure, the bound over all predictable tokens."""
        if self.noise == "erasure":
            return weighted_bound(nats, likelihoods, scored, self.kind)
        return super().reduce(nats, likelihoods, scored)

    def evaluate(
        self, predict: Predictor, tokens: TokenBatch, generator: torch.Generator, *, draws: int = 1
    ) -> Loss:
        """With noise, the exact nll by an ODE per block given the blocks before, where values have a density.

        Random orders are averaged over draws, and so are hidden tokens with erasure.
        """
        if self.size is None:
            return self.whole.evaluate(predict, tokens, generator, draws=draws)
        if self.noise == "erasure" or not has_density(predict.spec):
            return super().evaluate(predict, tokens, generator, draws=draws)
        from consilience.core.samplers.blocks import block_log_likelihood

        draws = draws if self.order == "random" else 1
        count = draws * int(predictable(tokens).sum())
        parts = []
        for _ in range(draws):
            ordered = tokens.permute(permutation(tokens, self.order, generator))
            parts.append(-block_log_likelihood(self, predict, ordered, generator))
        nats = torch.stack(parts).double().sum()
        return Loss(value=nats * draws / max(count, 1), nats=nats, tokens=count, kind="exact")

    def likelihood_kind(self, predict: Predictor, *, draws: int = 1) -> Kind:
        """Exact along the order drawn, or by the ODE of each block; the mean over several orders is a bound."""
        if self.size is None:
            return self.whole.likelihood_kind(predict, draws=draws)
        if self.noise == "gaussian":
            kind: Kind = "exact" if has_density(predict.spec) else "surrogate"
            drawn = self.order == "random"
        else:
            found = {field: one.evaluated(torch.Generator()) for field, one in predict.likelihoods.items()}
            kind, drawn = weakened("exact", found), self.order == "random" or self.size > 1
        return "bound" if kind == "exact" and drawn and draws > 1 else kind

    def log_likelihood(
        self,
        predict: Predictor,
        tokens: TokenBatch,
        generators: Sequence[torch.Generator],
        *,
        draws: int = 1,
    ) -> Tensor:
        """With erasure along the order in which tokens are revealed within blocks; else by an ODE a block."""
        if self.size is None:
            return self.whole.log_likelihood(predict, tokens, generators, draws=draws)
        from consilience.core.samplers.blocks import flow_log_likelihoods, revealed_log_likelihoods

        score = revealed_log_likelihoods if self.noise == "erasure" else flow_log_likelihoods
        return torch.stack([score(self, predict, tokens, generators) for _ in range(draws)]).mean(0)

    def erased_view(self, ordered: TokenBatch, hidden: Tensor, spec: TokenSpec) -> View:
        """Both streams with these queries hidden. hidden: (B, N) bool, of tokens in order."""
        view = masked_view(doubled(ordered), queries(hidden | ordered.is_given), spec)
        return replace(view, pattern=two_streams(self.number(ordered)))

    def unread(self, tokens: TokenBatch, hidden: Tensor) -> str | None:
        """In a fixed order no visible token may stand in a later block than a hidden one."""
        if self.size is None or self.order == "random":
            return None
        order = permutation(tokens, self.order, torch.Generator())
        number = self.number(tokens.permute(order)).gather(1, order.argsort(dim=1))
        return unread_ahead(f"{self.name} of {self.size} in {self.order} order", number, tokens, hidden)

    def sample(
        self,
        predict: Predictor,
        template: TokenBatch,
        hidden: Tensor,
        generator: torch.Generator,
        sampling: Sampling,
    ) -> TokenBatch:
        """Block after block: unmasking or transport within each. Only blocks before a hidden token inform it.

        In a random order visible tokens come first.
        """
        if self.size is None:
            return self.whole.sample(predict, template, hidden, generator, sampling)
        from consilience.core.samplers.blocks import block_by_block
        from consilience.core.samplers.content import cut_at_end

        if self.noise == "gaussian":
            self.refuse_confidence(sampling)
        order = permutation(template, self.order, generator)
        if self.order == "random":
            order = visible_first(order, template, hidden)
        inner = sampling if self.ends_samples else replace(sampling, end_id=None)
        ordered, fill = template.permute(order), torch.gather(hidden, 1, order)
        done = block_by_block(self, predict, ordered, fill, generator, inner)
        return cut_at_end(done.permute(order.argsort(dim=1)), sampling.end_id, template.length)


def doubled(tokens: TokenBatch) -> TokenBatch:
    """Every token twice, one row after the other: real rows stay the first ones of their sample."""

    def twice(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.repeat_interleave(2, dim=1)

    return TokenBatch(
        length=2 * tokens.length,
        ids=twice(tokens.ids),
        values=twice(tokens.values),
        weight=twice(tokens.weight),
        address=twice(tokens.address),
        positions=twice(tokens.positions),
        given=twice(tokens.given),
        exposure=tokens.exposure,
        conditions=tokens.conditions,
        context=tokens.context,
    )


def queries(mask: Tensor) -> Tensor:
    """(B, N) -> (B, 2 N): the mask on the queries, False on the context."""
    return torch.stack([torch.zeros_like(mask), mask], dim=2).flatten(1)


def two_streams(number: Tensor) -> Pattern:
    """The pattern of both streams. number: (B, N), the block of every token."""
    return Pattern(
        kind="block",
        block=number.repeat_interleave(2, dim=1),
        query=queries(torch.ones_like(number, dtype=torch.bool)),
    )
