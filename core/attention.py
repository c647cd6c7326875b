"""Who may look at whom, and the kernels that compute it.

`Pattern` states the rule, `Layout` how the real tokens of a batch lie end to end, `attend` computes. Padding is
dropped before the core and never attended to. Kernels, equal by test to `reference`:

* `reference`: explicit softmax over a dense mask; the definition, and the only one that returns the maps.
* `grouped`: samples of equal length share one call of PyTorch's fused attention, without any mask when the
  pattern is full or causal. No padding is paid for; the default on a CPU.
* `padded`: one fused call with a dense mask; the fallback on a GPU.
* `varlen`: PyTorch's variable-length kernel (CUDA, half precision, full and causal patterns).
* `flex`: FlexAttention with a block mask (any pattern; CUDA, or a CPU without gradients).

Shape letters: B samples, N rows, T real rows of the batch end to end, H heads, d head width.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from consilience.core.errors import ConsilienceError

Kernel = Literal["auto", "reference", "grouped", "padded", "varlen", "flex"]
KERNELS: tuple[Kernel, ...] = ("auto", "reference", "grouped", "padded", "varlen", "flex")


# On a CPU, by measurement (benchmarks/train_step.py):
CHUNK_ROWS = 128
"""Queries of one call where a sample is attended to in chunks."""
FUSED_ROWS = 1024
"""From so many rows on PyTorch's fused attention is best left alone."""
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Which rows may attend to which.

    full: every row to every row. causal: row i to rows j <= i. block: with a block number per row, clean
    (context) rows see context rows of their own and earlier blocks; corrupted (query) rows see context rows of
    earlier blocks and query rows of their own block. Nothing sees corrupted rows of another block.

    Args:
        kind: the rule.
        block: (B, N) int64, block numbers; for kind "block".
        query: (B, N) bool, rows of the corrupted stream; for kind "block". None means that all rows are context.
    """

    kind: Literal["full", "causal", "block"] = "full"
    block: Tensor | None = None
    query: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.kind == "block") != (self.block is not None):
            raise ConsilienceError("block numbers belong to the pattern 'block', and to no other")

    def allowed(self, n: int, device: torch.device) -> Tensor | None:
        """(B or 1, N, N) bool, rows x columns; None when every row may attend to every row."""
        if self.kind == "full":
            return None
        if self.kind == "causal":
            return torch.ones(n, n, dtype=torch.bool, device=device).tril()[None]
        assert self.block is not None
        block = self.block
        query = self.query if self.query is not None else torch.zeros_like(block, dtype=torch.bool)
        earlier = block[:, None, :] < block[:, :, None]
        same = block[:, None, :] == block[:, :, None]
        context_column, query_row = ~query[:, None, :], query[:, :, None]
        return (context_column & (earlier | (same & ~query_row))) | (same & query_row & ~context_column)


@dataclass(frozen=True)
class Layout:
    """Where the real rows of a (B, N) batch lie when they are put end to end.

    Args:
        real: (B, N) bool.
        pattern: the rule of attention.
    """

    real: Tensor
    pattern: Pattern = field(default_factory=Pattern)

    @cached_property
    def length(self) -> Tensor:
        """(B,) int64."""
        return self.real.sum(1)

    @cached_property
    def dense(self) -> bool:
        """Whether there is no padding at all."""
        return bool(self.real.all())

    @cached_property
    def index(self) -> Tensor:
        """(T,) places of the real rows in the flattened (B * N) batch."""
        return self.real.flatten().nonzero().squeeze(1)

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Samples of equal length: (samples (G,), rows (G, n) into the T rows)."""
        start = F.pad(self.length.cumsum(0), (1, 0))[:-1]
        found = []
        for n in torch.unique(self.length).tolist():
            if n == 0:
                continue
            samples = (self.length == n).nonzero().squeeze(1)
            found.append((samples, start[samples][:, None] + torch.arange(n, device=start.device)))
        return found

    @cached_property
    def offsets(self) -> Tensor:
        """(B + 1,) int32, where each sample starts among the T rows."""
        return F.pad(self.length.cumsum(0), (1, 0)).to(torch.int32)

    def mask(self) -> Tensor:
        """(B, N, N) bool over padded rows: the pattern without padding; padding rows see themselves alone."""
        n = self.real.shape[1]
        allowed = self.pattern.allowed(n, self.real.device)
        mask = self.real[:, None, :] & self.real[:, :, None]
        mask = mask if allowed is None else mask & allowed
        return mask | torch.eye(n, dtype=torch.bool, device=self.real.device)

    def flatten(self, x: Tensor) -> Tensor:
        """(B, N, ...) -> (T, ...)."""
        rows = x.flatten(0, 1)
        return rows if self.dense else rows[self.index]

    def unflatten(self, x: Tensor) -> Tensor:
        """(T, ...) -> (B, N, ...), zeros at padding."""
        b, n = self.real.shape
        if self.dense:
            return x.unflatten(0, (b, n))
        padded = x.new_zeros(b * n, *x.shape[1:])
        return padded.index_copy(0, self.index, x).unflatten(0, (b, n))


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, bias: Tensor | None = None, kernel: Kernel = "auto"
) -> Tensor:
    """Softmax attention among the real rows of every sample.

    Args:
        q, k, v: (T, H, d).
        layout: how the T rows make up the samples, and the pattern.
        bias: (B, H, N, N), added to the scores (padded rows).
        kernel: see the module docstring; "auto" picks the fastest that fits.

    Returns:
        (T, H, d).
    """
    q, k, v = _same_precision(q, k, v)
    if kernel == "auto":
        kernel = _choose(q, layout, bias)
    if kernel == "grouped":
        return _grouped(q, k, v, layout, bias)
    if kernel == "varlen":
        return _varlen(q, k, v, layout, bias)
    q_BHNd, k_BHNd, v_BHNd = (rearrange(layout.unflatten(x), "b n h d -> b h n d") for x in (q, k, v))
    if kernel == "reference":
        weights = attention_maps(q, k, layout, bias=bias)
        out = weights @ v_BHNd
    elif kernel == "padded":
        out = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd, attn_mask=_dense_bias(layout, bias))
    elif kernel == "flex":
        out = _flex(q_BHNd, k_BHNd, v_BHNd, layout, bias)
    else:
        raise ConsilienceError(f"unknown attention kernel '{kernel}'; known: {', '.join(KERNELS)}")
    return layout.flatten(rearrange(out, "b h n d -> b n h d"))


