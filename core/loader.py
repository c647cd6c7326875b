"""Loaders of training and validation: what a `TokenFeed` gives, step by step, from any step on."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from consilience.core.batch import TokenBatch
from consilience.core.feed import Source, StepSampler, TokenFeed
from consilience.core.interruption import ignore_interrupts
from consilience.core.training_config import TrainingConfig


class StepLoader(DataLoader[tuple[str, TokenBatch]]):
    """Feeds steps in order; on resuming it starts at the step of the checkpoint."""

    def __init__(self, feed: TokenFeed, workers: int, pin: bool) -> None:
        self.steps = StepSampler(len(feed))
        extra: dict[str, Any] = {"prefetch_factor": 4, "persistent_workers": True} if workers else {}
        super().__init__(
            feed,
            batch_size=None,
            sampler=self.steps,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=ignore_interrupts,
            **extra,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step of the run is the whole state. Its presence tells Lightning that we resume exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""


class StartAtStep(Callback):
    """Points the loader at the step from which a resumed run goes on.

    This must happen when the checkpoint is read: Lightning makes the loader's iterator before `on_train_start`.
    """

    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Runs before anything is fetched."""
        step = self.loader.steps.first = int(checkpoint["global_step"])
        # A step that an interrupt cut short counts as begun in Lightning's books; it will be done again, and
        # validations are due by that count.
        for count in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
            if isinstance(count, dict):
                count.update(dict.fromkeys(count, step))


def validation_loaders(
    sources: Mapping[str, Source], config: TrainingConfig, *, batches: int = 4
) -> list[DataLoader[Any]]:
    """One loader a science: a few fixed batches of held-out records, tokenized as in training, with fixed seeds."""
    loaders: list[DataLoader[Any]] = []
    for name, source in sources.items():
        if not len(source.records):
            continue
        probe = TokenFeed({name: source}, steps=1, tokens_per_batch=config.tokens_per_batch, seed=0)
        per_epoch = len(probe._make_epoch(name, 0))
        feed = TokenFeed(
            {name: source},
            steps=min(batches, per_epoch),
            tokens_per_batch=config.tokens_per_batch,
            seed=0,
        )
        loaders.append(DataLoader([feed[step] for step in range(len(feed))], batch_size=None))  # type: ignore[arg-type]
    return loaders
