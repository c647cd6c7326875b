"""Ctrl-C during training: the step at hand is finished first, so that what is saved is always a whole step."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from consilience.core.distributed import world

logger = logging.getLogger(__name__)


class WholeSteps(Callback):
    """Stops the run between two steps at the first Ctrl-C, and at once at the second.

    `whole` is False while an optimiser step is under way: weights are then partly old and partly new, and a
    checkpoint of them would not be a point of any run. Several processes tell one another within the next step
    (`PreTraining.training_step`), so that all stop after the same one: `agreed`.
    """

    def __init__(self) -> None:
        self.whole = True
        self.asked = False
        self.agreed = False

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Take over SIGINT inside the block, and give it back after it (Lightning would leave it ignored)."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
            yield
            return
        signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        logger.info("stopping after this step (Ctrl-C again stops at once)")

    def _stop_when_asked(self) -> None:
        if self.asked and (self.agreed or world() == 1):
            raise KeyboardInterrupt

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Between two steps: the place to stop."""
        self._stop_when_asked()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """A validation can be long, and changes nothing: stop in it as well."""
        self._stop_when_asked()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """From here on weights change."""
        self.whole = False

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """The step is done."""
        self.whole = True


def ignore_interrupts(worker: int) -> None:
    """For worker processes: Ctrl-C reaches them too, and the main process still needs their batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
