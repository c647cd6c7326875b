"""Both forms of every kernel give the same values and the same gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from consilience.core import kernels
from consilience.core.attention import Layout, Pattern
from consilience.core.kernels import linear, rms_norm, rotation, squared_relu, turn
from consilience.core.transformer import CoreConfig, CoreInput, Transformer


@contextmanager
def plain() -> Iterator[None]:
    """The plain definitions, as on a GPU."""
    with patch.object(kernels, "_plain", lambda x: True), patch.object(kernels, "HAS_ONEDNN", False):
        yield


def both(work: Callable[..., Tensor], *inputs: Tensor) -> list[tuple[Tensor, ...]]:
    """(value, gradients...) by the fast form and by the plain one."""
    found = []
    for context in (None, plain()):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        if context is None:
            out = work(*leaves)
        else:
            with context:
                out = work(*leaves)
        seed = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
        found.append((out.detach(), *torch.autograd.grad((out * seed).sum(), leaves)))
    return found


def same(work: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 2e-5) -> None:
    for fast, slow in zip(*both(work, *inputs)):
        assert fast.shape == slow.shape
        assert torch.allclose(fast, slow, rtol=1e-4, atol=tolerance * float(slow.abs().max()))


@pytest.mark.skipif(not kernels.HAS_ONEDNN, reason="this PyTorch has no oneDNN")
def test_both_forms_are_really_two():
    """Guards the other tests: the plain form must not run the fast one."""
    x, weight = torch.randn(32, 8), torch.randn(4, 8)
    with patch.object(kernels._Linear, "forward", side_effect=AssertionError("fast")):
        with pytest.raises(AssertionError, match="fast"):
            linear(x, weight)
        with plain():
            linear(x, weight)
    for function in (kernels._RMSNorm, kernels._SquaredReLU):
        with patch.object(function, "forward", side_effect=AssertionError("fast")), plain():
            rms_norm(x)
            squared_relu(x)


@pytest.mark.parametrize("rows", [1, 3, 16, 200])
@pytest.mark.parametrize("extras", ["", "bias", "add", "bias add"])
def test_linear(rows, extras):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 24), torch.randn(40, 24)
    bias, add = torch.randn(40), torch.randn(rows, 40)
    given = [x, weight, *([bias] if "bias" in extras else []), *([add] if "add" in extras else [])]

    def work(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        named = dict(zip(extras.split(), rest))
        return linear(x, weight, named.get("bias"), add=named.get("add"))

    same(work, *given)
    expected = x @ weight.t() + (bias if "bias" in extras else 0) + (add if "add" in extras else 0)
    assert torch.allclose(work(*given), expected, atol=1e-4)


def test_linear_takes_rows_that_are_not_contiguous():
    torch.manual_seed(0)
    wide = torch.randn(50, 48)
    same(lambda x, weight: linear(x[:, 8:32], weight), wide, torch.randn(40, 24))
    same(lambda x, weight: linear(x.t(), weight.t()), torch.randn(24, 50), torch.randn(24, 40))


@pytest.mark.parametrize("shape", [(64, 32), (10, 4, 16), (1, 8)])
def test_rms_norm(shape):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape)
    same(rms_norm, x)
    assert torch.allclose(rms_norm(x).square().mean(-1), torch.ones(shape[:-1]), atol=1e-4)
    assert torch.equal(rms_norm(torch.zeros(2, 8)), torch.zeros(2, 8))
    blank = torch.zeros(2, 8, requires_grad=True)
    rms_norm(blank).sum().backward()
    assert torch.isfinite(blank.grad).all()


def test_squared_relu():
    torch.manual_seed(0)
    same(squared_relu, torch.randn(20, 12))


def test_turn():
    torch.manual_seed(0)
    angles = 10 * torch.randn(30, 4)
    same(lambda x: turn(x, rotation(angles)), torch.randn(30, 3, 8))
    quarter = torch.full((1, 4), torch.pi / 2)
    x = torch.randn(1, 2, 8)
    turned = turn(x, rotation(quarter)).unflatten(-1, (4, 2))
    assert torch.allclose(turned[..., 1], x.unflatten(-1, (4, 2))[..., 0], atol=1e-6)


@pytest.mark.skipif(not kernels.HAS_ONEDNN, reason="this PyTorch has no oneDNN")
def test_the_fast_form_is_used_and_can_be_switched_off():
    x, weight = torch.randn(32, 8), torch.randn(4, 8)
    assert kernels._onednn(x, weight)
    assert not kernels._onednn(x.double(), weight.double())
    with torch.backends.mkldnn.flags(enabled=False):
        assert not kernels._onednn(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not kernels._onednn(x, weight)
        assert linear(x, weight).dtype == torch.bfloat16
        assert linear(x, weight, add=torch.randn(32, 4)).dtype == torch.float32  # the residual stream


@pytest.mark.parametrize("mlp", ["squared-relu", "swiglu"])
@pytest.mark.parametrize("levels", [1, 3])
def test_a_core_is_the_same_in_both_forms_and_with_folded_weights(mlp, levels):
    """Fast = plain; and one level of time folded into the matrices = the same level given row by row."""
    torch.manual_seed(0)
    core = Transformer(CoreConfig(width=32, depth=2, heads=4, mlp=mlp))
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.2)
    layout = Layout(torch.ones(3, 7, dtype=torch.bool), Pattern(kind="causal"))
    angles = torch.randn(3, 7, 4)
    time = torch.linspace(0.2, 1, levels)
    index = None if levels == 1 else torch.arange(3)[:, None].expand(3, 7)

    def run(rows: Tensor) -> Tensor:
        return core(CoreInput(rows=rows, layout=layout, time=time, time_index=index, angles=angles)).final

    rows = torch.randn(3, 7, 32)
    same(run, rows)
    if levels == 1:
        index = torch.zeros(3, 7, dtype=torch.long)
        row_by_row = run(rows)
        index = None
        assert torch.allclose(run(rows), row_by_row, atol=1e-5)


class Adapted(nn.Module):
    """Wraps a linear layer, as LoRA does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


def test_an_adapted_layer_is_called_and_not_folded_away():
    torch.manual_seed(0)
    core = Transformer(CoreConfig(width=32, depth=1, heads=4))
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.2)
    layout = Layout(torch.ones(3, 7, dtype=torch.bool))
    seen = CoreInput(rows=torch.randn(3, 7, 32), layout=layout, time=torch.ones(1))
    before = core(seen).final
    for name in ("qkv", "attention_out", "mlp_in", "mlp_out"):
        adapted = Adapted(getattr(core.blocks[0], name))
        setattr(core.blocks[0], name, adapted)
        assert torch.allclose(core(seen).final, before, atol=1e-5)
        assert adapted.calls == 1


def test_compiled_products_have_the_same_gradients():
    """The operators that torch.compile is given, without compiling."""
    torch.manual_seed(0)
    if not kernels.HAS_ONEDNN:
        pytest.skip("this PyTorch has no oneDNN")
    x, weight = torch.randn(40, 8), torch.randn(6, 8)
    torch.library.opcheck(kernels._compiled_product, (x.requires_grad_(), weight.requires_grad_()))
    seed = torch.randn(40, 6)
    found = torch.autograd.grad((kernels._compiled_product(x, weight) * seed).sum(), (x, weight))
    expected = torch.autograd.grad((x @ weight.t() * seed).sum(), (x, weight))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected))
