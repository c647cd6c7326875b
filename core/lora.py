"""LoRA: low-rank adapters beside the matrices of the core, through the `peft` library (extra `lora`).

W x becomes W x + (alpha / rank) B A x with A (rank, K) random and B (M, rank) zero at the start, so that an adapted
core begins as the core itself (Hu et al. 2021, arXiv:2106.09685). The four matrices of every block are adapted; norms,
modulation by time and embedders stay. Blocks see that a layer is no plain `nn.Linear` any more and call it instead of
folding norms into its weight (`Block._can_fold`), which `tests/core/test_lora.py` holds to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from consilience.core.errors import ConsilienceError
from consilience.core.transformer import Transformer

ADAPTED = ("qkv", "attention_out", "mlp_in", "mlp_out")
"""The matrices of a block."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Size of the adapters.

    Args:
        rank: of each update.
        alpha: the update is scaled by alpha / rank.
    """

    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConsilienceError(
                f"LoRA needs a rank of at least 1 and a positive alpha, not {self.rank} and {self.alpha}"
            )


def require_peft() -> Any:
    """The `peft` module; ConsilienceError with the way out where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ConsilienceError(
            "LoRA needs the peft library: pip install 'consilience[lora]', or leave LoRA out"
        ) from error
    return peft


def add_adapters(core: Transformer, options: LoraOptions) -> None:
    """Adapt the core in place; afterwards its adapters alone take gradients.

    The random half comes from torch's global generator: seed it first.
    """
    peft = require_peft()
    width = core.norm.shape[-1]
    if options.rank > width:
        raise ConsilienceError(
            f"adapters of rank {options.rank} are larger than the core of width {width} that they adapt: choose a rank "
            f"of at most {width}, or train all of it"
        )
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(ADAPTED),
    )
    peft.inject_adapter_in_model(config, core)


def adapter_state(core: Transformer) -> dict[str, Tensor]:
    """The adapters' weights by name, on the CPU; empty for a core without any."""
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in core.state_dict().items()
        if ".lora_" in name
    }


def load_adapters(core: Transformer, state: Mapping[str, Tensor]) -> None:
    """Put saved weights into the adapters of a core; ConsilienceError where they belong to another one."""
    ours = {name: tensor.shape for name, tensor in adapter_state(core).items()}
    theirs = {name: tensor.shape for name, tensor in state.items()}
    if ours != theirs:
        unfit = sorted(set(ours.items()) ^ set(theirs.items()), key=str)
        raise ConsilienceError(
            f"the adapters do not fit this core ({len(unfit)} weights differ, first {unfit[0][0]}): use the model "
            "that they were trained for"
        )
    core.load_state_dict(dict(state), strict=False)


@torch.no_grad()
def merge_adapters(core: Transformer) -> None:
    """Add the updates to the weights and give the core its plain matrices back, in place."""
    peft = require_peft()
    for block in core.blocks:
        for name in ADAPTED:
            layer = getattr(block, name)
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                layer.merge(safe_merge=True)
                plain = layer.get_base_layer()
                assert isinstance(plain, nn.Linear)
                setattr(block, name, plain.requires_grad_(True))
