"""What a training run keeps while it goes on: its checkpoint, the weights of all processes, its losses."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from consilience.core.interruption import WholeSteps
from consilience.core.model import FoundationModel


class SaveOften(Callback):
    """A resumable checkpoint every so many steps, at the end and when the run is interrupted."""

    def __init__(self, path: Path, every: int, steps: WholeSteps) -> None:
        self.path, self.every, self.steps = path, every, steps

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save on schedule."""
        if self.every and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end."""
        self.save(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what there is, unless the numbers have gone bad or a step is half done.

        Several processes save together, and so only where all of them have stopped at the same step.
        """
        together = trainer.world_size == 1 or self.steps.agreed
        if isinstance(exception, KeyboardInterrupt) and self.steps.whole and together:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write beside the old checkpoint and replace it in one step."""
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)  # all processes take part, the first writes
        if trainer.is_global_zero:
            part.replace(self.path)


class GatherWeights(Callback):
    """Puts the weights of a model that is cut up among processes into a whole one, at the end and when interrupted.

    Must happen while all processes are there: after an interruption Lightning ends those that it started.
    """

    def __init__(self, whole: FoundationModel, steps: WholeSteps) -> None:
        self.whole, self.steps = whole, steps
        self.done = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the end."""
        self.gather(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gather what there is where all processes have stopped at the same step."""
        if isinstance(exception, KeyboardInterrupt) and self.steps.whole and self.steps.agreed:
            self.gather(pl_module)

    def gather(self, module: pl.LightningModule) -> None:
        """One tensor at a time, in every process."""
        from torch.distributed.tensor import DTensor

        found = module.get_submodule("model").state_dict()
        for name, tensor in self.whole.state_dict().items():
            part = found[name]
            tensor.copy_(part.full_tensor() if isinstance(part, DTensor) else part)
        self.done = True


class History(Callback):
    """Keeps the losses of this sitting in memory for reports: (step, value) lists by name.

    Tokens and seconds are those of the whole run: a checkpoint carries them over to the next sitting.
    """

    def __init__(self) -> None:
        self.train: dict[str, list[tuple[int, float]]] = {}
        self.validation: dict[str, list[tuple[int, float]]] = {}
        self.tokens = 0
        self._before, self._begin = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of all sittings up to now."""
        return self._before + time.perf_counter() - self._begin

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint carries over."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.tokens, self._before = int(state_dict["tokens"]), float(state_dict["seconds"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the training loss."""
        name, tokens = batch
        self.tokens += tokens.n_tokens
        self.train.setdefault(name, []).append((trainer.global_step, float(outputs["value"])))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the held-out losses."""
        for key, value in trainer.callback_metrics.items():
            if key.startswith("validation/"):
                name = key.removeprefix("validation/")
                self.validation.setdefault(name, []).append((trainer.global_step, float(value)))
