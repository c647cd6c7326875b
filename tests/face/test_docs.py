"""The commands and the Python of docs/generation.md run as printed; training commands get small sizes appended."""

import contextlib
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from consilience.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny) -> Path:
    """Where the reader sits, after all commands of the page in their order."""
    place = tmp_path_factory.mktemp("reader")
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.M | re.S)
    for command in "".join(blocks).splitlines():
        words = shlex.split(command)[1:]
        with contextlib.chdir(place):
            assert main([*words, *(tiny if words[0] == "train" else [])]) == 0, command
        written = words[words.index("--out") + 1]
        assert (place / written).exists(), f"nothing written by: {command}"
    return place


def test_tables_have_the_columns_of_the_page(folder) -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M)
    seen: set[str] = set()
    for path in sorted(folder.glob("*.csv")):
        columns = pd.read_csv(path).columns.tolist()
        assert columns[:4] == named[:4] and set(columns) <= set(named), path
        seen |= set(columns)
    assert seen == set(named)
    assert "log_likelihood_bound" in pd.read_parquet(folder / "new.parquet")


def test_kept_symbols_are_in_every_row(folder) -> None:
    for name, begin, end in [("para", "c1ccc(", ")cc1"), ("chain", "CC", "N"), ("longer", "CCO", "")]:
        texts = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)["smiles"]
        assert len(texts) == 100 and texts.str.startswith(begin).all() and texts.str.endswith(end).all()


def test_python(folder, monkeypatch, capsys) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
    monkeypatch.chdir(folder)
    exec(compile(block, "generation.md", "exec"), {})
    printed = capsys.readouterr().out
    for comment in re.findall(r"print\(.*  # (.+)$", block, flags=re.M):
        assert comment in printed
    assert printed.count("CC") >= 3
