"""Several processes, one run: who computes which samples of a step, and how their losses add up.

Every process knows the whole global batch of a step, since batches are a function of the step, and draws its
corruption as a single process would. It then computes its own share of the samples. Nothing but gradients and three
numbers a step travels between processes, and the curve of a run does not depend on how many there are.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from consilience.core.errors import ConsilienceError

RANKS = ("RANK", "SLURM_PROCID")
"""Where torchrun and SLURM say which process this is; Lightning's own launcher says the machine and the place in it."""


def rank() -> int:
    """The number of this process in its run, 0 for a single one and for the first.

    Before processes have met, what Lightning's own launcher says does not give the number, only whether it is 0.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    said = {name: int(text) for name, text in os.environ.items() if text.isdigit()}
    own = said.get("NODE_RANK", 0) or said.get("LOCAL_RANK", 0)
    return next((said[name] for name in RANKS if name in said), own)


def writes() -> bool:
    """Whether this process writes files and speaks for the run: the first one does."""
    return rank() == 0


def world() -> int:
    """The number of processes that have met; 1 for a single one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True, kw_only=True)
class Share:
    """The samples of a global batch that one process computes.

    Args:
        samples: (S,) int64 indices into the global batch, ascending, at least one.
        counts: False where the batch has fewer samples than there are processes and this one has none of its own:
            it then computes one sample with weight 0, so that all processes take the same steps.
    """

    samples: Tensor
    counts: bool


def share_of(lengths: Tensor, number: int, parts: int) -> Share:
    """One of the `parts` shares of a batch, balanced by tokens.

    The longest sample goes first, each to the share with the fewest tokens so far (Graham 1969): the largest share
    exceeds the mean by less than one sample. Ties go to the lower index, so every process finds the same shares.

    Args:
        lengths: (B,) tokens of each sample.
        number: of the share, 0 .. parts - 1.
        parts: how many shares.
    """
    sizes = lengths.detach().cpu().numpy()
    loads, owner = np.zeros(parts, np.int64), np.zeros(len(sizes), np.int64)
    for sample in np.argsort(-sizes, kind="stable"):
        owner[sample] = int(loads.argmin())
        loads[owner[sample]] += int(sizes[sample])
    own = np.flatnonzero(owner == number)
    counts = bool(len(own))
    return Share(samples=torch.from_numpy(own if counts else np.zeros(1, np.int64)), counts=counts)


@dataclass(frozen=True, kw_only=True)
class Combined:
    """What all processes know after one step's exchange.

    Args:
        factor: what this process multiplies its mean loss by: its tokens x processes / tokens of all. The mean
            of the gradients over processes is then that of the mean loss over the global batch.
        value: the loss of the global batch, detached.
        stop: whether any process was asked to stop.
    """

    factor: Tensor
    value: Tensor
    stop: bool


def combine(value: Tensor, tokens: int, stop: bool) -> Combined:
    """Exchange the loss (a mean over `tokens`) with all other processes."""
    own = torch.stack(
        [
            value.detach().double() * tokens,
            value.new_tensor(tokens, dtype=torch.float64),
            value.new_tensor(stop, dtype=torch.float64),
        ]
    )
    total = own.clone()
    dist.all_reduce(total)
    everything = total[1].clamp_min(1)
    return Combined(
        factor=(own[1] * world() / everything).to(value.dtype),
        value=(total[0] / everything).to(value.dtype),
        stop=bool(total[2] > 0),
    )


@contextmanager
def told_of_lost_peers() -> Iterator[None]:
    """Errors of the transport as one line: another process has gone, and says itself why."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "NCCL", "onnection", "ProcessGroup", "store", "peer")
        if world() < 2 or not any(word in str(error) for word in words):
            raise
        raise ConsilienceError(
            f"process {rank()} lost touch with another process of this run, whose own message says why "
            f"({str(error).strip().splitlines()[0]:.120}); --resume goes on from the last checkpoint"
        ) from error
