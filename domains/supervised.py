"""The same core trained on labels: from scratch as the ceiling of a read-out, or fine-tuned from a pre-trained model.

Tokenizer, embedder, core and pooling are those of a read-out of the final states; one linear head reads the mean, or
the sum where what is predicted grows with the record (an energy).
Cross-entropy for classes, squared error of standardised numbers. The weights with the lowest validation loss are
kept. Every random choice is a function of (seed, step), as in pre-training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consilience.core.checkpoint import load_model
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source
from consilience.core.lora import LoraOptions, add_adapters, merge_adapters
from consilience.core.memory import kept_memory
from consilience.core.model import FoundationModel
from consilience.core.objectives import Objective
from consilience.core.records import take_records
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.base import Task
from consilience.domains.headed import FixedSource, HeadedModel, Labelled, science_parts, train_head
from consilience.domains.preparation import Prepared
from consilience.domains.probes import ProbeResult, known_labels, score_predictions
from consilience.domains.readout_search import label_subset


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


def fit_supervised(
    prepared: Prepared,
    task: Task,
    *,
    core: CoreConfig,
    training: TrainingConfig,
    objective: Objective,
    init: Path | FoundationModel | None = None,
    freeze_core: bool = False,
    lora: LoraOptions | None = None,
    label_fraction: float = 1.0,
    augment: bool | None = None,
    pool: Literal["mean", "sum"] = "mean",
    error: Literal["squared", "absolute"] = "squared",
    seed: int = 0,
) -> Supervised:
    """Train core, embedder and head on the labels of the training part; score the labelled test part.

    Batches are those of pre-training: a budget of tokens, records of similar length. Validation and test records are
    tokenized without randomness. Test labels are read once, to score.

    Args:
        prepared: data, split and tokenizer.
        task: what to predict.
        core: size of the transformer; that of `init` where there is one.
        training: steps, tokens a batch, learning rate and so on; its seed is not used.
        objective: gives the pattern of attention (`observe`), so that from scratch compares to pre-trained.
        init: start from this model: its core, and its embedder and tokenizer where it knows the science.
        freeze_core: train embedder and head alone.
        lora: train adapters of this size in place of the core's own weights; they are merged in the end.
        label_fraction: of the labels of training and validation part, see `readout_search.label_subset`.
        augment: tokenize training batches with the randomness of pre-training (random strings of a molecule, turned
            clouds); default: `Domain.augments`, which says whether these look like the records to be read.
        pool: what the head reads of the final states: their mean, or their sum (over the mean number of tokens of the
            training records) for what grows with the record.
        error: of a regression, in training and validation.
        seed: of initialisation, order, tokenization and the choice of labels.

    Raises:
        ConsilienceError: adapters of a frozen core, a core of another size than that of `init`, fewer than two
            different training labels, no labelled validation or test record, or a loss that is not finite.
    """
    if freeze_core and lora is not None:
        raise ConsilienceError("a frozen core takes no adapters: choose freeze_core or lora")
    labels = np.asarray(prepared.collection.labels[task.label])
    parts = {
        name: label_subset(labels, index, task.kind, label_fraction, seed)
        for name, index in prepared.split.parts().items()
        if name != "test"
    }
    target = _Target.of(labels[parts["train"]], task, error)
    validation = _labelled(prepared, parts["validation"], target)
    if not len(validation.target):
        raise ConsilienceError(
            f"{prepared.collection.source}: no validation record has a known label of '{task.name}': early stopping "
            "needs some; give more records"
        )
    torch.manual_seed(seed)
    model = _model(prepared, core, objective, init)
    head = nn.Linear(core.width, target.width)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    name = prepared.domain.name
    model.core.requires_grad_(not freeze_core and lora is None)
    if lora is not None:
        add_adapters(model.core, lora)
    rows = None
    if pool == "sum":
        rows = float(model.tokenizers[name].lengths(prepared.records("train")).mean())
    run = HeadedModel(model=model, head=head, name=name, target=target, rows=rows)
    run.to("cuda" if torch.cuda.is_available() else "cpu")
    source = (Source if (prepared.domain.augments if augment is None else augment) else FixedSource)(
        records=take_records(prepared.collection.records, parts["train"]), tokenizer=run.tokenizer
    )
    train = target.encode(labels[parts["train"]])
    with kept_memory():
        curve, steps, best = train_head(run, source, train, validation, training, seed)
        run.to("cpu")
        if lora is not None:
            merge_adapters(model.core)
        model.core.requires_grad_(True)
        known = known_labels(labels[prepared.split.test], task.kind)[1]
        test = prepared.split.test[known]
        predicted = target.decode(run.outputs(take_records(prepared.collection.records, test)))
    result = score_predictions(
        predicted,
        labels,
        prepared.split,
        task.kind,
        n_train=len(parts["train"]),
        redshift=task.label == "redshift",
    )
    return Supervised(
        result=result,
        curve=tuple(curve),
        steps=steps,
        best_step=best,
        labels=len(parts["train"]),
        model=model.eval(),
        head=head,
        rows=rows,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    """Labels as a head predicts them.

    Args:
        task: of the labels.
        classes: of the training labels, sorted; empty for numbers.
        mean: of the training labels.
        spread: their standard deviation.
        error: of a regression.
    """

    task: Task
    classes: np.ndarray
    mean: float = 0.0
    spread: float = 1.0
    error: Literal["squared", "absolute"] = "squared"

    @classmethod
    def of(
        cls, labels: np.ndarray, task: Task, error: Literal["squared", "absolute"] = "squared"
    ) -> "_Target":
        """From the training labels."""
        values, _ = known_labels(labels, task.kind)
        if len(np.unique(values)) < 2:
            raise ConsilienceError(
                f"'{task.name}' has {len(np.unique(values))} different training label(s); training needs two"
            )
        if task.kind == "classification":
            return cls(task=task, classes=np.unique(values))
        mean, spread = float(values.mean()), float(values.std())
        return cls(task=task, classes=np.zeros(0), mean=mean, spread=spread, error=error)

    @property
    def width(self) -> int:
        """Outputs of the head."""
        return max(len(self.classes), 1)

    def encode(self, labels: np.ndarray) -> Tensor:
        """(n,) places of classes (-1 for one that training never saw), or standardised numbers."""
        values, _ = known_labels(labels, self.task.kind)
        if self.task.kind == "regression":
            return torch.from_numpy((values - self.mean) / self.spread).float()
        place = np.searchsorted(self.classes, values).clip(max=len(self.classes) - 1)
        return torch.from_numpy(np.where(self.classes[place] == values, place, -1))

    def decode(self, outputs: Tensor) -> np.ndarray:
        """(n, width) outputs -> (n,) labels."""
        if self.task.kind == "regression":
            return outputs[:, 0].double().numpy() * self.spread + self.mean
        return self.classes[outputs.argmax(1).numpy()]

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean over records."""
        if self.task.kind == "regression":
            loss = F.mse_loss if self.error == "squared" else F.l1_loss
            return loss(outputs[:, 0].float(), target)
        return F.cross_entropy(outputs.float(), target)


