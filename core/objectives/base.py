"""What every pre-training objective is: an order, blocks, a corruption and a likelihood, with its own sampler.

An objective makes a View of a batch and scores predictions; it never touches the core or a science. One file
each; adding one is one file and one line in the registry.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.heads import Head, check_head, likelihoods_with
from consilience.core.likelihoods import Field, Likelihood, natural_likelihoods, normal_like
from consilience.core.objectives.scoring import nats_by_sample, sum_rows, views_of
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

    def new_cache(self, tokens: TokenBatch) -> KeyValueCache | None:
        """An empty key-value cache for samples like these, with what stands beside them; None where it cannot be."""


@dataclass(frozen=True)
class Wrapped:
    """A predictor around another one; what it changes is its own `__call__`.

    Args:
        predict: the one inside.
    """

    predict: Predictor

    @property
    def spec(self) -> TokenSpec:
        """The tokens of the science."""
        return self.predict.spec

    @property
    def likelihoods(self) -> Mapping[Field, Likelihood]:
        """The likelihood of each field of the content."""
        return self.predict.likelihoods

    def new_cache(self, tokens: TokenBatch) -> KeyValueCache | None:
        """An empty key-value cache, where the one inside has one."""
        return self.predict.new_cache(tokens)


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """One way to pre-train. Options are the fields of the dataclass."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The kind of the training loss; most objectives set it as an attribute of the class."""

    @property
    def ends_samples(self) -> bool:
        """Whether samples grow from their first token and end themselves, so that their length is not given."""
        return False

    @property
    def has_steps(self) -> bool:
        """Whether its sampler draws in a number of steps that can be chosen."""
        return True

    def at(self, progress: float) -> "Objective":
        """What is trained with once this share of the steps is done, in [0, 1): itself, unless training has phases.

        All phases share the likelihoods of this objective.
        """
        return self

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

    def unread(self, tokens: TokenBatch, hidden: Tensor) -> str | None:
        """Why some visible tokens would not inform the hidden ones that `sample` fills; None when all of them do.

        Args:
            tokens: in the order of the tokenizer.
            hidden: (B, N) bool.
        """
        return None

    def refuse_confidence(self, sampling: Sampling) -> None:
        """Raise ConsilienceError when an order of confidence is asked for: for samplers that unmask nothing."""
        if sampling.unmask_order != "random":
            raise ConsilienceError(
                f"{self.name} has an order of its own: unmask_order={sampling.unmask_order} is for masked, "
                "masked-diffusion, two-phase, and block with erasure"
            )

    def check_steps(self, sampling: Sampling) -> None:
        """Raise ConsilienceError when a number of steps is asked of a sampler that cannot choose it."""
        if sampling.steps is not None and not self.has_steps:
            raise ConsilienceError(
                f"{self.name} cannot choose its steps: steps={sampling.steps} is for masked, masked-diffusion, "
                "two-phase, denoising and block; leave it out"
            )

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

    def likelihood_kind(self, predict: Predictor, *, draws: int = 1) -> Kind:
        """What `log_likelihood` gives: exact or a bound; surrogate where there is none."""
        found = {field: one.evaluated(torch.Generator()) for field, one in predict.likelihoods.items()}
        return weakened(self.kind, found)

    def log_likelihood(
        self,
        predict: Predictor,
        tokens: TokenBatch,
        generators: Sequence[torch.Generator],
        *,
        draws: int = 1,
    ) -> Tensor:
        """(B,) float64, log p of the content of every sample in nats, of the kind that `likelihood_kind` says.

        Args:
            predict: the model.
            tokens: B samples.
            generators: one for each sample, so that no value depends on the other samples.
            draws: orders or masks that are averaged.
        """
        view, targets = views_of(self, predict, tokens, generators, draws)
        return -nats_by_sample(predict, view, targets, generators, draws)

    def evaluate(
        self, predict: Predictor, tokens: TokenBatch, generator: torch.Generator, *, draws: int = 1
    ) -> Loss:
        """The held-out loss, of the strongest kind that this objective can claim. Averages over draws."""
        likelihoods = {field: one.evaluated(generator) for field, one in predict.likelihoods.items()}
        total: Loss | None = None
        for _ in range(draws):
            view, targets = self.view(tokens, predict.spec, generator)
            scored = targets.select()
            parameters = {field: rows[targets.scored] for field, rows in predict(view).items()}
            part = self.loss(likelihoods, parameters, scored)
            total = part if total is None else total + part
        assert total is not None
        return total


@dataclass(frozen=True, kw_only=True)
class Headed(Objective):
    """What objectives share that hide content and predict it token by token: a choice of head for real values.

    Args:
        head: gaussian, mixture (of 8 Gaussians) or flow (a small flow-matching model a token: a surrogate in training,
            nats in evaluation); see `core.heads`. Symbols beside real values keep theirs.
    """

    head: Head = "gaussian"

    def __post_init__(self) -> None:
        check_head(self.name, self.head)

    def likelihoods(self, spec: TokenSpec) -> dict[Field, Likelihood]:
        """Natural ones, with the chosen head; ConsilienceError for a head of tokens without real values."""
        return likelihoods_with(spec, self.head)

    def with_noise(self, targets: Targets, generator: torch.Generator) -> Targets:
        """The targets with what a flow head needs at random; call it last in `view`, whatever the head."""
        values = targets.tokens.values
        if self.head != "flow" or values is None:
            return targets
        level = torch.zeros(targets.scored.shape, device=values.device)
        level[targets.scored] = stratified(int(targets.scored.sum()), generator, values.device)
        return replace(targets, noise=normal_like(values, generator), level=level)


def sum_fields(
    likelihoods: Mapping[Field, Likelihood], parameters: Mapping[Field, Tensor], scored: Scored
) -> Tensor:
    """(S,) nats of all fields of the content of each scored row."""
    return sum_rows(likelihoods, parameters, scored)


def weighted_bound(nats: Tensor, likelihoods: Mapping[Field, Likelihood], scored: Scored, kind: Kind) -> Loss:
    """The loss of hidden rows whose weights stand for all n tokens they were chosen from: weights sum to n.

    Args:
        nats: (S,) of the hidden rows.
        likelihoods: of the content.
        scored: the hidden rows; the weights of all samples of the batch sum to its predictable tokens.
        kind: of the weighted sum in nats.
    """
    assert scored.weight is not None
    nats = nats * scored.weight
    tokens = int(scored.weight.double().sum().round())
    return Loss(
        value=nats.sum() / max(tokens, 1),
        nats=nats.detach().double().sum(),
        tokens=tokens,
        kind=weakened(kind, likelihoods),
    )


def weakened(kind: Kind, likelihoods: Mapping[Field, Likelihood]) -> Kind:
    """The kind of loss that may be claimed: a surrogate where the content, or its head, has no proper density."""
    proper = all(one.proper and not one.spec.constrained for one in likelihoods.values())
    return kind if proper else "surrogate"


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
