"""The README works as printed: its commands, its Python, its science and its objective.

Commands run in the order of the page in one folder. Training commands get small sizes appended, so that they take
seconds; nothing else about a command is changed. `make` is not run here (the tests themselves run under it).
"""

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from consilience.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

TINY = shlex.split(
    "--training.steps 3 --training.tokens_per_batch 512 --training.validations 1 "
    "--core.width 16 --core.depth 1 --core.heads 2"
)
"""Appended to training commands; later options beat earlier ones."""

FEW = ["--limit", "80"]
"""Appended to training commands on bundled data; a token cache was cut when it was written."""

AS_PROCESS = "consilience tokens molecules"
"""The command that is run through the installed script; others of `consilience` run in this process, to save time."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the section it stands in, its language, the text before it in the section, and its lines."""

    section: str
    language: str
    before: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines of a bash block without their comments."""
        lines = [" ".join(shlex.split(line, comments=True)) and line for line in self.text.splitlines()]
        return [line for line in lines if line]


def blocks() -> Iterator[Block]:
    for part in re.split(r"^## ", README, flags=re.M)[1:]:
        section = part.partition("\n")[0]
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", part, flags=re.M | re.S):
            yield Block(section, match[1], part[: match.start()], match[2])


BASH = [block for block in blocks() if block.language == "bash"]
PYTHON = {block.section: block for block in blocks() if block.language == "python"}
INLINE = [" ".join(found.split()) for found in re.findall(r"`(consilience [^`]+)`", README)]


def run(command: str, folder: Path) -> None:
    """Run one command of the page in a folder; fails with what it printed."""
    words = shlex.split(command, comments=True)
    extra = [*TINY, *([] if "--data" in words else FEW)] if "train" in words else []
    if words[:2] == ["python", "-m"] and words[2].partition(".")[0] == "consilience":
        as_process([sys.executable, *words[1:], *extra], folder)
    elif command.startswith(AS_PROCESS):
        as_process([str(Path(sys.executable).parent / "consilience"), *words[1:], *extra], folder)
    elif words[0] == "consilience":
        with contextlib.chdir(folder):
            code = main([*words[1:], *extra])
        assert code == 0, f"exit code {code} of: {command}"
    else:
        raise AssertionError(f"a command that this test does not know: {command}")
    if "--out" in words:
        assert (folder / words[words.index("--out") + 1]).exists(), f"nothing written by: {command}"


def as_process(words: list[str], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"exit code {done.returncode} of {shlex.join(words)}\n{done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the reader of the page sits; the files that the page tells to save lie in it."""
    place = tmp_path_factory.mktemp("reader")
    for block in PYTHON.values():
        named = re.search(r"Save it\s+as\s+`(\w+\.py)`", block.before)
        if named:
            (place / named[1]).write_text(block.text)
    return place


@pytest.mark.parametrize("block", [b for b in BASH if not b.text.startswith("make")], ids=lambda b: b.section)
def test_commands(block, folder) -> None:
    for command in block.commands:
        run(command, folder)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [
        command.split()[1] for block in BASH for command in block.commands if command.startswith("make ")
    ]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


def test_commands_write_what_the_page_says(folder) -> None:
    import anndata

    assert "X_consilience" in anndata.read_h5ad(folder / "cells.h5ad").obsm
    assert len((folder / "new.smi").read_text().splitlines()) == 100
    assert {"model.safetensors", "config.json", "README.md"} <= {
        p.name for p in (folder / "runs/cells").iterdir()
    }
    assert (folder / "runs/molecules/evaluation.json").exists() and (folder / "new.xyz").stat().st_size


def test_own_cells(folder) -> None:
    """What the page says of a file of one's own, with some of the bundled cells as that file."""
    import anndata
    import pandas as pd

    from consilience.domains.cells.data import bundled

    cells = bundled().take(range(100))
    var = pd.DataFrame(index=cells.records.genes)
    obs = pd.DataFrame({"cell_type": cells.labels["cell_type"]}, index=cells.ids)
    anndata.AnnData(X=cells.records.counts, obs=obs, var=var).write_h5ad(folder / "my.h5ad")
    (embedding,) = [command for command in INLINE if "my.h5ad" in command]
    run(embedding, folder)
    assert anndata.read_h5ad(folder / "mine.h5ad").obsm["X_consilience"].shape[0] == 100
    for option in ("--data my.h5ad", "--tokenizer-options '{view: ranks}'"):
        assert f"`{option}`" in README
    run("consilience train cells --data my.h5ad --tokenizer-options '{view: ranks}' --out runs/ranks", folder)


def test_python(folder, monkeypatch, capsys) -> None:
    from consilience.commands.train import SMALL_CORE

    monkeypatch.chdir(folder)
    block = PYTHON["In Python"].text
    found: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), found)
    width = found["model"].core_config.width
    printed = capsys.readouterr().out
    # The comments of the block, with the width of the small core put in for that of the page.
    (shape,) = re.findall(r"# (\(\d+, \d+\))", block)
    assert shape == f"(2, {SMALL_CORE['width']})" and printed.startswith(f"(2, {width})\n")
    assert "not a molecule" in printed and found["result"].failures[0].index == 2
    assert found["result"].ids.tolist() == ["0", "1"]


def test_the_example_science_is_short_and_was_evaluated(folder) -> None:
    assert len(PYTHON["Add a science"].text.splitlines()) < 80
    assert '"PCA(20)"' in (folder / "runs/digits/evaluation.json").read_text()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), f"README links to {target}, which does not exist"
