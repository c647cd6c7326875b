"""Embedding from a file to a file: records a second, peak memory at growing sizes, and scGPT's model beside ours.

Default data are synthetic files of the four sciences (molecules: the strings that RDKit ships, repeated); models have
random weights, which changes nothing for speed. `--data FILE.h5ad` takes the cells of a file instead, `--sizes` other
numbers of records (their rows are added to the table, and scGPT's are left alone).
"""

import importlib
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from harness import Report, installed, options, peak_memory, race

from consilience import registry
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked
from consilience.core.transformer import CoreConfig

CORE = CoreConfig(width=256, depth=6, heads=8)
GENES, MAX_GENES = 4000, 256
SCGPT_BATCH = 64
"""What scGPT's own embedding function takes by default."""


def write_molecules(path: Path, n: int) -> None:
    """The strings that RDKit ships, over and over, each with a name of its own."""
    from rdkit import RDConfig

    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    strings = [line.split()[0] for line in lines]
    path.write_text("".join(f"{strings[i % len(strings)]} m{i}\n" for i in range(n)))


def write_galaxies(path: Path, n: int) -> None:
    """Smooth spectra of 1,024 pixels with noise; groups of 1,024 rows, so that a reader needs no more at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, wave = np.random.default_rng(0), np.geomspace(3600.0, 9800.0, 1024)
    writer = None
    for first in range(0, n, 1024):
        m = min(1024, n - first)
        flux = 5 + np.sin(wave / rng.uniform(100, 900, (m, 1))) + rng.normal(0, 0.3, (m, 1024))
        part = pa.table(
            {
                "id": [f"g{first + i}" for i in range(m)],
                "flux": list(flux.astype(np.float32)),
                "wavelength": [wave] * m,
                "ivar": list(np.full((m, 1024), 10.0, np.float32)),
                "redshift": rng.uniform(0, 0.4, m),
            }
        )
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    assert writer is not None
    writer.close()


def write_points(path: Path, n: int) -> None:
    """Clouds of 8 to 30 atoms."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(n):
            size = int(rng.integers(8, 31))
            lines = [
                f"{element} {x:.4f} {y:.4f} {z:.4f}"
                for element, (x, y, z) in zip(rng.choice(list("CNOH"), size), rng.normal(0, 3, (size, 3)))
            ]
            file.write("\n".join([str(size), f"name=p{i} energy={i / 7:.3f}", *lines]) + "\n")


def cell_counts(n: int, seed: int = 0) -> Any:
    """(n, GENES) CSR: about 600 expressed genes a cell, by popularity; geometric counts."""
    import scipy.sparse as sp

    rng = np.random.default_rng(seed)
    popularity = np.exp(rng.normal(0, 1.5, GENES))
    sizes = np.clip((600 * rng.lognormal(-0.3, 0.8, n)).astype(int), 40, 2000)
    rows = [np.sort(rng.choice(GENES, k, replace=False, p=popularity / popularity.sum())) for k in sizes]
    indices = np.concatenate(rows).astype(np.int32)
    counts = rng.geometric(0.4, len(indices)).astype(np.float32)
    return sp.csr_matrix((counts, indices, np.concatenate([[0], np.cumsum(sizes)])), shape=(n, GENES))


def write_cells(path: Path, n: int) -> None:
    """An .h5ad file of such cells."""
    import anndata
    import pandas as pd

    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"G{i}" for i in range(GENES)])
    anndata.AnnData(X=cell_counts(n), obs=obs, var=var).write_h5ad(path)


FILES: Mapping[str, tuple[str, Callable[[Path, int], None], dict[str, Any]]] = {
    "molecules": (".smi", write_molecules, {}),
    "galaxies": (".parquet", write_galaxies, {"patch_size": 16}),
    "points": (".xyz", write_points, {}),
    "cells": (".h5ad", write_cells, {"max_genes": MAX_GENES}),
}


