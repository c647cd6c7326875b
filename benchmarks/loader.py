"""Whether the data path keeps the trainer busy: tokens a second from records and from a token cache.

Every row is a `StepLoader` as training makes it, in its steady state: the first batches are not timed. Beside it what
one core trains of the same tokens (width 256, 8 layers, masked, forward, backward and AdamW), and what one H100 trains
of a model of 100 M parameters (computed: 45% of 989 dense bf16 TFLOP/s over 6 x parameters a token).
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Report, options

from consilience import registry
from consilience.core.feed import Source, TokenFeed
from consilience.core.loader import StepLoader
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked
from consilience.core.optim import build_optimizer
from consilience.core.transformer import CoreConfig
from consilience.domains.cached import PreparedTokens, tokenize_collection
from consilience.domains.preparation import load_collection, prepare
from consilience.tokenizers import molecule_notation

H100, PARAMETERS, USED = 989e12, 100e6, 0.45
GPU_RATE = H100 * USED / (6 * PARAMETERS)
GPU_WORKERS = 8
REACH_CPU, REACH_GPU = 5.0, 1.2
BATCH = 16_384
SCIENCES = ("cells", "galaxies", "molecules", "points")
CELLS, FEW_CELLS = 4000, 400
FEW = {"cells": FEW_CELLS, "galaxies": 400, "molecules": 300, "points": 300}
"""Records of --quick."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Args:
        science: name.
        kind: where the tokens come from.
        source: training records or tokens.
        remembered: whether canonical SMILES may be remembered from one epoch to the next.
    """

    science: str
    kind: str
    source: Source
    remembered: bool = True


def cells_file(folder: Path, n: int, genes: int = 20_000) -> Path:
    """An .h5ad of n cells with about 1,200 of 20,000 genes expressed, as in 10x data."""
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    each = np.clip(np.exp(rng.normal(np.log(1200), 0.5, n)), 200, 4000).astype(np.int64)
    popular = rng.permutation(genes) ** 2 // genes  # some genes are seen in most cells
    indices = [np.unique(popular[rng.integers(genes, size=2 * k)])[:k] for k in each]
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in indices])])
    counts = rng.geometric(0.5, indptr[-1]).astype(np.float32)
    matrix = sp.csr_matrix((counts, np.concatenate(indices), indptr), shape=(n, genes))
    obs = pd.DataFrame(index=[f"cell-{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(genes)])
    path = folder / "cells.h5ad"
    anndata.AnnData(X=matrix, obs=obs, var=var).write_h5ad(path)
    return path


def rows_of(science: str, folder: Path, data: Path | None, limit: int | None, draws: int) -> Iterator[Row]:
    """The ways in which the records of a science reach the trainer."""
    domain = registry.domain(science)
    if science == "cells" and data is None:
        data = cells_file(folder, limit or CELLS)
    prepared = prepare(domain, load_collection(domain, data), limit=limit)
    train = prepared.source("train")
    if science == "cells":
        yield Row(
            science=science,
            kind="records in memory",
            source=Source(records=train.records.load(), tokenizer=train.tokenizer),
        )
        yield Row(science=science, kind="backed h5ad", source=train)
    elif science == "molecules":
        yield Row(science=science, kind="records, canonical remembered", source=train)
        yield Row(science=science, kind="records, canonical each time", source=train, remembered=False)
        drawn = prepare(domain, load_collection(domain, data), tokenizer={"form": "randomised"}, limit=limit)
        yield Row(science=science, kind="records, randomised", source=drawn.source("train"))
    else:
        yield Row(science=science, kind="records in memory", source=train)
    tokenize_collection(domain, folder / science, data=data, limit=limit, draws=draws)
    yield Row(
        science=science,
        kind="token cache",
        source=PreparedTokens.open(domain, folder / science).source("train"),
    )


def loader_rate(row: Row, workers: int, seconds: float) -> float:
    """Tokens a second of a loader once it runs."""
    memory = molecule_notation.MEMORY
    feed = TokenFeed({row.science: row.source}, steps=1_000_000, tokens_per_batch=BATCH, seed=0)
    if not row.remembered:
        molecule_notation.MEMORY = 0
        row.source.tokenizer._notation._memory.clear()  # type: ignore[attr-defined]
    batches = iter(StepLoader(feed, workers, pin=torch.cuda.is_available()))
    try:
        for _ in range(2 + 4 * workers):  # what workers have prepared ahead
            next(batches)
        tokens, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            tokens += next(batches)[1].n_tokens
        return tokens / (time.perf_counter() - begin)
    finally:
        del batches  # ends the workers
        molecule_notation.MEMORY = memory


def train_rate(row: Row, size: dict[str, Any], steps: int) -> float:
    """Tokens a second of training on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = FoundationModel(CoreConfig(**size), {row.science: row.source.tokenizer}, Masked())
    optimizer = build_optimizer(model, name="adamw", learning_rate=1e-3, weight_decay=0.01)
    feed = TokenFeed({row.science: row.source}, steps=1 + steps, tokens_per_batch=4096, seed=0)
    generator, tokens, begin = torch.Generator().manual_seed(0), 0, 0.0
    for step in range(1 + steps):
        if step == 1:
            tokens, begin = 0, time.perf_counter()
        name, batch = feed[step]
        optimizer.zero_grad()
        model.loss({name: batch}, generator)[name].value.backward()
        optimizer.step()
        tokens += batch.n_tokens
    rate = tokens / (time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return rate


def main() -> None:
    chosen = options(__doc__, cells="", molecules="", points="", galaxies="", rounds=3, seconds=2.0)
    quick = chosen.quick
    size = {"width": 64, "depth": 2, "heads": 4} if quick else {"width": 256, "depth": 8, "heads": 8}
    rounds, seconds, workers = (1, 0.2, (0, 1)) if quick else (chosen.rounds, chosen.seconds, (0, 1, 2))
    cells = f"{FEW_CELLS if quick else CELLS:,} synthetic cells of about 1,200 of 20,000 genes"
    report = Report(
        name="loader",
        title="Does the data path keep the trainer busy?",
        columns=(
            "science", "tokens from", *(f"k tokens/s, {w} workers" for w in workers), "one core trains, k tokens/s",
            "1 worker / one core", f"{GPU_WORKERS} workers / H100 (computed)",
        ),
        packages=("pyarrow", "numpy"),
        notes=[
            f"Batches of {BATCH:,} tokens; {rounds} rounds in which every row runs once for {seconds:g} s; medians.",
            f"One core trains width {size['width']}, {size['depth']} layers, masked. 1 worker: tokenizes in a process "
            f"of its own, the trainer only receives. Reach: {REACH_CPU:g}.",
            f"H100: {GPU_RATE:,.0f} tokens/s for 100 M parameters, computed, not measured; {GPU_WORKERS} workers: "
            f"{GPU_WORKERS} times the measured rate of one. Reach: {REACH_GPU:g}.",
            f"Cells: {chosen.cells or cells}; training draws matched zeros. Other sciences: bundled data where no file "
            "was given. The cache holds 2 draws. Files are in the page cache, as from the second epoch on.",
        ],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for science in SCIENCES:
            given = getattr(chosen, science)
            limit = FEW[science] if quick else None
            rows = list(rows_of(science, Path(folder), Path(given) if given else None, limit, draws=2))
            rates: dict[tuple[str, int], list[float]] = {(r.kind, w): [] for r in rows for w in workers}
            trained: list[float] = []
            for _ in range(rounds):
                trained.append(train_rate(rows[0], size, 1 if quick else 3))
                for row in rows:
                    for w in workers:
                        rates[row.kind, w].append(loader_rate(row, w, seconds))
            for row in rows:
                one = np.array(rates[row.kind, 1])
                report.add(
                    science,
                    row.kind,
                    *(float(np.median(rates[row.kind, w])) / 1e3 for w in workers),
                    float(np.median(trained)) / 1e3,
                    float(np.median(one / np.array(trained))),
                    float(GPU_WORKERS * np.median(one) / GPU_RATE),
                )
    report.write(chosen.out)


if __name__ == "__main__":
    main()
