"""Which devices a run uses: one, several of a machine, several machines; through Lightning, torchrun or SLURM."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

from consilience.core.errors import ConsilienceError
from consilience.core.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What the trainer is told.

    Args:
        accelerator: gpu or cpu.
        devices: of each machine.
        nodes: machines.
        sharded: whether weights are cut up among the devices (fsdp2).
    """

    accelerator: str
    devices: int
    nodes: int
    sharded: bool

    @property
    def processes(self) -> int:
        """Of the whole run: one a device."""
        return self.devices * self.nodes

    def strategy(self) -> Any:
        """Lightning's strategy; plain training for one process."""
        if self.sharded:
            # All processes share one copy of the weights; nothing else is cut. One file holds the whole checkpoint, so
            # that a run can go on with another number of devices.
            return ModelParallelStrategy(
                data_parallel_size=self.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
            )
        if self.processes == 1:
            return "auto"
        # Steps of several sciences use the ports of one each, and some objectives leave a mark unused.
        return DDPStrategy(find_unused_parameters=True)


def devices_of(config: TrainingConfig) -> Devices:
    """The devices that a config asks for, or that a launcher has given.

    Raises:
        ConsilienceError: more GPUs than there are, or a launcher that started another number of processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.devices == 0:
        config = replace(config, devices=max(gpus, 1))
    started = _launched()
    if started is not None:
        if (config.devices, config.nodes) == (1, 1):
            config = replace(config, devices=started[0], nodes=started[1])
        if (config.devices, config.nodes) != started:
            raise ConsilienceError(
                f"the launcher started {started[0]} processes on each of {started[1]} machines, and training.devices "
                f"is {config.devices}, training.nodes {config.nodes}: make them equal, or leave the two options out"
            )
    if gpus and config.devices > gpus:
        raise ConsilienceError(f"training.devices is {config.devices}, and this machine has {gpus} GPUs")
    return Devices(
        accelerator="gpu" if gpus else "cpu",
        devices=config.devices,
        nodes=config.nodes,
        sharded=config.strategy == "fsdp2",
    )


def _launched() -> tuple[int, int] | None:
    """(processes on each machine, machines) that torchrun or srun started; None without either."""
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        total, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if total % local:
            raise ConsilienceError(
                f"torchrun started {total} processes in all and {local} here: give every machine the same number"
            )
        return local, total // local
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" not in os.environ or interactive:
        return None
    total, machines = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if total > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConsilienceError(
            f"SLURM runs {total} tasks without --ntasks-per-node; ask for --nodes and --ntasks-per-node (one a GPU)"
        )
    return int(os.environ.get("SLURM_NTASKS_PER_NODE", "1")), machines
