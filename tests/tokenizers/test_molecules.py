"""The tokenizer of molecules: lossless, deterministic, and clear about what it refuses."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.tokenizers.molecule_notation import canonical, longest_randomised, to_selfies
from consilience.tokenizers.molecule_symbols import GRAMMAR, SMILES_SYMBOLS, mirrored, split
from consilience.tokenizers.molecule_table import SymbolTable
from consilience.tokenizers.molecules import MARGIN, MoleculeTokenizer

MOLECULES = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "C[C@H](N)C(=O)O",
    "F/C=C/Cl",
    "c1cc[nH]c1",
    "O=S(=O)(O)c1ccc(Br)cc1.[Na]",
    "C1CC2CC1C3CC4CC(CC4)C23",
    "[O-][N+](=O)c1ccccc1",
]


@pytest.fixture(scope="module")
def tokenizer() -> MoleculeTokenizer:
    return MoleculeTokenizer.fit(MOLECULES, form="as-given")


def test_symbols_are_atom_wise() -> None:
    assert split("C[C@@H](Cl)c1c[nH]cc1Br") == [
        "C",
        "[C@@H]",
        "(",
        "Cl",
        ")",
        "c",
        "1",
        "c",
        "[nH]",
        "c",
        "c",
        "1",
        "Br",
    ]
    assert split("C%10CC%10") == ["C", "%10", "C", "C", "%10"]
    assert split("CCO.CC>>CC%(123)") == ["C", "C", "O", ".", "C", "C", ">>", "C", "C", "%(123)"]
    assert split("N->[Cu]<-N") == ["N", "->", "[Cu]", "<-", "N"]


def test_tokens_of_ethanol(tokenizer: MoleculeTokenizer) -> None:
    tokens = tokenizer.encode(["CCO", "C"])
    symbols = [tokenizer.spec.symbols[i] for i in tokens.ids[0].tolist()]
    assert symbols == ["<bos>", "C", "C", "O", "<eos>"]
    assert tokens.length.tolist() == [5, 3]
    assert tokens.positions[:, :, 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert tokens.given.tolist() == [[True] + [False] * 4] * 2
    assert tokens.ids[1, 3:].tolist() == [0, 0]
    assert tokenizer.end_id == tokens.ids[0, 4]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(SMILES_SYMBOLS), min_size=1, max_size=40).map("".join),
        min_size=1,
        max_size=8,
    )
)
def test_any_concatenation_of_symbols_round_trips(texts: list[str]) -> None:
    tokenizer = _BASE
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(
                st.sampled_from([*SMILES_SYMBOLS, "%(100)", "[Xx]", "l", "r", "]", "[", "%", "é", "\n", " "]),
                max_size=12,
            ).map("".join),
            st.text(alphabet="CBlrn[]%0123()>-<@H+c=.\n ", max_size=12),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_fast_way_equals_the_regular_expression(texts: list[str]) -> None:
    table = _BASE.table

    def slow(text: str) -> list[int] | None:
        try:
            return [table.index[symbol] for symbol in split(text)] or None
        except (ConsilienceError, KeyError):
            return None

    expected = [slow(text) for text in texts]
    bad = {place for place, ids in enumerate(expected) if ids is None}
    assert set(table.refusals(texts)) == bad
    if bad:
        with pytest.raises(ConsilienceError):
            table.encode(texts)
    else:
        ids, counts = table.encode(texts)
        assert ids.tolist() == [i for row in expected for i in row or []]
        assert counts.tolist() == [len(row or []) for row in expected]


def test_fast_way_is_taken_for_ordinary_molecules() -> None:
    assert _BASE.table._encode_bytes(MOLECULES) is not None
    assert _BASE.table._encode_bytes(["C%10CC%10", *MOLECULES]) is not None


def test_a_table_that_spells_wrongly_is_noticed() -> None:
    table = SymbolTable(["<bos>", "<eos>", "C", "O"])
    table._single[ord("C")] = table.index["O"]
    with pytest.raises(ConsilienceError):
        table.encode(["CZ"])
    assert table._encode_bytes(["CCO"]) is None, "ids that do not spell the input must not pass"


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _BASE.table.encode(MOLECULES * 3)
    monkeypatch.setattr("consilience.tokenizers.molecule_table.CHUNK", 5)
    parts = _BASE.table.encode(MOLECULES * 3)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts))


def test_batch_composition_and_order_do_not_matter() -> None:
    tokenizer = MoleculeTokenizer.fit(MOLECULES)
    together = tokenizer.encode(MOLECULES)
    order = [3, 0, 7, 1]
    some = tokenizer.encode([MOLECULES[i] for i in order])
    for row, i in enumerate(order):
        alone = tokenizer.encode([MOLECULES[i]])
        n = int(alone.length[0])
        assert torch.equal(alone.ids[0], some.ids[row, :n])
        assert torch.equal(alone.ids[0], together.ids[i, :n])


def test_canonical_does_not_depend_on_who_wrote_it() -> None:
    tokenizer = MoleculeTokenizer.fit(MOLECULES)
    same = ["OCC", "C(O)C", "[CH3][CH2][OH]", Chem.MolFromSmiles("CCO")]
    assert tokenizer.decode(tokenizer.encode(same)) == ["CCO"] * 4


def test_state_goes_through_json_and_gives_the_same_tokens() -> None:
    for options in (
        {},
        {"notation": "selfies"},
        {"form": "randomised", "max_length": 40, "base_symbols": False},
    ):
        tokenizer = MoleculeTokenizer.fit(MOLECULES, **options)
        again = MoleculeTokenizer.from_state(json.loads(json.dumps(tokenizer.state())))
        assert again.spec == tokenizer.spec
        assert again.options == tokenizer.options
        assert torch.equal(again.encode(MOLECULES).ids, tokenizer.encode(MOLECULES).ids)
    with pytest.raises(ConsilienceError, match="lacks length_counts, symbols"):
        MoleculeTokenizer.from_state({"options": {}})


def test_fit_sees_its_records_alone_and_in_no_order() -> None:
    tokenizer = MoleculeTokenizer.fit(["CCO"], base_symbols=False)
    assert tokenizer.spec.symbols == ("<bos>", "<eos>", "C", "O")
    assert tokenizer.length_counts == (0, 0, 0, 0, 0, 1)
    assert MoleculeTokenizer.fit(MOLECULES[::-1]).state() == MoleculeTokenizer.fit(MOLECULES).state()


def test_randomised_only_with_a_generator() -> None:
    tokenizer = MoleculeTokenizer.fit(MOLECULES, form="randomised")
    plain = tokenizer.decode(tokenizer.encode(MOLECULES))
    assert plain == [canonical(text) for text in MOLECULES]
    first, again, other = (
        tokenizer.decode(tokenizer.encode(MOLECULES, generator=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first != plain
    assert [canonical(text) for text in first] == plain


def test_randomised_never_meets_an_unknown_symbol_and_lengths_are_bounds() -> None:
    hard = [
        *MOLECULES,
        "C[C@@H]1CC[C@]2(C)OC1CC2",
        "C1CC2CC3CC4CC5CC1C5C4C3C2",
        "N->[Cu]",
        "F/C=C/C=C\\Cl",
        "CC(C)(C)C",
    ]
    for notation in ("smiles", "selfies"):
        kept = [text for text in hard if notation == "smiles" or "->" not in text]
        tokenizer = MoleculeTokenizer.fit(kept, notation=notation, form="randomised", base_symbols=False)
        bound = tokenizer.lengths(kept)
        for seed in range(20):
            tokens = tokenizer.encode(kept, generator=torch.Generator().manual_seed(seed))
            if notation == "smiles":
                assert (tokens.length.numpy() <= bound).all()


def test_a_random_string_that_does_not_fit_gives_way_to_the_canonical_one() -> None:
    text = canonical("CC(C)(C)CC(C)(C)C")
    limit = len(split(text)) + 2
    tokenizer = MoleculeTokenizer.fit([text], form="randomised", max_length=limit)
    for seed in range(20):
        tokens = tokenizer.encode([text], generator=torch.Generator().manual_seed(seed))
        assert int(tokens.length[0]) <= limit
    assert (tokenizer.lengths([text]) <= limit).all()


def test_mirrored_symbols() -> None:
    assert mirrored("[C@H]") == mirrored("[C@@H]") == ["[C@H]", "[C@@H]"]
    assert mirrored("[13C@@]") == ["[13C@]", "[13C@@]"]
    assert mirrored("[Pt@SP2]") == ["[Pt@SP1]", "[Pt@SP2]", "[Pt@SP3]"]
    assert mirrored("[nH]") == ["[nH]"]
    assert mirrored("=") == ["="]


def test_longest_randomised_has_one_entry_a_molecule() -> None:
    assert longest_randomised([], np.zeros(0, np.int64)).shape == (0,)
    assert longest_randomised(["CCO"], np.array([3])).tolist() == [7]


def test_selfies_leads_back_to_the_same_molecule() -> None:
    tokenizer = MoleculeTokenizer.fit(MOLECULES, notation="selfies")
    assert tokenizer.decode(tokenizer.encode(MOLECULES)) == [canonical(text) for text in MOLECULES]
    assert "[=C]" in tokenizer.spec.symbols
    assert split(to_selfies("CC(=O)O.[Na+]"))[-2:] == [".", "[Na+1]"]


def test_selfies_names_what_it_cannot_write() -> None:
    tokenizer = MoleculeTokenizer.fit(MOLECULES, notation="selfies")
    failures = tokenizer.check(["CCO", "C[I]C", "C*"])
    assert [failure.index for failure in failures] == [1, 2]
    assert all("use notation='smiles'" in failure.reason for failure in failures)


def test_template_for_objectives_that_end_themselves(tokenizer: MoleculeTokenizer) -> None:
    tokens = tokenizer.template(3, generator=torch.Generator().manual_seed(0), open_end=True)
    longest = len(tokenizer.length_counts) - 1
    assert tokens.length.tolist() == [longest + MARGIN] * 3
    assert tokens.given[:, 0].all() and not tokens.given[:, 1:].any()
    limited = MoleculeTokenizer.fit(MOLECULES, max_length=longest)
    tokens = limited.template(2, generator=torch.Generator(), open_end=True)
    assert int(tokens.length.max()) <= longest


def test_template_lengths_come_from_training() -> None:
    tokenizer = MoleculeTokenizer.fit(["C"] * 30 + ["CCCCC"] * 10)
    tokens = tokenizer.template(4000, generator=torch.Generator().manual_seed(0))
    assert set(tokens.length.tolist()) == {3, 7}
    assert abs(float((tokens.length == 3).float().mean()) - 0.75) < 0.03
    assert tokenizer.template(0, generator=torch.Generator()).size == 0


def test_decode_stops_at_the_first_end(tokenizer: MoleculeTokenizer) -> None:
    tokens = tokenizer.encode(["CCOCC"])
    tokens.ids[0, 3] = tokenizer.end_id
    assert tokenizer.decode(tokens) == ["CC"]
    tokens.ids[0, 1] = tokenizer.end_id
    assert tokenizer.decode(tokens) == [""]
    tokens.ids[0, 1:] = tokenizer.table.index["N"]
    assert tokenizer.decode(tokens) == ["NNNNNN"], "without an end the whole sample counts"


def test_lengths_are_those_of_the_tokens(tokenizer: MoleculeTokenizer) -> None:
    assert tokenizer.lengths(MOLECULES).tolist() == tokenizer.encode(MOLECULES).length.tolist()
    assert tokenizer.lengths(["CCO", "C Z"]).tolist() == [5, 2]
    assert tokenizer.lengths([]).shape == (0,)
    assert tokenizer.encode([]).size == 0


def test_describe_shows_symbols_and_places() -> None:
    shown = MoleculeTokenizer.fit(MOLECULES).describe("OCC")
    assert "canonical SMILES: CCO" in shown
    assert re.search(r"symbol  <bos> C C O <eos>\n place      0 1 2 3     4", shown)


@pytest.mark.parametrize(
    ("form", "record", "words"),
    [
        ("as-given", "CC[Xx]", r"symbol '\[Xx\]' at position 2"),
        ("as-given", "CCZC", r"'Z', which starts no symbol at position 2"),
        ("as-given", "CC[C@H", "an unclosed bracket at position 2"),
        ("as-given", "C\nC", "at position 1"),
        ("as-given", "", "empty"),
        ("canonical", "", "empty"),
        ("canonical", "C(C", "cannot read 'C\\(C'"),
        ("canonical", "CCO ethanol", "white space"),
        ("canonical", "C(C)(C)(C)(C)C", "Explicit valence"),
        ("canonical", "c1cccc1", "kekulize"),
        ("canonical", 17, "not int"),
        ("as-given", None, "not NoneType"),
        ("as-given", b"CCO", "not bytes"),
    ],
)
def test_unreadable_records_are_named(form: str, record: object, words: str) -> None:
    tokenizer = MoleculeTokenizer.fit(MOLECULES, form=form)
    with pytest.raises(UnreadableRecordError, match=words) as caught:
        tokenizer.encode(["CCO", record, "C"])
    assert caught.value.index == 1
    assert "\n" not in str(caught.value)
    failures = tokenizer.check(["CCO", record, "C", record])
    assert [failure.index for failure in failures] == [1, 3]
    assert failures[0].reason == caught.value.reason


def test_unknown_symbol_names_symbol_molecule_and_way_out() -> None:
    with pytest.raises(UnreadableRecordError) as caught:
        _BASE.encode(["CCO", "C[Rb]"])
    assert str(caught.value) == (
        "record 1: 'C[Rb]' has the symbol '[Rb]' at position 1, which is not among the "
        f"{len(_BASE.table)} symbols of this tokenizer; fit the tokenizer on data that "
        "holds it, or leave the molecule out"
    )


def test_too_long_is_refused_not_cut() -> None:
    tokenizer = MoleculeTokenizer.fit(["CCO", "C" * 30], max_length=10)
    assert len(tokenizer.length_counts) == 6, "lengths are learned from usable molecules only"
    with pytest.raises(UnreadableRecordError, match=r"12 tokens.*max_length=10; raise max_length"):
        tokenizer.encode(["C" * 8, "C" * 10])
    assert [failure.index for failure in tokenizer.check(["C" * 8, 3, "C" * 9])] == [1, 2]


def test_bad_options_and_fits() -> None:
    with pytest.raises(ConsilienceError, match="unknown tokenizer option 'notatoin'; known: notation, form"):
        MoleculeTokenizer.fit(MOLECULES, notatoin="smiles")
    with pytest.raises(ConsilienceError, match="form must be one of as-given"):
        MoleculeTokenizer.fit(MOLECULES, form="random")
    with pytest.raises(ConsilienceError, match="max_length=2 is too short"):
        MoleculeTokenizer.fit(MOLECULES, max_length=2)
    with pytest.raises(ConsilienceError, match=r"none of the 2 molecules to fit on is usable; .*not int"):
        MoleculeTokenizer.fit([1, 2])
    with pytest.raises(ConsilienceError, match="a list of SMILES, not one string"):
        MoleculeTokenizer.fit("CCO")
    with pytest.raises(ConsilienceError, match="a list of SMILES, not one string"):
        _BASE.encode("CCO")


def test_grammar_is_in_every_vocabulary_once() -> None:
    assert len(set(SMILES_SYMBOLS)) == len(SMILES_SYMBOLS)
    assert set(GRAMMAR) < set(SMILES_SYMBOLS)
    assert all(split(symbol) == [symbol] for symbol in SMILES_SYMBOLS)


@pytest.mark.skipif("CONSILIENCE_TEST_DATA" not in os.environ, reason="needs CONSILIENCE_TEST_DATA")
@pytest.mark.parametrize("name", ["moses/test.csv.gz", "chembl_reinvent_validation.smi.gz"])
def test_real_molecules_round_trip(name: str) -> None:
    path = Path(os.environ["CONSILIENCE_TEST_DATA"]) / "molecules" / name
    with gzip.open(path, "rt") as file:
        texts = [line.split()[0] for line in file][1::20]
    assert _BASE.check(texts) == [], "the base symbols read ordinary molecules"
    tokens = _BASE.encode(texts)
    assert _BASE.decode(tokens) == texts
    assert tokens.length.tolist() == [len(split(text)) + 2 for text in texts]


_BASE = MoleculeTokenizer.fit(["C"], form="as-given")
