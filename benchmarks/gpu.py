"""One GPU: model FLOPs utilisation, memory, equality of kernels, bf16 against float32. `--quick` runs on a CPU.

Model FLOPs of a step: 6 x (parameters of the blocks) x tokens, and 12 x depth x width x length x tokens for attention
(half of it for a causal pattern, which is what a causal kernel computes); embeddings and heads are not counted.
Utilisation is over the card's dense bf16 peak.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from harness import Report, options
from torch import Tensor
from train_step import VOCABULARY, Symbols

from consilience.core.attention import KERNELS, Layout, Pattern, attend
from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.feed import step_generator
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked, NextToken
from consilience.core.optim import build_optimizer
from consilience.core.synthetic import MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 FLOP/s without sparsity, from the makers' data sheets; SXM forms where there are several."""

SIZES = {
    "25 M": CoreConfig(width=512, depth=8, heads=8),
    "100 M": CoreConfig(width=768, depth=14, heads=12),
    "350 M": CoreConfig(width=1024, depth=28, heads=16),
}
TOY = {"toy": CoreConfig(width=64, depth=2, heads=2)}


def device() -> torch.device:
    """The GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until the GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_flops() -> float | None:
    """Of this card; None where it is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for card, flops in PEAK.items() if card in name), None)


def lengths(n: int, tokens: int, ragged: bool) -> Tensor:
    """Lengths that add up to about `tokens`: all n, or uniform in n / 4 .. n."""
    if not ragged:
        return torch.full((max(1, tokens // n),), n)
    drawn = torch.randint(
        max(1, n // 4), n + 1, (4 * tokens // n + 4,), generator=torch.Generator().manual_seed(0)
    )
    return drawn[: max(1, int((drawn.cumsum(0) <= tokens).sum()))]


def batch(length: Tensor) -> TokenBatch:
    """Random symbols."""
    b, n = len(length), int(length.max())
    generator = torch.Generator().manual_seed(1)
    return TokenBatch(
        length=length,
        ids=torch.randint(VOCABULARY, (b, n), generator=generator),
        positions=torch.arange(n, dtype=torch.float32)[None, :, None].repeat(b, 1, 1),
    )


def model_flops(core: CoreConfig, length: Tensor, causal: bool) -> float:
    """Of one training step."""
    matrices = 12 * core.width**2 * core.depth
    attention = 12 * core.depth * core.width * float((length.double() ** 2).sum()) * (0.5 if causal else 1.0)
    return 6 * matrices * float(length.sum()) + attention


def utilisation(sizes: dict[str, CoreConfig], chosen: Any) -> None:
    """Time, utilisation and memory of a training step."""
    report = Report(
        "gpu_utilisation",
        "Utilisation of one GPU by a training step",
        [
            "size", "parameters", "length", "objective", "batch", "compiled", "ms", "tokens/s", "utilisation",
            "bytes a token",
        ],
        notes=[
            "bf16 autocast, forward + loss + backward + AdamW; median of the steps after warming up.",
            "ragged: lengths uniform in n/4 .. n, computed end to end without padding; tokens are real ones.",
            "Target on one H100: 45% at 100 M and 512 tokens, 50% at 350 M.",
        ],
    )  # fmt: skip
    where, peak = device(), peak_flops()
    for name, core in sizes.items():
        for n in (64,) if chosen.quick else (64, 512, 2048):
            for objective, causal in ((NextToken(), True), (Masked(rate=0.15), False)):
                for compiled in (False,) if chosen.quick else (False, True):
                    for ragged in (False, True):
                        length = lengths(n, 512 if chosen.quick else chosen.tokens, ragged)
                        model = FoundationModel(core, {"symbols": Symbols(n)}, objective).to(where)
                        if compiled:
                            torch._dynamo.reset()
                            model.core.compile()
                        tokens = batch(length).to(where)
                        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
                        generator = torch.Generator().manual_seed(0)
                        if torch.cuda.is_available():
                            torch.cuda.reset_peak_memory_stats()
                        seconds = []
                        for _ in range(3 if chosen.quick else chosen.warm + chosen.steps):
                            wait()
                            begin = time.perf_counter()
                            with torch.autocast(where.type, dtype=torch.bfloat16):
                                loss = model.loss({"symbols": tokens}, generator)["symbols"].value
                            loss.backward()
                            optimizer.step()
                            optimizer.zero_grad(set_to_none=True)
                            wait()
                            seconds.append(time.perf_counter() - begin)
                        spent = statistics.median(seconds[1 if chosen.quick else chosen.warm :])
                        flops = model_flops(core, length, causal) / spent
                        memory = (
                            torch.cuda.max_memory_allocated() / int(length.sum())
                            if where.type == "cuda"
                            else ""
                        )
                        report.add(
                            name, sum(p.numel() for p in model.parameters()), n, objective.name,
                            "ragged" if ragged else "equal lengths", "yes" if compiled else "no", 1000 * spent,
                            int(length.sum()) / spent, f"{100 * flops / peak:.1f}%" if peak else "", memory,
                        )  # fmt: skip
    report.write(chosen.out)


def kernels(chosen: Any) -> None:
    """Every kernel against the reference in float64, values and gradients."""
    report = Report(
        "gpu_kernels",
        "Attention kernels against the reference",
        ["kernel", "pattern", "dtype", "lengths", "largest error of values", "of gradients"],
        notes=[
            "Largest absolute difference from the reference kernel in float64 on the same rounded inputs."
        ],
    )
    where = device()
    for ragged in (False, True):
        length = lengths(64 if chosen.quick else 512, 512 if chosen.quick else 8192, ragged).to(where)
        real = torch.arange(int(length.max()), device=where) < length[:, None]
        for pattern in (Pattern(), Pattern(kind="causal")):
            layout = Layout(real, pattern)
            for dtype in (torch.float32, torch.bfloat16):
                generator = torch.Generator().manual_seed(0)
                inputs = [
                    torch.randn(int(length.sum()), 4, 64, generator=generator).to(where, dtype)
                    for _ in range(3)
                ]
                expected = attended(inputs, layout, "reference", torch.float64)
                shape = "ragged" if ragged else "equal"
                for kernel in KERNELS:
                    try:
                        found = attended(inputs, layout, kernel, dtype)
                    except (ConsilienceError, NotImplementedError, RuntimeError) as error:
                        report.add(
                            kernel,
                            pattern.kind,
                            str(dtype),
                            "ragged" if ragged else "equal",
                            f"cannot: {str(error)[:60]}",
                            "",
                        )
                        continue
                    errors = [float((a.double() - b).abs().max()) for a, b in zip(found, expected)]
                    report.add(kernel, pattern.kind, str(dtype), shape, errors[0], max(errors[1:]))
    report.write(chosen.out)


def attended(inputs: list[Tensor], layout: Layout, kernel: Any, dtype: torch.dtype) -> list[Tensor]:
    """Values and gradients of a kernel."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
    out = attend(*leaves, layout, kernel=kernel)
    (
        out * torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).reshape(out.shape)
    ).sum().backward()
    gradients = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in gradients)
    return [out.detach(), *(gradient for gradient in gradients if gradient is not None)]


def curve(precision: str, steps: int, core: CoreConfig) -> Iterator[float]:
    """Losses of a run on a Markov chain with the same data, views and initial weights in both precisions."""
    where = device()
    torch.manual_seed(0)
    chain = MarkovChain()
    model = FoundationModel(core, {"chain": SyntheticTokenizer(chain)}, NextToken()).to(where).train()
    optimizer = build_optimizer(model, name="adamw", learning_rate=1e-3, weight_decay=0.01)
    for number in range(steps):
        tokens = chain.tokens(128, step_generator(0, number)).to(where)
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model.loss({"chain": tokens}, step_generator(0, number, stream=1))["chain"].value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def precisions(sizes: dict[str, CoreConfig], chosen: Any) -> None:
    """bf16 autocast against float32 over the same 500 steps."""
    report = Report(
        "gpu_bf16",
        "Loss in bf16 autocast against float32 on a Markov chain",
        [
            "size",
            "steps",
            "float32",
            "bf16",
            "mean difference",
            "largest difference of means of 25 steps",
            "entropy",
        ],
        notes=["Nats per token, mean over the last 50 steps; same weights, data and seeds."],
    )
    steps = 60 if chosen.quick else 500
    for name, core in list(sizes.items())[:2]:
        exact, half = (torch.tensor(list(curve(p, steps, replace(core)))) for p in ("float32", "bf16"))
        windows = (half - exact)[: steps // 25 * 25].unflatten(0, (-1, min(25, steps))).mean(1)
        report.add(
            name, steps, float(exact[-50:].mean()), float(half[-50:].mean()), float((half - exact).mean()),
            float(windows.abs().max()), float(MarkovChain().entropy),
        )  # fmt: skip
    report.write(chosen.out)


def main() -> None:
    """All three tables, or `--only utilisation | kernels | precisions`."""
    chosen = options(__doc__, tokens=32768, steps=20, warm=8, only="")
    sizes = SIZES if torch.cuda.is_available() and not chosen.quick else TOY
    if chosen.only in ("", "kernels"):
        kernels(chosen)
    if chosen.only in ("", "precisions"):
        precisions(sizes, chosen)
    if chosen.only in ("", "utilisation"):
        utilisation(sizes, chosen)


if __name__ == "__main__":
    main()
