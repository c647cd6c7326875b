"""Cells to tokens: counts and ranks, from memory and from h5ad files, beside scGPT's collator and a numpy ranking.

Same work for all contenders of a group: cells of about 3,300 expressed genes out of 20,000 become padded batches of
at most 1,024 gene tokens. Default data: synthetic counts of that shape (heavy-tailed gene popularity, geometric
counts); `--data FILE.h5ad` takes a real file instead.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from harness import Report, Times, installed, options, race

from consilience.core.batch import TokenBatch
from consilience.tokenizers.cell_store import KEEP_BYTES
from consilience.tokenizers.cells import CellTable, CellTokenizer, StoredCounts

MAX_GENES, BATCH, REGION, LARGE = 1024, 64, 1024, 512
REGION_BYTES = 16 << 20  # holds the decoded chunks of one region and a half
REACH = 5_000


def synthetic(n: int, genes: int = 20_000, expressed: int = 3_300) -> CellTable:
    """Cells whose genes are drawn without replacement by popularity; geometric counts."""
    rng = np.random.default_rng(0)
    popularity = rng.normal(0, 1.5, genes)
    sizes = np.minimum((expressed * rng.lognormal(-0.045, 0.3, n)).astype(np.int64), genes)
    rows = [np.sort(np.argsort(-(popularity + rng.gumbel(size=genes)))[:k]) for k in sizes]
    indices = np.concatenate(rows).astype(np.int32)
    counts = rng.geometric(0.4, len(indices)).astype(np.float32)
    table = sp.csr_array((counts, indices, np.concatenate([[0], np.cumsum(sizes)])), shape=(n, genes))
    return CellTable(counts=table, genes=np.array([f"G{i}" for i in range(genes)]))


def real(path: Path, n: int) -> CellTable:
    """Up to n cells of a file that have counts."""
    from consilience.domains.cells.data import read

    records = read(path).records
    rows = np.sort(np.random.default_rng(0).permutation(len(records))[:n])
    table = records.take(rows).load()
    return CellTable(counts=table.counts, genes=table.genes)


def same(first: TokenBatch, second: TokenBatch) -> bool:
    """Equal to the bit."""
    pairs = [(getattr(first, f.name), getattr(second, f.name)) for f in fields(first)]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def batches(n: int, size: int = BATCH) -> list[np.ndarray]:
    """Random batches of the whole table."""
    order = np.random.default_rng(1).permutation(n)
    return [order[i : i + size] for i in range(0, n, size)]


def batches_by_region(n: int) -> list[np.ndarray]:
    """Random batches within one region of neighbouring cells after the other, as a feed in chunks asks for."""
    rng = np.random.default_rng(2)
    regions = [np.arange(i, min(i + REGION, n)) for i in range(0, n, REGION)]
    return [
        order[i : i + BATCH]
        for order in map(rng.permutation, [regions[k] for k in rng.permutation(len(regions))])
        for i in range(0, len(order), BATCH)
    ]


def encode_all(tokenizer: CellTokenizer, table: CellTable, parts: Sequence[np.ndarray] | None = None) -> None:
    """Tokens of the whole table at once, or of these batches, one after the other."""
    for rows in parts if parts is not None else [None]:
        tokenizer.encode(table if rows is None else table.take(rows))


# --- peers -----------------------------------------------------------------------------------------------


def scgpt_collator() -> type[Any] | None:
    """scGPT's DataCollator; only the two modules that it needs are loaded, since the package itself wants more."""
    spec = importlib.util.find_spec("scgpt")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = ModuleType("scgpt")
    package.__path__ = list(spec.submodule_search_locations)
    package.logger = logging.getLogger("scgpt")  # type: ignore[attr-defined]
    sys.modules["scgpt"] = package
    try:
        collator: type[Any] = importlib.import_module("scgpt.data_collator").DataCollator
    except ImportError:
        return None
    return collator


