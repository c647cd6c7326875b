"""Adapters act, train alone, survive a file, and merge into the weights without a change of the outputs."""

import pytest
import torch

from consilience.core.attention import Layout
from consilience.core.errors import ConsilienceError
from consilience.core.lora import (
    ADAPTED,
    LoraOptions,
    adapter_state,
    add_adapters,
    load_adapters,
    merge_adapters,
)
from consilience.core.transformer import CoreConfig, CoreInput, Transformer

pytest.importorskip("peft")
CONFIG = CoreConfig(width=32, depth=2, heads=4)


def new_core() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).eval()


def states(core: Transformer) -> torch.Tensor:
    rows = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(1))
    return core(
        CoreInput(rows=rows, layout=Layout(torch.ones(3, 16, dtype=torch.bool)), time=torch.ones(1))
    ).final


def perturb(core: Transformer, seed: int = 2) -> None:
    """Adapters away from their start, where the update is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_adapters_start_at_the_core_and_then_act_in_every_matrix() -> None:
    plain = states(new_core())
    core = new_core()
    add_adapters(core, LoraOptions(rank=4))
    assert torch.allclose(states(core), plain, atol=1e-5)
    names = [name for name, _ in core.named_parameters() if ".lora_B" in name]
    assert len(names) == len(ADAPTED) * CONFIG.depth
    before = states(core)
    for wanted in names:
        with torch.no_grad():
            parameter = core.get_parameter(wanted)
            parameter.fill_(0.05)
            assert (states(core) - before).abs().max() > 1e-3, f"{wanted} has no effect"
            parameter.zero_()


def test_merged_equals_adapted() -> None:
    core, plain = new_core(), states(new_core())
    add_adapters(core, LoraOptions(rank=4))
    perturb(core)
    adapted = states(core)
    merge_adapters(core)
    assert all(type(getattr(block, name)) is torch.nn.Linear for block in core.blocks for name in ADAPTED)
    assert not adapter_state(core)
    assert torch.allclose(states(core), adapted, atol=1e-5)
    assert (adapted - plain).abs().max() > 0.05


def test_only_adapters_take_gradients() -> None:
    core = new_core()
    before = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    add_adapters(core, LoraOptions())
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):  # the random half moves once the other has left zero
        optimizer.zero_grad()
        states(core).square().mean().backward()
        optimizer.step()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in core.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(tensor.abs().max() > 0 for tensor in adapter_state(core).values())


def test_saved_adapters_come_back_and_fit_their_core_alone() -> None:
    core = new_core()
    add_adapters(core, LoraOptions(rank=4))
    perturb(core)
    other = new_core()
    add_adapters(other, LoraOptions(rank=4))
    load_adapters(other, adapter_state(core))
    assert torch.equal(states(other), states(core))
    small = new_core()
    add_adapters(small, LoraOptions(rank=2))
    with pytest.raises(ConsilienceError, match="do not fit this core"):
        load_adapters(small, adapter_state(core))
    with pytest.raises(ConsilienceError, match="rank of at least 1"):
        LoraOptions(rank=0)
    with pytest.raises(ConsilienceError, match="adapters of rank 10000 are larger than the core of width"):
        add_adapters(new_core(), LoraOptions(rank=10_000))
