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
from typing import Literal, NamedTuple

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
        bias: (B, H, N, N) pairwise bias, or (L, B, H, N, N), one for each layer; None without.
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
    """Keys and values of the rows seen so far, one pair a layer; for one set of weights.

    Buffers hold a few rows more than are filled and are handed out whole: products over a part of a buffer would
    copy it first. Rows that are not filled yet are zero. `real` (B, filled) tells padding among the filled rows, which
    those of a context may have (`core.context`); None where there is none.
    """

    STEP = 16

    def __init__(self, config: CoreConfig, batch: int, rows: int, like: Tensor) -> None:
        # Heads before rows: a new row then reads the keys of a head in one run.
        first = min(rows, self.STEP)
        shape = (config.depth, 2, batch, config.heads, first, config.head_width)
        self.buffer = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.rows = rows
        self.filled = 0
        self.real: Tensor | None = None
        self.folded: dict[int, Folded] = {}
        self.twin: KeyValueCache | None = None  # of the same rows seen otherwise (`core.guidance`)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Add (B, M, H, d) keys and values of one layer; returns the buffers (B, H, N, d) and how much is filled."""
        stop = self.filled + k.shape[1]
        if stop > self.buffer.shape[4]:
            self._grow(min(max(stop, self.buffer.shape[4] + self.STEP), max(stop, self.rows)))
        self.buffer[layer, 0, :, :, self.filled : stop] = k.transpose(1, 2)
        self.buffer[layer, 1, :, :, self.filled : stop] = v.transpose(1, 2)
        return self.buffer[layer, 0], self.buffer[layer, 1], stop

    def expect(self, real: Tensor, dense: bool) -> None:
        """Learn which of the rows that come next are padding. real: (B, M) bool; dense: whether none is."""
        if self.real is None and dense:
            return
        before = real.new_ones(len(real), self.filled) if self.real is None else self.real
        self.real = torch.cat([before, real], dim=1)

    def _grow(self, rows: int) -> None:
        old = self.buffer
        self.buffer = old.new_empty(*old.shape[:4], rows, old.shape[5])
        self.buffer[..., : old.shape[4], :] = old
        self.buffer[..., old.shape[4] :, :] = 0

    def keep(self, samples: Tensor) -> None:
        """Go on with these samples alone. samples: (G,) int64."""
        self.buffer = self.buffer[:, :, samples]
        if self.real is not None:
            self.real = self.real[samples]
        if self.twin is not None:
            self.twin.keep(samples)


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
        planes: Tensor | None,
        layout: Layout,
        bias: Tensor | None,
        cache: "tuple[KeyValueCache, int] | None" = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """x: (T, D) -> (T, D). shared: (U, 6 D); time_index: (T,); planes: of queries and keys
        (T, 1 or 2, 1, d / 2), see `turn`."""
        levels = (shared + self.time_table).unflatten(-1, (6, -1)).unbind(-2)  # 6 of (U, D)
        folded = self._folded(levels, cache) if time_index is None and self._can_fold else None
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (_rows(level, time_index) for level in levels)
        if folded is not None:
            qkv = linear(rms_norm(x).to(x.dtype), folded.qkv, folded.qkv_bias)
        else:
            qkv = apply_linear(self.qkv, _modulated(x, self.attention_norm * (1 + scale_a), shift_a))
        heads, width = self.config.heads, self.config.width
        qk, v = qkv.split((2 * width, width), dim=-1)
        qk, v = qk.unflatten(-1, (2, heads, -1)), v.unflatten(-1, (heads, -1))
        # One weight per head in memory: its gradient then sums over rows in one run.
        weights = torch.stack([self.query_norm, self.key_norm])[:, None].expand(-1, heads, -1)
        qk = rms_norm(qk) * weights.contiguous()
        q, k = (qk if planes is None else turn(qk, planes)).unbind(1)
        if cache is not None:
            store, layer = cache
            q_B, k_B, v_B = (layout.unflatten(part) for part in (q, k, v))
            mixed = layout.flatten(attend_cached(q_B, *store.extend(layer, k_B, v_B), store.real))
        else:
            mixed = attend(q, k, v, layout, bias=bias, kernel=self.config.kernel)
        if maps is not None:
            maps.append(attention_maps(q, k, layout, bias=bias))
        mixed = mixed.flatten(1)
        if folded is not None:
            x = linear(mixed, folded.attention_out, add=x)
            h = linear(rms_norm(x).to(x.dtype), folded.mlp_in, folded.mlp_in_bias)
        else:
            x = self._added(x, apply_linear(self.attention_out, mixed), gate_a)
            h = apply_linear(self.mlp_in, _modulated(x, self.mlp_norm * (1 + scale_m), shift_m))
        if self.config.mlp == "swiglu":
            value, gate = h.chunk(2, dim=-1)
            h = value * F.silu(gate)
        else:
            h = squared_relu(h)
        if folded is not None:
            return linear(h, folded.mlp_out, add=x)
        return self._added(x, apply_linear(self.mlp_out, h), gate_m)

    @property
    def _can_fold(self) -> bool:
        """Not with dropout between a matrix and its gate, and not where a layer was adapted (LoRA)."""
        layers = (self.qkv, self.attention_out, self.mlp_in, self.mlp_out)
        dropout = self.config.dropout and self.training
        return not dropout and all(type(layer) is nn.Linear for layer in layers)

    def _folded(self, levels: tuple[Tensor, ...], cache: "tuple[KeyValueCache, int] | None") -> "Folded":
        """The matrices with norms, modulation and gates of one level of time inside; once per generation."""
        if cache is not None and cache[1] in cache[0].folded:
            return cache[0].folded[cache[1]]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = levels
        folded = Folded(
            qkv=self.qkv.weight * (self.attention_norm * (1 + scale_a)),
            qkv_bias=(shift_a @ self.qkv.weight.t()).squeeze(0),
            attention_out=self.attention_out.weight * (self.scale * (1 + gate_a)).t(),
            mlp_in=self.mlp_in.weight * (self.mlp_norm * (1 + scale_m)),
            mlp_in_bias=(shift_m @ self.mlp_in.weight.t()).squeeze(0),
            mlp_out=self.mlp_out.weight * (self.scale * (1 + gate_m)).t(),
        )
        if cache is not None:
            cache[0].folded[cache[1]] = folded
        return folded

    def _added(self, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        """x + residual_scale (1 + gate) branch."""
        if self.config.dropout:
            branch = F.dropout(branch, self.config.dropout, self.training)
        return torch.addcmul(x, branch, self.scale * (1 + gate))


class Folded(NamedTuple):
    """The matrices of a block at one level of time."""

    qkv: Tensor
    qkv_bias: Tensor
    attention_out: Tensor
    mlp_in: Tensor
    mlp_in_bias: Tensor
    mlp_out: Tensor


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x / rms(x) * scale + shift."""
    return torch.addcmul(shift, rms_norm(x).to(x.dtype), scale)


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
        if cache is not None:
            cache.expect(layout.real, layout.dense)
        x = layout.flatten(seen.rows)
        time_index = None if seen.time_index is None else layout.flatten(seen.time_index)
        planes = self._planes(seen)
        shared = self.time(seen.time)
        states = [x]
        maps: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            store = None if cache is None else (cache, number)
            bias = seen.bias if seen.bias is None or seen.bias.dim() == 4 else seen.bias[number]
            arguments = (x, shared, time_index, planes, layout, bias, store, maps if attention else None)
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
    def _planes(seen: CoreInput) -> Tensor | None:
        """(T, 1, 1, d / 2) for queries and keys alike, or (T, 2, 1, d / 2)."""
        if seen.angles is None:
            return None
        keys = seen.layout.flatten(seen.angles)
        if seen.query_angles is None:
            return rotation(keys[:, None])
        return rotation(torch.stack([seen.layout.flatten(seen.query_angles), keys], dim=1))
