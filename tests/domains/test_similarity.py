"""Tanimoto through matrix products: equal to RDKit's own, whatever the blocks and the type of the products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from consilience.domains.molecules import similarity
from consilience.domains.molecules.similarity import internal_diversity, morgan_bits, nearest

SMILES = [
    "CCO",
    "CCN",
    "CCCC",
    "c1ccccc1",
    "Oc1ccccc1",
    "CC(=O)Nc1ccccc1",
    "C1CCNCC1",
    "OC(=O)c1ccncc1",
    "CCO",
]
MOLS = [Chem.MolFromSmiles(text) for text in SMILES]


def slow_similarities(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pair by pair, with sets of bits."""
    sets = [[set(np.flatnonzero(row)) for row in np.unpackbits(side, axis=1)] for side in (left, right)]
    return np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in sets[1]] for a in sets[0]])


def random_rows(n: int, seed: int, share: float = 0.1, width: int = 16) -> np.ndarray:
    bits = np.random.default_rng(seed).random((n, width * 8)) < share
    return np.packbits(bits, axis=1)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def product_type(request, monkeypatch) -> None:
    """Both types of products, in blocks that end within the rows."""
    monkeypatch.setattr(similarity, "_quicker", lambda: request.param)
    monkeypatch.setattr(similarity, "BLOCK", 4)


def test_fingerprints_are_those_of_rdkit() -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    theirs = [list(generator.GetFingerprint(mol)) for mol in MOLS]
    packed = morgan_bits(MOLS, bits=1024)
    assert packed.shape == (9, 128) and np.unpackbits(packed, axis=1).tolist() == theirs


def test_similarities_are_those_of_rdkit(product_type) -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    theirs = [generator.GetFingerprint(mol) for mol in MOLS]
    table = np.array([DataStructs.BulkTanimotoSimilarity(one, theirs) for one in theirs])
    packed = morgan_bits(MOLS, bits=1024)
    assert np.array_equal(nearest(packed[:3], packed[3:8]), table[:3, 3:8].max(1))
    assert internal_diversity(packed) == pytest.approx(1 - table.mean(), abs=1e-7)
    squares = np.sqrt((table**2).mean(1)).mean()
    assert internal_diversity(packed, power=2) == pytest.approx(1 - squares, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_and_types_make_no_difference(seed, product_type) -> None:
    queries, stock = random_rows(11, seed), random_rows(23, seed + 10)
    stock[3] = 0  # no bit at all
    queries[5] = 0
    told: list[int] = []
    assert np.array_equal(
        nearest(queries, stock, on_rows=told.append), slow_similarities(queries, stock).max(1)
    )
    assert sum(told) == 23 and max(told) <= 4
    table = slow_similarities(stock, stock)
    assert internal_diversity(stock) == pytest.approx(1 - table.mean(), abs=1e-7)


def test_numbers_beyond_bfloat16_are_exact() -> None:
    """257 common bits: bfloat16 would say 256."""
    rows = np.zeros((2, 512), bool)
    rows[0, :257] = rows[1, :300] = True
    packed = np.packbits(rows, axis=1)
    assert nearest(packed[:1], packed[1:])[0] == 257 / 300


def test_two_molecules_without_bits_are_alike() -> None:
    nothing = np.zeros((2, 4), np.uint8)
    assert nearest(nothing, nothing).tolist() == [1.0, 1.0] and internal_diversity(nothing) == 0
    assert nearest(nothing[:0], nothing).shape == (0,)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 20))
def test_laws(seed: int, n: int, m: int) -> None:
    one, other = random_rows(n, seed), random_rows(m, seed + 1)
    order = np.random.default_rng(seed).permutation(n)
    assert np.array_equal(nearest(one[order], other), nearest(one, other)[order])
    assert np.all(nearest(one, np.concatenate([other, one])) == 1)
    assert internal_diversity(one[order]) == pytest.approx(internal_diversity(one), abs=1e-7)
    assert internal_diversity(one, power=2) <= internal_diversity(one) + 1e-7  # Jensen
