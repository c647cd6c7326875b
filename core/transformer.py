"""The shared transformer. It knows no science: rows of width D go in, rows of width D come out.

Notable choices:
* pre-norm with RMSNorm, no biases, no dropout by default;
* rotary positions in any number of float coordinates; queries may be turned by the place that is asked for
  instead of the row's own place (next-token over sets and spectra);
* RMS-normalised queries and keys (Henry et al. 2020, arXiv:2010.04245);
* squared-ReLU (So et al. 2021, arXiv:2109.08668) or gated SwiGLU MLP;
* one modulation by time, shared by all layers, plus a small table per layer (adaLN-single, Chen et al. 2023,
  arXiv:2310.00426), present under every objective so that parameter counts match; it starts neutral;
* residual branches scaled by 1, 1/sqrt(L) or 1/L;
* only real tokens are computed: rows of all samples lie end to end (T rows), padding is dropped on entry.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from consilience.core.attention import KERNELS, Kernel, Layout, attend, attend_cached, attention_maps
from consilience.core.errors import ConsilienceError
from consilience.core.kernels import apply_linear, linear, rms_norm, rotation, squared_relu, turn
from consilience.core.positions import fourier_features


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """Size and options of the shared transformer.

    Args:
        width: D.
        depth: L.
        heads: H; width / heads must be even.
        mlp: squared-relu or swiglu (equal parameters: swiglu's hidden width is 2/3).
        mlp_ratio: hidden width of the squared-ReLU MLP over D.
        residual_scale: scale of every residual branch: one, sqrt (1/sqrt(L)) or linear (1/L).
        dropout: of residual branches.
        kernel: attention kernel, see `core.attention`.
        checkpoint_activations: recompute activations in the backward pass to save memory.
    """

    width: int = 256
    depth: int = 8
    heads: int = 8
    mlp: Literal["squared-relu", "swiglu"] = "squared-relu"
    mlp_ratio: float = 4.0
    residual_scale: Literal["one", "sqrt", "linear"] = "one"
    dropout: float = 0.0
    kernel: Kernel = "auto"
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1:
            raise ConsilienceError("width, depth and heads must be at least 1")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConsilienceError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.mlp not in ("squared-relu", "swiglu"):
            raise ConsilienceError(f"unknown mlp '{self.mlp}'; known: squared-relu, swiglu")
        if self.residual_scale not in ("one", "sqrt", "linear"):
            raise ConsilienceError(
                f"unknown residual_scale '{self.residual_scale}'; known: one, sqrt, linear"
            )
        if self.kernel not in KERNELS:
            raise ConsilienceError(f"unknown attention kernel '{self.kernel}'; known: {', '.join(KERNELS)}")
        if not 0 <= self.dropout < 1:
            raise ConsilienceError(f"dropout must lie in [0, 1), not {self.dropout}")

    @property
    def head_width(self) -> int:
        """d."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class CoreInput:
    """What the core sees of a batch.

    Args:
        rows: (B, N, D) embedded tokens.
        layout: which rows are real, and the pattern of attention.
        angles: (B, N, d / 2) rotary angles of keys; None = no rotation.
        query_angles: (B, N, d / 2) rotary angles of queries; None = those of the keys.
        time: (U,) levels of time in [0, 1], 1 = clean.
        time_index: (B, N) int64, the level of each row; None = all rows at level 0.
        bias: (B, H, N, N) pairwise bias, or None.
    """

    rows: Tensor
    layout: Layout
    time: Tensor
    time_index: Tensor | None = None
    angles: Tensor | None = None
    query_angles: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class States:
    """What comes out of the core.

    Args:
        final: (B, N, D), normalised, zeros at padding.
        layers: L + 1 residual states (B, N, D), the embedding first; only when asked for.
        attention: L maps (B, H, N, N); only when asked for.
    """

    final: Tensor
    layers: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()


class KeyValueCache:
    """Keys and values of the rows seen so far, one pair a layer, in buffers of fixed size."""

    def __init__(self, config: CoreConfig, batch: int, rows: int, like: Tensor) -> None:
        shape = (config.depth, 2, batch, rows, config.heads, config.head_width)
        self.buffer = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.filled = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, M, H, d) keys and values of one layer; returns all of that layer."""
        stop = self.filled + k.shape[1]
        self.buffer[layer, 0, :, self.filled : stop] = k
        self.buffer[layer, 1, :, self.filled : stop] = v
        return self.buffer[layer, 0, :, :stop], self.buffer[layer, 1, :, :stop]


class TimeModulation(nn.Module):
    """Time in [0, 1] -> shift, scale and gate of both branches, shared by all layers; zero at the start."""

    FEATURES = 32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * self.FEATURES, width, bias=False)
        self.outer = nn.Linear(width, 6 * width, bias=False)

    def forward(self, time: Tensor) -> Tensor:
        """(U,) -> (U, 6 D)."""
        features = fourier_features(time[:, None], (0.05, 4.0), self.FEATURES).to(self.inner.weight.dtype)
        return self.outer(F.silu(self.inner(features)))


class Block(nn.Module):
    """Attention, then MLP, each pre-normalised, modulated by time and added to the residual stream.

    Where all rows share one level of time, the weight of a norm, the modulation and the gate are folded into the
    matrices beside them: D x D work in place of passes over T x D.
    """

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.width, int(config.mlp_ratio * config.width)
        if config.mlp == "swiglu":
            hidden = int(hidden * 2 / 3)
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.query_norm = nn.Parameter(torch.ones(config.head_width))
        self.key_norm = nn.Parameter(torch.ones(config.head_width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(width))
        self.mlp_in = nn.Linear(width, 2 * hidden if config.mlp == "swiglu" else hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, width, bias=False)
        self.time_table = nn.Parameter(torch.zeros(6 * width))
        self.scale = {"one": 1.0, "sqrt": config.depth**-0.5, "linear": 1 / config.depth}[
            config.residual_scale
        ]

    def forward(
        self,
        x: Tensor,
        shared: Tensor,
        time_index: Tensor | None,
        planes: tuple[Tensor, Tensor] | None,
        layout: Layout,
        bias: Tensor | None,
        cache: "tuple[KeyValueCache, int] | None" = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """x: (T, D) -> (T, D). shared: (U, 6 D); time_index: (T,); planes: of queries and keys, see `turn`."""
        levels = (shared + self.time_table).unflatten(-1, (6, -1)).unbind(-2)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = levels
        qkv = self._into(x, self.attention_norm, scale_a, shift_a, time_index, self.qkv)
        q, k, v = qkv.unflatten(-1, (3, self.config.heads, -1)).unbind(1)
        q, k = rms_norm(q) * self.query_norm, rms_norm(k) * self.key_norm
        if planes is not None:
            q, k = turn(q, planes[0]), turn(k, planes[1])
        if cache is not None:
            store, layer = cache
            q_B, k_B, v_B = (layout.unflatten(part) for part in (q, k, v))
            mixed = layout.flatten(attend_cached(q_B, *store.extend(layer, k_B, v_B)))
        else:
            mixed = attend(q, k, v, layout, bias=bias, kernel=self.config.kernel)
        if maps is not None:
            maps.append(attention_maps(q, k, layout, bias=bias))
        x = self._back(x, mixed.flatten(1), gate_a, time_index, self.attention_out)
        h = self._into(x, self.mlp_norm, scale_m, shift_m, time_index, self.mlp_in)
        if self.config.mlp == "swiglu":
            value, gate = h.chunk(2, dim=-1)
            h = value * F.silu(gate)
        else:
            h = squared_relu(h)
        return self._back(x, h, gate_m, time_index, self.mlp_out)

    @staticmethod
    def _into(
        x: Tensor, norm: Tensor, scale: Tensor, shift: Tensor, time_index: Tensor | None, layer: nn.Module
    ) -> Tensor:
        """W ((norm * x / rms(x)) (1 + scale) + shift): (T, D) -> (T, M). scale, shift: (U, D)."""
        scale = norm * (1 + scale)
        if time_index is None and type(layer) is nn.Linear:
            return linear(
                rms_norm(x).to(x.dtype), layer.weight * scale, (shift @ layer.weight.t()).squeeze(0)
            )
        normal = rms_norm(x).to(x.dtype)
        return apply_linear(layer, torch.addcmul(_rows(shift, time_index), normal, _rows(scale, time_index)))

    def _back(
        self, x: Tensor, h: Tensor, gate: Tensor, time_index: Tensor | None, layer: nn.Module
    ) -> Tensor:
        """x + residual_scale (1 + gate) W h: (T, M) -> (T, D). gate: (U, D)."""
        gate = self.scale * (1 + gate)
        dropout = self.config.dropout if self.training else 0.0
        if time_index is None and not dropout and type(layer) is nn.Linear:
            return linear(h, layer.weight * gate.squeeze(0)[:, None], add=x)
        branch = F.dropout(apply_linear(layer, h), dropout) if dropout else apply_linear(layer, h)
        return torch.addcmul(x, branch, _rows(gate, time_index))


def _rows(levels: Tensor, time_index: Tensor | None) -> Tensor:
    """(U, D) by level of time -> (T, D) by row, or (1, D) where there is one level."""
    return levels if time_index is None else F.embedding(time_index, levels)


class Transformer(nn.Module):
    """L blocks and a final norm over the real rows of a batch."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.config = config
        self.time = TimeModulation(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.Parameter(torch.ones(config.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fan-in scaled weights; branch outputs start smaller with depth; the modulation starts neutral."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = parameter.shape[1] ** -0.5
                if name.endswith(("attention_out.weight", "mlp_out.weight")):
                    std /= math.sqrt(2 * self.config.depth)
                nn.init.normal_(parameter, std=std)
        nn.init.zeros_(self.time.outer.weight)

    def forward(
        self,
        seen: CoreInput,
        *,
        layers: bool = False,
        attention: bool = False,
        cache: KeyValueCache | None = None,
    ) -> States:
        """Run the core.

        Args:
            seen: the embedded batch.
            layers: return the residual state before every block and after the last.
            attention: return the attention maps (dense; for looking at, not for training).
            cache: with a cache, the rows are the next ones of every sample and attend causally to all so far.
        """
        layout = seen.layout
        x = layout.flatten(seen.rows)
        time_index = None if seen.time_index is None else layout.flatten(seen.time_index)
        planes = self._planes(seen)
        shared = self.time(seen.time)
        states = [x]
        maps: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            store = None if cache is None else (cache, number)
            arguments = (x, shared, time_index, planes, layout, seen.bias, store, maps if attention else None)
            if self.config.checkpoint_activations and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
            if layers:
                states.append(x)
        if cache is not None:
            cache.filled += seen.rows.shape[1]
        return States(
            final=layout.unflatten(rms_norm(x) * self.norm),
            layers=tuple(layout.unflatten(state) for state in states) if layers else (),
            attention=tuple(maps),
        )

    @staticmethod
    def _planes(seen: CoreInput) -> tuple[Tensor, Tensor] | None:
        if seen.angles is None:
            return None
        keys = rotation(seen.layout.flatten(seen.angles))
        asked = keys if seen.query_angles is None else rotation(seen.layout.flatten(seen.query_angles))
        return asked, keys