def scgpt_examples(counts: sp.csr_array, rows: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """What scGPT's collator is given: the expressed genes and their counts, a <cls> in front."""
    found = []
    for row in rows:
        span = slice(counts.indptr[row], counts.indptr[row + 1])
        genes = torch.from_numpy(np.append(0, counts.indices[span].astype(np.int64) + 1))
        values = torch.from_numpy(np.append(np.float32(0), counts.data[span]))
        found.append({"genes": genes, "expressions": values})
    return found


def rank_in_numpy(
    counts: sp.csr_array, median: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Geneformer's ranking, cell by cell: counts per 10,000 over the gene's median, descending, 1,024 of them."""
    ids = np.zeros((len(rows), MAX_GENES), dtype=np.int64)
    length = np.zeros(len(rows), dtype=np.int64)
    for place, row in enumerate(rows):
        span = slice(counts.indptr[row], counts.indptr[row + 1])
        genes, values = counts.indices[span], counts.data[span]
        score = values / values.sum() * 1e4 / median[genes]
        best = genes[np.argsort(-score)[:MAX_GENES]]
        ids[place, : len(best)], length[place] = best, len(best)
    return ids, length


# --- checks ----------------------------------------------------------------------------------------------


def check_counts(tokenizer: CellTokenizer, table: CellTable, collator: type[Any] | None) -> str:
    """Lossless without a limit of genes; the same genes and counts as scGPT's collator when it does not bin."""
    few = table.take(np.arange(min(BATCH, len(table))))
    whole = CellTokenizer.from_state(tokenizer.state() | {"options": {"max_genes": len(table.genes)}})
    tokens = whole.encode(few)
    place = {gene: i for i, gene in enumerate(table.genes.tolist())}
    columns = np.array([place[gene] for gene in whole.vocabulary])
    decoded = whole.decode(tokens).counts.tocoo()
    back = sp.csr_array((decoded.data, (decoded.row, columns[decoded.col])), shape=few.counts.shape)
    assert abs(back - few.counts).nnz == 0, "decode(encode(cells)) is not the cells"
    if collator is None:
        return "decode(encode) = cells"
    plain = collator(pad_token_id=-1, max_length=1 + len(table.genes), do_mlm=False, do_binning=False)
    theirs = plain(scgpt_examples(few.counts, np.arange(len(few))))
    assert tokens.values is not None and tokens.address is not None
    for row, length in enumerate(tokens.length.tolist()):
        genes = columns[tokens.address[row, 1:length].numpy() - 1]
        order = np.argsort(genes)
        real = (theirs["gene"][row] > 0).numpy()
        assert np.array_equal(theirs["gene"][row].numpy()[real] - 1, genes[order]), "other genes than scGPT"
        assert np.array_equal(
            theirs["expr"][row].numpy()[real], tokens.values[row, 1:length, 0].numpy()[order]
        )
    return "decode(encode) = cells; genes and counts = scGPT's without binning"


def check_ranks(tokenizer: CellTokenizer, table: CellTable, median: np.ndarray, place: np.ndarray) -> str:
    """The numpy ranking has the same scores at every rank (equal scores may stand in another order)."""
    tokens = tokenizer.encode(table)
    ids, length = rank_in_numpy(table.counts, median, np.arange(len(table)))
    assert tokens.ids is not None and np.array_equal(length, tokens.length.numpy())
    dense = table.counts.tocsr()
    for row in range(min(len(table), 200)):
        cell = dense[[row]].toarray()[0]
        ours, theirs = place[tokens.ids[row, : length[row]].numpy()], ids[row, : length[row]]
        np.testing.assert_allclose(cell[ours] / median[ours], cell[theirs] / median[theirs], rtol=1e-5)
    return "scores at every rank = numpy's"


# --- memory ----------------------------------------------------------------------------------------------


def resident() -> tuple[int, int]:
    """Bytes of resident memory now and at its peak, from Linux."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def measure_memory(folder: Path) -> None:
    """In a process of its own: the peak of `encode` above what was resident before it, in bytes."""
    arrays = [np.load(folder / f"{name}.npy") for name in ("data", "indices", "indptr", "genes")]
    table = CellTable(
        counts=sp.csr_array(tuple(arrays[:3]), shape=(len(arrays[2]) - 1, len(arrays[3]))), genes=arrays[3]
    )
    tokenizer = CellTokenizer.from_state(json.loads((folder / "state.json").read_text()))
    tokenizer.encode(table.take(np.arange(2)))  # what is loaded once and stays
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, _ = resident()
    tokens = tokenizer.encode(table)
    print(json.dumps({"peak": resident()[1] - before, "cells": tokens.size}))


def peaks(tokenizer: CellTokenizer, table: CellTable, folder: Path) -> tuple[float, float | None]:
    """Peak memory of `encode`, tokens included, over the bytes of the CSR arrays: by tracemalloc and resident."""
    counts = table.counts
    size = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    tokens = tokenizer.encode(table)
    traced = (tracemalloc.get_traced_memory()[1] - before) / size
    tracemalloc.stop()
    del tokens
    if not Path("/proc/self/status").exists():
        return traced, None
    for name in ("data", "indices", "indptr"):
        np.save(folder / f"{name}.npy", getattr(counts, name))
    np.save(folder / "genes.npy", table.genes.astype(str))
    (folder / "state.json").write_text(json.dumps(tokenizer.state()))
    command = [sys.executable, __file__, "--threads", "1", "--measure-memory", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return traced, json.loads(found)["peak"] / size


# --- the table -------------------------------------------------------------------------------------------


def add(report: Report, work: str, times: Times, cells: int, ours: str, checked: str) -> None:
    """One row a contender."""
    for name in times.seconds:
        slower = "" if name == ours else times.ratio(name, ours)
        report.add(work, name, cells / times.median(name), slower, checked if name == ours else "")


def in_memory(report: Report, table: CellTable, tokenizers: dict[str, CellTokenizer], rounds: int) -> None:
    """Both views on a CSR table in memory, beside the peers."""
    n = len(table)
    place = {gene: i for i, gene in enumerate(table.genes.tolist())}
    columns = np.array([place[gene] for gene in tokenizers["ranks"].vocabulary])
    median = np.ones(len(table.genes))
    median[columns] = tokenizers["ranks"].statistics.median
    collator = scgpt_collator()
    for view, tokenizer in tokenizers.items():
        assert same(tokenizer.encode(table), tokenizer.encode(table)), "two runs differ"
        parts = batches(n)
        contenders: dict[str, Callable[[], Any]] = {
            "consilience": partial(encode_all, tokenizer, table, parts),
            "consilience, all at once": partial(encode_all, tokenizer, table),
        }
        if view == "counts":
            seed = torch.Generator().manual_seed(0)
            contenders["consilience, training (matched zeros)"] = lambda t=tokenizer, g=seed, p=parts: [  # type: ignore[misc]
                t.encode(table.take(rows), generator=g) for rows in p
            ]
            checked = check_counts(tokenizer, table, collator)
            if collator is not None:
                collate = collator(pad_token_id=-1, max_length=1 + MAX_GENES, do_mlm=False)
                contenders["scGPT collator (51 bins)"] = lambda c=collate, p=parts: [  # type: ignore[misc]
                    c(scgpt_examples(table.counts, rows)) for rows in p
                ]
        else:
            checked = check_ranks(tokenizer, table, median, columns)
            contenders["numpy ranking (as Geneformer)"] = lambda p=parts: [  # type: ignore[misc]
                rank_in_numpy(table.counts, median, rows) for rows in p
            ]
        add(
            report,
            f"{view}, CSR in memory, batches of {BATCH}",
            race(contenders, rounds=rounds),
            n,
            "consilience",
            f"two runs equal; {checked}",
        )


def from_files(
    report: Report, table: CellTable, tokenizers: dict[str, CellTokenizer], folder: Path, rounds: int
) -> None:
    """Tokens of cells that stay in an h5ad file, and the reading alone beside anndata's backed mode."""
    import anndata

    n = len(table)
    adata = anndata.AnnData(sp.csr_matrix(table.counts))
    patterns = {
        "in order": None,
        f"random batches of {BATCH}": batches(n),
        f"random batches of {BATCH} in regions of {REGION}": batches_by_region(n),
        f"random batches of {LARGE}": batches(n, LARGE),
    }
    for compression in (None, "lzf", "gzip"):
        path = folder / f"{compression}.h5ad"
        adata.write_h5ad(path, compression=compression)
        for pattern, parts in patterns.items():
            if compression == "lzf" and pattern not in ("in order", f"random batches of {BATCH}"):
                continue

            def fresh(path: Path = path, keep_bytes: int = KEEP_BYTES) -> CellTable:
                return CellTable(counts=StoredCounts(path, "X", keep_bytes=keep_bytes), genes=table.genes)

            shown = parts if parts is not None else [np.arange(n)]
            contenders: dict[str, Callable[[], Any]] = {}
            for view, tokenizer in tokenizers.items():
                assert all(
                    same(tokenizer.encode(fresh().take(rows)), tokenizer.encode(table.take(rows)))
                    for rows in (shown[0], shown[-1])
                ), "tokens from the file differ from those from memory"
                contenders[f"{view}, first epoch"] = lambda t=tokenizer, p=parts: encode_all(t, fresh(), p)  # type: ignore[misc]
                if compression is not None and parts is not None:
                    held = fresh()
                    contenders[f"{view}, later epochs"] = partial(encode_all, tokenizer, held, parts)
                    few = REGION_BYTES if "regions" in pattern else 0
                    contenders[f"{view}, {few >> 20} MiB kept"] = lambda t=tokenizer, p=parts, k=few: (
                        encode_all(  # type: ignore[misc]
                            t, fresh(keep_bytes=k), p
                        )
                    )
            backed = anndata.read_h5ad(path, backed="r")
            slices = [np.arange(i, min(i + 128, n)) for i in range(0, n, 128)]
            reads = [np.sort(rows) for rows in parts] if parts is not None else slices
            contenders["reading alone, first epoch"] = lambda p=reads: [  # type: ignore[misc]
                t.load() for t in [fresh()] for t in map(t.take, p)
            ]
            contenders["reading alone, anndata backed"] = lambda p=reads, b=backed: [b.X[rows] for rows in p]  # type: ignore[misc]
            times = race(contenders, rounds=rounds)
            work = f"h5ad ({compression or 'not compressed'}), {pattern}"
            for name in contenders:
                ratio = (
                    times.ratio(name, "reading alone, first epoch") if name.endswith("anndata backed") else ""
                )
                checked = (
                    "tokens = those from memory" if name.endswith("epoch") and "alone" not in name else ""
                )
                report.add(work, name, n / times.median(name), ratio, checked)
            backed.file.close()


def main() -> None:
    """Measure, check, write the table."""
    if "--measure-memory" in sys.argv:
        torch.set_num_threads(1)
        measure_memory(Path(sys.argv[-1]))
        return
    chosen = options(__doc__, data="", cells=0, rounds=0)
    torch.set_num_threads(1)  # figures are per core
    n, rounds = chosen.cells or (300 if chosen.quick else 3_000), chosen.rounds or (2 if chosen.quick else 5)
    table = real(Path(chosen.data), n) if chosen.data else synthetic(n)
    per_cell = table.counts.nnz / len(table)
    report = Report(
        "tokenize_cells",
        f"Cells to tokens: {len(table):,} x {len(table.genes):,} genes, {per_cell:,.0f} nonzeros a cell, one thread",
        ("work", "contender", "cells/s", "times as long as ours", "checked"),
        packages=("numpy", "scipy", "h5py", "anndata", "scgpt"),
        notes=[
            f"Reach: {REACH:,} cells/s on one core for both views, also from a backed file; memory <= 1.5 x CSR.",
            f"All contenders cut cells to {MAX_GENES:,} genes. scGPT bins by quantiles of the cell and picks genes at "
            "random; consilience keeps counts (it has no quantile bins to compare) and picks those furthest above "
            "their mean, the same in every run.",
            "A cell's row is cut out of the table within the timing, for every contender.",
            "First epoch: nothing was read before (the operating system's file cache is warm). Later epochs: decoded "
            f"chunks of the compressed file are kept, up to {KEEP_BYTES >> 20} MiB (this file fits). 0 MiB kept: what "
            "a file far larger than that costs in random batches; 16 MiB: where batches are random within regions.",
            "Decoding gzip or lzf is what limits the first epoch of a compressed file: chunks hold about three cells.",
            "Memory: peak of `encode` on the whole table above what was there before, tokens included, over the bytes "
            "of the CSR arrays; by tracemalloc (numpy) and as resident memory of a fresh process (all of it).",
        ],
    )
    if not installed("scgpt"):
        report.notes.append(
            "scGPT is not installed (`pip install --no-deps scgpt==0.2.4`): its row is missing."
        )
    tokenizers = {
        view: CellTokenizer.fit(table, view=view, max_genes=MAX_GENES) for view in ("counts", "ranks")
    }
    in_memory(report, table, tokenizers, rounds)
    with tempfile.TemporaryDirectory() as name:
        from_files(report, table, tokenizers, Path(name), rounds)
        for view, tokenizer in tokenizers.items():
            traced, rss = peaks(tokenizer, table, Path(name))
            shown = "not known on this system" if rss is None else f"{rss:.2f} x CSR resident"
            report.add(
                f"{view}, peak memory", "consilience", f"{traced:.2f} x CSR traced", shown, "<= 1.5 x CSR"
            )
    report.write(chosen.out)


if __name__ == "__main__":
    main()
