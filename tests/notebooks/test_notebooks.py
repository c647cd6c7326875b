"""The notebooks run from top to bottom, draw something, and are committed without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("cells", "galaxies", "molecules", "points", "what_is_next_token")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_committed_without_outputs(name: str) -> None:
    book = read(name)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    for cell in book.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"{cell.id} has a stored output"


@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, tmp_path, monkeypatch) -> None:
    """In an empty folder, with the inline figures that a reader sees; a cell that fails is shown by nbclient."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel then draws inline, on Agg
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = read(name)
    client = NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) >= 4, f"{name} drew {len(figures)} figures"
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "origin: " in text and not re.search(r"\bnan\b", text)
