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
from consilience.domains.labelled_split import Aside, group_split, read_split, split_digest, write_split
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
    back, read, aside = read_split(tmp_path / "split.csv", other, canonical)
    assert split_digest(read, back) == split_digest(split, data) and aside == Aside()
    lines = (tmp_path / "split.csv").read_text().splitlines()
    (tmp_path / "fewer.csv").write_text("\n".join(lines[:1] + lines[2:]))
    back, read, aside = read_split(tmp_path / "fewer.csv", data, canonical)
    assert aside == Aside(unplaced=1) and len(back.collection) == 119
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


# Bad input: one line that names the file, exit code 2, and nothing under the final name.


def refused(result, *said: str) -> None:
    assert result.code == 2 and result.out == "", result
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    for words in said:
        assert words in result.err, result.err


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


TWENTY = "".join(f"{'C' * length}O,{length % 2},{length}\n" for length in range(1, 21))


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        ("", "utf-8", "the file is empty"),
        ("smiles,y,z\n", "utf-8", "there is no row after the header"),
        ("smiles,y,z\nCCO,1,2\n", "utf-8", "column 'y' has 1 different label(s) (1)"),
        (
            "smiles,y,z\nCCO,1,2\nCC,0,1\n",
            "utf-8",
            "2 labelled molecule(s) with 2 scaffold(s) cannot be split",
        ),
        ("smiles,y,z\n" + TWENTY, "utf-16", "is not UTF-8 text"),
        ("smiles,y,ä\n" + TWENTY, "latin-1", "is not UTF-8 text"),
        ("smiles,y\n" + TWENTY, "utf-8", "row 1 has 3 cells, the header 2"),
        ("smiles,y,y\n" + TWENTY, "utf-8", "two columns are called 'y'"),
        ("drawn,y,z\n" + TWENTY, "utf-8", "name it with --smiles-column="),
        ("smiles,z,y\n" + TWENTY + "CCN,1,1e300\n", "utf-8", "row 21 of column 'y' is '1e300'"),
        ("smiles,z,y\n" + TWENTY + "CCN,1,> 5\n", "utf-8", "row 21 of column 'y' is '> 5'"),
        ("z,y,smiles\n" + TWENTY, "utf-8", "column 'smiles' is read as SMILES"),
        ("smiles,y,z\n" + TWENTY.replace(",1,", ",0,", 9), "utf-8", "nothing can be scored"),
    ],
)
def test_a_table_that_cannot_serve(text, encoding, said, command, model, tmp_path) -> None:
    path = table(tmp_path / "bad.csv", text, encoding)
    words = ["--task", path, "--target", "y", "--epochs", "1"]
    refused(command("evaluate", model, *words, "--out", tmp_path / "out"), str(path), said)
    refused(command("finetune", model, *words, "--out", tmp_path / "out"), str(path), said)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.csv"]