def attention_maps(q: Tensor, k: Tensor, layout: Layout, *, bias: Tensor | None = None) -> Tensor:
    """(B, H, N, N) attention weights over padded rows: the definition that every kernel must match."""
    q_BHNd, k_BHNd = (rearrange(layout.unflatten(x), "b n h d -> b h n d") for x in (q, k.to(q.dtype)))
    scores = q_BHNd @ k_BHNd.transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(~layout.mask()[:, None], float("-inf")).softmax(-1)


def attend_cached(q: Tensor, k: Tensor, v: Tensor, filled: int, real: Tensor | None = None) -> Tensor:
    """New rows (the last ones) against all rows so far, causally.

    Args:
        q: (B, M, H, d).
        k, v: (B, H, N, d), of which `filled` rows count, the new ones included; the others hold zeros.
        filled: at least M.
        real: (B, F) bool, which of the filled rows are not padding; None = all.

    Returns:
        (B, M, H, d); of rows that are padding anything finite.
    """
    new = q.shape[1]
    q = q.transpose(1, 2).to(k.dtype)
    if new == 1 and not q.is_cuda:  # reading the cache is all the work: plain products do so in one run
        tail = q.new_zeros(1 if real is None else len(real), 1, k.shape[2])
        tail[..., filled:] = float("-inf")
        if real is not None:
            tail[:, 0, :filled].masked_fill_(~real, float("-inf"))
            tail = tail.repeat_interleave(q.shape[1], 0)
        keys = k.flatten(0, 1).transpose(1, 2)
        scores = torch.baddbmm(tail, q.flatten(0, 1), keys, alpha=q.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).unflatten(0, q.shape[:2]).transpose(1, 2)
    mask = None
    if new > 1:
        mask = torch.ones(new, filled, dtype=torch.bool, device=q.device).tril(filled - new)
    if real is not None:
        # Padding sees itself: over nothing a softmax is not a number.
        own = torch.eye(filled, dtype=torch.bool, device=q.device)[-new:]
        mask = real[:, None, None] | own if mask is None else (mask & real[:, None, None]) | own
    return F.scaled_dot_product_attention(q, k[:, :, :filled], v[:, :, :filled], attn_mask=mask).transpose(
        1, 2
    )


