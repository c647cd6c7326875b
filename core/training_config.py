"""TrainingConfig: how to train. Apart from `training.py`, so that a command line can show it without Lightning."""

from dataclasses import dataclass
from typing import Literal

from consilience.core.errors import ConsilienceError
from consilience.core.optim import OptimizerName
from consilience.core.options import check_seed

Strategy = Literal["auto", "ddp", "fsdp2"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Args:
        steps: optimiser steps.
        tokens_per_batch: real tokens a step, at most.
        learning_rate: peak.
        optimizer: adamw, or muon (Muon for the core's matrices, AdamW for the rest).
        weight_decay: of matrices.
        warmup: fraction of the steps with rising learning rate.
        decay: fraction of the steps with falling learning rate.
        clip: largest norm of the gradient.
        precision: auto (bf16 where a GPU supports it, else 32 bit), bf16-mixed or 32-true.
        compile: torch.compile the core.
        seed: of initialisation, order, augmentation and corruption.
        validations: how often the held-out loss is measured during the run, on a few batches of `tokens_per_batch`:
            runs with batches of another size see other records.
        save_every: steps between resumable checkpoints; 0 = at the end and on interruption only.
        workers: processes that tokenize ahead.
        devices: GPUs (on a machine without any: CPU processes) of each machine; 0 = all GPUs. Under torchrun the
            launcher says it. The numbers of a run do not depend on it.
        nodes: machines.
        strategy: how several devices share the work: auto or ddp (a copy of the model on each), or fsdp2 (weights,
            gradients and optimiser cut up among them, for models that one device cannot hold).
    """

    steps: int = 2000
    tokens_per_batch: int = 4096
    learning_rate: float = 2e-3
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.05
    warmup: float = 0.05
    decay: float = 0.3
    clip: float = 1.0
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    compile: bool = False
    seed: int = 0
    validations: int = 10
    save_every: int = 500
    workers: int = 0
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "auto"

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("steps", "tokens_per_batch", "learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ConsilienceError(f"training.{name} must be positive, not {getattr(self, name)}")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConsilienceError(
                    f"training.{name} is a fraction of the run in [0, 1], not {getattr(self, name)}"
                )
        if self.optimizer not in ("adamw", "muon"):
            raise ConsilienceError(f"unknown optimizer '{self.optimizer}'; known: adamw, muon")
        if min(self.weight_decay, self.validations, self.save_every, self.workers) < 0:
            raise ConsilienceError(
                "training.weight_decay, validations, save_every and workers must not be negative"
            )
        if self.devices < 0 or self.nodes < 1:
            raise ConsilienceError(
                "training.devices must be 0 (all) or more and training.nodes at least 1, "
                f"not {self.devices} and {self.nodes}"
            )
        if self.strategy not in ("auto", "ddp", "fsdp2"):
            raise ConsilienceError(f"unknown strategy '{self.strategy}'; known: auto, ddp, fsdp2")
        if self.strategy == "fsdp2" and self.optimizer == "muon":
            raise ConsilienceError(
                "muon works on whole matrices and fsdp2 cuts them up: choose training.optimizer adamw, or "
                "training.strategy ddp"
            )
