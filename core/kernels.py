"""The arithmetic of a block: each function has one plain definition and, on a CPU, a faster equal form.

Why: PyTorch sends float32 products to MKL, which does not use AVX-512 on every processor that has it, while oneDNN
(shipped with PyTorch) does; and RMSNorm, squared ReLU and rotary turns are chains of passes over memory there. On a
GPU and under `torch.compile` the plain definitions run. `tests/core/test_kernels.py` holds both
forms together, `benchmarks/train_step.py` measures what they bring.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-6
"""Added to the mean square in `rms_norm`."""

MIN_ROWS = 16
"""Fewer rows than this are not worth oneDNN's fixed cost."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, add: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias + add.

    Args:
        x: (T, K).
        weight: (M, K).
        bias: (M,).
        add: (T, M), a residual stream; it keeps its own precision under autocast.
    """
    if _onednn(x, weight):
        if not torch.compiler.is_compiling():
            return _run(_Linear, x, weight, bias, add)
        out = _compiled_product(x, weight)  # a compiler fuses the sums into what follows
        out = out if bias is None else out + bias
    else:
        out = F.linear(x, weight, bias)
    return out if add is None else add + out


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A plain linear layer through `linear`; anything else, such as one adapted by LoRA, as it is. x: (..., K)."""
    if type(layer) is not nn.Linear:
        return layer(x)
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    out = linear(rows, layer.weight, layer.bias)
    return out if x.dim() == 2 else out.unflatten(0, x.shape[:-1])


def rms_norm(x: Tensor) -> Tensor:
    """x over its root mean square along the last dimension; no weight: it goes into what follows.

    On a CPU half precision becomes float32: what follows there (turns, attention) wants it.
    """
    if _plain(x):
        return F.rms_norm(x, x.shape[-1:], eps=EPSILON)
    return _run(_RMSNorm, x if x.dtype == torch.float64 else x.float())


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return F.relu(x).square() if _plain(x) else _run(_SquaredReLU, x)


def turn(x: Tensor, planes: Tensor) -> Tensor:
    """Rotate the planes (x_2i, x_2i+1) of each head.

    Args:
        x: (..., H, d).
        planes: (..., 1, d / 2) complex on a CPU, else (..., 1, d / 2, 2): cosine and sine; see `rotation`.
    """
    pairs = x.unflatten(-1, (-1, 2))
    if planes.is_complex():
        return torch.view_as_real(torch.view_as_complex(pairs) * planes).flatten(-2)
    even, odd = pairs.unbind(-1)
    cosine, sine = planes.to(x.dtype).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def rotation(angles: Tensor) -> Tensor:
    """What `turn` needs, from angles (..., d / 2) in radians, computed once for all layers."""
    angles = angles[..., None, :]
    if _plain(angles):  # compilers do not fuse complex numbers
        return torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.complex(angles.cos(), angles.sin())


class _NoContext:
    """Stands for autograd's context where there are no gradients."""

    def save_for_backward(self, *_: Tensor) -> None:
        """Nothing is kept."""


def _run(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """The function; without autograd's own cost (tens of microseconds) where no gradient is wanted."""
    if torch.is_grad_enabled():
        return function.apply(*arguments)
    return function.forward(_NoContext(), *arguments)


def _plain(x: Tensor) -> bool:
    """Whether the plain definition is to run: not on a CPU, or a compiler fuses better than we do."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _has_onednn() -> bool:
    try:
        return bool(
            torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._linear_pointwise.default
            and torch.ops.mkldnn._linear_pointwise.binary
            and torch.ops.aten.mkldnn_linear_backward_weights.default
        )
    except AttributeError:
        return False


HAS_ONEDNN = _has_onednn()


def _onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and bool(torch.backends.mkldnn.enabled)
        and x.device.type == "cpu"
        and x.dim() == 2
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")  # then oneDNN is PyTorch's own choice
        and x.shape[0] >= MIN_ROWS
    )


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """gradient^T @ x by oneDNN. Only this form runs at its full speed, and it takes oneDNN's own tensors."""
    return torch.ops.aten.mkldnn_linear_backward_weights.default(
        gradient.contiguous().to_mkldnn(), x.contiguous().to_mkldnn(), weight.contiguous(), False
    )[0].to_dense()


# The same two as operators that torch.compile takes as they are: left alone, it would go back to MKL.


@torch.library.custom_op("consilience::product", mutates_args=())
def _compiled_product(x: Tensor, weight: Tensor) -> Tensor:
    return _product(x.contiguous(), weight)


@torch.library.custom_op("consilience::weight_gradient", mutates_args=())
def _compiled_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _weight_gradient(gradient, x, weight)


@_compiled_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_compiled_weight_gradient.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _product_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return _compiled_product(gradient, weight.t()), _compiled_weight_gradient(gradient, x, weight)


_compiled_product.register_autograd(_product_backward, setup_context=_keep)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        x, weight = x.contiguous(), weight.contiguous()
        if add is None:
            return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        return torch.ops.mkldnn._linear_pointwise.binary(x, add.contiguous(), weight, bias, "add")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_x, to_weight, to_bias, to_add = ctx.needs_input_grad
        into_x = _product(gradient, weight.t()) if to_x else None
        into_weight = _weight_gradient(gradient, x, weight) if to_weight else None
        return into_x, into_weight, gradient.sum(0) if to_bias else None, gradient if to_add else None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(EPSILON).rsqrt_()
        normal = x * inverse
        ctx.save_for_backward(normal, inverse)
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        normal, inverse = ctx.saved_tensors
        gradient = gradient.contiguous()
        along = (gradient * normal).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normal, along, value=-1).mul_(inverse)


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.addcmul(positive.new_zeros(()), gradient, positive, value=2)
