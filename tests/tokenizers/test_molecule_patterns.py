"""Patterns of molecules: what is kept, how long free parts are, and what is refused."""

from collections import Counter

import pytest
import torch

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.molecule_patterns import Free, draw_lengths, free_as_atoms, read_pattern
from consilience.tokenizers.molecules import MARGIN, MoleculeTokenizer

MOLECULES = ["CCO", "CCO", "CCN", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O"]


@pytest.fixture(scope="module")
def tokenizer() -> MoleculeTokenizer:
    return MoleculeTokenizer.fit(MOLECULES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_patterns_are_read_symbol_by_symbol() -> None:
    pattern = read_pattern("Clc1ccc(*)c([*:2]{2,8})c1[*]{3}*{4,}")
    assert pattern.free == [Free(), Free(least=2, most=8), Free(least=3, most=3), Free(least=4)]
    assert pattern.parts[0] == ("Cl", "c", "1", "c", "c", "c", "(") and pattern.kept == 13
    assert not pattern.is_beginning and read_pattern("CCO*").is_beginning
    assert not any(read_pattern(text).is_beginning for text in ("CCO*{3}", "*CCO", "C*O*"))
    assert free_as_atoms("C*{2,8}O[*:1]") == "C*O*"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CCO", "'CCO' has no free part: write [*]"),
        ("CC*{0}", r"[*]\{0\} is no length"),
        ("CC*{5,2}", r"[*]\{5,2\} is no length"),
        ("CC*{,2}", "starts no symbol"),
        ("C*{-1}", r"pattern 'C[*]\{-1\}': .*lengths are written"),
        ("CCx*", "'x', which starts no symbol at position 2"),
    ],
)
def test_what_is_no_pattern_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConsilienceError, match=message):
        read_pattern(text)


def test_lengths_are_those_of_training_molecules_that_are_long_enough(tokenizer: MoleculeTokenizer) -> None:
    """Tokens, begin and end included: three of 5, one of 10, one of 23. One symbol is kept."""
    assert {k: n for k, n in enumerate(tokenizer.length_counts) if n} == {5: 3, 10: 1, 23: 1}
    drawn = draw_lengths(read_pattern("C*"), 5000, tokenizer.length_counts, None, seeded())
    share = {length: count / 5000 for length, count in Counter(drawn[:, 0].tolist()).items()}
    assert share.keys() == {2, 7, 20}
    assert share[2] == pytest.approx(0.6, abs=0.03) and share[7] == pytest.approx(0.2, abs=0.03)
    drawn = draw_lengths(read_pattern("CCCC*"), 2000, tokenizer.length_counts, None, seeded())
    assert Counter(drawn[:, 0].tolist()).keys() == {4, 17}, "molecules of three symbols are too short"


def test_free_parts_share_the_length_in_every_way_alike() -> None:
    counts = [0] * 9 + [1]  # all molecules have 9 tokens: 7 symbols, 2 kept, 5 free
    drawn = draw_lengths(read_pattern("*C*O*{2,3}"), 500, counts, None, seeded())
    assert set(drawn[:, 2].tolist()) == {2, 3} and set(drawn.sum(1).tolist()) == {5}
    counts = [0] * 8 + [1]
    drawn = draw_lengths(read_pattern("*C*O*"), 6000, counts, None, seeded())
    ways = Counter(map(tuple, drawn.tolist()))
    assert ways.keys() == {(1, 1, 2), (1, 2, 1), (2, 1, 1)}
    assert all(n == pytest.approx(2000, abs=150) for n in ways.values())
    drawn = draw_lengths(read_pattern("C*{2,4}"), 3000, counts, None, seeded())
    assert all(n == pytest.approx(1000, abs=100) for n in Counter(drawn[:, 0].tolist()).values())


def test_lengths_that_cannot_be_are_refused(tokenizer: MoleculeTokenizer) -> None:
    long = "C" * 30 + "*"
    with pytest.raises(
        ConsilienceError, match=r"needs 33 tokens, .* longest training molecule has 23: keep less of it"
    ):
        tokenizer.pattern(long, 2, generator=seeded(), ending="kept")
    tokens, _ = tokenizer.pattern(long + "{2}", 2, generator=seeded(), ending="kept")
    assert tokens.length.tolist() == [34, 34]
    short = MoleculeTokenizer.fit(MOLECULES, max_length=12)
    with pytest.raises(ConsilienceError, match="longer than max_length=12"):
        short.pattern("CCC*{9}", 2, generator=seeded(), ending="kept")
    with pytest.raises(ConsilienceError, match="leaves no room within max_length=12"):
        short.pattern("C" * 12 + "*", 2, generator=seeded(), ending="open")


def test_a_template_holds_what_is_kept(tokenizer: MoleculeTokenizer) -> None:
    tokens, hidden = tokenizer.pattern("c1cc(*)c(*{2})c1", 50, generator=seeded(), ending="kept")
    assert tokens.ids is not None and tokens.given is not None
    assert not (hidden & (tokens.given | ~tokens.real)).any()
    for row in range(50):
        n = int(tokens.length[row])
        symbols = [tokenizer.table.symbols[i] for i in tokens.ids[row, :n].tolist()]
        kept = [symbol for symbol, free in zip(symbols, hidden[row, :n].tolist()) if not free]
        assert kept == ["<bos>", *"c1cc()c()c1", "<eos>"] and symbols[-1] == "<eos>"
        assert int(hidden[row].sum()) == n - len(kept) >= 3
    assert len(set(tokens.length.tolist())) >= 1


@pytest.mark.parametrize("ending", ["open", "drawn"])
def test_a_beginning_leaves_the_end_open(tokenizer: MoleculeTokenizer, ending) -> None:
    tokens, hidden = tokenizer.pattern("CC*", 20, generator=seeded(), ending=ending)
    assert tokens.ids is not None
    assert hidden[:, :3].sum() == 0 and bool((hidden[:, 3:] == tokens.real[:, 3:]).all())
    assert (set(tokens.length.tolist()) == {23 + MARGIN}) == (ending == "open")
    with pytest.raises(ConsilienceError, match="looks back only, and goes on from a beginning with one"):
        tokenizer.pattern("CC*N", 1, generator=seeded(), ending=ending)


def test_unknown_symbols_are_named(tokenizer: MoleculeTokenizer) -> None:
    with pytest.raises(ConsilienceError, match=r"the model knows no symbol '\[Xe\]' \(smiles\)"):
        tokenizer.pattern("C[Xe]*", 1, generator=seeded(), ending="kept")
    selfies = MoleculeTokenizer.fit(MOLECULES, notation="selfies")
    with pytest.raises(ConsilienceError, match=r"knows no symbol 'C' \(selfies\)"):
        selfies.pattern("C*", 1, generator=seeded(), ending="kept")
    tokens, _ = selfies.pattern("[C][C]*{2}[O]", 1, generator=seeded(), ending="kept")
    assert tokens.length.tolist() == [7]
