"""Every kernel computes what `reference` computes, for every pattern, raggedness and bias."""

import pytest
import torch
from torch import Tensor

from consilience.core.attention import KERNELS, Kernel, Layout, Pattern, attend, attend_cached, attention_maps
from consilience.core.errors import ConsilienceError

B, N, H, D = 6, 7, 2, 8
PATTERNS = ["full", "causal", "block", "context"]
GRADIENT_KERNELS: list[Kernel] = ["grouped", "padded", "auto"]


def real_rows(name: str) -> Tensor:
    row = torch.arange(N)
    lengths = torch.tensor([7, 3, 5, 1, 7, 3])[:, None]
    if name == "dense":
        return torch.ones(B, N, dtype=torch.bool)
    if name == "ragged":
        return row < lengths
    # Two modalities side by side, each padded on its own: 4 + 3 rows.
    second = torch.tensor([3, 1, 2, 2, 0, 3])[:, None]
    return torch.where(row < 4, row < (lengths % 4) + 1, row - 4 < second)


def pattern_of(name: str) -> Pattern:
    if name in ("full", "causal"):
        return Pattern(kind=name)
    generator = torch.Generator().manual_seed(7)
    block = torch.randint(3, (B, N), generator=generator)
    query = torch.rand(B, N, generator=generator) < 0.5
    return Pattern(kind="block", block=block, query=query if name == "block" else None)


def inputs(layout: Layout, *, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    rows = int(layout.real.sum())
    q, k, v = (torch.randn(rows, H, D, generator=generator, requires_grad=True) for _ in range(3))
    return q, k, v, torch.randn(B, H, N, N, generator=generator, requires_grad=True) if bias else None


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() < tolerance)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows", ["dense", "ragged", "modalities"])
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("kernel", GRADIENT_KERNELS)
def test_kernels_equal_the_reference_with_gradients(kernel, name, rows, bias):
    layout = Layout(real_rows(rows), pattern_of(name))
    weight = torch.randn(int(layout.real.sum()), H, D, generator=torch.Generator().manual_seed(1))
    found = {}
    for which in ("reference", kernel):
        q, k, v, b = inputs(layout, bias=bias)
        out = attend(q, k, v, layout, bias=b, kernel=which)
        (out * weight).sum().backward()
        found[which] = [out, q.grad, k.grad, v.grad] + ([b.grad] if bias else [])
    assert all(close(x, y) for x, y in zip(found["reference"], found[kernel], strict=True))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows", ["dense", "ragged", "modalities"])
@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_flex_equals_the_reference(name, rows, bias):
    layout = Layout(real_rows(rows), pattern_of(name))
    q, k, v, b = (None if x is None else x.detach() for x in inputs(layout, bias=bias))
    expected = attend(q, k, v, layout, bias=b, kernel="reference")
    assert close(attend(q, k, v, layout, bias=b, kernel="flex"), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["grouped", "padded", "varlen", "auto"])
@pytest.mark.parametrize("rows", ["dense", "ragged", "modalities"])
@pytest.mark.parametrize("name", ["full", "causal"])
def test_half_precision_kernels_on_a_gpu(kernel, name, rows):
    layout = Layout(real_rows(rows).cuda(), pattern_of(name))
    q, k, v, _ = inputs(Layout(real_rows(rows)), bias=False)
    expected = attend(q, k, v, Layout(real_rows(rows), pattern_of(name)), kernel="reference")
    half = [x.detach().cuda().bfloat16() for x in (q, k, v)]
    assert close(attend(*half, layout, kernel=kernel).float().cpu(), expected, 0.05)


def test_the_reference_is_softmax_attention_written_out():
    """One sample, one head, by hand: so that the definition itself is checked."""
    layout = Layout(real_rows("ragged"), Pattern(kind="causal"))
    q, k, v, bias = inputs(layout, bias=True)
    out = attend(q, k, v, layout, bias=bias, kernel="reference")
    first = int(layout.length[:2].sum())  # where sample 2 starts; it has 5 rows
    for row in range(5):
        scores = torch.stack(
            [q[first + row, 1] @ k[first + j, 1] / D**0.5 + bias[2, 1, row, j] for j in range(row + 1)]
        )
        by_hand = sum(p * v[first + j, 1] for j, p in enumerate(scores.softmax(0)))
        assert close(out[first + row, 1], by_hand)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("rows", ["dense", "ragged", "modalities"])
def test_maps_are_distributions_over_allowed_rows(name, rows):
    layout = Layout(real_rows(rows), pattern_of(name))
    q, k, _, _ = inputs(layout, bias=False)
    maps = attention_maps(q, k, layout)
    assert maps.shape == (B, H, N, N)
    assert close(maps.sum(-1), torch.ones(B, H, N))
    assert not maps.masked_select(~layout.mask()[:, None]).any()
    real = layout.real[:, None, :, None].expand_as(maps)
    assert not maps[real & ~layout.real[:, None, None, :]].any(), "nothing real looks at padding"


