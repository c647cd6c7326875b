"""A table of one's own molecules: reading it, its split, every row, going on after a stop, fine-tuning, predicting."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from consilience.cli import main
from consilience.commands.models import load
from consilience.core.errors import ConsilienceError
from consilience.core.lora import adapter_state, merge_adapters
from consilience.core.records import take_records
from consilience.domains.finetuning import PropertyTarget, tune
from consilience.domains.label_readouts import check_labels
from consilience.domains.labelled import LabelledTable
from consilience.domains.labelled_split import group_split, read_split, split_digest, write_split
from consilience.domains.molecules.labels import read_labels
from consilience.properties import table as tables
from consilience.properties.question import ROWS
from consilience.properties.scores import score
from consilience.tokenizers.molecule_notation import canonical

pytest.importorskip("peft")
QUICK = ["--seeds", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def molecules() -> pd.DataFrame:
    """120 bundled molecules: logP, whether it is high ("rich" in carbon), and whether there is a nitrogen."""
    from consilience.domains.molecules.domain import DOMAIN

    bundled = DOMAIN.bundled().take(np.arange(0, 360, 3))
    count = np.array([sum(letter in "nN" for letter in smiles) for smiles in bundled.records])
    columns = {"name": bundled.ids, "smiles": bundled.records, "logP": bundled.labels["logP"]}
    return pd.DataFrame(
        columns | {"rich": np.where(columns["logP"] > 2, 1, 0), "half": np.where(count >= 1, 1, 0)}
    )


@pytest.fixture(scope="module")
def file(molecules, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "mine.csv"
    molecules.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    words = "--training.steps=5 --training.tokens_per_batch=512 --training.validations=1 --limit=200"
    core = "--core.width=32 --core.depth=2 --core.heads=4"
    assert main(["train", "molecules", f"--out={folder}", *words.split(), *core.split()]) == 0
    return folder


def changed(file: Path, tmp_path: Path, *rows: str) -> Path:
    """The file with these lines after its own."""
    path = tmp_path / "changed.csv"
    path.write_text(file.read_text() + "".join(f"{row}\n" for row in rows))
    return path


def replace_test_labels(data: LabelledTable) -> np.ndarray:
    """The labels with one class alone in the test part."""
    labels = data.labels.copy()
    labels[group_split(data).test] = 1.0
    return labels


def test_rows_that_cannot_be_used_are_named(file, molecules, tmp_path) -> None:
    first, second = molecules.smiles[:2]
    data = read_labels(
        changed(
            file, tmp_path, "a,C1CC,0.5,1,1", f"b,{first},{molecules.logP[0]},{molecules.rich[0]},0",
            f"c,{second},99,1,1", "d,CCO,,,",
        ),
        ["logP"],
    )  # fmt: skip
    reasons = "\n".join(failure.reason for failure in data.collection.failures)
    assert "row 121: RDKit cannot read 'C1CC'" in reasons
    assert "row 122 is the same molecule as row 1" in reasons
    assert "rows 2, 123 are one molecule with different labels of 'logP'" in reasons
    assert len(data.collection) == 119 and data.left_out["without a label"] == 1
    assert not {"CCO"} & set(data.collection.records)
    assert data.kind == "regression" and not data.classes


def test_kinds_come_from_the_labels(file, molecules, tmp_path) -> None:
    assert read_labels(file, ["rich"]).kind == "classification"
    assert read_labels(file, ["rich"], kind="regression").kind == "regression"
    text = tmp_path / "text.csv"
    molecules.assign(rich=np.where(molecules.rich == 1, "yes", "no")).to_csv(text, index=False)
    named, plain = read_labels(text, ["rich"]), read_labels(file, ["rich"])
    assert named.classes == {"rich": ("no", "yes")} and plain.classes == {"rich": ("0", "1")}
    assert (named.labels == plain.labels).all()
    with pytest.raises(ConsilienceError, match=r"there is no label column 'ricj'.*logP, rich, half"):
        read_labels(file, ["ricj"])
    one_class = replace_test_labels(plain)
    with pytest.raises(ConsilienceError, match="nothing can be scored"):
        check_labels(one_class, ("rich",), group_split(plain), "classification")
    with pytest.raises(ConsilienceError, match="different kinds"):
        read_labels(file, ["rich", "logP"])
    with pytest.raises(ConsilienceError, match="not two classes"):
        read_labels(file, ["logP"], kind="classification")


def test_the_split_does_not_depend_on_the_order_of_rows(file, molecules, tmp_path) -> None:
    data = read_labels(file, ["logP"])
    split = group_split(data)
    shuffled = tmp_path / "shuffled.csv"
    molecules.sample(frac=1, random_state=1).to_csv(shuffled, index=False)
    other = read_labels(shuffled, ["logP"])
    assert split_digest(group_split(other), other) == split_digest(split, data)
    groups = [set(data.collection.group_of[index]) for index in split.parts().values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    write_split(tmp_path / "split.csv", split, data)
    back, read, unplaced = read_split(tmp_path / "split.csv", other, canonical)
    assert split_digest(read, back) == split_digest(split, data) and unplaced == 0
    lines = (tmp_path / "split.csv").read_text().splitlines()
    (tmp_path / "fewer.csv").write_text("\n".join(lines[:1] + lines[2:]))
    back, read, unplaced = read_split(tmp_path / "fewer.csv", data, canonical)
    assert unplaced == 1 and len(back.collection) == 119
    assert split_digest(read, back) != split_digest(split, data)
    (tmp_path / "wrong.csv").write_text("part,smiles\ntrain,CCO\nlast,CCC\n")
    with pytest.raises(ConsilienceError, match="row 2 is in part 'last'"):
        read_split(tmp_path / "wrong.csv", data, canonical)


def test_every_row_once_and_then_from_its_file(command, model, file, tmp_path, monkeypatch) -> None:
    out = tmp_path / "table"
    words = ["evaluate", model, "--task", file, "--target", "rich", *QUICK, "--out", out]
    done = command(*words)
    assert done.code == 0, done.err
    found = json.loads((out / "table.json").read_text())
    assert [row["row"] for row in found["rows"]] == list(ROWS)
    by_name = {row["row"]: row for row in found["rows"]}
    assert by_name["trivial"]["metrics"]["roc_auc"]["value"] == 0.5
    assert len(by_name["lora"]["per_seed"]) == 2 and by_name["linear"]["chosen"] == []
    assert by_name["forest"]["metrics"]["roc_auc"]["value"] > 0.6
    assert all(
        0 <= row["metrics"]["roc_auc"]["low"] <= row["metrics"]["roc_auc"]["high"] <= 1
        for row in found["rows"]
    )
    assert found["split"] in (out / "table.md").read_text() and len(found["split"]) == 64

    def fail(*_: object) -> None:
        raise AssertionError("a finished row was computed again")

    monkeypatch.setattr(tables, "predict_row", fail)
    assert command(*words).code == 0
    assert json.loads((out / "table.json").read_text()) == found
    with pytest.raises(AssertionError, match="computed again"):  # another question
        command(*words, "--rows", "forest", "--seeds", "1")
    (out / "rows" / "trivial.npz").write_bytes(b"cut off")
    with pytest.raises(AssertionError, match="computed again"):
        command(*words, "--rows", "trivial")


def test_the_options_of_a_task_are_told_apart(command, model, file) -> None:
    assert "--target needs --task" in command("evaluate", model, "--target", "rich").err
    assert (
        "--limit is for the data of the run" in command("evaluate", model, "--task", file, "--limit", 5).err
    )
    missing = command("evaluate", model, "--task", file)
    assert missing.code == 2 and "name, smiles, logP, rich, half" in missing.err
    assert (
        "there is no 'forrest'; did you mean 'forest'"
        in command("evaluate", model, "--task", file, "--target", "rich", "--rows", "forrest").err
    )


def test_lora_trains_adapters_alone_and_merges(model, file) -> None:
    from consilience import registry
    from consilience.properties.question import ask

    base = load(model)
    question = ask(base, model, registry.domain("molecules"), file, ["logP"])
    prepared, _ = question.readable()
    options = {"learning_rate": 1e-2, "epochs": 3}
    tuned = tune(prepared, ["logP"], "regression", base, "lora", **options)
    ours = {
        name.replace(".base_layer", ""): tensor for name, tensor in tuned.headed.model.state_dict().items()
    }
    assert all(torch.equal(ours[name], tensor) for name, tensor in base.state_dict().items())
    assert tuned.epoch > 0 and all(
        tensor.abs().max() > 0 for tensor in adapter_state(tuned.headed.model.core).values()
    )
    records = take_records(prepared.collection.records, prepared.split.test)
    before = tuned.predict(records)
    merge_adapters(tuned.headed.model.core)
    assert np.allclose(tuned.predict(records), before, atol=1e-5 * tuned.target.spread.max())
    full = tune(prepared, ["logP"], "regression", base, "full", **options)
    assert not torch.equal(full.headed.model.core.norm, base.core.norm)
    # Labels of the test part have no part in anything.
    collection = prepared.collection
    collection.labels["logP"][prepared.split.test] += 100
    again = tune(prepared, ["logP"], "regression", base, "full", **options)
    assert np.array_equal(again.predict(records), full.predict(records))


def test_unknown_labels_have_no_part_in_the_loss() -> None:
    labels = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 9.0]])
    target = PropertyTarget.of(labels, "regression")
    assert target.mean.tolist() == [2.0, 7.0]
    outputs, wanted = torch.zeros(3, 2), target.encode(labels)
    loss = target.loss(outputs, wanted)
    assert float(loss) == 1.0  # four known labels, each a standard deviation away
    outputs[0, 1] = outputs[2, 0] = 50.0
    assert target.loss(outputs, wanted) == loss
    assert np.allclose(target.decode(target.encode(labels))[1], labels[1])


def test_the_mean_over_targets_leaves_out_one_without_both_classes() -> None:
    truth = np.array([[1.0, 1], [0, 1], [1, np.nan], [0, 1]])
    predicted = np.array([[[0.9, 0.2], [0.1, 0.3], [0.8, 0.1], [0.2, 0.4]]])
    found = score("classification", truth, np.arange(4), predicted, draws=50)
    assert found.value("roc_auc") == 1.0 and np.isnan(found.per_target("roc_auc")[1])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fine_tuned_folder_predicts(command, model, file, molecules, method, tmp_path) -> None:
    base, out = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(model, base)
    words = ["finetune", base, "--task", file, "--target", "rich", "half", "--method", method, "--epochs", 2]
    done = command(*words, "--out", out)
    assert done.code == 0 and "roc_auc" in done.out, done.err
    small = method == "lora"
    assert (out / "model.safetensors").exists() != small
    assert (
        not small or (out / "tuned.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size
    )
    new = tmp_path / "new.csv"
    new.write_text("id,smiles\nx,CCN\ny,C1CC\nz,NCCN\n")
    done = command("predict", out, new, "--out", tmp_path / "predictions.csv")
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "predictions.csv")
    assert list(found) == [
        "id", "smiles", "prediction_rich", "probability_rich", "prediction_half", "probability_half"
    ]  # fmt: skip
    assert found.id.tolist() == ["x", "z"] and found.probability_rich.between(0, 1).all()
    assert ((found.probability_rich >= 0.5) == (found.prediction_rich == 1)).all()
    assert "C1CC" in (tmp_path / "predictions.csv.failures.csv").read_text()
    if small:
        base.rename(tmp_path / "moved")
        assert "--base" in command("predict", out, new, "--out", tmp_path / "p.csv").err
        again = command("predict", out, new, "--out", tmp_path / "p.csv", "--base", tmp_path / "moved")
        assert again.code == 0 and pd.read_csv(tmp_path / "p.csv").equals(found)
        weights = tmp_path / "moved" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        assert (
            "other weights"
            in command("predict", out, new, "--out", tmp_path / "q.csv", "--base", weights.parent).err
        )


def test_the_page_works_as_printed(molecules, tmp_path, monkeypatch) -> None:
    import re
    import shlex

    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    (block,) = re.findall(r"^```bash\n(.*?)^```$", page, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    molecules.rename(columns={"rich": "active"}).to_csv("mine.csv", index=False)
    molecules[["name", "smiles"]].head(5).to_csv("new.csv", index=False)
    small = {
        "train": "--training.steps 3 --training.tokens_per_batch 512 --training.validations 1 --core.width 16 "
        "--core.depth 1 --core.heads 2 --limit 80",
        "evaluate": "--seeds 1 --epochs 1",
        "finetune": "--epochs 1",
        "predict": "",
    }
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[0] == "consilience"
        assert main([*words[1:], *small[words[1]].split()]) == 0, line
        assert "--out" not in words or Path(words[words.index("--out") + 1]).exists()
    assert list(pd.read_csv("predictions.csv")) == ["id", "smiles", "prediction", "probability"]
    first, second = (
        json.loads(path.read_text())["split"] for path in sorted(Path("runs").rglob("table.json"))
    )
    assert first == second  # the split that was taken back is the one that was written
