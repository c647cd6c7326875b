"""Sources, toy batches of every content kind, planted leaks and trained models for the tests of the core."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from consilience.core.attention import Pattern
from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.conditions import Conditions
from consilience.core.model import FoundationModel
from consilience.core.objectives import Block, Denoising, Masked, MaskedDiffusion, NextToken, Objective
from consilience.core.objectives.base import Predictor
from consilience.core.objectives.masked import masked_view
from consilience.core.synthetic import Source
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig
from consilience.core.view import Loss, Targets, View

TINY = CoreConfig(width=32, depth=2, heads=4)


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Toy tensors are faster on one thread, and timings do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def awaken(model: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Add noise to every weight: heads and the time modulation start at zero, where every test would pass."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (
                scale * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            )


def spec_of(kind: str) -> TokenSpec:
    """The spec of one kind of content, addressed by slots and by one coordinate."""
    content = {
        "ids": {"vocabulary": 5},
        "values": {"channels": 2, "value_shift": 0.5, "value_scale": 2.0},
        "weighted": {"channels": 2, "weighted": True, "value_encoding": "fourier"},
        "counts": {"channels": 1, "value_likelihood": "negative-binomial", "value_encoding": "soft-bins"},
        "mixed": {"vocabulary": 5, "channels": 3, "rotary_from_values": False, "pairwise_bias": True},
        "cloud": {"vocabulary": 4, "channels": 3, "rotary_from_values": True, "pairwise_bias": True},
    }[kind]
    places = {"coordinates": 3 if kind == "cloud" else 1, "position_encoding": "both", "periods": (2.0, 40.0)}
    return TokenSpec(name=kind, addresses=9, **places, **content)


def batch_of(kind: str, seed: int = 0, lengths: tuple[int, ...] = (7, 4, 6, 7, 2)) -> TokenBatch:
    """A ragged batch of one kind of content; the first token of each sample is given."""
    spec, generator = spec_of(kind), seeded(seed)
    length = torch.tensor(lengths)
    b, n = len(lengths), int(length.max())
    real = torch.arange(n) < length[:, None]
    given = torch.zeros_like(real)
    given[:, 0] = True
    batch = TokenBatch(
        length=length,
        address=torch.rand(b, 9, generator=generator).argsort(1)[:, :n] * real,
        positions=None if kind == "cloud" else 5 * torch.rand(b, n, 1, generator=generator) * real[..., None],
        given=given,
    )
    return content_of(kind, batch, seed).validate(spec)


def content_of(kind: str, batch: TokenBatch, seed: int) -> TokenBatch:
    """The batch with other content: symbols, values, precisions."""
    spec, generator = spec_of(kind), seeded(seed + 1000)
    b, n = batch.address.shape
    real = torch.arange(n) < batch.length[:, None]
    ids = values = weight = None
    if spec.vocabulary:
        ids = torch.randint(spec.vocabulary, (b, n), generator=generator) * real
    if spec.channels:
        values = torch.randn(b, n, spec.channels, generator=generator) * real[..., None]
        if spec.counts:
            values = (4 * values.abs()).round()
    if spec.weighted:
        weight = torch.rand(b, n, spec.channels, generator=generator) * 5 * real[..., None]
        weight = weight.masked_fill(torch.rand(weight.shape, generator=generator) < 0.2, 0.0)
        values = values.masked_fill(weight == 0, 0.0)
    exposure = 0.5 + torch.rand(b, generator=generator) if spec.counts else None
    return replace(batch, ids=ids, values=values, weight=weight, exposure=exposure)


def model_of(
    spec: TokenSpec,
    objective: Objective,
    *,
    core: CoreConfig = TINY,
    seed: int = 0,
    conditions: Conditions | None = None,
) -> FoundationModel:
    """An awake model over tokens of this spec, without a tokenizer."""
    torch.manual_seed(seed)
    tokenizer = SimpleNamespace(spec=spec, log_rates=lambda: None, end_id=None)
    told = {} if conditions is None else {spec.name: conditions}
    model = FoundationModel(core, {spec.name: tokenizer}, objective, conditions=told)
    awaken(model, seed)
    return model.eval()


# Leaks planted on purpose: each subclass makes the mistake that its objective invites.


@dataclass(frozen=True, kw_only=True)
class LeakyNextToken(NextToken):
    """Forgets the causal mask."""

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        view, targets = super().view(tokens, spec, generator)
        return replace(view, pattern=Pattern(kind="full")), targets


@dataclass(frozen=True, kw_only=True)
class UnshiftedNextToken(NextToken):
    """Forgets the shift: every row holds the token that it is asked for."""

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        view, targets = super().view(tokens, spec, generator)
        shown = masked_view(targets.tokens, torch.zeros_like(tokens.real), spec)
        return replace(view, tokens=shown.tokens, hidden=shown.hidden, start=None), targets


@dataclass(frozen=True, kw_only=True)
class LeakyMasked(Masked):
    """Forgets to hide what it scores."""

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        _, targets = super().view(tokens, spec, generator)
        return masked_view(tokens, torch.zeros_like(tokens.real), spec), targets


@dataclass(frozen=True, kw_only=True)
class LeakyMaskedDiffusion(MaskedDiffusion):
    """Forgets to hide what it scores."""

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        _, targets = super().view(tokens, spec, generator)
        return masked_view(tokens, torch.zeros_like(tokens.real), spec), targets


@dataclass(frozen=True, kw_only=True)
class LeakyDenoising(Denoising):
    """Lets the address carry the clean value, in training and in evaluation alike."""

    @staticmethod
    def betray(tokens: TokenBatch, spec: TokenSpec) -> TokenBatch:
        return replace(tokens, positions=spec.standardise(tokens.values)[..., :1])

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        return super().view(self.betray(tokens, spec), spec, generator)

    def evaluate(
        self, predict: Predictor, tokens: TokenBatch, generator: torch.Generator, *, draws: int = 1
    ) -> Loss:
        return super().evaluate(predict, self.betray(tokens, predict.spec), generator, draws=draws)


@dataclass(frozen=True, kw_only=True)
class LeakyPattern(Pattern):
    """Queries see the clean context of their own block: `<=` where `<` is right."""

    def allowed(self, n: int, device: torch.device) -> Tensor | None:
        same = self.block[:, None, :] == self.block[:, :, None]
        return super().allowed(n, device) | (same & self.query[:, :, None] & ~self.query[:, None, :])


@dataclass(frozen=True, kw_only=True)
class LeakyBlock(Block):
    """Lets queries see the clean context of their own block."""

    def view(self, tokens: TokenBatch, spec: TokenSpec, generator: torch.Generator) -> tuple[View, Targets]:
        view, targets = super().view(tokens, spec, generator)
        return replace(view, pattern=LeakyPattern(**vars(view.pattern))), targets


PLANTED = {
    "next-token": LeakyNextToken(),
    "next-token-unshifted": UnshiftedNextToken(),
    "masked": LeakyMasked(rate=0.5),
    "masked-diffusion": LeakyMaskedDiffusion(),
    "denoising": LeakyDenoising(),
    "block": LeakyBlock(size=2),
    "block-gaussian": LeakyBlock(size=2, noise="gaussian"),
}


@cache
def trained(source: Source, objective: Objective, seed: int = 0, steps: int = 400) -> FoundationModel:
    """A small model after a short training on fresh samples; Adam, the rate decays to zero. About 5 s."""
    # Where few tokens of a batch carry loss, or noise is added, it takes more samples to learn the same.
    batch = 256 if objective in (Masked(rate=0.15), Denoising()) else 128
    torch.manual_seed(seed)
    model = FoundationModel(TINY, {source.name: SyntheticTokenizer(source)}, objective).train()
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    generator = seeded(100 + seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 8e-3 * min((step + 1) / 40, 1 - step / steps)
        tokens, phase = source.tokens(batch, generator), objective.at(step / steps)
        loss = model.loss({source.name: tokens}, generator, objective=phase)[source.name]
        optimiser.zero_grad()
        loss.value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Helpers shared by the tests of the core (test files cannot import this one)."""
    return SimpleNamespace(
        tiny=TINY,
        planted=PLANTED.__getitem__,
        leaky_pattern=LeakyPattern,
        seeded=seeded,
        awaken=awaken,
        spec_of=spec_of,
        batch_of=batch_of,
        content_of=content_of,
        model_of=model_of,
        trained=trained,
    )