def _same_precision(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries and keys may be float32 beside half-precision values: all in that of the values."""
    return q.to(v.dtype), k.to(v.dtype), v


def _choose(q: Tensor, layout: Layout, bias: Tensor | None) -> Kernel:
    if not q.is_cuda or layout.dense:
        return "grouped"
    if q.dtype in HALF and bias is None and layout.pattern.kind != "block" and _varlen_function() is not None:
        return "varlen"
    return "padded"


def _grouped(q: Tensor, k: Tensor, v: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    if layout.dense:
        b, n = layout.real.shape
        q, k, v = (rearrange(x, "(b n) h d -> b h n d", b=b) for x in (q, k, v))
        allowed = None if layout.pattern.kind == "full" else layout.pattern.allowed(n, q.device)
        out = _fused(q, k, v, layout.pattern, allowed, bias)
        return rearrange(out, "b h n d -> (b n) h d")
    masked = layout.pattern.kind == "block" or (layout.pattern.kind == "causal" and bias is not None)
    allowed = layout.mask() if masked else None
    out = torch.empty_like(q)
    pieces, places = [], []
    for samples, rows in layout.groups:
        n = rows.shape[1]
        # Real rows need not be the first of a sample (several modalities), so their columns are looked up.
        columns = layout.index[rows] % layout.real.shape[1]
        part_allowed = None if allowed is None else _select(allowed, samples, columns)
        part_bias = None if bias is None else _select(bias.transpose(0, 1), samples, columns).transpose(0, 1)
        q_GHnd, k_GHnd, v_GHnd = (rearrange(x[rows], "g n h d -> g h n d") for x in (q, k, v))
        piece = _fused(q_GHnd, k_GHnd, v_GHnd, layout.pattern, part_allowed, part_bias)
        pieces.append(rearrange(piece, "g h n d -> (g n) h d"))
        places.append(rows.flatten())
    return out.index_copy(0, torch.cat(places), torch.cat(pieces))


def _select(matrix: Tensor, samples: Tensor, columns: Tensor) -> Tensor:
    """(..., B or 1, N, N) -> (..., G, n, n): the real rows and columns of some samples."""
    samples = samples if matrix.shape[-3] > 1 else torch.zeros_like(samples)
    return matrix[..., samples[:, None, None], columns[:, :, None], columns[:, None, :]]


def _fused(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, allowed: Tensor | None, bias: Tensor | None
) -> Tensor:
    """One call of PyTorch's attention on (G, H, n, d) without padding; a few for long causal samples on a CPU."""
    if bias is None and pattern.kind != "block":
        causal = pattern.kind == "causal"
        with torch.autocast(q.device.type, enabled=False):  # the precision was chosen
            if not q.is_cuda and q.shape[2] < FUSED_ROWS:
                if q.dtype in HALF:
                    return _products(q, k, v, causal)
                if causal and q.shape[2] > CHUNK_ROWS:
                    return _chunked(q, k, v)
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    mask = None if allowed is None else allowed[:, None]
    if bias is None and mask is not None and not q.is_cuda and q.shape[2] > CHUNK_ROWS:
        return _chunked_mask(q, k, v, mask)
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _products(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention as batched products and a softmax, in chunks of queries: half precision on a CPU.

    PyTorch's fused kernel is several times slower there at 64 rows, most of all backwards.
    """
    g, _, n, d = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q * d**-0.5, k, v))
    parts = []
    for first in range(0, n, CHUNK_ROWS):
        stop = min(first + CHUNK_ROWS, n)
        if causal:
            above = torch.full((stop - first, stop), float("-inf"), dtype=q.dtype).triu(first + 1)
            scores = torch.baddbmm(above, q[:, first:stop], k[:, :stop].transpose(1, 2))
            parts.append(torch.bmm(scores.softmax(-1), v[:, :stop]))
        else:
            scores = torch.bmm(q[:, first:stop], k.transpose(1, 2))
            parts.append(torch.bmm(scores.softmax(-1), v))
    return torch.cat(parts, dim=1).unflatten(0, (g, -1))


def _chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in chunks of queries, each against the keys it may see: skips most of the upper triangle.

    PyTorch's CPU kernel skips it only in steps of 512 keys.
    """
    n = q.shape[2]
    parts = []
    for first in range(0, n, CHUNK_ROWS):
        stop = min(first + CHUNK_ROWS, n)
        mask = torch.ones(stop - first, stop, dtype=torch.bool, device=q.device).tril(first)
        seen = k[:, :, :stop], v[:, :, :stop]
        parts.append(F.scaled_dot_product_attention(q[:, :, first:stop], *seen, attn_mask=mask))
    return torch.cat(parts, dim=2)


def _chunked_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in chunks of queries, each against the keys up to the last that any of its rows may see.

    Blocks that lie one after another leave most of the upper triangle out, as a causal mask does.
    """
    n = q.shape[2]
    starts = list(range(0, n, CHUNK_ROWS))
    seen = mask.flatten(0, 1).any(0)
    parts = []
    for first in starts:
        stop = min(first + CHUNK_ROWS, n)
        last = int(seen[first:stop].any(0).nonzero().max()) + 1
        part = q[:, :, first:stop], k[:, :, :last], v[:, :, :last]
        parts.append(F.scaled_dot_product_attention(*part, attn_mask=mask[:, :, first:stop, :last]))
    return torch.cat(parts, dim=2)


def _dense_bias(layout: Layout, bias: Tensor | None) -> Tensor:
    mask = layout.mask()[:, None]
    return mask if bias is None else bias.masked_fill(~mask, float("-inf"))


def _varlen_function():  # type: ignore[no-untyped-def]
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    function = _varlen_function()
    if function is None or bias is not None or layout.pattern.kind == "block":
        raise ConsilienceError(
            "the kernel 'varlen' needs a recent PyTorch, no bias, and a full or causal pattern"
        )
    longest = int(layout.length.max())
    causal = layout.pattern.kind == "causal"
    window = {"window_size": (-1, 0)} if causal else {}
    try:
        return function(q, k, v, layout.offsets, layout.offsets, longest, longest, **window)
    except TypeError:  # releases before `window_size` had `is_causal`
        return function(q, k, v, layout.offsets, layout.offsets, longest, longest, is_causal=causal)


def _flex(q: Tensor, k: Tensor, v: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = layout.mask()
    b, n = layout.real.shape

    def allowed(sample: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return mask[sample, row, column]

    def biased(score: Tensor, sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[sample, head, row, column]

    blocks = create_block_mask(allowed, b, None, n, n, device=str(q.device))
    out = flex_attention(q, k, v, block_mask=blocks, score_mod=None if bias is None else biased)
    assert isinstance(out, Tensor)
    return out
