"""Every bad input is one clear line, exit code 2 and no traceback; nothing that is done already is lost."""

import json
import shutil

import numpy as np
import pytest
import torch


def check(result, *said: str) -> None:
    assert result.code == 2, result
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err and result.out == ""
    for words in said:
        assert words in result.err, result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'"]),
        (["train", "cels", "--out=x"], ["unknown domain 'cels'", "did you mean 'cells'"]),
        (["train", "molecules", "--out=x", "--objective=maskd"], ["unknown objective", "'masked'"]),
        (["train", "molecules", "--out=x", "--stepz=3"], ["--stepz", "did you mean --training.steps?"]),
        (["train", "molecules", "--out=x", "--core.wdth=3"], ["--core.wdth", "--core.width"]),
        (
            ["train", "molecules", "--out=x", "--core.width=wide"],
            ["--core.width", "a whole number", "'wide'"],
        ),
        (["train", "molecules", "--out=x", "--core.width=15"], ["width 15", "heads 4"]),
        (["train", "molecules", "--out=x", "--training.steps=0"], ["training.steps must be positive"]),
        (
            ["train", "molecules", "--out=x", "--training.optimizer=adam"],
            ["optimizer", "did you mean 'adamw'"],
        ),
        (["train", "molecules"], ["--out"]),
        (["train", "--out=x"], ["name a science", "galaxies"]),
        (["train", "molecules", "molecules", "--out=x"], ["twice"]),
        (["train", "cells", "points", "--out=x", "--data=a.h5ad"], ["a.h5ad", "several sciences"]),
        (["train", "cells", "--out=x", "--data=cell=a.h5ad"], ["'cell'", "did you mean 'cells'"]),
        (["train", "molecules", "--out=x", "--objective-options.rat=1"], ["'rat'", "did you mean 'rate'"]),
        (["train", "molecules", "--out=x", "--objective-options.rate=2"], ["rate must lie in (0, 1]"]),
        (["train", "molecules", "--out=x", "--objective-options.rate=much"], ["masked", "much"]),
        (["train", "molecules", "--out=x", "--limit=0"], ["limit"]),
        (["train", "molecules", "--out=x", "--init-core=nowhere"], ["no model at nowhere"]),
        (["train", "molecules", "--out=x", "--training.seed=-1"], ["seed must lie in 0 to"]),
        (["train", "molecules", "--out=nowhere", "--resume"], ["no model at nowhere"]),
        (["train", "molecules", "--out=x", "--config=nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["train", "molecules", "--out=x", "surplus=1"], ["surplus=1"]),
        (["train", "molecules", "--out=x", "--data=nowhere.smi"], ["nowhere.smi", "no such file"]),
        (["train", "points", "--out=x", "--data=nowhere.xyz"], ["nowhere.xyz", "no such file"]),
        (["train", "galaxies", "--out=x", "--data=nowhere.fits"], ["nowhere.fits", "no such file"]),
        (["train", "cells", "--out=x", "--data=nowhere.h5ad"], ["nowhere.h5ad does not exist"]),
        (["train", "points", "--out=x", "--data=qm9"], ["consilience data fetch qm9"]),
        (["embed", "nowhere", "a.smi", "--out=b.parquet"], ["no model at nowhere"]),
        (["embed", "nowhere", "a.smi"], ["--out"]),
        (["generate", "nowhere", "--n=0", "--out=a.smi"], ["n must be at least 1"]),
        (["evaluate", "nowhere"], ["no model at nowhere"]),
        (["data", "fetsch"], ["fetsch", "fetch"]),
        (["data", "fetch"], ["fetch what", "moses"]),
        (["data", "fetch", "mosses"], ["did you mean 'moses'"]),
        (["tokens", "molecule", "CCO"], ["did you mean 'molecules'"]),
        (["tokens", "molecules", "nonsense"], ["nonsense"]),
        (["tokens", "molecules", "CCO", "--tokenizer-options.maxlength=9"], ["maxlength", "max_length"]),
        (
            ["tokens", "molecules", "CCO", "--tokenizer-options.max_length=long"],
            ["molecules: max_length must be a whole number, or left out, not 'long'"],
        ),
        (["study", "--preset=quik"], ["quik", "quick"]),
        (["study", "--data=nowhere", "--out=x", "--dry-run"], ["nowhere: the folder of data does not exist"]),
        (["study", "--data=nowhere", "--out=x"], ["nowhere: the folder of data does not exist"]),
        (["study", "--jobs=0", "--out=x", "--dry-run"], ["jobs must be at least 1"]),
        (["study", "--jobs=0", "--out=x"], ["jobs must be at least 1"]),
        (["study", "--report-only", "--out=x"], ["x holds no study to report on"]),
    ],
)
def test_words(words, said, command, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSILIENCE_CACHE", str(tmp_path / "cache"))
    check(command(*words), *said)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["a.h5ad", "a.fits", "a.npz", "a.smi", "a.xyz", "a.sdf"])