def untrained(science: str, path: Path, settings: Mapping[str, Any]) -> FoundationModel:
    """A model with random weights and a tokenizer that knows the file."""
    domain = registry.domain(science)
    torch.manual_seed(0)
    collection = domain.read(path)
    tokenizer = domain.tokenizer.fit(collection.records, **settings)
    return FoundationModel(CORE, {science: tokenizer}, Masked())


def file_to_file(report: Report, science: str, sizes: list[int], folder: Path, threads: int) -> None:
    """`consilience embed` in a process of its own, at every size."""
    ending, write, settings = FILES[science]
    seconds: list[float] = []
    peaks: list[float] = []
    for n in sizes:
        path = folder / f"{science}-{n}{ending}"
        write(path, n)
        if n == sizes[0]:
            untrained(science, path, settings).save(folder / science)
        out = folder / f"{science}.parquet"
        words = [
            sys.executable,
            "-m",
            "consilience",
            "embed",
            str(folder / science),
            str(path),
            "--out",
            str(out),
        ]
        spent, peak = peak_memory(words, {"OMP_NUM_THREADS": str(threads)})
        seconds.append(spent)
        peaks.append(peak)
        beyond = spent - seconds[0]  # not above 0 where others kept the machine busy
        rate = f"{(n - sizes[0]) / beyond:,.0f}" if beyond > 0 else "-"
        report.add(science, f"{n:,}", spent, rate, peak, f"{peak / peaks[0]:.2f}")
        path.unlink()


def scgpt_modules() -> tuple[Any, Any] | None:
    """scGPT's model and collator; only the modules that they need are loaded, since the package wants more."""
    spec = importlib.util.find_spec("scgpt")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    for name, place in (("scgpt", root), ("scgpt.model", root / "model")):
        package = ModuleType(name)
        package.__path__ = [str(place)]
        package.logger = logging.getLogger("scgpt")  # type: ignore[attr-defined]
        sys.modules[name] = package
    try:
        model = importlib.import_module("scgpt.model.model").TransformerModel
        return model, importlib.import_module("scgpt.data_collator").DataCollator
    except ImportError as error:
        print(f"scGPT cannot be loaded ({error}): its row is missing")
        return None


def scgpt_embed(model: Any, collator: Any, counts: Any, pad: int, cls: int) -> np.ndarray:
    """What scGPT's embedding function does with cells, on a CPU: tokenize, collate 64 at a time, encode, normalise."""
    found = []
    with torch.no_grad():
        for first in range(0, counts.shape[0], SCGPT_BATCH):
            examples = []
            for row in range(first, min(first + SCGPT_BATCH, counts.shape[0])):
                span = slice(counts.indptr[row], counts.indptr[row + 1])
                genes = torch.from_numpy(np.insert(counts.indices[span].astype(np.int64), 0, cls))
                values = torch.from_numpy(np.insert(counts.data[span], 0, 0).astype(np.float32))
                examples.append({"id": row, "genes": genes, "expressions": values})
            batch = collator(examples)
            padding = batch["gene"].eq(pad)
            states = model._encode(batch["gene"], batch["expr"], src_key_padding_mask=padding)
            found.append(states[:, 0, :].numpy())
    vectors = np.concatenate(found)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def beside_scgpt(report: Report, n: int, rounds: int, folder: Path, data: str) -> None:
    """The same cells through both models, in turn, in this process."""
    from consilience.domains.cells.data import read
    from consilience.tokenizers.cells import CellTable

    path = Path(data) if data else folder / "few.h5ad"
    if not data:
        write_cells(path, n)
    table = read(path).records
    table = table.take(np.arange(min(n, len(table)))).load()
    table = CellTable(counts=table.counts, genes=table.genes)
    torch.manual_seed(0)
    tokenizer = registry.domain("cells").tokenizer.fit(table, max_genes=MAX_GENES)
    ours = FoundationModel(CORE, {"cells": tokenizer}, Masked()).eval()
    contenders: dict[str, Callable[[], Any]] = {
        "consilience": lambda: ours.embed(table),
        "consilience, bf16-mixed": lambda: ours.embed(table, precision="bf16-mixed"),
    }
    tokens = int(tokenizer.lengths(table).sum())
    modules = scgpt_modules()
    if modules is not None:
        transformer, collator = modules
        genes = len(table.genes)
        collate = collator(
            do_padding=True,
            pad_token_id=genes + 1,
            pad_value=0,
            do_mlm=False,
            do_binning=True,
            max_length=MAX_GENES + 1,
            sampling=True,
            keep_first_n_tokens=1,
        )
        for hidden, name in (
            (4, "scGPT, MLP 4 x width (as many weights)"),
            (1, "scGPT, MLP 1 x width (as published)"),
        ):
            theirs = transformer(
                ntoken=genes + 2,
                d_model=CORE.width,
                nhead=CORE.heads,
                d_hid=hidden * CORE.width,
                nlayers=CORE.depth,
                vocab={"<pad>": genes + 1},
                dropout=0.0,
                do_mvc=True,
            ).eval()
            contenders[name] = partial(scgpt_embed, theirs, collate, table.counts, genes + 1, genes)
    times = race(contenders, rounds=rounds)
    for name in contenders:
        ratio = "1" if name == "consilience" else times.ratio(name, "consilience")
        report.add(name, f"{len(table):,}", times.median(name), len(table) / times.median(name), ratio)
    report.notes.append(f"{tokens / len(table):.0f} tokens a cell on average, {MAX_GENES + 1} at most.")


