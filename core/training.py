"""Pre-training with Lightning: the module and `fit`, which can be interrupted and resumed.

Every random choice is a function of (seed, step), so a run that was interrupted and resumed gives the same
numbers as one that was not, and several processes give those of one (see `core.distributed`).
"""

import copy
import logging
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from consilience.core.batch import TokenBatch
from consilience.core.callbacks import GatherWeights, History, SaveOften
from consilience.core.distributed import combine, rank, share_of, told_of_lost_peers, world, writes
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source, TokenFeed, step_generator
from consilience.core.interruption import WholeSteps
from consilience.core.launch import Devices, devices_of
from consilience.core.loader import StartAtStep, StepLoader, validation_loaders
from consilience.core.memory import kept_memory
from consilience.core.model import FoundationModel
from consilience.core.optim import build_optimizer, schedule
from consilience.core.progress import TrainingProgress
from consilience.core.training_config import TrainingConfig

LAST = "last.ckpt"
SHARDED = "sharded"
logger = logging.getLogger(__name__)


class PreTraining(pl.LightningModule):
    """Minimises the objective of a FoundationModel.

    Args:
        model: to train.
        config: how.
        sharded: cut the weights up among the processes (fsdp2).
        interruption: whether a stop was asked for.
    """

    def __init__(
        self,
        model: FoundationModel,
        config: TrainingConfig,
        *,
        sharded: bool = False,
        interruption: WholeSteps | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.sharded = sharded
        self.cut = False
        self.interruption = interruption or WholeSteps()
        if config.compile:
            model.core.compile()

    def configure_model(self) -> None:
        """Cut up the weights where they are to be: each block is put together when its turn comes."""
        if not self.sharded or self.cut:  # Lightning may call this more than once
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.core.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        register_fsdp_forward_method(self.model, "loss")  # what we call instead of forward
        self.cut = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how the optimiser numbers its weights."""
        checkpoint[SHARDED] = self.sharded

    def training_step(self, batch: tuple[str, TokenBatch], batch_idx: int) -> dict[str, Tensor]:
        """One step on one science's batch; the corruption is drawn from (seed, step).

        Returns `loss` to differentiate and `value`, the loss of the batch: the same for one process. With several,
        each computes its share of the samples, and the mean of their gradients is that of the whole batch.
        """
        name, tokens = batch
        generator = step_generator(self.config.seed, self.global_step, stream=1)
        objective = self.model.objective.at(self.global_step / self.config.steps)
        told = step_generator(self.config.seed, self.global_step, stream=3)
        tokens = self.model.drop_conditions(name, tokens, told)
        if self.model.core_config.dropout:  # dropout draws from the global generator
            torch.manual_seed(generator.initial_seed() + rank())
        if world() == 1:
            loss = self.model.loss({name: tokens}, generator, objective=objective)[name]
            scaled, value = loss.value, loss.value.detach()
        else:
            share = share_of(tokens.length, rank(), world())
            samples = share.samples.to(tokens.device)
            loss = self.model.loss({name: tokens}, generator, samples=samples, objective=objective)[name]
            everyone = combine(loss.value, loss.tokens if share.counts else 0, self.interruption.asked)
            scaled, value = loss.value * everyone.factor, everyone.value
            if everyone.stop:
                self.interruption.asked = self.interruption.agreed = True
        if not torch.isfinite(value):
            raise ConsilienceError(
                f"the loss became {value.item()} at step {self.global_step} on {name}: "
                f"lower training.learning_rate (now {self.config.learning_rate}) and --resume"
            )
        self.log(f"train/{name}", value, prog_bar=False)
        self.log("tokens", float(tokens.n_tokens), prog_bar=False)
        return {"loss": scaled, "value": value}

    def validation_step(self, batch: tuple[str, TokenBatch], batch_idx: int, dataloader_idx: int = 0) -> None:
        """The training loss on held-out records with a fixed corruption; the same at every validation."""
        name, tokens = batch
        loss = self.model.loss({name: tokens}, step_generator(self.config.seed, batch_idx, stream=2))[name]
        self.log(
            f"validation/{name}",
            loss.value,
            batch_size=max(loss.tokens, 1),
            add_dataloader_idx=False,
            on_epoch=True,
        )

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule."""
        c = self.config
        optimizer = build_optimizer(
            self.model, name=c.optimizer, learning_rate=c.learning_rate, weight_decay=c.weight_decay
        )
        rule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule(step, steps=c.steps, warmup=c.warmup, decay=c.decay)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rule, "interval": "step"}}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did.

    Args:
        steps: optimiser steps done in all.
        tokens: real tokens seen, in all sittings of the run.
        seconds: wall time, in all sittings.
        history: losses of this sitting.
        interrupted: whether it was stopped before its last step.
    """

    steps: int
    tokens: int
    seconds: float
    history: History
    interrupted: bool


def fit(
    model: FoundationModel,
    train: Mapping[str, Source],
    validation: Mapping[str, Source],
    config: TrainingConfig,
    *,
    folder: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Outcome:
    """Train the model in place.

    Args:
        model: to train.
        train: training records by science.
        validation: held-out records by science; may be empty.
        config: how.
        folder: where logs and the resumable checkpoint go; None keeps nothing.
        resume: go on from `folder/last.ckpt`.
        progress: show a bar with rate and time left.
        on_step: called with the number of finished steps (for an outer progress bar).
    """
    used = devices_of(config)
    feed = TokenFeed(train, steps=config.steps, tokens_per_batch=config.tokens_per_batch, seed=config.seed)
    gpu = used.accelerator == "gpu"
    history = History()
    whole = WholeSteps()
    loader = StepLoader(feed, config.workers, pin=gpu)
    callbacks: list[Callback] = [whole, StartAtStep(loader), history]
    if folder is not None:
        callbacks.append(SaveOften(folder / LAST, config.save_every, whole))
    progress = progress and writes()
    if progress or on_step:
        callbacks.append(TrainingProgress(config.steps, shown=progress, on_step=on_step))
    gathered = GatherWeights(model, whole)
    if used.sharded:
        callbacks.append(gathered)
    checkpoint = _checkpoint(folder, resume, sharded=used.sharded)
    checks = validation_loaders(validation, config) if config.validations else []
    with _quiet():
        trainer = _trainer(config, used, callbacks, folder, checks=bool(checks))
    interrupted = False
    # Cutting up changes a model for good, so that a copy is cut and its weights come back at the end.
    trained = copy.deepcopy(model) if used.sharded else model
    module = PreTraining(trained, config, sharded=used.sharded, interruption=whole)
    try:
        with warnings.catch_warnings(), _quiet(), kept_memory(), whole.on_interrupt(), told_of_lost_peers():
            warnings.filterwarnings(
                "ignore",
                message=".*(does not have many workers|LeafSpec|already exists|on epoch level in distributed).*",
            )
            trainer.fit(
                module,
                loader,
                checks or None,
                ckpt_path=checkpoint,
                weights_only=True,
            )
    except SystemExit:  # how Lightning leaves after Ctrl-C, once the callbacks have saved the checkpoint
        interrupted = True
    if used.sharded and not gathered.done:
        raise KeyboardInterrupt  # stopped at once: the checkpoint is what there is
    model.to("cpu").eval()
    return Outcome(
        steps=trainer.global_step,
        tokens=history.tokens,
        seconds=history.seconds,
        history=history,
        interrupted=interrupted,
    )


def _trainer(
    config: TrainingConfig, used: Devices, callbacks: list[Callback], folder: Path | None, *, checks: bool
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=used.accelerator,
        devices=used.devices,
        num_nodes=used.nodes,
        strategy=used.strategy(),
        use_distributed_sampler=False,  # every process gets the whole batch, see `core.distributed`
        max_steps=config.steps,
        max_epochs=-1,
        precision=_precision(config.precision, used.accelerator == "gpu"),
        gradient_clip_val=config.clip,
        logger=_loggers(folder),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, min(50, config.steps // 50)),
        val_check_interval=max(1, config.steps // config.validations) if checks else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if checks else 0,
    )


def _checkpoint(folder: Path | None, resume: bool, *, sharded: bool) -> str | None:
    if not resume:
        return None
    if folder is None or not (folder / LAST).is_file():
        raise ConsilienceError(
            f"nothing to resume: {folder and folder / LAST} does not exist; leave out --resume"
        )
    path = folder / LAST
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ConsilienceError(
            f"{path} is truncated or not a checkpoint; train again from the start"
        ) from error
    if not isinstance(state, dict) or not {"global_step", "state_dict", "optimizer_states"} <= state.keys():
        raise ConsilienceError(f"{path} belongs to something else; train again from the start")
    if state.get(SHARDED, False) != sharded:  # the optimiser numbers its weights in another order
        raise ConsilienceError(
            f"{path} was written {'without' if sharded else 'with'} training.strategy fsdp2: resume with the same"
        )
    return str(path)


def _precision(asked: str, gpu: bool) -> Any:
    if asked != "auto":
        return asked
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"


def _loggers(folder: Path | None) -> Any:
    if folder is None:
        return False
    # Lightning's CSVLogger deletes what it finds, so that each sitting of a resumed run gets a folder of its own.
    sitting = 1 + len(list((folder / "logs").glob("csv*")))
    return [
        CSVLogger(folder, name="logs", version="csv" if sitting == 1 else f"csv-{sitting}"),
        TensorBoardLogger(folder, name="logs", version="tensorboard"),
    ]


class _quiet:
    """Lightning's banners off (GPU available, tips); warnings and errors stay."""

    def __enter__(self) -> None:
        names = ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric")
        self.levels = {name: logging.getLogger(name).level for name in names}
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