def test_empty_file(name, tmp_path, command) -> None:
    sciences = {"h5ad": "cells", "fits": "galaxies", "npz": "galaxies", "smi": "molecules"}
    (tmp_path / name).write_bytes(b"")
    check(command("tokens", sciences.get(name[2:], "points"), tmp_path / name), name)


def points(path, *frames: str) -> None:
    path.write_text("".join(f"{len(f.splitlines())}\n\n{f}\n" for f in frames))


def bad_records(write, folder) -> dict[str, tuple[str, object, str]]:
    """Case -> (science, file that holds nothing else, what the message says)."""
    grid = np.linspace(4000.0, 8000.0, 96)
    one = np.ones((1, 96), np.float32)
    (folder / "unparsable.smi").write_text("C1CC\n")
    points(folder / "atom.xyz", "C 0 0 0")
    (folder / "blank.xyz").write_text("\n\n")
    points(folder / "twice.xyz", "C 0 0 0\nO 1 1 1\nN 0 0 0")
    return {
        "no counts": ("cells", write.cells(folder / "zero.h5ad", counts=np.zeros((2, 5))), "counts"),
        "negative": ("cells", write.cells(folder / "neg.h5ad", counts=np.full((2, 5), -1)), "neg.h5ad"),
        "fractions": ("cells", write.cells(folder / "frac.h5ad", counts=np.full((2, 5), 1.5)), "frac.h5ad"),
        "all NaN": ("galaxies", write.spectra(folder / "nan.npz", 1, flux=one * np.nan), "NaN"),
        "no weight": ("galaxies", write.spectra(folder / "ivar.npz", 1, flux=one, ivar=one * 0), "ivar"),
        "grid": (
            "galaxies",
            write.spectra(folder / "grid.npz", 1, flux=one, wavelength=grid[::-1]),
            "increas",
        ),
        "unit": (
            "galaxies",
            write.spectra(folder / "um.npz", 1, flux=one, wavelength=grid / 1e4),
            "wavelength_unit",
        ),
        "unparsable": ("molecules", folder / "unparsable.smi", "C1CC"),
        "one atom": ("points", folder / "atom.xyz", "atom.xyz"),
        "same place": ("points", folder / "twice.xyz", "place"),
        "blank": ("points", folder / "blank.xyz", "the file is empty; it holds no point cloud"),
    }


CASES = [
    "no counts",
    "negative",
    "fractions",
    "all NaN",
    "no weight",
    "grid",
    "unit",
    "unparsable",
    "one atom",
    "same place",
    "blank",
]


@pytest.mark.parametrize("case", CASES)
def test_a_file_without_a_usable_record(case, write, tmp_path, command) -> None:
    science, path, said = bad_records(write, tmp_path)[case]
    check(command("tokens", science, path), said)


def test_unknown_symbol(trained, command) -> None:
    check(command("tokens", "molecules", "[Pu]", "--model", trained), "[Pu]")


def test_no_gene_of_the_vocabulary(write, files, tiny, tmp_path, command) -> None:
    assert command("train", "cells", f"--data={files['cells']}", f"--out={tmp_path / 'run'}", *tiny).code == 0
    other = write.cells(tmp_path / "other.h5ad", gene="OTHER")
    check(command("embed", tmp_path / "run", other, "--out", tmp_path / "e.h5ad"), "vocabulary")
    assert not (tmp_path / "e.h5ad").exists()


def test_nothing_embeddable_still_lists_the_failures(trained, tmp_path, command) -> None:
    (tmp_path / "bad.smi").write_text("[Pu] a\n[Pu] b\n")
    out = tmp_path / "bad.parquet"
    check(command("embed", trained, tmp_path / "bad.smi", "--out", out), "[Pu]", "failures.csv")
    assert not out.exists() and (tmp_path / "bad.parquet.failures.csv").read_text().count("[Pu]") > 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:99]),
            "truncated",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:99]), "truncated"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text('{"architectures": ["BertModel"]}'), "another library"),
        (lambda f: edit(f, core={"width": 8}), "config.json asks for"),
        (lambda f: edit(f, core={"depths": 3}), "not a consilience model"),
        (lambda f: edit(f, format=99), "format 99"),
        (lambda f: edit(f, domains=[1]), "not a consilience model"),
    ],
)
def test_checkpoint(spoil, said, trained, files, tiny, tmp_path, command) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    spoil(folder)
    out = tmp_path / "e.parquet"
    check(command("embed", folder, files["molecules"], "--out", out), said)
    assert not out.exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"nothing"), "truncated"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: edit(f, core={"width": 8, "heads": 2}), "has width 8, this one 16"),
        (lambda f: edit(f, core={"depths": 3}), "not a consilience model"),
    ],
)
def test_core_to_start_from(spoil, said, trained, files, tiny, tmp_path, command) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    spoil(folder)
    words = ["train", "points", f"--data={files['points']}", "--out", tmp_path / "new", *tiny]
    check(command(*words, "--init-core", folder), said)
    assert not (tmp_path / "new").exists()