def main() -> None:
    chosen = options(__doc__, data="", sciences="molecules,galaxies,points,cells", scgpt_only=False, sizes="")
    sizes = [100, 200, 400] if chosen.quick else [2500, 5000, 10_000]
    if chosen.sizes:
        sizes = [int(size) for size in chosen.sizes.split(",")]
    threads = torch.get_num_threads()
    size = f"width {CORE.width}, depth {CORE.depth}, heads {CORE.heads}"
    packages = ("pyarrow", "anndata", "h5py", "scgpt")
    files = Report(
        name="embed",
        title=f"`consilience embed FILE --out FILE.parquet`, {size}, 32-bit",
        columns=[
            "science",
            "records",
            "seconds in all",
            "records/s beyond the first size",
            "peak MiB",
            "x first peak",
        ],
        packages=packages,
        notes=[
            "Seconds and memory of the whole command in a process of its own, imports and start included; the rate is "
            "that of the records beyond those of the first size, without them.",
            "Reach: memory flat in the number of records (x first peak near 1).",
        ],
    )
    with tempfile.TemporaryDirectory() as name:
        if not chosen.scgpt_only:
            for science in chosen.sciences.split(","):
                file_to_file(files, science, sizes, Path(name), threads)
            files.write(chosen.out, keys=2 if chosen.sizes else 0)
        if chosen.sizes:
            return
        peers = Report(
            name="embed_scgpt",
            title=f"Cells to vectors beside scGPT's model, {size}, random weights, equal torch threads",
            columns=["contender", "cells", "seconds", "cells/s", "times our seconds"],
            packages=packages,
            notes=[
                "Interleaved rounds, cells in memory. scGPT: its model and collator as published (bins by "
                "quantile, pads to the longest cell of 64 in the order of the file, PyTorch's transformer path since "
                "flash-attn needs a GPU); its weights per layer are half of ours where its MLP is as published.",
                "Reach: 3 times scGPT.",
            ],
        )
        if not installed("scgpt"):
            peers.notes.append(
                "scGPT is not installed (`pip install --no-deps scgpt==0.2.4`): its rows are missing."
            )
        cells, rounds = (32, 1) if chosen.quick else (256, 5)
        beside_scgpt(peers, cells, rounds, Path(name), chosen.data)
        peers.write(chosen.out)


if __name__ == "__main__":
    main()
