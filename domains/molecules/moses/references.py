"""The sets of MOSES that generated molecules are compared with: their facts, computed once and kept.

MOSES ships such statistics as pickled objects, which may run code when they are read; they are never opened here. Ours
are computed from its files by the RDKit of today, the same for both sides of a comparison, and kept as plain arrays
under a name made of the file's hash and of the versions that matter.
"""

import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rdkit

from consilience.core.errors import ConsilienceError
from consilience.core.records import fingerprint
from consilience.domains.benchmark import OnSteps, silent
from consilience.domains.molecules.moses.chemnet import ChemNet, Moments
from consilience.domains.molecules.moses.facts import Facts, look_at
from consilience.domains.molecules.moses.filters import Patterns, read_patterns

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when a kept file would mean something else."""
SETS = {"Test": "test.csv.gz", "TestSF": "test_scaffolds.csv.gz"}
"""Names of the sets in MOSES' columns, and their files: held-out molecules, and those with scaffolds of their own."""
TRAIN = "train.csv.gz"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """A set to compare with.

    Args:
        facts: of its molecules; properties only for `Test`, as MOSES compares them with that set alone.
        moments: of ChemNet's activations; None when the distance is not wanted.
    """

    facts: Facts
    moments: Moments | None


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """Everything that `measure` compares with.

    Args:
        sets: `Test` and `TestSF`.
        patterns: of the filters.
        train: the file of the training molecules.
    """

    sets: dict[str, Reference]
    patterns: Patterns
    train: Path

    def seen_in_training(self, smiles: set[str]) -> set[str]:
        """Those of the strings that stand in the training file, letter by letter; the file is read in pieces."""
        found: set[str] = set()
        for piece in _column(self.train, 200_000):
            found.update(smiles.intersection(piece))
        return found


def references(
    folder: Path,
    cache: Path,
    *,
    net: ChemNet | None = None,
    processes: int = 1,
    on_steps: OnSteps = silent,
) -> References:
    """The references of MOSES: kept ones where there are any, else computed and kept.

    Args:
        folder: of the fetched data set.
        cache: a folder for what is computed (80 MB).
        net: computes activations; None = no Frechet distance.
        processes: that look at molecules side by side.
        on_steps: draws the progress of what is computed.

    Raises:
        ConsilienceError: a file of the data set is missing or holds something else.
    """
    patterns = read_patterns(folder)
    if not (folder / TRAIN).is_file():
        raise ConsilienceError(f"{folder / TRAIN}: no such file; `consilience data fetch moses` brings it")
    sets = {}
    for name, file in SETS.items():
        path = folder / file
        if not path.is_file():
            raise ConsilienceError(f"{path}: no such file; `consilience data fetch moses` brings it")
        key = fingerprint([path.read_bytes(), f"{rdkit.__version__} {FORMAT}"])
        facts = _kept_facts(path, cache / f"{name}-{key}.npz", name == "Test", processes, on_steps)
        moments = None if net is None else _kept_moments(name, facts, net, cache, key, on_steps)
        sets[name] = Reference(facts=facts, moments=moments)
    return References(sets=sets, patterns=patterns, train=folder / TRAIN)


def _kept_facts(path: Path, file: Path, properties: bool, processes: int, on_steps: OnSteps) -> Facts:
    kept = _load(file, _read_facts)
    if kept is not None:
        return kept
    smiles = [text for piece in _column(path, None) for text in piece]
    advance = on_steps(f"molecules of {path.name}, once", len(smiles))
    facts = look_at(smiles, properties=properties, processes=processes, on_strings=advance)
    if not facts.smiles:
        raise ConsilienceError(f"{path}: none of its {len(smiles)} molecules can be read; fetch moses again")
    _save(
        file,
        generated=np.array(facts.generated),
        smiles=_text(facts.smiles),
        fingerprints=facts.fingerprints,
        **_table("fragments", facts.fragments),
        **_table("scaffolds", facts.scaffolds),
        properties=_text([json.dumps(list(facts.properties))]),
        **{f"property_{place}": column for place, column in enumerate(facts.properties.values())},
    )
    return facts


def _kept_moments(name: str, facts: Facts, net: ChemNet, cache: Path, key: str, on_steps: OnSteps) -> Moments:
    file = cache / f"{name}-chemnet-{key}-{version('fcd_torch')}.npz"
    kept = _load(
        file, lambda held: Moments(n=int(held["n"]), mean=held["mean"], covariance=held["covariance"])
    )
    if kept is not None:
        return kept
    moments = net.moments(facts.smiles, on_strings=on_steps(f"ChemNet on {name}, once", len(facts.smiles)))
    _save(file, n=np.array(moments.n), mean=moments.mean, covariance=moments.covariance)
    return moments


def _column(path: Path, size: int | None) -> Iterator[list[str]]:
    """The SMILES of a file of MOSES, in pieces of `size`."""
    try:
        frames = pd.read_csv(path, usecols=["SMILES"], dtype=str, keep_default_na=False, chunksize=size)
        for frame in [frames] if isinstance(frames, pd.DataFrame) else frames:
            yield frame["SMILES"].tolist()
    except (OSError, ValueError, EOFError) as error:
        raise ConsilienceError(f"{path}: needs the column SMILES ({error}); fetch moses again") from error


def _read_facts(held: Any) -> Facts:
    names = json.loads(_lines(held["properties"])[0])
    return Facts(
        generated=int(held["generated"]),
        smiles=_lines(held["smiles"]),
        fingerprints=held["fingerprints"],
        fragments=Counter(dict(zip(_lines(held["fragments"]), held["fragments_counts"].tolist()))),
        scaffolds=Counter(dict(zip(_lines(held["scaffolds"]), held["scaffolds_counts"].tolist()))),
        properties={name: held[f"property_{place}"] for place, name in enumerate(names)},
        passed=np.zeros(0, bool),
    )


def _table(name: str, counts: Counter[str]) -> dict[str, np.ndarray]:
    return {name: _text(list(counts)), f"{name}_counts": np.array(list(counts.values()), np.int64)}


def _text(lines: list[str]) -> np.ndarray:
    """Lines as bytes: strings of numpy would all be as long as the longest."""
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def _lines(text: np.ndarray) -> list[str]:
    return text.tobytes().decode().split("\n") if len(text) else []


def _save(file: Path, **arrays: np.ndarray) -> None:
    """Keep arrays; a folder that cannot be written costs time only."""
    partial = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
        partial.replace(file)  # whole or not at all, also when two processes write
    except OSError as error:
        logger.warning("%s cannot be written (%s); it will be computed again", file, error)


def _load(file: Path, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of a kept file; None when there is none or it is damaged."""
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            return read(held)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s); it is computed again", file, error)
        return None
