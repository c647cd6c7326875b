"""Small files of every science, a command line that is called in this process, and one trained run."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from consilience.cli import main

TINY = [
    "--core.width=16",
    "--core.depth=1",
    "--core.heads=2",
    "--training.steps=3",
    "--training.tokens_per_batch=256",
    "--training.validations=1",
    "--limit=60",
]


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore SIGINT, which some of them send."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd) -> Callable[..., Result]:
    """Runs `consilience ...` in this process."""

    def call(*words: object) -> Result:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a run of less than a second."""
    return TINY


@pytest.fixture(scope="session")
def write() -> SimpleNamespace:
    """Writers of small files, with what a test wants changed."""
    return SimpleNamespace(
        molecules=write_molecules, points=write_points, spectra=write_spectra, cells=write_cells
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """One small file of each science."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "molecules": write_molecules(folder / "molecules.smi"),
        "points": write_points(folder / "points.xyz"),
        "galaxies": write_spectra(folder / "spectra.npz"),
        "cells": write_cells(folder / "cells.h5ad"),
    }


@pytest.fixture(scope="session")
def trained(files, tmp_path_factory) -> Path:
    """A next-token run on molecules."""
    folder = tmp_path_factory.mktemp("runs") / "molecules"
    words = [
        "train",
        "molecules",
        "--objective=next-token",
        f"--data={files['molecules']}",
        f"--out={folder}",
    ]
    assert main([*words, *TINY]) == 0
    return folder


def write_molecules(path: Path) -> Path:
    from rdkit import RDConfig

    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    path.write_text("\n".join(lines[:120]) + "\n")
    return path


def write_points(path: Path, n: int = 60) -> Path:
    rng = np.random.default_rng(0)
    frames = []
    for i in range(n):
        size = 4 + i % 5
        atoms = zip(rng.choice(list("CNO"), size), rng.normal(scale=2, size=(size, 3)))
        lines = [f"{element} {x:.4f} {y:.4f} {z:.4f}" for element, (x, y, z) in atoms]
        frames.append("\n".join([str(size), f"energy={i / 10}", *lines]))
    path.write_text("\n".join(frames) + "\n")
    return path


def write_spectra(path: Path, n: int = 60, **changed: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    columns = {
        "wavelength": np.linspace(4000.0, 8000.0, 96),
        "flux": rng.normal(5.0, 1.0, (n, 96)).astype(np.float32),
        "ivar": np.ones((n, 96), np.float32),
        "redshift": rng.uniform(0.01, 0.3, n),
    }
    np.savez(path, **(columns | changed))
    return path


def write_cells(path: Path, n: int = 60, counts: np.ndarray | None = None, gene: str = "GENE") -> Path:
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    counts = rng.poisson(1.5, (n, 30)) if counts is None else counts
    obs = pd.DataFrame({"cell_type": np.array(["T", "B"])[np.arange(len(counts)) % 2]})
    obs.index = [f"cell-{i}" for i in range(len(counts))]
    var = pd.DataFrame(index=[f"{gene}{j}" for j in range(counts.shape[1])])
    anndata.AnnData(X=sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path
