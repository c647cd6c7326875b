"""`consilience benchmark`: a small data set with the file names of MOSES, from the command line to the files."""

import gzip
import json
from pathlib import Path

import pytest

import consilience
from consilience import datasets

TRAIN = ["CCO", "c1ccc(-c2ccccc2)cc1", "CC(=O)Nc1ccccc1"]
TEST = ["Oc1ccccc1-c1cccc2cnccc12", "COc1cccc(NC(=O)Cc2coc3ccc(OC)cc23)c1", "CC(=O)NCc1ccc2ccccc2c1"]


@pytest.fixture
def fetched(tmp_path, monkeypatch) -> list[str]:
    """Stands for the fetched set; holds the names that were asked for."""
    folder, asked = tmp_path / "moses", []
    folder.mkdir()
    for name, smiles in (("train", TRAIN), ("test", TEST), ("test_scaffolds", TEST[::-1])):
        text = "\n".join(["SMILES", *smiles]) + "\n"
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "mcf.csv").write_text("names,smarts\nMCF1,[#6]1-[#8]-[#6]-1\n")
    (folder / "wehi_pains.csv").write_text('"c:1:c:c:c:c:c1-[#7]=[#7]"  ,"<regId=azo>"\n')

    def fetch(name: str, **options: object) -> Path:
        asked.append(name)
        return folder

    monkeypatch.setattr(datasets, "fetch", fetch)
    monkeypatch.setenv("CONSILIENCE_CACHE", str(tmp_path / "cache"))
    return asked


@pytest.fixture
def made(tmp_path) -> list[Path]:
    """Two seeds of a model that writes test molecules, one training molecule and some nonsense."""
    paths = [tmp_path / f"seed{i}.smi" for i in range(2)]
    paths[0].write_text("\n".join([*TEST, "CCO", "C(C"]) + "\n")
    paths[1].write_text("\n".join([*TEST, "C(C", "C(C"]) + "\n")
    return paths


def test_one_file(fetched, made, tmp_path, command) -> None:
    shown = command("benchmark", "moses", made[0], "--out", tmp_path / "r.json")
    assert shown.code == 0, shown.err
    held = json.loads((tmp_path / "r.json").read_text())
    (run,) = held["runs"]
    assert run["generated"] == 5 and run["values"]["valid"] == 0.8 and run["values"]["Novelty"] == 0.75
    assert run["values"]["SNN/Test"] < 1 and run["values"]["FCD/Test"] > 0 and held["deviation"] is None
    assert held["versions"].keys() == {"rdkit", "fcd_torch"}
    for word in ("seed0.smi", "JTN-VAE", "0.9143", "±0.0058", "Wasserstein", "molecularsets/moses"):
        assert word in shown.out
    assert fetched == ["moses"]
    kept = list((tmp_path / "cache/benchmarks/moses").glob("*.npz"))
    assert len(kept) == 4


def test_several_files_are_seeds(fetched, made, tmp_path, command) -> None:
    shown = command("benchmark", "moses", *made, "--fcd", "false", "--out", tmp_path / "r.csv")
    assert shown.code == 0, shown.err
    assert "2 files, 10 generated" in shown.out and "0.7000" in shown.out and "±0.1414" in shown.out
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert lines[1].startswith(f"{made[0]},run,0.8,") and ",nan," in lines[1]


def test_in_python(fetched, made) -> None:
    found = consilience.benchmark("moses", made[0], fcd=False)
    assert found.mean["valid"] == 0.8 and found.rows("mine")[0].model == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["guacamol", "SEED"], "unknown benchmark 'guacamol'; known: moses"),
        (["moses", "none.smi"], "none.smi: no such file"),
        (["moses", "SEED", "--out", "r.xlsx"], "r.xlsx: results are written as .json or .csv"),
        (["moses", "SEED", "--processes", "0"], "processes must be at least 1, not 0"),
        (["moses", "SEED", "--device", "tpu7"], "device 'tpu7' cannot be used here"),
        (["moses"], "FILES must be given"),
    ],
)
def test_bad_input_is_told_before_anything_is_fetched(words, message, fetched, made, command) -> None:
    shown = command("benchmark", *(made[0] if word == "SEED" else word for word in words))
    assert shown.code == 2 and message in shown.err and shown.err.count("\n") == 1
    assert not fetched
