"""The progress bar of one training run."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from consilience.core.bar import progress_bar


class TrainingProgress(Callback):
    """Shows the steps of a run, and tells an outer bar about them."""

    def __init__(self, steps: int, *, shown: bool, on_step: Callable[[int], None] | None) -> None:
        self.steps, self.on_step = steps, on_step
        self.bar = progress_bar("steps") if shown else None
        self.task = None if self.bar is None else self.bar.add_task("training", total=steps, note="")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the step of the checkpoint."""
        if self.bar is not None and self.task is not None:
            self.bar.start()
            self.bar.update(self.task, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        if self.bar is not None and self.task is not None:
            note = f"{batch[0]} loss {float(outputs['value']):.3f}"
            self.bar.update(self.task, completed=trainer.global_step, note=note)
        if self.on_step is not None:
            self.on_step(trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop drawing, also after an error."""
        if self.bar is not None:
            self.bar.stop()
