"""Optimisers and the learning-rate schedule."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

OptimizerName = Literal["adamw", "muon"]


def build_optimizer(
    model: nn.Module, *, name: OptimizerName, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW for everything, or Muon for the hidden matrices of the core and AdamW for the rest.

    Weight decay applies to matrices only, not to norms, biases, tables and embeddings. Muon (Jordan et al. 2024)
    runs with updates rescaled to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so one learning rate serves both.
    """
    hidden, matrices, others = [], [], []
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() != 2 or path.endswith(("symbols.weight", "addresses.weight", "_offset.weight")):
            others.append(parameter)
        elif path.startswith("core.blocks."):
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    shared: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, 0.95), "eps": 1e-8}
    if name == "adamw":
        groups = [
            {"params": hidden + matrices, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, **shared)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    rest = torch.optim.AdamW(groups, **shared)
    if not hidden:  # a frozen core
        return rest
    muon = torch.optim.Muon(
        hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Together(muon, rest)


class Together(torch.optim.Optimizer):
    """Several optimisers that step as one, with one list of parameter groups for schedulers."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.parts = parts
        self.param_groups = groups  # the very dictionaries of the parts: a scheduler's change reaches them

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every part; the closure is evaluated once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def schedule(step: int, *, steps: int, warmup: float, decay: float) -> float:
    """Factor on the learning rate: linear warm-up, plateau, linear decay to zero at the last step.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: fraction of the run.
        decay: fraction of the run.
    """
    rising = min(1.0, (step + 1) / max(1, round(warmup * steps)))
    falling = min(1.0, (steps - step) / max(1, round(decay * steps)))
    return max(0.0, min(rising, falling))