def test_places_that_cannot_serve(command, model, file, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    words = ["--task", file, "--target", "rich", "--epochs", "1"]
    for place, said in [("file", "is a file"), ("full", "is not empty"), ("file/a", "cannot be written")]:
        refused(command("finetune", model, *words, "--out", tmp_path / place), said)
    for place, said in [("file", "file"), ("full", "holds no table"), ("file/a", "cannot be written")]:
        refused(command("evaluate", model, *words, "--out", tmp_path / place), said)
    before = (model / "model.safetensors").read_bytes()
    refused(command("finetune", model, *words, "--method=full", "--out", model), "is not empty")
    assert (model / "model.safetensors").read_bytes() == before
    refused(
        command("finetune", model, "--task", tmp_path, "--target", "rich", "--out", tmp_path / "new"),
        "is a folder",
    )
    refused(
        command("finetune", model, *words, "--method", "lorra", "--out", tmp_path / "new"),
        "did you mean 'lora'",
    )
    refused(
        command("finetune", model, *words, "--device", "gpu", "--out", tmp_path / "new"), "use cpu or auto"
    )
    assert not (tmp_path / "new").exists()


def test_what_the_model_cannot_read_is_counted_and_listed(command, model, file, tmp_path) -> None:
    path = changed(file, tmp_path, "a,[Og]C,0.5,1,1", "b,C1CC,0.5,0,1")
    out = tmp_path / "out"
    words = ["--task", path, "--target", "rich", "--rows", "trivial", "frozen", "--out", out]
    done = command("evaluate", model, *words)
    assert done.code == 0, done.err
    found = json.loads((out / "table.json").read_text())
    listed = (out / "molecules.failures.csv").read_text()
    assert found["left_out"]["unreadable"] == 1 and found["unread_by_model"] >= 1
    assert "the model cannot read it: " in listed and "[Og]" in listed and "'C1CC'" in listed
    assert f"the model cannot read {found['unread_by_model']} molecules" in (out / "table.md").read_text()
    alone = table(
        tmp_path / "alone.csv", "smiles,y\n" + "".join(f"[Og]{'C' * n},{n}\n" for n in range(1, 40))
    )
    refused(
        command("evaluate", model, "--task", alone, "--target", "y", "--out", tmp_path / "none"),
        str(alone), "the model cannot read 39 of 39 molecules",
    )  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_rows_of_a_split_that_cannot_be_read_are_set_aside(command, model, file, tmp_path) -> None:
    data = read_labels(file, ["rich"])
    write_split(tmp_path / "split.csv", group_split(data), data)
    with (tmp_path / "split.csv").open("a") as held:
        held.write("train,x,C1CC,\n")
    out, words = tmp_path / "out", ["--task", file, "--target", "rich", "--rows", "trivial"]
    done = command("evaluate", model, *words, "--split", tmp_path / "split.csv", "--out", out)
    assert done.code == 0, done.err
    found = json.loads((out / "table.json").read_text())
    assert found["left_out"]["unreadable in the given split"] == 1 and found["molecules"]["all"] == 120
    assert "row 121 of " in (out / "molecules.failures.csv").read_text()
    (tmp_path / "empty.csv").write_text("")
    for split, said in [("empty.csv", "the file is empty"), (".", "is a folder"), ("no.csv", "no such file")]:
        refused(
            command("evaluate", model, *words, "--split", tmp_path / split, "--out", tmp_path / "b"), said
        )


@pytest.fixture(scope="module")
def tuned(model, file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    assert (
        main(
            ["finetune", str(model), "--task", str(file), "--target", "rich", "--epochs=1", f"--out={folder}"]
        )
        == 0
    )
    return folder


def test_predictions_list_what_has_none_by_its_row(command, tuned, tmp_path) -> None:
    new = table(tmp_path / "new.csv", "id,smiles\na,C1CC\nb,CCO\nc,\nd,[Og]\ne,CCN\n")
    out = tmp_path / "p.csv"
    done = command("predict", tuned, new, "--out", out)
    assert done.code == 0 and "3 could not be read, see " in done.out, done
    assert pd.read_csv(out).id.tolist() == ["b", "e"]
    listed = pd.read_csv(tmp_path / "p.csv.failures.csv")
    assert listed["index"].tolist() == [0, 2, 3] and listed.id.tolist() == ["a", "c", "d"]
    refused(command("predict", tuned, new, "--out", new), "is the input itself")
    assert new.read_text().startswith("id,smiles")
    alone = table(tmp_path / "alone.csv", "id,smiles\na,[Og]\nb,[Og]C\n")
    refused(
        command("predict", tuned, alone, "--out", tmp_path / "q.csv"), "none of 2 molecules", "failures.csv"
    )
    assert not (tmp_path / "q.csv").exists() and len(pd.read_csv(tmp_path / "q.csv.failures.csv")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": []}, "is damaged"),
        ({"targets": ["a", "b"]}, "is damaged"),
        ({"classes": [1]}, "is damaged"),
        ({"classes": {}}, "is damaged"),
        ({"classes": {"rich": ["a"]}}, "is damaged"),
        ({"mean": "x"}, "is damaged"),
        ({"mean": [1.0, 2.0]}, "is damaged"),
        ({"kind": "rank"}, "is damaged"),
        ({"base": "x"}, "is damaged"),
        ({"format": 9}, "another version"),
        ({"domain": "cells"}, "knows molecules, not 'cells'"),
        ({"base": {"folder": "/nowhere/a", "sha256": "0"}}, "say where it is with --base"),
    ],
)
def test_a_spoiled_description_of_a_fine_tuned_model(change, said, command, tuned, file, tmp_path) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(tuned, folder)
    about = json.loads((folder / "property.json").read_text())
    (folder / "property.json").write_text(json.dumps(about | change))
    refused(command("predict", folder, file, "--out", tmp_path / "p.csv"), said)
    assert not (tmp_path / "p.csv").exists()


def test_adapters_are_no_model_and_a_whole_model_has_no_base(command, model, tuned, file, tmp_path) -> None:
    refused(
        command("embed", tuned, file, "--out", tmp_path / "e.parquet"), "they are for `consilience predict`"
    )
    refused(
        command("predict", tuned, file, "--out", tmp_path / "p.csv", "--base", tmp_path / "no"),
        f"there is no base model at {tmp_path / 'no'}",
    )
    refused(
        command("predict", file, file, "--out", tmp_path / "p.csv"),
        "give the folder that `consilience finetune",
    )
    words = [
        "--task",
        file,
        "--target",
        "rich",
        "--epochs",
        "1",
        "--method",
        "full",
        "--out",
        tmp_path / "full",
    ]
    assert command("finetune", model, *words).code == 0
    refused(
        command("predict", tmp_path / "full", file, "--out", tmp_path / "p.csv", "--base", model),
        "needs no base",
    )


def test_a_fine_tuning_that_is_stopped_leaves_no_folder(command, model, file, tmp_path, monkeypatch) -> None:
    from consilience.properties import tuned as on_disk

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    words = ["finetune", model, "--task", file, "--target", "rich", "--epochs", "1", "--out", out]
    for place, name in [("consilience.domains.finetuning", "tune"), (on_disk.__name__, "replace_text")]:
        with monkeypatch.context() as patched:
            patched.setattr(f"{place}.{name}", stop)
            shown = command(*words)
        assert shown.code == 130 and "interrupted; nothing was written" in shown.err
        assert not list(tmp_path.iterdir())
    assert command(*words).code == 0 and (out / "property.json").is_file()
