"""`consilience generate`: tables with likelihoods, patterns and scaffolds, on small models without training.

Symbols of an untrained model are noise, so a vocabulary of two atoms keeps most strings readable as molecules.
"""

import numpy as np
import pandas as pd
import pytest
import torch

import consilience
from consilience.core.errors import ConsilienceError
from consilience.core.log_likelihood import of_tokens
from consilience.core.model import FoundationModel
from consilience.core.objectives import AnyOrder, Block, Masked, MaskedDiffusion, NextToken
from consilience.core.transformer import CoreConfig
from consilience.domains.molecules.decoration import holds_scaffold, scaffold_of_pattern, scaffold_patterns
from consilience.tokenizers.molecules import MoleculeTokenizer

MOLECULES = ["CCO", "CCCC", "CCCO", "CCCCC", "OCCCCCCO", "CCCOCCCOC"]
RINGS = [*MOLECULES, "c1cc(C)ccc1", "CCOc1ccccc1", "c1ccc(COC)cc1CO"]
LOOKING_BOTH_WAYS = [AnyOrder(), Masked(), MaskedDiffusion(), Block(size=2, order="random"), Block(size=None)]


def model_of(objective, molecules=MOLECULES) -> FoundationModel:
    torch.manual_seed(0)
    tokenizer = MoleculeTokenizer.fit(molecules, form="as-given", base_symbols=False)
    model = FoundationModel(CoreConfig(width=16, depth=1, heads=2), {"molecules": tokenizer}, objective)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5
    return model.eval()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("objective", "column"),
    [
        (NextToken(), "log_likelihood"),
        (AnyOrder(), "log_likelihood"),
        (Block(size=2), "log_likelihood"),
        (MaskedDiffusion(), "log_likelihood_bound"),
        (Masked(), None),
    ],
    ids=str,
)
def test_a_table_holds_what_is_known_of_every_molecule(objective, column, ending, tmp_path) -> None:
    model, path = model_of(objective), tmp_path / f"new{ending}"
    made = consilience.generate(model, 60, out=path, seed=4, batch_size=25)
    table = pd.read_csv(path, keep_default_na=False) if ending == ".csv" else pd.read_parquet(path)
    assert table["smiles"].tolist() == made
    names = ["smiles", "valid", "canonical_smiles", "count"]
    assert table.columns.tolist() == names + ([column] if column else [])
    assert table["valid"].sum() > 0 and (table["canonical_smiles"] != "").tolist() == table["valid"].tolist()
    assert table["count"][~table["valid"]].sum() == 0
    valid = table[table["valid"]]
    assert valid["count"].tolist() == valid.groupby("canonical_smiles")["count"].transform("size").tolist()
    assert valid["count"].max() > 1, "duplicates are kept"
    if column:
        assert np.isfinite(table[column]).all() and (table[column] < 0).all()


def test_the_column_is_the_likelihood_of_the_string_as_written(tmp_path) -> None:
    """Also where it is no molecule: of the tokens, not of what can be read again."""
    model = model_of(NextToken())
    tokens = model.generate_tokens(30, seed=1)
    consilience.generate(model, 30, out=tmp_path / "a.csv", seed=1)
    table = pd.read_csv(tmp_path / "a.csv")
    assert np.allclose(table["log_likelihood"], of_tokens(model, tokens, "molecules").values, atol=1e-4)
    valid = table[table["valid"]]
    found = model.log_likelihood(valid["smiles"].tolist())
    end = model.tokenizers["molecules"].end_id
    begin_again = ((tokens.ids == 0) & tokens.real & ~tokens.is_given).any(1)  # spelled as nothing
    same = ((tokens.ids == end).any(1) & ~begin_again).numpy()[table["valid"]]
    assert same.sum() > 3 and np.allclose(found.values[same], valid["log_likelihood"][same], atol=1e-4)


def test_smi_is_as_it_was(tmp_path) -> None:
    made = consilience.generate(model_of(NextToken()), 5, out=tmp_path / "a.smi")
    lines = (tmp_path / "a.smi").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[s, f"generated-{k}"] for k, s in enumerate(made, 1)]
    assert {line.split("\t")[2] for line in lines} <= {"valid", "invalid"}


@pytest.mark.parametrize("objective", LOOKING_BOTH_WAYS, ids=str)
def test_patterns_keep_their_symbols(objective) -> None:
    model = model_of(objective, RINGS)
    made = model.generate(40, pattern="C*{2}c1cc(*{1,3})ccc1", seed=2)
    assert len(set(made)) > 1
    for text in made:
        assert text.startswith("C") and text[3:].startswith("c1cc(") and text.endswith(")ccc1"), text
        assert 13 + 1 <= len(text) <= 13 + 3
    assert model.generate(40, pattern="C*{2}c1cc(*{1,3})ccc1", seed=2) == made
    lengths = {len(text) for text in model.generate(200, pattern="CC*", seed=0)}
    assert lengths == {len(text) for text in RINGS}, "all training molecules are longer than two symbols"


