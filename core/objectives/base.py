"""What every pre-training objective is: an order, blocks, a corruption and a likelihood, with its own sampler.

An objective makes a View of a batch and scores predictions; it never touches the core or a science. One file
each; adding one is one file and one line in the registry.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.likelihoods import Field, Likelihood, natural_likelihoods
from consilience.core.sampling import Sampling
from consilience.core.transformer import KeyValueCache
from consilience.core.view import Kind, Loss, Scored, Targets, View


class Predictor(Protocol):
    """A model seen through one science's embedder and head: what samplers and likelihoods need."""

    @property
    def spec(self) -> TokenSpec:
        """The tokens of the science."""

    @property
    def likelihoods(self) -> Mapping[Field, Likelihood]:
        """The likelihood of each field of the content."""

    def __call__(self, view: View, *, cache: KeyValueCache | None = None) -> dict[Field, Tensor]:
        """Parameters of each likelihood for every row, (B, M, parameters)."""

    def new_cache(self, batch: int, rows: int) -> KeyValueCache:
        """An empty key-value cache."""


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """One way to pre-train. Options are the fields of the dataclass."""

    name: ClassVar[str]
    kind: ClassVar[Kind]

    @property
    def ends_samples(self) -> bool:
        """Whether samples grow from their first token and end themselves, so that their length is not given."""
        return False

    def likelihoods(self, spec: TokenSpec) -> dict[Field, Likelihood]:
        """What the head of a science must parametrise under this objective."""
        return natural_likelihoods(spec)

    @abstractmethod
    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        """Draw what the core may see, and what it must predict. The same generator state gives the same view."""

    @abstractmethod
    def observe(self, tokens: TokenBatch, spec: TokenSpec) -> View:
        """The view with nothing corrupted, in the pattern of attention of training: for embeddings."""

    @abstractmethod
    def sample(
        self,
        predict: Predictor,
        template: TokenBatch,
        hidden: Tensor,
        generator: torch.Generator,
        sampling: Sampling,
    ) -> TokenBatch:
        """Fill the content of the hidden tokens; the others are kept and conditioned on.

        Args:
            predict: the model.
            template: tokens with addresses, and content where `hidden` is False.
            hidden: (B, N) bool.
            generator: all randomness.
            sampling: how to draw.
        """

    def loss(
        self, likelihoods: Mapping[Field, Likelihood], parameters: Mapping[Field, Tensor], scored: Scored
    ) -> Loss:
        """Sum the nats of all fields over the scored rows, and reduce them."""
        return self.reduce(sum_fields(likelihoods, parameters, scored), likelihoods, scored)

    def reduce(self, nats: Tensor, likelihoods: Mapping[Field, Likelihood], scored: Scored) -> Loss:
        """The loss from the nats of every scored row (S,): the scalar is their weighted mean."""
        count = int(nats.shape[0])
        weighted = nats if scored.weight is None else nats * scored.weight
        return Loss(
            value=weighted.sum() / max(count, 1),
            nats=weighted.detach().double().sum(),
            tokens=count,
            kind=weakened(self.kind, likelihoods),
        )

    def evaluate(
        self, predict: Predictor, tokens: TokenBatch, generator: torch.Generator, *, draws: int = 1
    ) -> Loss:
        """The held-out loss, of the strongest kind that this objective can claim. Averages over draws."""
        total: Loss | None = None
        for _ in range(draws):
            view, targets = self.view(tokens, predict.spec, generator)
            scored = targets.select()
            parameters = {field: rows[targets.scored] for field, rows in predict(view).items()}
            part = self.loss(predict.likelihoods, parameters, scored)
            total = part if total is None else total + part
        assert total is not None
        return total


def sum_fields(
    likelihoods: Mapping[Field, Likelihood], parameters: Mapping[Field, Tensor], scored: Scored
) -> Tensor:
    """(S,) nats of all fields of the content of each scored row."""
    parts = [likelihoods[field].nats(parameters[field], scored) for field in likelihoods]
    return torch.stack(parts).sum(0)


def weakened(kind: Kind, likelihoods: Mapping[Field, Likelihood]) -> Kind:
    """The kind of loss that may be claimed: a surrogate where the content has no proper density."""
    return "surrogate" if any(likelihood.spec.constrained for likelihood in likelihoods.values()) else kind


def predictable(tokens: TokenBatch) -> Tensor:
    """(B, N) bool: real tokens that are not given."""
    return tokens.real & ~tokens.is_given


def stratified(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(count,) uniform numbers in [0, 1), one in each of `count` equal parts, in random order.

    Spreads times and rates evenly over a batch, which lowers the variance of the loss.
    """
    jitter = torch.rand(count, generator=generator, device=generator.device)
    order = torch.randperm(count, generator=generator, device=generator.device)
    return ((order + jitter) / count).to(device)


def uniform_like(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) of the mask's shape."""
    return torch.rand(mask.shape, generator=generator, device=generator.device).to(mask.device)