def test_block_pattern_by_its_words():
    pattern = pattern_of("block")
    allowed, block, query = pattern.allowed(N, torch.device("cpu")), pattern.block, pattern.query
    for b in range(B):
        for i in range(N):
            for j in range(N):
                if query[b, j]:
                    expected = query[b, i] and block[b, i] == block[b, j]
                elif query[b, i]:
                    expected = block[b, j] < block[b, i]
                else:
                    expected = block[b, j] <= block[b, i]
                assert bool(allowed[b, i, j]) == bool(expected)


@pytest.mark.parametrize("steps", [[1] * 6, [6], [2, 3, 1], [5, 1]])
def test_cached_attention_equals_causal_attention(steps):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 6, H, D, generator=generator) for _ in range(3))
    layout = Layout(torch.ones(3, 6, dtype=torch.bool), Pattern(kind="causal"))
    whole = attend(*(x.flatten(0, 1) for x in (q, k, v)), layout, kernel="reference").unflatten(0, (3, 6))
    done = 0
    for step in steps:
        seen = [x.transpose(1, 2).clone() for x in (k, v)]
        for x in seen:
            x[:, :, done + step :] = 0  # not filled yet
        part = attend_cached(q[:, done : done + step], *seen, done + step)
        assert close(part, whole[:, done : done + step])
        done += step


@pytest.mark.parametrize("kind", ["full", "causal"])
@pytest.mark.parametrize("rows", [129, 300])
def test_long_samples_equal_the_reference_with_gradients(kind, rows):
    """Causal samples of this length go in chunks of queries on a CPU; the last chunk is not whole."""
    generator = torch.Generator().manual_seed(0)
    layout = Layout(torch.ones(2, rows, dtype=torch.bool), Pattern(kind=kind))
    found = []
    for kernel in ("grouped", "reference"):
        generator.manual_seed(0)
        q, k, v = (torch.randn(2 * rows, H, D, generator=generator).requires_grad_() for _ in range(3))
        out = attend(q, k, v, layout, kernel=kernel)
        out.square().sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    for ours, expected in zip(*found):
        assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 4, 200])
@pytest.mark.parametrize("lengths", [(300, 300), (300, 260)])
def test_long_blocks_in_chunks_equal_the_reference(lengths, size):
    """Two streams, interleaved, in chunks of queries that leave out what none of them may see."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(300).expand(2, -1)
    pattern = Pattern(kind="block", block=row // (2 * size), query=row % 2 == 1)
    layout = Layout(row < torch.tensor(lengths)[:, None], pattern)
    found = []
    for kernel in ("grouped", "reference"):
        generator.manual_seed(0)
        q, k, v = (torch.randn(sum(lengths), H, D, generator=generator).requires_grad_() for _ in range(3))
        out = attend(q, k, v, layout, kernel=kernel)
        out.square().sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    for ours, expected in zip(*found):
        assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["full", "causal"])
@pytest.mark.parametrize("lengths", [(40, 40), (40, 17, 3), (300, 280)])
def test_half_precision_is_close_to_float32(kind, lengths):
    """Plain products for short samples and float32 for longer ones: both keep the dtype of the values."""
    generator = torch.Generator().manual_seed(0)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    layout = Layout(real, Pattern(kind=kind))
    q, k, v = (torch.randn(sum(lengths), H, D, generator=generator) for _ in range(3))
    half = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    out = attend(
        half[0].float(), half[1].float(), half[2], layout, kernel="grouped"
    )  # q and k as after a norm
    expected = attend(*(x.detach().float() for x in half), layout, kernel="reference")
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=0.03)
    out.float().square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in half)


@pytest.mark.parametrize("rows", ["dense", "ragged", "modalities"])
def test_flatten_and_unflatten_are_inverse(rows):
    layout = Layout(real_rows(rows))
    x = torch.randn(B, N, 3)
    flat = layout.flatten(x)
    assert flat.shape == (int(layout.real.sum()), 3)
    assert torch.equal(layout.unflatten(flat), x * layout.real[..., None])
    assert layout.offsets.tolist() == [0, *layout.real.sum(1).cumsum(0).tolist()]
    covered = torch.cat([index.flatten() for _, index in layout.groups])
    assert covered.sort().values.tolist() == list(range(len(flat)))


def test_bad_patterns_and_kernels_are_named():
    with pytest.raises(ConsilienceError, match="block numbers belong to the pattern 'block'"):
        Pattern(kind="block")
    with pytest.raises(ConsilienceError, match="block numbers belong"):
        Pattern(block=torch.zeros(1, 1, dtype=torch.long))
    layout = Layout(real_rows("ragged"), pattern_of("block"))
    q, k, v, bias = inputs(layout, bias=True)
    with pytest.raises(
        ConsilienceError, match=f"unknown attention kernel 'fast'; known: {', '.join(KERNELS)}"
    ):
        attend(q, k, v, layout, kernel="fast")
    with pytest.raises(ConsilienceError, match="'varlen' needs"):
        attend(q, k, v, layout, bias=bias, kernel="varlen")
