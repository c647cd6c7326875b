"""A pre-trained core trained on the labels of a table: adapters alone (LoRA), all weights, or its size from scratch.

One linear head reads the mean of the final states for all T targets together; unknown labels have no part in the loss.
Cross-entropy for classes, squared error of standardised numbers. Two things are chosen on the validation part and
nothing else: the learning rate, from a fixed grid, with the first seed; and the epoch, every epoch of every seed being
looked at.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consilience.core.errors import ConsilienceError
from consilience.core.lora import LoraOptions, add_adapters
from consilience.core.memory import kept_memory
from consilience.core.model import FoundationModel
from consilience.core.records import take_records
from consilience.core.training_config import TrainingConfig
from consilience.domains.headed import EVALUATIONS, FixedSource, HeadedModel, Labelled, train_head
from consilience.domains.penalties import Kind
from consilience.domains.preparation import Prepared

Method = Literal["lora", "full", "scratch"]
METHODS: tuple[Method, ...] = ("lora", "full", "scratch")

LEARNING_RATES: dict[Method, tuple[float, ...]] = {
    "lora": (1e-3, 3e-3, 1e-2),  # updates of low rank take larger steps
    "full": (3e-4, 1e-3, 3e-3),
    "scratch": (3e-4, 1e-3, 3e-3),
}
EPOCHS = EVALUATIONS
"""Passes over the training labels at most; with as many, validation is looked at once a pass."""
BATCH = 32
"""Records a step, on average: batches hold a fixed number of tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PropertyTarget:
    """T label columns as a head predicts them.

    Args:
        kind: of all.
        mean: (T,) of the training labels; zeros for classes.
        spread: (T,) their standard deviation; ones for classes.
    """

    kind: Kind
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, kind: Kind) -> "PropertyTarget":
        """From (n, T) training labels, NaN where unknown."""
        count = labels.shape[1]
        if kind == "classification":
            return cls(kind=kind, mean=np.zeros(count), spread=np.ones(count))
        return cls(kind=kind, mean=np.nanmean(labels, axis=0), spread=np.nanstd(labels, axis=0))

    @property
    def width(self) -> int:
        """T."""
        return len(self.mean)

    def encode(self, labels: np.ndarray) -> Tensor:
        """(n, T) float32: 0 and 1, or standardised numbers; NaN where unknown."""
        return torch.from_numpy((labels - self.mean) / self.spread).float()

    def decode(self, outputs: Tensor) -> np.ndarray:
        """(n, T) outputs -> probabilities of class 1, or numbers in the unit of the labels."""
        values = outputs.double()
        if self.kind == "classification":
            return values.sigmoid().numpy()
        return values.numpy() * self.spread + self.mean

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean over known labels; 0 where a batch has none."""
        known = ~target.isnan()
        outputs, wanted = outputs.float(), torch.where(known, target, 0.0)
        if self.kind == "classification":
            each = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        else:
            each = (outputs - wanted) ** 2
        return (each * known).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """A core trained on the labels of a table.

    Args:
        method: lora, full or scratch.
        headed: the model with its head, on the CPU; under LoRA with adapters that are not merged.
        target: from outputs to labels.
        learning_rate: of this run.
        epoch: after which the kept weights stood, 0 = before training; rounded up.
        validation_loss: of the kept weights.
        seed: of head, adapters, order and, from scratch, all weights.
    """

    method: Method
    headed: HeadedModel
    target: PropertyTarget
    learning_rate: float
    epoch: int
    validation_loss: float
    seed: int

    def predict(self, records: Sequence[str]) -> np.ndarray:
        """(n, T) probabilities of class 1, or numbers; for records that the tokenizer reads."""
        return self.target.decode(self.headed.outputs(records))


def tune(
    prepared: Prepared,
    targets: Sequence[str],
    kind: Kind,
    model: FoundationModel,
    method: Method,
    *,
    learning_rate: float,
    epochs: int = EPOCHS,
    lora: LoraOptions | None = None,
    seed: int = 0,
) -> Tuned:
    """Train once and keep the weights with the lowest validation loss. Test labels are not looked at.

    Args:
        prepared: records, split and the tokenizer of the model.
        targets: names of labels: float columns, NaN where unknown.
        kind: of all targets.
        model: to start from; it stays as it is. From scratch, its size, objective and tokenizer count.
        method: what is trained.
        learning_rate: peak.
        epochs: passes over the training records.
        lora: size of the adapters.
        seed: of head, adapters, order and, from scratch, all weights.
    """
    if method not in METHODS:
        raise ConsilienceError(f"method {method!r} is not known; use {', '.join(METHODS)}")
    if epochs < 1:
        raise ConsilienceError(f"epochs must be at least 1, not {epochs}")
    labels = np.column_stack([prepared.collection.labels[name] for name in targets])
    parts = {
        name: index[~np.isnan(labels[index]).all(axis=1)] for name, index in prepared.split.parts().items()
    }
    target = PropertyTarget.of(labels[parts["train"]], kind)
    torch.manual_seed(seed)
    name = prepared.domain.name
    start = FoundationModel(model.core_config, {name: prepared.tokenizer}, model.objective)
    if method != "scratch":
        weights = model.state_dict()  # the model may know other sciences too
        start.load_state_dict({key: weights[key] for key in start.state_dict()})
    head = nn.Linear(model.core_config.width, target.width)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if method == "lora":
        start.requires_grad_(False)
        add_adapters(start.core, lora or LoraOptions())
    headed = HeadedModel(model=start, head=head, name=name, target=target)
    headed.to(str(model.device))
    records = prepared.collection.records
    source = FixedSource(records=take_records(records, parts["train"]), tokenizer=headed.tokenizer)
    lengths = source.lengths(0)
    budget = max(int(lengths.max()), round(BATCH * float(lengths.mean())))
    training = TrainingConfig(
        steps=epochs * math.ceil(int(lengths.sum()) / budget),
        tokens_per_batch=budget,
        learning_rate=learning_rate,
    )
    validation = Labelled(
        records=take_records(records, parts["validation"]),
        target=target.encode(labels[parts["validation"]]),
    )
    with kept_memory():
        curve, _, best = train_head(
            headed, source, target.encode(labels[parts["train"]]), validation, training, seed
        )
    headed.to("cpu")
    start.eval()
    return Tuned(
        method=method,
        headed=headed,
        target=target,
        learning_rate=learning_rate,
        epoch=math.ceil(epochs * best / training.steps),
        validation_loss=dict(curve).get(best, float("inf")),
        seed=seed,
    )


def tune_by_validation(
    prepared: Prepared,
    targets: Sequence[str],
    kind: Kind,
    model: FoundationModel,
    method: Method,
    *,
    seeds: int,
    epochs: int = EPOCHS,
    lora: LoraOptions | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Tuned, ...]:
    """One run a seed, at the learning rate that has the lowest validation loss with seed 0; arguments as in `tune`.

    Args:
        prepared: see `tune`, as are the others.
        targets: see `tune`.
        kind: see `tune`.
        model: see `tune`.
        method: see `tune`.
        seeds: how many, from 0.
        epochs: see `tune`.
        lora: see `tune`.
        tell: called with a few words before every run.
    """
    best: Tuned | None = None
    for rate in LEARNING_RATES[method]:
        tell(f"{method}: learning rate {rate:g}")
        found = tune(prepared, targets, kind, model, method, learning_rate=rate, epochs=epochs, lora=lora)
        best = found if best is None or found.validation_loss < best.validation_loss else best
    assert best is not None
    others = []
    for seed in range(1, seeds):
        tell(f"{method}: learning rate {best.learning_rate:g}, seed {seed}")
        others.append(
            tune(
                prepared, targets, kind, model, method,
                learning_rate=best.learning_rate, epochs=epochs, lora=lora, seed=seed,
            )
        )  # fmt: skip
    return (best, *others)