def edit(folder, **changed) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name, value in changed.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("foreign", [False, True])
def test_spoiled_last_checkpoint(foreign, trained, tmp_path, command) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    if foreign:
        torch.save({"weights": torch.zeros(2)}, folder / "last.ckpt")
    else:
        (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:999])
    check(command("train", "--out", folder, "--resume"), "last.ckpt", "train again")


def test_out_folder_in_use(trained, files, tiny, command) -> None:
    before = (trained / "model.safetensors").read_bytes()
    words = ["train", "molecules", f"--data={files['molecules']}", "--out", trained, *tiny]
    check(command(*words), "not empty", "--resume")
    assert (trained / "model.safetensors").read_bytes() == before


def test_targets_are_tried_before_the_work(trained, files, tmp_path, command, monkeypatch) -> None:
    from consilience.core.model import FoundationModel

    monkeypatch.setattr(FoundationModel, "embed", lambda *args, **kwargs: pytest.fail("worked for nothing"))
    check(command("embed", trained, files["molecules"], "--out", tmp_path / "e.h5ad"), "e.h5ad", ".parquet")
    (tmp_path / "e.parquet").mkdir()
    check(command("embed", trained, files["molecules"], "--out", tmp_path / "e.parquet"), "folder")
    check(command("generate", trained, "--n=500", "--out", tmp_path / "g.xyz"), "g.xyz", ".smi")
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_embedding_never_replaces_its_input(files, tiny, tmp_path, command) -> None:
    own = tmp_path / "cells.h5ad"
    shutil.copy(files["cells"], own)
    assert command("train", "cells", f"--data={own}", f"--out={tmp_path / 'run'}", *tiny).code == 0
    before = own.read_bytes()
    check(command("embed", tmp_path / "run", own, "--out", own), "input itself")
    assert own.read_bytes() == before


def test_a_pattern_is_embedded_onto_an_old_output(write, files, tiny, tmp_path, command) -> None:
    run, out = tmp_path / "run", tmp_path / "e.parquet"
    assert command("train", "galaxies", f"--data={files['galaxies']}", f"--out={run}", *tiny).code == 0
    for name in ("s_1.npz", "s_2.npz"):
        write.spectra(tmp_path / name, 2)
    for _ in range(2):
        done = command("embed", run, tmp_path / "s_*.npz", "--out", out)
        assert done.code == 0 and "4 records" in done.out
    far = write.spectra(tmp_path / "far.npz", 2, wavelength=np.linspace(1e4, 2e4, 96))
    assert "lie wholly outside of 4000 to 8000 Å" in command("embed", run, far, "--out", out).err


def test_an_old_output_survives_a_failed_write(trained, files, tmp_path, command, monkeypatch) -> None:
    from consilience.domains.molecules import writers

    out = tmp_path / "g.smi"
    assert command("generate", trained, "--n=2", "--out", out).code == 0
    before, calls = out.read_bytes(), []

    def fail_later(records, path, columns=None):
        calls.append(path)
        path.write_text("half")
        if len(calls) > 1:
            raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(writers, "write_records", fail_later)
    check(command("generate", trained, "--n=3", "--out", out), "No space left on device")
    assert out.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["g.smi"]


def test_denoising_of_symbols(files, tiny, tmp_path, command) -> None:
    words = ["train", "molecules", f"--data={files['molecules']}", "--out", tmp_path / "run", *tiny]
    check(command(*words, "--objective=denoising"), "masked-diffusion")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--debug", "evaluate", "nowhere"], ["evaluate", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(words, command) -> None:
    shown = command(*words)
    assert shown.code == 2 and "Traceback" in shown.err and "error: no model at nowhere" in shown.err


def test_ctrl_c_outside_training(command, monkeypatch, trained, files, tmp_path) -> None:
    from consilience.core.model import FoundationModel

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(FoundationModel, "embed", stop)
    shown = command("embed", trained, files["molecules"], "--out", tmp_path / "e.parquet")
    assert shown.code == 130 and shown.err.splitlines()[-1] == "interrupted; nothing was written"
    assert not list(tmp_path.iterdir())