def _labelled(prepared: Prepared, index: np.ndarray, target: _Target) -> Labelled:
    """Of these positions, those whose label training knows."""
    wanted = target.encode(np.asarray(prepared.collection.labels[target.task.label])[index])
    known = wanted >= 0 if target.task.kind == "classification" else torch.ones_like(wanted, dtype=torch.bool)
    return Labelled(
        records=take_records(prepared.collection.records, index[known.numpy()]), target=wanted[known]
    )


def _model(
    prepared: Prepared, core: CoreConfig, objective: Objective, init: Path | FoundationModel | None
) -> FoundationModel:
    """A new model, with weights and tokenizer of `init` where it has them."""
    name = prepared.domain.name
    if init is None:
        return FoundationModel(core, {name: prepared.tokenizer}, objective)
    start = load_model(FoundationModel, init) if isinstance(init, Path) else init
    for part in ("width", "depth", "heads", "mlp", "mlp_ratio", "residual_scale"):
        if getattr(start.core_config, part) != getattr(core, part):
            raise ConsilienceError(
                f"the core to start from has {part} {getattr(start.core_config, part)}, this one "
                f"{getattr(core, part)}; train with the same size"
            )
    model = FoundationModel(core, {name: start.tokenizers.get(name, prepared.tokenizer)}, objective)
    model.core.load_state_dict(start.core.state_dict())
    if name in start.tokenizers:
        ours, theirs = science_parts(model, name), science_parts(start, name)
        for key, module in ours.items():
            module.load_state_dict(theirs[key].state_dict())
    return model
