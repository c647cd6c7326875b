"""What is installed: all of the package under one name, and nothing that hides Hugging Face's tokenizers."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = shutil.ignore_patterns(
    ".venv", ".git", "runs", "build", "dist", "*.egg-info", ".*_cache", "__pycache__"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel that was built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("build")
    copy = shutil.copytree(ROOT, folder / "repository", symlinks=True, ignore=SKIPPED)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (path,) = folder.glob("consilience-*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module(wheel: set[str]) -> None:
    for room in ("core", "domains", "tokenizers"):
        for source in (ROOT / room).rglob("*.py"):
            assert f"consilience/{source.relative_to(ROOT).as_posix()}" in wheel
    for source in (ROOT / "src/consilience").glob("*/*.py"):
        assert f"consilience/{source.parent.name}/{source.name}" in wheel
    assert {"consilience/py.typed", "consilience/domains/molecules/moses/published.json"} <= wheel


def test_the_wheel_takes_no_other_name(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"consilience"}


def test_the_repository_does_not_shadow_hugging_face() -> None:
    """A folder without __init__.py loses against an installed package of the same name."""
    assert not (ROOT / "tokenizers/__init__.py").exists()
    code = "import importlib.util as u; s = u.find_spec('tokenizers'); print(s.origin if s else None)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT / "tokenizers") not in found.stdout
