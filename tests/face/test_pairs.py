"""Pairs of modalities from the command line: training, resuming, one drawn given the other, and what is refused."""

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rdkit import Chem
from rdkit.Chem import AllChem
from safetensors.torch import load_file

import consilience
from consilience import registry
from consilience.commands.given import pairs_of_run
from consilience.core.errors import ConsilienceError
from consilience.core.log_likelihood import of_tokens
from consilience.core.pair_lengths import of_length
from consilience.core.training import PreTraining
from consilience.domains.pairing import prepare_pairs, teller

SMALL = [
    "--core.width=16", "--core.depth=1", "--core.heads=2", "--training.steps=6", "--training.tokens_per_batch=256",
    "--training.validations=1",
]  # fmt: skip
MOLECULES = """
CCO CCN CCC CCCO CCCN CC(C)O CC(C)N CCOC CNC COC C1CC1 C1CCC1 OC1CC1 NC1CC1 CC1CC1 C1CCOC1 C1CCNC1 CC(=O)C CC(=O)O
CC(=O)N CC#N CCC#N C=CC C=CCO C#CCO CC=O CCC=O c1ccccc1 c1ccncc1 Cc1ccccc1 Oc1ccccc1 c1ccoc1 c1cc[nH]c1 CS CCS
""".split()  # noqa: SIM905


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    return mol


@pytest.fixture(scope="module")
def sdf(tmp_path_factory):
    """Small molecules with conformers, and one without."""
    path = tmp_path_factory.mktemp("data") / "conformers.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for number, smiles in enumerate(MOLECULES):
            mol = embedded(smiles)
            mol.SetProp("_Name", f"mol-{number}")
            writer.write(mol)
        flat = Chem.MolFromSmiles("CCCCO")
        flat.SetProp("_Name", "flat")
        writer.write(flat)
    return path


@pytest.fixture(scope="module")
def words(sdf) -> list[str]:
    options = "{points: {types: content, align: principal}}"
    return [
        "train",
        "molecules",
        "points",
        "--pairs",
        f"--data={sdf}",
        *SMALL,
        f"--tokenizer-options={options}",
    ]


