"""`consilience generate`: tables with likelihoods, patterns and scaffolds, on small models without training.

Symbols of an untrained model are noise, so a vocabulary of two atoms keeps most strings readable as molecules.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import consilience
from consilience.cli import INTERRUPTED, main
from consilience.commands.drawing import Kept
from consilience.commands.generate import Asked
from consilience.core.errors import ConsilienceError
from consilience.core.log_likelihood import of_tokens
from consilience.core.model import FoundationModel
from consilience.core.objectives import AnyOrder, Block, Masked, MaskedDiffusion, NextToken
from consilience.core.training_config import TrainingConfig
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
    for extra, named in [
        (["--steps", "3"], "steps=3 is for"),
        (["--unmask-order=confidence"], "order of its own"),
    ]:
        shown = command("generate", causal, "--n", "2", "--out", tmp_path / "b.smi", *extra)
        assert shown.code == 2 and "error: next-token " in shown.err and named in shown.err, shown.err
    assert command("generate", causal, "--n", "2", "--out", tmp_path / "b.smi").code == 0


@pytest.mark.parametrize("objective", [NextToken(), MaskedDiffusion()], ids=str)
def test_a_stopped_command_goes_on_with_the_same_numbers(objective, tmp_path, monkeypatch, capsys) -> None:
    folder, out = model_of(objective).save(tmp_path / "m"), tmp_path / "a.csv"
    whole = consilience.generate(folder, 50, out=tmp_path / "whole.csv", seed=3, batch_size=20)
    drawn, draw_one = [], FoundationModel.generate_tokens

    def counted(self, n, **options):
        drawn.append(n)
        if drawn[1:] == [20, 20]:  # the first is the trial of the options
            raise KeyboardInterrupt
        return draw_one(self, n, **options)

    words = ["generate", str(folder), "--n", "50", "--out", str(out), "--seed", "3", "--batch-size", "20"]
    with monkeypatch.context() as patched:
        patched.setattr(FoundationModel, "generate_tokens", counted)
        assert main(words) == INTERRUPTED
    assert "20 of 50 records are kept, and the same command goes on" in capsys.readouterr().err
    assert not out.exists() and len(list(tmp_path.glob(".a.csv.batches/*.safetensors"))) == 1
    drawn.clear()
    with monkeypatch.context() as patched:
        patched.setattr(
            FoundationModel, "generate_tokens", lambda self, n, **o: drawn.append(n) or draw_one(self, n, **o)
        )
        assert main(words) == 0
    assert drawn == [1, 20, 10], "the trial, and what was missing"
    assert out.read_text() == (tmp_path / "whole.csv").read_text()
    assert pd.read_csv(out, keep_default_na=False)["smiles"].tolist() == whole
    assert not list(tmp_path.glob(".*")), "nothing is left beside the output"


def test_batches_of_another_command_are_not_taken(tmp_path) -> None:
    folder, out = model_of(NextToken()).save(tmp_path / "m"), tmp_path / "a.smi"
    asked = Asked(n=4, seed=1, batch_size=2, pattern=None, scaffold=None, options={})
    kept = Kept.of(out, folder, asked, "molecules", "cpu")
    tokens = model_of(NextToken()).generate_tokens(2, seed=1)
    kept.write(1, tokens)
    assert consilience.generate(folder, 1, out=out, seed=9), "a command without batches of its own"
    assert not list(tmp_path.glob(".*"))
    Kept.of(out, folder, asked, "molecules", "cpu").write(1, tokens)
    back = Kept.of(out, folder, asked, "molecules", "cpu").read(1)
    assert back is not None and torch.equal(back.ids, tokens.ids) and torch.equal(back.length, tokens.length)
    for other in (replace(asked, seed=2), replace(asked, n=5), replace(asked, options={"top_k": 3})):
        assert Kept.of(out, folder, other, "molecules", "cpu").read(1) is None
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    kept = Kept.of(out, folder, asked, "molecules", "cpu")
    assert kept.read(1) is None, "another model"


def test_a_batch_with_a_context_is_kept_whole(tmp_path) -> None:
    own = model_of(NextToken()).generate_tokens(3, seed=1)
    beside = replace(own, context={"points": replace(own, address=own.ids)})
    kept = Kept(tmp_path)
    kept.write(0, beside)
    back = kept.read(0)
    assert back is not None and torch.equal(back.ids, own.ids) and back.values is None
    assert torch.equal(back.context["points"].address, own.ids)


@pytest.mark.parametrize("objective", [NextToken(), AnyOrder(), MaskedDiffusion()], ids=str)
def test_half_precision_draws_the_same_kind(objective) -> None:
    model = model_of(objective)
    fine = consilience.generate(model, 40, seed=3)
    half: list[bool] = []
    hook = model.core.register_forward_pre_hook(lambda *_: half.append(torch.is_autocast_enabled("cpu")))
    coarse = consilience.generate(model, 40, seed=3, precision="bf16-mixed")
    hook.remove()
    assert half[-1] and half == sorted(half), "all but the trial of the options, which comes first"
    same = np.mean([one == other for one, other in zip(fine, coarse)])
    assert len(coarse) == 40 and same > 0.3, "few symbols lie at an edge"


@pytest.mark.parametrize("name", ["n", "batch_size"])
def test_a_number_that_is_not_whole(name) -> None:
    with pytest.raises(ConsilienceError, match=f"{name} must be a whole number, not 2.5"):
        consilience.generate(model_of(NextToken()), **({"n": 2} | {name: 2.5}))


def test_a_precision_that_is_not_known() -> None:
    with pytest.raises(ConsilienceError, match="unknown precision 'half'"):
        consilience.generate(model_of(NextToken()), 4, precision="half")


def test_the_command_and_the_model_draw_the_same(tmp_path) -> None:
    for objective in (NextToken(), MaskedDiffusion()):
        model = model_of(objective)
        assert consilience.generate(model, 12, seed=5, batch_size=5) == model.generate(
            12, seed=5, batch_size=5
        )
    with pytest.raises(ConsilienceError, match="unknown precision 'half'"):
        consilience.generate(model, 4, precision="half")


def test_a_batch_that_cannot_be_read_is_drawn_again(tmp_path) -> None:
    kept, tokens = Kept(tmp_path), model_of(NextToken()).generate_tokens(2, seed=1)
    for place, content in enumerate((b"", b"\x10\0\0\0\0\0\0\0half", None)):
        kept.write(place, tokens)
        path = next(tmp_path.glob(f"*{place}.safetensors"))
        path.write_bytes(path.read_bytes()[:-9] if content is None else content)
        assert kept.read(place) is None and not path.exists()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes(seed) -> None:
    model = model_of(NextToken())
    for draw in (
        lambda: consilience.generate(model, 2, seed=seed),
        lambda: model.generate(2, seed=seed),
        lambda: model.complete(["CCO"], lambda tokens: tokens.real, seed=seed),
        lambda: TrainingConfig(seed=seed),
    ):
        with pytest.raises(ConsilienceError, match=f"seed must lie in 0 to 9223372036854775807, not {seed}"):
            draw()
