"""Every benchmark runs at its quick size, with the peers that are installed, and writes its table. Times are free."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "harness")
OPTIONS = {"train_step": ["--no-compile"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs(script, tmp_path) -> None:
    words = [
        sys.executable,
        str(FOLDER / f"{script}.py"),
        "--quick",
        "--threads",
        "1",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*words, *OPTIONS.get(script, [])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tables = list(tmp_path.glob("*.json"))
    assert tables
    for path in tables:
        table = json.loads(path.read_text())
        assert table["rows"], path.name
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        assert path.with_suffix(".md").read_text().startswith(f"# {table['title']}")
