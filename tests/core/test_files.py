"""Files and folders that are there whole or not at all, and targets that are tried before the work."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from consilience.core import files
from consilience.core.errors import ConsilienceError
from consilience.core.files import (
    cache_folder,
    new_folder,
    readable_json,
    replace_text,
    replacing,
    try_writing,
)
from consilience.core.options import check_types


def test_a_text_is_replaced_or_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    replace_text(path, "old")

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            replace_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    replace_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with pytest.raises(RuntimeError), replacing(target) as part:
        part.mkdir()
        (part / "a").write_text("half")
        raise RuntimeError
    assert not list((tmp_path / "deep").iterdir())
    target.mkdir()  # an empty folder of the name gives way
    with replacing(target) as part:
        part.mkdir()
        (part / "a").write_text("whole")
    assert (target / "a").read_text() == "whole" and list((tmp_path / "deep").iterdir()) == [target]


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    for place in ("file/a.csv", "file/deep/a.csv"):
        with pytest.raises(ConsilienceError, match=r"a\.csv cannot be written \(.*file is no folder\)"):
            try_writing(tmp_path / place, lambda path: path.touch())
    with pytest.raises(ConsilienceError, match="full is a folder: name a file"):
        try_writing(tmp_path / "full", lambda path: path.touch())
    with pytest.raises(ConsilienceError, match="file is a file: name a folder"):
        new_folder(tmp_path / "file")
    with pytest.raises(ConsilienceError, match="full is not empty: choose another --out"):
        new_folder(tmp_path / "full")
    with pytest.raises(ConsilienceError, match="cannot be written"):
        new_folder(tmp_path / "file" / "run")
    new_folder(tmp_path / "new")
    try_writing(tmp_path / "a.csv", lambda path: path.touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@dataclass(frozen=True, kw_only=True)
class Options:
    count: int = 1
    share: float = 0.5
    name: str | None = None
    limit: int | None = None
    flag: bool = False
    choice: Literal["a", "b"] = "a"
    slots: bool | None = None
    periods: tuple[float, float] = (1.0, 2.0)


def test_messages_name_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folder in which it is tried: also for a name without a folder."""
    monkeypatch.chdir(tmp_path)

    def refuse(path: Path) -> None:
        raise ConsilienceError(f"{path}: no such ending; there is room in {path.parent}")

    for target in (Path("a.sdf"), Path("sub/a.sdf"), tmp_path / "a.sdf"):
        with pytest.raises(ConsilienceError) as caught:
            try_writing(target, refuse)
        assert str(caught.value) == f"{target}: no such ending; there is room in {target.parent}"


def test_options_have_the_types_of_their_fields() -> None:
    for good in (
        Options(),
        Options(share=1, limit=np.int64(3), name="x"),  # type: ignore[arg-type]
        Options(periods=[1, 2], choice="z"),  # type: ignore[arg-type]
    ):
        check_types(good, "toy")
    for wrong, said in [
        ({"count": "3"}, "toy: count must be a whole number, not '3'"),
        ({"count": 1.5}, "toy: count must be a whole number, not 1.5"),
        ({"count": True}, "toy: count must be a whole number, not True"),
        ({"count": None}, "toy: count must be a whole number, not None"),
        ({"share": "half"}, "toy: share must be a number, not 'half'"),
        ({"limit": [1]}, r"toy: limit must be a whole number, or left out, not \[1\]"),
        ({"flag": "maybe"}, "toy: flag must be true or false, not 'maybe'"),
        ({"slots": 2}, "toy: slots must be true or false, or left out, not 2"),
        ({"name": 3}, "toy: name must be text, or left out, not 3"),
    ]:
        with pytest.raises(ConsilienceError, match=said):
            check_types(Options(**wrong), "toy")


def test_readable_json_is_the_same_value_on_few_lines() -> None:
    long = {
        "a": {"lengths": list(range(500)), "pairs": [[1, 2]], "rows": [[0] * 200, [1] * 200], "none": {}},
        "b": "x\n",
    }
    text = readable_json(long)
    assert json.loads(text) == long
    assert text.count("\n") == 11  # one an entry, one a row of what does not fit, one a closing bracket
    assert readable_json([]) == "[]"


def test_the_cache_is_the_argument_then_the_variable_then_the_users(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSILIENCE_CACHE", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.setenv("CONSILIENCE_CACHE", "~/there")
    assert cache_folder() == Path.home() / "there"
    monkeypatch.delenv("CONSILIENCE_CACHE")
    assert cache_folder() == tmp_path / "user" / "consilience"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "consilience"
