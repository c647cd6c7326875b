"""Training with properties, and asking for them: commands, tables, files of the user, and what is refused.

Every string over C, N and O is a molecule, and its log P follows from how many of each there are: a small model
learns in seconds to come near what it is asked for.
"""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

import consilience
from consilience.domains.molecules.conditions import COMPUTED, compute

SMALL = ["--core.width=32", "--core.depth=2", "--core.heads=2", "--training.validations=1"]
SHORT = ["--training.steps=3", "--training.tokens_per_batch=256"]


def chains(n: int = 600, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["C" + "".join(rng.choice(list("CNO"), rng.integers(2, 9), p=_shares(rng))) for _ in range(n)]


def _shares(rng: np.random.Generator) -> np.ndarray:
    carbon = rng.uniform(0.05, 0.95)
    return np.array([carbon, (1 - carbon) / 2, (1 - carbon) / 2])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Molecules with a measured column that is known of every second one, and one of text."""
    path = tmp_path_factory.mktemp("data") / "chains.csv"
    smiles = chains()
    length = np.array([float(len(text)) for text in smiles])
    frame = pd.DataFrame({"smiles": smiles, "size": length, "batch": "first"})
    frame.loc[::2, "size"] = np.nan
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A model that was told log P, drug-likeness and the column, trained for a few seconds."""
    folder = tmp_path_factory.mktemp("runs") / "told"
    consilience.train(
        "molecules",
        out=folder,
        objective="next-token",
        data=str(table),
        condition=["logP", "qed"],
        condition_column=["size"],
        core={"width": 32, "depth": 2, "heads": 2},
        training={"steps": 150, "tokens_per_batch": 1024, "validations": 0, "learning_rate": 5e-3},
        progress=False,
    )
    return folder


def test_the_run_knows_what_it_was_told(run, table) -> None:
    model = consilience.load(run)
    known = model.conditions["molecules"]
    assert known.names == ("logp", "qed", "size") and (known.drop_each, known.drop_all) == (0.1, 0.1)
    assert [one.computed for one in known.properties] == [True, True, False]
    config = json.loads((run / "config.json").read_text())
    assert config["domains"]["molecules"]["conditions"] == known.state()
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    assert settings["condition"] == ["logP", "qed"] and settings["condition_column"] == ["size"]
    part = pd.read_csv(table)
    sizes = part["size"].dropna()
    assert sizes.min() <= known.properties[2].low and known.properties[2].high <= sizes.max()
    assert known.properties[2].mean == pytest.approx(sizes.mean(), abs=0.4)


def test_scales_come_from_training_rows_alone(table) -> None:
    from consilience import registry
    from consilience.domains.conditions import Wanted, tell
    from consilience.domains.preparation import load_collection, prepare

    prepared = prepare(registry.domain("molecules"), load_collection(registry.domain("molecules"), table))
    told = tell(prepared, Wanted(computed=["logp"], columns=["size"]))
    values = compute(prepared.collection.records, ["logp"])["logp"]
    own, train = told.conditions.properties[0], values[prepared.split.train]
    assert (own.mean, own.spread, own.high) == pytest.approx((train.mean(), train.std(), train.max()))
    assert own.mean != values.mean()
    unknown = np.isnan(prepared.collection.labels["size"])
    assert 0.3 < unknown.mean() < 0.7 and np.array_equal(np.isnan(told.values[:, 1]), unknown)
    source = told.beside(prepared.source("validation"), prepared.split.validation)
    assert np.allclose(
        source.conditions[:, 0] * own.spread + own.mean, values[prepared.split.validation], atol=1e-5
    )


def test_asked_molecules_come_nearer_than_others(run, command, tmp_path) -> None:
    error = {}
    for name, words in {"plain": [], "guided": ["--guidance", "1.5"]}.items():
        out = tmp_path / f"{name}.csv"
        done = command("generate", run, "--n", 150, "--condition", "logp=1.5", *words, "--out", out)
        assert done.code == 0, done.err
        rows = pd.read_csv(out, keep_default_na=False, na_values={"logp": ""})
        assert (rows["asked_logp"] == 1.5).all()
        valid = rows[rows["valid"]]
        assert len(valid) > 75 and rows["logp"].isna().equals(~rows["valid"])
        expected = [COMPUTED["logp"](_mol(text)) for text in valid["smiles"]]
        assert np.allclose(valid["logp"], expected)
        error[name] = float((valid["logp"] - 1.5).abs().mean())
        assert f"; logp 1.5 asked, mean absolute error {error[name]:.3g} (unconditional samples" in done.out
        error["none"] = float(done.out.rsplit("unconditional samples ", 1)[1].split(")")[0])
    assert error["plain"] < 0.75 * error["none"]
    assert error["guided"] < error["plain"]


def _mol(text: str):
    from rdkit import Chem

    return Chem.MolFromSmiles(text)


def test_what_is_measured_is_asked_for_but_not_computed(run, command, tmp_path) -> None:
    out = tmp_path / "sizes.csv"
    done = command(
        "generate", run, "--n", 120, "--condition", "size=9", "qed=0.4", "--out", out, "--guidance=1"
    )
    assert done.code == 0, done.err
    rows = pd.read_csv(out, keep_default_na=False)
    assert {"asked_size", "asked_qed", "qed"} <= set(rows) and "size" not in rows and "logp" not in rows
    assert "size 9 asked (a column of the file" in done.out and "; qed 0.4 asked, mean absolute" in done.out
    small = consilience.generate(run, 120, conditions={"size": 3})
    assert rows["smiles"].str.len().mean() > np.mean([len(text) for text in small]) + 2


def test_likelihoods_in_the_table_are_conditional(run, tmp_path) -> None:
    model = consilience.load(run)
    consilience.generate(model, 30, out=tmp_path / "a.csv", conditions={"logp": 1.0}, guidance=2.0)
    rows = pd.read_csv(tmp_path / "a.csv")
    rows = rows[rows["smiles"] == rows["canonical_smiles"]]
    smiles = rows["smiles"].tolist()
    told = model.log_likelihood(smiles, conditions={"logp": 1.0}).values
    assert len(smiles) > 3 and np.allclose(told, rows["log_likelihood"], atol=1e-3)
    assert not np.allclose(told, model.log_likelihood(smiles).values, atol=1e-2)


def test_with_patterns_scaffolds_and_shares(run, command, tmp_path) -> None:
    words = [
        "generate",
        run,
        "--n",
        20,
        "--condition",
        "logp=1",
        "--guidance",
        "1",
        "--top-k",
        "3",
        "--top-p",
        "0.9",
    ]
    assert command(*words, "--pattern", "CO*", "--out", tmp_path / "a.csv").code == 0
    assert pd.read_csv(tmp_path / "a.csv")["smiles"].str.startswith("CO").all()
    done = command(*words, "--scaffold", "CO*", "--out", tmp_path / "b.csv")
    assert done.code == 0 and "hold the scaffold" in done.out and "; logp 1 asked" in done.out


def test_embedding_and_evaluation_do_not_ask(run, tmp_path, command) -> None:
    """Whatever its conditions do: here they drown everything else."""
    model, drowned = consilience.load(run), consilience.load(run)
    for weight in drowned.conditioners.parameters():
        weight.data.fill_(7.0)
    records = ["CCO", "CCN"]
    assert np.array_equal(model.embed(records).vectors, drowned.embed(records).vectors)
    said = [one.log_likelihood(records, conditions={"logp": 1.0}).values for one in (model, drowned)]
    assert not np.allclose(*said, atol=0.1), "control"
    lines = []
    for name, one in {"own": model, "drowned": drowned}.items():
        shutil.copytree(run, tmp_path / name)
        one.save(tmp_path / name)
        done = command("evaluate", tmp_path / name, "--loss-records", 20)
        assert done.code == 0, done.err
        lines.append([line for line in done.out.splitlines() if "nats per token" in line])
    assert lines[0] == lines[1] and len(lines[0]) == 1


def test_out_of_range_is_warned_of_once(run, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="consilience"):
        consilience.generate(run, 6, conditions={"logp": 30.0}, batch_size=2)
    (record,) = caplog.records
    assert record.getMessage().startswith("logp = 30 lies outside of what the model was trained on, -")


def test_what_is_refused_is_one_line(run, trained, command, tmp_path, table) -> None:
    out = tmp_path / "a.csv"
    generate = ["generate", run, "--n", 4, "--out", out]
    for words, *named in [
        (["--condition", "tpsa=3"], "not trained with 'tpsa'", "known: logp, qed, size"),
        (["--condition", "logp"], "write NAME=NUMBER", "logp=2.5"),
        (["--condition", "logp=high"], "write NAME=NUMBER"),
        (["--condition", "logp=1", "logp=2"], "asked for twice, 1 and 2"),
        (["--condition", "logp=1", "LogP=2"], "'logp' is asked for twice, as 'logp' and as 'LogP'"),
        (["--condition", "logp=1e30"], "'logp' is 1e+30, more than 1e+06 standard deviations"),
        (["--temperature", "warm"], "--temperature: expected a number, not 'warm'"),
        (["--guidance", "1"], "guidance 1 needs a condition"),
        (["--condition", "logp=1", "--guidance=-1"], "guidance must not be negative"),
    ]:
        shown = command(*generate, *words)
        assert shown.code == 2 and all(text in shown.err for text in named), shown.err
        assert len(shown.err.splitlines()) == 1 and not out.exists()
    shown = command("generate", trained, "--n", 4, "--out", out, "--condition", "logp=1")
    assert shown.code == 2 and "trained on molecules without conditions" in shown.err
    train = ["train", "molecules", "--data", table, "--out", tmp_path / "no", *SMALL, *SHORT]
    for words, *named in [
        (["--condition", "pka"], "no property 'pka'", "it computes logp, qed, tpsa"),
        (["--condition-column", "pIC50"], "no column 'pIC50' of numbers; known: size"),
        (["--condition-column", "batch"], "no column 'batch'"),
        (["--condition", "logp", "--condition-dropout", "1"], "drop_each is a probability"),
        (["--condition-dropout", "0.3"], "--condition-dropout needs --condition"),
        (["--parts", "0.8", "0.1", "0.2"], "the parts 0.8 0.1 0.2 add up to 1.1"),
        (["--parts", "0", "0.5", "0.5"], "leave no record to train on"),
        (["--parts", "a", "b", "c"], "--parts, value 1: expected a number, not 'a'"),
        (
            ["--tokenizer-options.max_length", "long"],
            "max_length must be a whole number, or left out, not 'long'",
        ),
    ]:
        shown = command(*train, *words)
        assert shown.code == 2 and all(text in shown.err for text in named), shown.err
        assert not (tmp_path / "no").exists()
    shown = command("train", "molecules", "points", "--out", tmp_path / "no", "--condition", "logp")
    assert shown.code == 2 and "conditions belong to one science" in shown.err


def test_a_run_goes_on_with_its_own_scales(table, tmp_path, command) -> None:
    folder, whole = tmp_path / "cut", tmp_path / "whole"
    words = ["train", "molecules", "--data", table, "--condition", "logp", "--limit", "200", *SMALL]
    words += ["--training.tokens_per_batch=256", "--training.save_every=2"]
    assert command(*words, "--out", whole, "--training.steps=4").code == 0
    assert command(*words, "--out", folder, "--training.steps=4").code == 0
    (folder / "last.ckpt").unlink()  # as if it had been stopped before its first checkpoint
    shown = command("train", "--resume", "--out", folder, "--condition", "logp", "tpsa")
    assert shown.code == 2 and "was trained with condition ['logp']" in shown.err
    assert command("train", "--resume", "--out", folder).code == 0
    first, second = (consilience.load(path) for path in (whole, folder))
    assert first.conditions == second.conditions and first.conditions
    assert consilience.resume(folder, progress=False).model.conditions == first.conditions


def test_a_token_cache_has_columns_but_no_molecules(table, tmp_path, command) -> None:
    cache = tmp_path / "tokens"
    assert command("tokenize", "molecules", "--data", table, "--out", cache).code == 0
    words = ["train", "molecules", "--data", cache, *SMALL, *SHORT]
    shown = command(*words, "--out", tmp_path / "a", "--condition", "logp")
    assert shown.code == 2 and "holds no records to compute logp from" in shown.err
    for name, data in {"cached": cache, "plain": table}.items():
        done = command(*words[:3], data, *words[4:], "--out", tmp_path / name, "--condition-column", "size")
        assert done.code == 0, done.err
    first, second = (consilience.load(tmp_path / name) for name in ("cached", "plain"))
    assert first.conditions == second.conditions
    assert all((first.state_dict()[k] == v).all() for k, v in second.state_dict().items())


def test_without_conditions_nothing_is_written_of_them(trained) -> None:
    settings = yaml.safe_load((trained / "settings.yaml").read_text())
    assert not [name for name in settings if "condition" in name]
    assert "condition" not in (trained / "config.json").read_text()


def test_every_property_is_computed_and_unreadable_strings_have_none() -> None:
    found = compute(["CCO", "c1ccccc1", "not a molecule"], tuple(COMPUTED))
    assert all(np.isnan(column[2]) and np.isfinite(column[:2]).all() for column in found.values())
    assert found["weight"][0] == pytest.approx(46.07, abs=0.01) and found["rings"].tolist()[:2] == [0, 1]
    assert found["hbd"][0] == 1 and found["tpsa"][0] == pytest.approx(20.23, abs=0.01)


def test_sciences_without_properties_take_columns(files, tmp_path, command) -> None:
    words = ["train", "galaxies", "--data", files["galaxies"], "--objective", "denoising", *SMALL, *SHORT]
    shown = command(*words, "--out", tmp_path / "a", "--condition", "redshift")
    assert shown.code == 2 and "it computes none, and --condition-column takes" in shown.err
    done = command(*words, "--out", tmp_path / "b", "--condition-column", "redshift")
    assert done.code == 0, done.err
    out = tmp_path / "new.npz"
    done = command(
        "generate", tmp_path / "b", "--n", 2, "--out", out, "--condition", "redshift=0.1", "--steps", 2
    )
    assert done.code == 0 and "redshift 0.1 asked (a column" in done.out, done.err