def test_next_token_goes_on_from_a_beginning_only() -> None:
    model = model_of(NextToken())
    made = model.generate(60, pattern="CO*", seed=2)
    assert all(text.startswith("CO") for text in made) and len({len(text) for text in made}) > 3
    for pattern in ("C*O", "*CO", "CO*{3}"):
        with pytest.raises(ConsilienceError, match="looks back only, and goes on from a beginning"):
            model.generate(1, pattern=pattern)
    backwards = model_of(NextToken(order="reversed"))
    assert all(text.endswith("CO") for text in backwards.generate(20, pattern="*CO"))
    with pytest.raises(ConsilienceError, match="reversed order looks back only"):
        backwards.generate(1, pattern="CO*")
    blocks = model_of(Block(size=2))
    assert all(text.startswith("CO") for text in blocks.generate(20, pattern="CO*"))
    with pytest.raises(ConsilienceError, match="looks back only"):
        blocks.generate(1, pattern="C*O")


def test_scaffolds_become_patterns() -> None:
    assert scaffold_patterns("c1ccc([*:1])cc1[2*]")[0] == "*c1cccc(*)c1"
    assert len(scaffold_patterns("c1ccc([*:1])cc1[*:2]")) == 1
    first, *rest = scaffold_patterns("c1ccc(*)cc1C(=O)O")
    assert first.count("*") == 1 and rest and all(text.endswith("*") and "[" not in text for text in rest)
    for scaffold, message in [
        ("CCO", "scaffold 'CCO' has no attachment point"),
        ("C1C*1", "atom 3, a [*], has 2"),
        ("c1ccc", "scaffold 'c1ccc' is no SMILES that RDKit can read"),
        ("CC*{2,8}N", "lengths such as .* are for --pattern"),
        (" ", "the scaffold is empty"),
    ]:
        with pytest.raises(ConsilienceError, match=message):
            scaffold_patterns(scaffold)


def test_what_holds_a_scaffold() -> None:
    strings = ["Cc1ccccc1", "CCOc1ccccc1", "c1ccccc1", "c1ccc(", "CC1CCCCC1", "Cc1cccc(O)c1"]
    assert holds_scaffold(strings, "*c1ccccc1").tolist() == [True, True, False, False, False, True]
    assert holds_scaffold(strings, "c1cc(*)cc([*:2])c1").tolist() == [False] * 5 + [True]
    assert holds_scaffold(["Cn1cccc1", "c1cc[nH]c1"], "n1(*)cccc1").tolist() == [True, False]
    assert scaffold_of_pattern("C*{3}c1ccc([*:2])cc1") == "C*c1ccc(*)cc1"
    assert scaffold_of_pattern("CC(*") is None


@pytest.mark.parametrize("objective", [NextToken(), MaskedDiffusion()], ids=str)
def test_decoration_reports_what_holds_the_scaffold(objective, tmp_path, command) -> None:
    folder = model_of(objective, RINGS).save(tmp_path / "run")
    words = ["generate", folder, "--n", "40", "--seed", "1", "--scaffold", "c1ccccc1[*:1]"]
    done = command(*words, "--out", tmp_path / "a.csv")
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    held = int(table["holds_scaffold"].sum())
    expected = holds_scaffold(table["smiles"].tolist(), "*c1ccccc1")
    assert table["holds_scaffold"].tolist() == expected.tolist()
    assert table["smiles"].str.contains("c1ccccc1", regex=False).all()
    valid = int(table["valid"].sum())
    unique = table["canonical_smiles"][table["valid"]].nunique()
    assert (
        f"a.csv: 40 generated, {valid} valid ({valid / 40:.1%}), {unique} unique among the valid" in done.out
    )
    assert f"{held} hold the scaffold ({held / 40:.1%})" in done.out


def test_options_and_what_is_refused(tmp_path, command) -> None:
    folder = model_of(MaskedDiffusion()).save(tmp_path / "run")
    out = tmp_path / "a.smi"
    words = ["generate", folder, "--n", "20", "--out", out]
    assert command(*words, "--top-k", "1", "--unmask-order", "confidence", "--steps", "4").code == 0
    first = out.read_text()
    assert command(*words, "--top-p", "0.0001", "--unmask-order=confidence", "--steps=4").code == 0
    assert out.read_text() == first, "the likeliest symbol alone, either way"
    for extra, *named in [
        (["--top-k", "0"], "top_k must be at least 1"),
        (["--top-p", "2"], "top_p must lie in (0, 1]"),
        (["--unmask-order", "best"], "random", "confidence"),
        (["--pattern", "CCO"], "'CCO' has no free part"),
        (["--pattern", "C*[Xe]"], "knows no symbol '[Xe]'"),
        (["--scaffold", "CCO"], "no attachment point"),
        (["--scaffold", "*CC", "--pattern", "C*"], "a pattern or a scaffold, not both"),
    ]:
        shown = command(*words, *extra)
        assert shown.code == 2 and all(text in shown.err for text in named), shown.err
        assert len(shown.err.splitlines()) == 1
    assert out.read_text() == first
    causal = model_of(NextToken(), RINGS).save(tmp_path / "causal")
    shown = command("generate", causal, "--out", out, "--scaffold", "*c1ccc(*)cc1")
    assert shown.code == 2 and "written as a pattern '*c1ccc(*)cc1'" in shown.err
    assert "any-order, masked, masked-diffusion" in shown.err
