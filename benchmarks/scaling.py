"""How cost grows with tokens per sample, width, depth, batch and number of records: fitted exponents.

Each row holds everything else fixed. An exponent is the slope of log seconds against log size by least squares over
the sizes shown; 1 is linear. `--only` picks rows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from harness import Report, options, race
from train_step import VOCABULARY, ours, step

from consilience.core.memory import kept_memory
from consilience.core.model import FoundationModel
from consilience.core.objectives import NextToken
from consilience.core.synthetic import MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig

BASE = {"width": 128, "depth": 4, "heads": 4}


def train(size: dict[str, int], b: int, n: int, kind: str = "encoder") -> Callable[[], object]:
    """One training step on b samples of n tokens."""
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (b, n))
    return step(*ours(kind, size, ids, False), bf16=False)


def embed(records: int) -> Callable[[], object]:
    """Embedding of so many strings of 10 to 60 symbols, records in, vectors out."""
    rng = np.random.default_rng(0)
    chain = [rng.integers(0, 3, rng.integers(10, 60)) for _ in range(records)]
    model = FoundationModel(
        CoreConfig(**BASE), {"chain": SyntheticTokenizer(MarkovChain(length=64))}, NextToken()
    )
    return lambda: model.embed(chain)


def sweeps(quick: bool) -> list[tuple[str, str, Sequence[int], Callable[[int], Callable[[], object]]]]:
    """(what, reach, sizes, size -> work)."""
    few = 3 if quick else None
    heads = {64: 2, 128: 4, 256: 8, 512: 16}
    return [
        (
            "tokens a sample, 8 samples",
            "1 to 2: matrices are linear, attention is square",
            (32, 64, 128, 256, 512, 1024, 2048)[:few],
            lambda n: train(BASE, 8, n),
        ),
        (
            "tokens a sample at a fixed number of tokens",
            "0 to 1: only attention grows",
            (32, 64, 128, 256, 512, 1024, 2048)[:few],
            lambda n: train(BASE, 4096 // n, n),
        ),
        (
            "width",
            "towards 2",
            (64, 128, 256, 512)[:few],
            lambda w: train({"width": w, "depth": 4, "heads": heads[w]}, 32, 64),
        ),
        ("depth", "1", (2, 4, 8, 16)[:few], lambda d: train({**BASE, "depth": d}, 32, 64)),
        ("samples a batch", "1", (16, 32, 64, 128, 256)[:few], lambda b: train(BASE, b, 64)),
        ("records embedded", "1", (250, 500, 1000, 2000, 4000)[:few], embed),
    ]


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Slope of log seconds against log size, with the slopes between neighbours as its range."""
    x, y = np.log(sizes), np.log(seconds)
    local = np.diff(y) / np.diff(x)
    return float(np.polyfit(x, y, 1)[0]), float(local.min()), float(local.max())


def main() -> None:
    """Run all sweeps."""
    chosen = options(__doc__, rounds=5, only="")
    report = Report(
        "scaling",
        "How cost grows",
        [
            "grows",
            "sizes",
            "ms",
            "exponent [least, greatest between neighbours]",
            "exponent of the upper half",
            "expected",
        ],
        notes=[
            f"Training steps (forward, loss, backward, AdamW) of {BASE} unless the row changes it, 64 tokens a sample, "
            "float32; sizes of a row interleaved, median of the rounds.",
            "Small sizes have fixed costs, so the exponent of the upper half of the sizes says more than the first.",
        ],
    )
    for what, expected, sizes, build in sweeps(chosen.quick):
        if chosen.only and chosen.only not in what:
            continue
        with kept_memory():  # as in training
            times = race(
                {str(size): build(size) for size in sizes}, rounds=2 if chosen.quick else chosen.rounds
            )
        seconds = [times.median(str(size)) for size in sizes]
        upper = exponent(sizes[-3:], seconds[-3:])[0]
        report.add(
            what, ", ".join(map(str, sizes)), ", ".join(f"{1000 * s:.3g}" for s in seconds),
            exponent(sizes, seconds), upper, expected,
        )  # fmt: skip
    report.write(chosen.out, keys=1 if chosen.only else 0)


if __name__ == "__main__":
    main()