@pytest.fixture(scope="module")
def run(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    assert consilience.cli.main([*words, "--objective=next-token", f"--out={folder}"]) == 0
    return folder


def test_a_run_says_that_it_was_trained_on_pairs(run, sdf) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["provenance"]["pairs"]["alone"] == 0.25
    (lengths,) = config["provenance"]["pairs"]["lengths"]
    assert lengths["names"] == ["molecules", "points"]
    assert sum(times for *_, times in lengths["counts"]) == config["provenance"]["data"]["molecules"]["train"]
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    assert settings["pairs"] is True and settings["data"] == [f"points={sdf}"]
    known = config["provenance"]["data"]
    assert known["molecules"]["records"] == known["points"]["records"] == len(MOLECULES)
    assert known["molecules"]["split"] == known["points"]["split"]
    with (run / "failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    assert [(row["domain"], "3D" in row["reason"]) for row in failures] == [("points", True)]


def test_rows_are_the_same_molecules_in_the_same_part(run) -> None:
    pairs = pairs_of_run(consilience.load(run), run)
    strings, clouds = pairs["molecules"], pairs["points"]
    assert strings.collection.ids.tolist() == clouds.collection.ids.tolist()
    for part in ("train", "validation", "test"):
        assert np.array_equal(getattr(strings.split, part), getattr(clouds.split, part))
        for text, cloud in zip(strings.records(part), clouds.records(part)):
            atoms = Chem.AddHs(Chem.MolFromSmiles(text)).GetAtoms()
            assert sorted(atom.GetSymbol() for atom in atoms) == sorted(map(str, cloud.types))
    groups = strings.collection.group_of
    parts = [set(groups[getattr(strings.split, part)]) for part in ("train", "validation", "test")]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_the_order_of_atoms_does_not_tell_the_string(run) -> None:
    """Tokens of a conformer follow its geometry: other numberings of its atoms give the same tokens."""
    tokenizer = consilience.load(run).tokenizers["points"]
    cloud = pairs_of_run(consilience.load(run), run)["points"].records("test")[0]
    order = np.random.default_rng(0).permutation(len(cloud.types))
    other = type(cloud)(cloud.positions[order], cloud.types[order], unit=cloud.unit)
    one, two = tokenizer.encode([cloud]), tokenizer.encode([other])
    assert torch.equal(one.ids, two.ids) and torch.allclose(one.values, two.values, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_weights(words, run, tmp_path, command, monkeypatch) -> None:
    original, done = PreTraining.training_step, []

    def stopping(self, *args, **kwargs):
        if self.global_step == 3 and not done:
            done.append(True)
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PreTraining, "training_step", stopping)
    assert command(*words, "--objective=next-token", "--out", tmp_path / "run").code == 130 and done
    resumed = command("train", "--out", tmp_path / "run", "--resume")
    assert resumed.code == 0, resumed.err
    whole, found = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in found)


def test_strings_are_drawn_given_conformers(run, sdf, tmp_path, command) -> None:
    out = tmp_path / "new.csv"
    done = command("generate", run, "--domain=molecules", "--given", sdf, "--n=2", "--out", out)
    assert done.code == 0, done.err
    table = pd.read_csv(out, keep_default_na=False)
    assert table["given"].tolist() == [f"mol-{i}" for i in range(len(MOLECULES)) for _ in range(2)]
    # The column is log p given the conformer of its own row, and of no other.
    model = consilience.load(run)
    clouds = registry.domain("points").read(sdf).records
    rows = np.arange(len(table)) // 2
    tokens = model.generate_tokens(
        len(table), domain="molecules", seed=0, context={"points": clouds.take(rows)}
    )
    assert model.tokenizers["molecules"].decode(tokens) == table["smiles"].tolist()
    own = of_tokens(model, tokens, "molecules").values
    assert np.allclose(own, table["log_likelihood"], atol=2e-4, rtol=0)
    assert tokens.context is not None
    turned = replace(
        tokens, context={"points": tokens.context["points"].take(np.roll(np.arange(len(table)), 17))}
    )
    apart = np.abs(of_tokens(model, turned, "molecules").values - own)
    assert np.median(apart) > 1e-3, "control: six steps have taught a little of the other modality"
    again = command(
        "generate", run, "--domain=molecules", "--given", sdf, "--n=2", "--out", tmp_path / "2.csv"
    )
    assert again.code == 0 and pd.read_csv(tmp_path / "2.csv", keep_default_na=False).equals(table)


def test_conformers_are_drawn_given_strings(run, tmp_path, command) -> None:
    given = tmp_path / "given.smi"
    given.write_text("CCO one\nnonsense two\nc1ccccc1 three\n")
    done = command("generate", run, "--domain=points", "--given", given, "--out", tmp_path / "new.xyz")
    assert done.code == 0 and "1 record left out" in done.err and "nonsense" in done.err
    assert len(registry.domain("points").read(tmp_path / "new.xyz").records) == 2


def test_samples_that_cannot_end_are_as_long_as_their_partners_say(
    words, sdf, tmp_path, command, monkeypatch
) -> None:
    """Any-order is told a length: one that training pairs with a context as long had."""
    room = []

    def noted(*args):
        room.append(of_length(*args))
        return room[-1]

    monkeypatch.setattr("consilience.core.generation.of_length", noted)
    run = tmp_path / "run"
    done = command(*words, "--objective=any-order", f"--out={run}")
    assert done.code == 0, done.err
    model = consilience.load(run)
    (entry,) = model.provenance["pairs"]["lengths"]
    known = np.array(entry["counts"])
    clouds = registry.domain("points").read(sdf).records
    given = model.tokenizers["points"].encode(clouds)
    made = model.generate_tokens(len(clouds), domain="molecules", context={"points": given}, batch_size=7)
    told = [length for batch in room for length in batch.length.tolist()]
    for strings, atoms, whole in zip(told, given.length.tolist(), made.length.tolist(), strict=True):
        away = np.abs(known[:, 1] - atoms)
        assert strings in known[away == away.min(), 0] and whole <= strings
    assert len(set(told)) > 3
    again = model.generate_tokens(len(clouds), domain="molecules", context={"points": given}, batch_size=7)
    assert torch.equal(made.ids, again.ids)


def test_records_are_embedded_beside_their_partners(run, sdf, tmp_path, command) -> None:
    """Matched by id, whatever the order of either file; a record without a partner is a failure."""
    names = [*range(len(MOLECULES))][::-1]
    strings = tmp_path / "strings.smi"
    strings.write_text("".join(f"{MOLECULES[i]} mol-{i}\n" for i in names[:6]) + "CCCl alone\n")
    out = tmp_path / "vectors.parquet"
    done = command("embed", run, strings, "--domain=molecules", "--given", sdf, "--out", out)
    assert done.code == 0, done.err
    table = pd.read_parquet(out)
    assert table["id"].tolist() == [f"mol-{i}" for i in names[:6]]
    failures = pd.read_csv(f"{out}.failures.csv")
    assert failures["id"].tolist() == ["alone"] and failures["index"].tolist() == [6]
    assert "does not stand among the points given" in failures["reason"][0]
    model, vectors = consilience.load(run), table.filter(like="embedding_").to_numpy()
    clouds = registry.domain("points").read(sdf).records
    smiles = [MOLECULES[i] for i in names[:6]]
    beside = model.embed(smiles, domain="molecules", context={"points": clouds.take(names[:6])}).vectors
    assert np.allclose(vectors, beside, atol=1e-5)
    assert not np.allclose(vectors, model.embed(smiles, domain="molecules").vectors, atol=1e-3)
    one = consilience.embed(run, strings, domain="molecules", given=sdf)
    assert np.array_equal(one.vectors, vectors) and one.index.tolist() == list(range(6))
    shown = command("embed", run, strings, "--domain=molecules", "--given", sdf, "--out", out, "--engine=ray")
    assert shown.code == 2 and "plain engine" in shown.err
    others = tmp_path / "others.smi"
    others.write_text("CCO a\nCCN b\n")
    shown = command("embed", run, sdf, "--domain=points", "--given", others, "--out", out)
    assert shown.code == 2 and "none of 36 records can be embedded" in shown.err
    assert "does not stand among the molecules given" in shown.err


def test_evaluate_reads_the_pairs_of_the_run(run, command) -> None:
    done = command("evaluate", run, "--domain=points", "--loss-records=4")
    assert done.code == 0, done.err
    provenance = consilience.load(run).provenance["data"]["points"]
    (found,) = json.loads((run / "evaluation.json").read_text())
    assert found["trained_on"] and found["data"]["fingerprint"] == provenance["fingerprint"]
    assert found["kind"] == "surrogate" and found["loss_records"] == 4 and np.isfinite(found["loss"])


def test_files_of_each_science_are_matched_by_id(sdf, tmp_path, command) -> None:
    """In another order, with rows that have no partner."""
    table = tmp_path / "molecules.csv"
    rows = [(f"mol-{i}", text) for i, text in enumerate([*MOLECULES, "CCCC", "C("])]
    pd.DataFrame(rows[:0:-1], columns=["id", "smiles"]).to_csv(table, index=False)
    domains = [registry.domain(name) for name in ("molecules", "points")]
    pairs = prepare_pairs(domains, data={"molecules": table, "points": sdf})
    ids = [part.collection.ids.tolist() for part in pairs.values()]
    assert ids[0] == ids[1] and len(ids[0]) == len(MOLECULES) - 1
    for text, cloud in zip(pairs["molecules"].collection.records, pairs["points"].collection.records):
        assert Chem.AddHs(Chem.MolFromSmiles(text)).GetNumAtoms() == len(cloud.types)
    reasons = {f.id: f.reason for part in pairs.values() for f in part.failures}
    alone, unreadable = f"mol-{len(MOLECULES)}", f"mol-{len(MOLECULES) + 1}"
    assert f"{alone} does not stand in {sdf}" in reasons[alone]
    assert f"mol-0 does not stand in {table}" in reasons["mol-0"] and "C(" in reasons[unreadable]


def test_what_one_tokenizer_refuses_is_set_aside_in_both(sdf) -> None:
    domains = [registry.domain(name) for name in ("molecules", "points")]
    pairs = prepare_pairs(domains, data={"points": sdf}, tokenizers={"points": {"max_points": 12}})
    large = {f"mol-{i}" for i, text in enumerate(MOLECULES) if embedded(text).GetNumAtoms() > 12}
    assert large
    for name, part in pairs.items():
        failed = {f.id: f.reason for f in part.failures}
        assert large <= set(failed) and not large & set(part.collection.ids.tolist())
        assert all("its points cannot be tokenized" in failed[one] for one in large) == (name == "molecules")
    assert pairs["molecules"].collection.ids.tolist() == pairs["points"].collection.ids.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["molecules"], "pairs need two sciences"),
        (["molecules", "cells"], "bundled data: holds no pairs of cells and molecules"),
        (["molecules", "points", "--data=clouds.xyz"], "says nothing of their molecules"),
        (
            ["molecules", "points", "--data=a.smi"],
            "holds no pairs of molecules and points; give one file for each",
        ),
        (["molecules", "points", "--alone=1"], "alone is a share of the steps"),
    ],
)
def test_what_is_no_pair_is_refused(words, message, tmp_path, command, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clouds.xyz").write_text("2\n\nC 0 0 0\nO 0 0 1.2\n" * 3)
    (tmp_path / "a.smi").write_text("CCO\n")
    done = command("train", *words, "--pairs", *SMALL, "--out", tmp_path / "run")
    assert done.code != 0 and message in done.err and "Traceback" not in done.err


def test_a_model_without_pairs_is_given_nothing(sdf, tmp_path, command) -> None:
    made = command("train", "molecules", "points", *SMALL, "--limit=60", "--out", tmp_path / "run")
    assert made.code == 0, made.err
    assert "pairs" not in yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    done = command(
        "generate", tmp_path / "run", "--domain=molecules", "--given", sdf, "--out", tmp_path / "a.csv"
    )
    assert done.code != 0 and "never saw two modalities" in done.err


def test_python_refuses_files_without_pairs(tmp_path) -> None:
    domains = [registry.domain(name) for name in ("molecules", "points")]
    assert teller(domains, None) == "points" and teller(domains, tmp_path / "a.sdf") == "points"
    with pytest.raises(ConsilienceError, match="no file of points"):
        prepare_pairs([*domains, registry.domain("cells")], data={"molecules": tmp_path, "cells": tmp_path})


def test_the_page_works_as_printed(sdf, tmp_path, monkeypatch, capsys) -> None:
    """The commands and the Python of docs/pairs.md; training gets a small size appended."""
    page = (Path(__file__).parents[2] / "docs" / "pairs.md").read_text()
    monkeypatch.chdir(tmp_path)
    shutil.copy(sdf, tmp_path / "conformers.sdf")
    (tmp_path / "molecules.smi").write_text("CCO mol-0\nCCN mol-1\n")
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", page, flags=re.M | re.S)
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    for line in commands.splitlines():
        words = shlex.split(line)[1:]
        small = ["--core.depth=1", *SMALL[3:]] if words[0] == "train" else []
        assert consilience.cli.main([*words, *small]) == 0, line
    capsys.readouterr()
    exec(compile(block, "pairs.md", "exec"), {})
    assert "(2, 128)" in capsys.readouterr().out
    assert pd.read_csv("strings.csv")["given"].nunique() == len(MOLECULES)
