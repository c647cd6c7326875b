"""A model with a linear head on its final states, and how both are trained on labels."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from consilience.core.batch import TokenBatch
from consilience.core.embed import by_tokens, counted_rows, pool_rows
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source, TokenFeed, step_generator
from consilience.core.model import FoundationModel
from consilience.core.optim import build_optimizer, schedule
from consilience.core.records import take_records
from consilience.core.training_config import TrainingConfig
from consilience.domains.probes import ProbeResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Supervised:
    """A core trained on labels.

    Args:
        result: scores, positions, truth and predictions of the labelled test records.
        curve: (step, validation loss) pairs: nats, or the error of standardised labels.
        steps: optimiser steps taken.
        best_step: after which the kept weights stood; 0 = before training.
        labels: training labels used.
        model: with the kept weights; its heads are those of pre-training, untouched.
        head: the linear read-out, (D,) -> classes or one standardised number.
        rows: the head reads the sum of the states over this constant; None = it reads their mean.
    """

    result: ProbeResult
    curve: tuple[tuple[int, float], ...]
    steps: int
    best_step: int
    labels: int
    model: FoundationModel
    head: nn.Linear
    rows: float | None = None


EVALUATIONS = 20
"""How often the validation loss is measured in a run."""
PATIENCE = 10
"""Training stops after so many validation losses in a row above the lowest one."""


class HeadTarget(Protocol):
    """What a head predicts, and its loss."""

    @property
    def width(self) -> int:
        """Outputs of the head."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean over records, of (B, width) outputs and the encoded labels."""


class FixedSource(Source):
    """Training records as validation and test records are tokenized."""

    def tokens(self, index: np.ndarray, epoch: int, generator: torch.Generator) -> TokenBatch:
        """Without the generator."""
        return self.tokenizer.encode(take_records(self.records, index))


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Records and what is to be predicted of them."""

    records: Any
    target: Tensor


def science_parts(model: FoundationModel, name: str) -> dict[str, nn.Module]:
    """What turns a science's tokens into states: all of the model but its heads."""
    return {"core": model.core, **model.predictor(name).port.entrance()}


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadedModel:
    """A model with a head on the mean of its final states, or on their sum over `rows`."""

    model: FoundationModel
    head: nn.Linear
    name: str
    target: HeadTarget
    rows: float | None = None

    @property
    def tokenizer(self) -> Any:
        """Of the science."""
        return self.model.tokenizers[self.name]

    @property
    def trained(self) -> nn.ModuleDict:
        """Core, embedder and head, under the names that the optimiser knows."""
        return nn.ModuleDict(science_parts(self.model, self.name) | {"head": self.head})

    def to(self, device: str) -> None:
        """Move everything."""
        self.model.to(device)
        self.head.to(device)

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """(B, width) outputs."""
        view = self.model.objective.observe(tokens.to(self.model.device), self.tokenizer.spec)
        states = self.model({self.name: view}).final
        counted = counted_rows(view)
        pooled = pool_rows(states.float(), counted, "mean")
        if self.rows is not None:
            pooled = pooled * counted.sum(1, keepdim=True) / self.rows
        with torch.autocast(pooled.device.type, enabled=False):  # labels have more digits than bfloat16
            return self.head(pooled.float())

    def batches(self, records: Any, budget: int) -> Iterator[tuple[np.ndarray, TokenBatch]]:
        """Places and tokens without randomness, records of similar length together."""
        if not len(records):
            return
        tokens = self.tokenizer.encode(records)
        length = tokens.length.numpy()
        order = np.argsort(length, kind="stable")
        for batch in by_tokens(length[order], budget):
            yield order[batch], tokens.take(torch.from_numpy(order[batch])).trim()

    @torch.no_grad()
    def read(self, batches: list[tuple[np.ndarray, TokenBatch]]) -> Tensor:
        """(n, width) outputs on the CPU, in the order of the records."""
        self.model.eval()
        count = sum(len(places) for places, _ in batches)
        outputs = torch.zeros(count, self.target.width)
        for places, tokens in batches:
            outputs[torch.from_numpy(places)] = self(tokens).float().cpu()
        return outputs

    def outputs(self, records: Any) -> Tensor:
        """(n, width) outputs for records."""
        return self.read(list(self.batches(records, budget=8192)))


def train_head(
    run: HeadedModel,
    source: Source,
    target: Tensor,
    validation: Labelled,
    training: TrainingConfig,
    seed: int,
) -> tuple[list[tuple[int, float]], int, int]:
    """Train in place what takes gradients: (curve, steps taken, step of the weights that were kept)."""
    trained = run.trained
    optimizer = build_optimizer(
        trained,
        name=training.optimizer,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
    )
    rule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: schedule(step, steps=training.steps, warmup=training.warmup, decay=training.decay),
    )
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    feed = TokenFeed(
        {run.name: source}, steps=training.steps, tokens_per_batch=training.tokens_per_batch, seed=seed
    )
    held = list(run.batches(validation.records, training.tokens_per_batch))
    device = run.model.device
    half = training.precision == "bf16-mixed" or (
        training.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    every, curve = max(1, training.steps // EVALUATIONS), []
    lowest, best, kept, worse = np.inf, 0, copy.deepcopy(trained.state_dict()), 0
    for step in range(training.steps):
        _, index = feed.indices(step)
        tokens = feed[step][1]
        run.model.train()
        if run.model.core_config.dropout:  # dropout draws from the global generator
            torch.manual_seed(step_generator(seed, step, stream=1).initial_seed())
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            outputs = run(tokens)
        loss = run.target.loss(outputs, target[torch.from_numpy(index)].to(device))
        if not torch.isfinite(loss):
            raise ConsilienceError(
                f"the loss became {loss.item()} at step {step}: lower training.learning_rate (now "
                f"{training.learning_rate})"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        rule.step()
        if (step + 1) % every and step + 1 < training.steps:
            continue
        curve.append((step + 1, float(run.target.loss(run.read(held), validation.target))))
        if curve[-1][1] < lowest:
            lowest, best, kept, worse = curve[-1][1], step + 1, copy.deepcopy(trained.state_dict()), 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    trained.load_state_dict(kept)
    return curve, curve[-1][0], best
