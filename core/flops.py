"""Measured cost of training: floating-point operations of a step, by torch's own counter.

A formula (6 x parameters x tokens) is wrong here by up to a factor of two: block objectives run two streams, masked
ones put loss on a part of the rows, and heads differ. The counter sees what is executed, backward pass included.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from consilience.core.batch import TokenBatch
from consilience.core.feed import step_generator
from consilience.core.model import FoundationModel


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one training step costs and uses, averaged over some steps.

    Args:
        flops: of forward and backward pass.
        samples: records.
        tokens: real tokens.
        scored: tokens that carry loss.
    """

    flops: float
    samples: float
    tokens: float
    scored: float


def step_cost(
    model: FoundationModel, batches: Iterable[tuple[str, TokenBatch]], *, seed: int = 0
) -> StepCost:
    """Count the steps on these (science, tokens) batches; weights and gradients stay as they were."""
    was_training = model.training
    model.train()
    flops = samples = tokens = scored = steps = 0
    # Fused kernels of a CPU are unknown to the counter: the plain products that they stand for are counted instead.
    with _plain_products(), sdpa_kernel(SDPBackend.MATH):
        for step, (name, batch) in enumerate(batches):
            counter = FlopCounterMode(display=False)
            with counter, torch.enable_grad():
                generator = step_generator(seed, step, stream=1)
                loss = model.loss({name: batch.to(model.device)}, generator)[name]
                weights = [p for p in model.parameters() if p.requires_grad]
                torch.autograd.grad(loss.value, weights, allow_unused=True)
            spec = model.tokenizers[name].spec
            _, targets = model.objective.view(batch, spec, step_generator(seed, step, stream=1))
            flops += counter.get_total_flops()
            samples += batch.size
            tokens += batch.n_tokens
            scored += int(targets.scored.sum())
            steps += 1
    model.train(was_training)
    if not steps:
        raise ValueError("step_cost needs at least one batch")
    return StepCost(
        flops=flops / steps, samples=samples / steps, tokens=tokens / steps, scored=scored / steps
    )


@contextmanager
def _plain_products() -> Iterator[None]:
    """oneDNN off: the counter does not know its products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch warns of other hardware
        with torch.backends.mkldnn.flags(enabled=False):
            yield
