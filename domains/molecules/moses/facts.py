"""What the metrics of MOSES need to know of molecules; each one is looked at once, in several processes if wanted.

Everything is computed by RDKit from the canonical SMILES, as MOSES does. Invalid strings are counted and left out;
duplicates stay.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdmolops
from rdkit.Chem.Scaffolds import MurckoScaffold

from consilience.domains.molecules.generation import canonical_or_none
from consilience.domains.molecules.moses.filters import Patterns, passes
from consilience.domains.molecules.properties import DISTRIBUTION
from consilience.domains.molecules.similarity import morgan_bits

BITS = 1024
"""Of the Morgan fingerprints (radius 2)."""
SCAFFOLD_RINGS = 2
"""Scaffolds with fewer rings are not counted."""
CHUNK = 500
"""Strings that a process takes at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """Facts of n valid molecules, in the order of the strings.

    Args:
        generated: number of strings, invalid ones included.
        smiles: n canonical SMILES.
        fingerprints: (n, 128) uint8, packed Morgan fingerprints.
        fragments: SMILES of BRICS fragments (Degen et al. 2008, doi:10.1002/cmdc.200800178), ends marked by dummy
            atoms -> how often; a molecule without such a bond is its own fragment.
        scaffolds: SMILES of Bemis-Murcko scaffolds of two or more rings -> in how many molecules.
        properties: logP, SA, QED and weight (`properties.DISTRIBUTION`) -> (n,) float64; empty when not asked for.
        passed: (n,) bool, whether each passes the filters; empty when not asked for.
    """

    generated: int
    smiles: list[str]
    fingerprints: np.ndarray
    fragments: Counter[str]
    scaffolds: Counter[str]
    properties: Mapping[str, np.ndarray]
    passed: np.ndarray


def look_at(
    strings: Sequence[str],
    *,
    properties: bool = True,
    patterns: Patterns = (),
    processes: int = 1,
    on_strings: Callable[[int], object] | None = None,
) -> Facts:
    """Facts of strings that may be SMILES.

    Args:
        strings: invalid ones and duplicates included.
        properties: compute them; they take most of the time.
        patterns: of the filters (`filters.read_patterns`); none = the filters are not asked.
        processes: this many processes side by side; the facts are the same.
        on_strings: told after every chunk how many strings it held.
    """
    chunks = [strings[first : first + CHUNK] for first in range(0, len(strings), CHUNK)]
    work = partial(_look, properties=properties, patterns=patterns)
    if processes <= 1 or len(chunks) < 2:
        return _joined(map(work, chunks), on_strings)
    context = multiprocessing.get_context(
        "spawn"
    )  # a forked child may inherit a lock that torch's threads hold
    with ProcessPoolExecutor(min(processes, len(chunks)), context) as pool:
        try:
            return _joined(pool.map(work, chunks), on_strings)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fragments_of(mol: Chem.Mol) -> list[str]:
    """SMILES of the pieces that are left when all BRICS bonds are cut."""
    return str(Chem.MolToSmiles(rdmolops.FragmentOnBRICSBonds(mol))).split(".")


def scaffold_of(mol: Chem.Mol) -> str | None:
    """SMILES of the Bemis-Murcko scaffold, stereochemistry included; None when it has fewer than two rings."""
    try:
        scaffold = MurckoScaffold.GetScaffoldForMol(mol)
    except (ValueError, RuntimeError):
        return None
    if scaffold.GetRingInfo().NumRings() < SCAFFOLD_RINGS:
        return None
    return str(Chem.MolToSmiles(scaffold)) or None


def _look(strings: Sequence[str], *, properties: bool, patterns: Patterns) -> Facts:
    with rdBase.BlockLogs():
        smiles = [text for text in canonical_or_none(strings) if text is not None]
        mols = [Chem.MolFromSmiles(text) for text in smiles]
        scaffolds = (scaffold_of(mol) for mol in mols)
        wanted = DISTRIBUTION if properties else {}
        return Facts(
            generated=len(strings),
            smiles=smiles,
            fingerprints=morgan_bits(mols, bits=BITS),
            fragments=Counter(piece for mol in mols for piece in fragments_of(mol)),
            scaffolds=Counter(scaffold for scaffold in scaffolds if scaffold is not None),
            properties={name: np.array([of(mol) for mol in mols], np.float64) for name, of in wanted.items()},
            passed=np.array([passes(mol, patterns) for mol in mols] if patterns else [], bool),
        )


def _joined(parts: Iterable[Facts], on_strings: Callable[[int], object] | None) -> Facts:
    """One Facts of many; empty ones of no parts."""
    told: list[Facts] = []
    fragments: Counter[str] = Counter()
    scaffolds: Counter[str] = Counter()
    for part in parts:
        told.append(part)
        fragments.update(part.fragments)
        scaffolds.update(part.scaffolds)
        if on_strings is not None:
            on_strings(part.generated)
    names = told[0].properties if told else ()
    return Facts(
        generated=sum(part.generated for part in told),
        smiles=[text for part in told for text in part.smiles],
        fingerprints=np.concatenate(
            [np.zeros((0, BITS // 8), np.uint8), *(part.fingerprints for part in told)]
        ),
        fragments=fragments,
        scaffolds=scaffolds,
        properties={name: np.concatenate([part.properties[name] for part in told]) for name in names},
        passed=np.concatenate([np.zeros(0, bool), *(part.passed for part in told)]),
    )
