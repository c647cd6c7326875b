"""Fetching data: checked, atomic, resumable, safe to unpack, clear when there is no network. No test needs one."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from consilience import datasets, downloads
from consilience.catalogue import DATASETS, DataSet, Member
from consilience.core.errors import ConsilienceError
from consilience.core.files import cache_folder

TABLE = gzip.compress(b"SMILES\nCCO\n", mtime=0)
CIFS = {"AAA.cif": b"data_AAA", "BBB.cif": b"data_BBB"}


def make_tar(files: dict[str, bytes], **attributes) -> bytes:
    """A .tar.xz; `attributes` (type, linkname) are set on its first member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for place, (name, content) in enumerate(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items() if place == 0 else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_wheel(path: Path, tar: bytes) -> Path:
    """A package that pip accepts, with a table, an archive and a module that must never run."""
    info = "tinyset-1.0.dist-info"
    files = {
        "tinyset/__init__.py": b"raise SystemExit('imported')",
        "tinyset/data/table.csv.gz": TABLE,
        "tinyset/data/cifs.tar.xz": tar,
        "tinyset/data/model.pkl": b"never unpacked",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tinyset\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in files.items():
            package.writestr(name, content)
    return path


def describe(wheel: Path) -> DataSet:
    """The catalogue entry of such a package."""
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as package:
        tar_size = package.getinfo("tinyset/data/cifs.tar.xz").file_size
    return DataSet(
        name="tiny",
        domain="points",
        description="a tiny set",
        requirement="tinyset==1.0",
        wheel=wheel.name,
        sha256=hashlib.sha256(content).hexdigest(),
        wheel_size=len(content),
        unpacked_size=100,
        folder="points/tiny",
        members=(
            Member(path="tinyset/data/table.csv.gz", size=len(TABLE)),
            Member(path="tinyset/data/cifs.tar.xz", size=tar_size, files=2),
        ),
        licence="none",
        citation="nobody",
        repacked=("points/tiny.npz",),
    )


class Index:
    """Stands for pip: serves one wheel, counts the calls, and can be made to fail."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.wheel = make_wheel(folder / "tinyset-1.0-py3-none-any.whl", make_tar(CIFS))
        self.content = self.wheel.read_bytes()
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self, requirement: str, folder: Path, *, progress: bool = False) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        (folder / self.wheel.name).write_bytes(self.content)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    """A catalogue of one set, its index, and a cache in tmp_path."""
    server = Index(tmp_path / "index")
    monkeypatch.setattr(datasets, "DATASETS", (describe(server.wheel),))
    monkeypatch.setattr(datasets, "pip_download", server)
    monkeypatch.setenv("CONSILIENCE_CACHE", str(tmp_path / "cache"))
    return server


def hidden_leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.endswith(".partial")]


def test_fetch_unpacks_members_only_and_once(index, tmp_path) -> None:
    folder = datasets.fetch("tiny")
    assert folder == tmp_path / "cache" / "points" / "tiny"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "SOURCE.json",
        "cifs/AAA.cif",
        "cifs/BBB.cif",
        "table.csv.gz",
    ]
    assert (folder / "table.csv.gz").read_bytes() == TABLE
    assert (folder / "cifs" / "AAA.cif").read_bytes() == b"data_AAA"
    assert json.loads((folder / "SOURCE.json").read_text())["package"] == "tinyset==1.0"
    assert not hidden_leftovers(tmp_path / "cache")
    assert "tinyset" not in sys.modules
    before = folder.stat().st_mtime_ns
    assert datasets.fetch("tiny") == folder
    assert index.calls == 1 and folder.stat().st_mtime_ns == before


def test_incomplete_folder_is_fetched_anew(index) -> None:
    folder = datasets.fetch("tiny")
    (folder / "cifs" / "BBB.cif").unlink()
    assert datasets.find("tiny") is None
    assert (datasets.fetch("tiny") / "cifs" / "BBB.cif").exists()
    (folder / "table.csv.gz").write_bytes(TABLE[:5])
    assert (datasets.fetch("tiny") / "table.csv.gz").read_bytes() == TABLE
    assert index.calls == 3


def test_wrong_hash_is_an_error_and_the_file_is_gone(index, tmp_path) -> None:
    index.content += b"more"
    with pytest.raises(ConsilienceError, match=r"tinyset-1\.0-py3-none-any\.whl has SHA-256 .*, expected"):
        datasets.fetch("tiny")
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert not (tmp_path / "cache" / "points").exists()
    index.content = index.wheel.read_bytes()
    assert datasets.fetch("tiny").is_dir()


def test_offline_says_what_to_do_in_one_line(index) -> None:
    index.error = downloads.DownloadError("No matching distribution found for tinyset==1.0")
    with pytest.raises(ConsilienceError) as caught:
        datasets.fetch("tiny")
    message = str(caught.value)
    assert "\n" not in message
    assert "could not download tinyset==1.0: No matching distribution" in message
    assert "--data-dir FOLDER" in message
    assert "tinyset-1.0-py3-none-any.whl or points/tiny/table.csv.gz" in message
    assert not hidden_leftovers(cache_folder())


def test_index_that_brings_another_file(index, monkeypatch) -> None:
    def other(requirement: str, folder: Path, *, progress: bool = False) -> None:
        (folder / "tinyset-1.0.tar.gz").write_bytes(b"source")

    monkeypatch.setattr(datasets, "pip_download", other)
    with pytest.raises(ConsilienceError, match=r"pip brought tinyset-1\.0\.tar\.gz instead of"):
        datasets.fetch("tiny")


def test_interrupted_unpacking_reuses_the_download(index, monkeypatch, tmp_path) -> None:
    def interrupted(wheel: Path, members, folder: Path) -> None:
        (folder / "table.csv.gz").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            datasets.fetch("tiny")
    assert datasets.find("tiny") is None
    assert (datasets.fetch("tiny") / "table.csv.gz").read_bytes() == TABLE
    assert index.calls == 1
    assert not hidden_leftovers(tmp_path / "cache")


def test_partial_download_is_thrown_away(index, tmp_path) -> None:
    partial = tmp_path / "cache" / ".tiny.partial"
    partial.mkdir(parents=True)
    (partial / index.wheel.name).write_bytes(index.content[:100])
    assert datasets.fetch("tiny").is_dir()
    assert index.calls == 1


def test_data_dir_with_the_files_downloads_nothing(index, tmp_path) -> None:
    there = datasets.fetch("tiny")
    given = tmp_path / "given"
    (given / "points").mkdir(parents=True)
    there.rename(given / "points" / "tiny")
    assert datasets.fetch("tiny", data_dir=given) == given / "points" / "tiny"
    (given / "points" / "tiny.npz").write_bytes(b"npz")
    assert datasets.fetch("tiny", data_dir=given) == given / "points" / "tiny.npz"
    assert index.calls == 1


def test_what_one_command_needs_may_be_absent_from_a_data_dir(index, monkeypatch, tmp_path) -> None:
    """A folder given by hand without it is used; a fetched one is not complete."""
    entry = describe(index.wheel)
    members = (entry.members[0], dataclasses.replace(entry.members[1], needed=False))
    monkeypatch.setattr(datasets, "DATASETS", (dataclasses.replace(entry, members=members),))
    given = tmp_path / "given" / "points" / "tiny"
    given.mkdir(parents=True)
    (given / "table.csv.gz").write_bytes(TABLE)
    assert datasets.fetch("tiny", data_dir=tmp_path / "given") == given
    assert index.calls == 0
    assert datasets.find("tiny", cache_dir=tmp_path / "given") is None


def test_data_dir_with_the_package_file_downloads_nothing(index, tmp_path) -> None:
    assert datasets.fetch("tiny", data_dir=index.wheel.parent) == tmp_path / "cache" / "points" / "tiny"
    assert index.calls == 0 and index.wheel.exists()


def test_data_dir_without_the_files_falls_back_to_the_index(index, tmp_path) -> None:
    assert datasets.fetch("tiny", data_dir=tmp_path) == tmp_path / "cache" / "points" / "tiny"
    assert index.calls == 1


def test_truncated_file_in_data_dir_is_named_and_kept(index, tmp_path) -> None:
    folder = datasets.fetch("tiny")
    (folder / "table.csv.gz").write_bytes(TABLE[:7])
    with pytest.raises(ConsilienceError, match=r"table\.csv\.gz has 7 bytes, the published file \d+"):
        datasets.fetch("tiny", data_dir=tmp_path / "cache")
    assert (folder / "table.csv.gz").exists()


def test_damaged_package_in_data_dir_is_named_and_kept(index, tmp_path) -> None:
    index.wheel.write_bytes(index.content[:-1])
    with pytest.raises(ConsilienceError, match="has SHA-256"):
        datasets.fetch("tiny", data_dir=index.wheel.parent)
    assert index.wheel.exists() and index.calls == 0


def test_data_dir_must_be_a_folder(index, tmp_path) -> None:
    with pytest.raises(ConsilienceError, match=r"data_dir=.*nowhere is not a folder"):
        datasets.fetch("tiny", data_dir=tmp_path / "nowhere")


def test_cache_that_cannot_be_written(index, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file stands here")
    with pytest.raises(ConsilienceError, match=r"cannot write tiny .* set CONSILIENCE_CACHE"):
        datasets.fetch("tiny")


@pytest.mark.parametrize(
    ("files", "attributes"),
    [
        ({"../escape.cif": b"x", "B.cif": b"y"}, {}),
        ({"/tmp/escape.cif": b"x", "B.cif": b"y"}, {}),
        ({"folder/A.cif": b"x", "B.cif": b"y"}, {}),
        ({"..": b"x", "B.cif": b"y"}, {}),
        ({"..\\escape.cif": b"x", "B.cif": b"y"}, {}),
        ({"A.cif": b"", "B.cif": b"y"}, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ({"A.cif": b"", "B.cif": b"y"}, {"type": tarfile.LNKTYPE, "linkname": "B.cif"}),
        ({"A": b"", "B.cif": b"y"}, {"type": tarfile.DIRTYPE}),
    ],
)
def test_unsafe_archive_is_refused_and_nothing_appears(
    index, monkeypatch, tmp_path, files, attributes
) -> None:
    make_wheel(index.wheel, make_tar(files, **attributes))
    index.content = index.wheel.read_bytes()
    monkeypatch.setattr(datasets, "DATASETS", (describe(index.wheel),))
    outside = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
    with pytest.raises(ConsilienceError, match="is not a single file; not unpacked"):
        datasets.fetch("tiny")
    assert {p for p in tmp_path.rglob("*") if "cache" not in p.parts} == outside
    assert not (tmp_path / "cache" / "points").exists()
    assert not list(tmp_path.rglob("escape.cif"))


def test_package_without_its_members(index, monkeypatch) -> None:
    entry = describe(index.wheel)
    for member, message in (
        (Member(path="tinyset/data/gone.csv", size=1), r"does not hold tinyset/data/gone\.csv"),
        (Member(path="tinyset/data/table.csv.gz", size=1), r"has \d+ bytes, 1 expected"),
        (dataclasses.replace(entry.members[1], files=3), "holds 2 files, 3 expected"),
    ):
        monkeypatch.setattr(datasets, "DATASETS", (dataclasses.replace(entry, members=(member,)),))
        with pytest.raises(ConsilienceError, match=message):
            datasets.fetch("tiny")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConsilienceError, match=r"unknown data set 'QM-9'; did you mean 'qm9'\? known: moses, qm9"
    ):
        datasets.fetch("QM-9")


def test_table_tells_sizes_licences_and_state(index, tmp_path) -> None:
    (before,) = datasets.table()
    assert before["state"] == "not fetched: consilience data fetch tiny"
    datasets.fetch("tiny")
    (after,) = datasets.table()
    assert after["state"] == str(tmp_path / "cache" / "points" / "tiny")
    assert after["licence"] == "none" and after["download"] == "0 MB"


def test_catalogue_is_consistent() -> None:
    assert [entry.name for entry in DATASETS] == ["moses", "qm9", "core-mof"]
    for entry in DATASETS:
        package, _, version = entry.requirement.partition("==")
        assert entry.wheel == f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        assert len(entry.sha256) == 64 and entry.licence and entry.citation
        kept = sum(member.size for member in entry.members if member.files is None)
        assert kept <= entry.unpacked_size
        assert not any(member.path.endswith((".pkl", ".pkl.gz", ".py")) for member in entry.members)


def use_local_pip(monkeypatch, folder: Path) -> None:
    """pip itself, with a folder for an index: nothing leaves this machine."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_real_pip_brings_the_wheel(tmp_path, monkeypatch) -> None:
    wheel = Index(tmp_path / "index").wheel
    use_local_pip(monkeypatch, wheel.parent)
    (tmp_path / "into").mkdir()
    downloads.pip_download("tinyset==1.0", tmp_path / "into")
    assert downloads.sha256(tmp_path / "into" / wheel.name) == describe(wheel).sha256


def test_real_pip_without_the_package(tmp_path, monkeypatch) -> None:
    use_local_pip(monkeypatch, tmp_path)
    with pytest.raises(downloads.DownloadError, match=r"No matching distribution found for tinyset==1\.0"):
        downloads.pip_download("tinyset==1.0", tmp_path)


def test_real_pip_without_a_network(tmp_path, monkeypatch) -> None:
    """An index on a closed port of this machine."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(downloads.DownloadError, match="the package index cannot be reached"):
        downloads.pip_download("tinyset==1.0", tmp_path)


def test_no_source_package_is_ever_built(tmp_path, monkeypatch) -> None:
    """A setup.py would run code at download time; only wheels are accepted."""
    marker = tmp_path / "setup_ran"
    with tarfile.open(tmp_path / "tinyset-1.0.tar.gz", "w:gz") as archive:
        code = (
            f"open({str(marker)!r}, 'w'); from setuptools import setup; setup(name='tinyset', version='1.0')"
        )
        info = tarfile.TarInfo("tinyset-1.0/setup.py")
        info.size = len(code)
        archive.addfile(info, io.BytesIO(code.encode()))
    use_local_pip(monkeypatch, tmp_path)
    with pytest.raises(downloads.DownloadError):
        downloads.pip_download("tinyset==1.0", tmp_path)
    assert not marker.exists()


def test_environment_without_pip(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(downloads.DownloadError, match="has no pip"):
        downloads.pip_download("tinyset==1.0", tmp_path)


@pytest.mark.skipif("CONSILIENCE_TEST_DATA" not in os.environ, reason="no folder of data given")
@pytest.mark.parametrize("name", ["moses", "qm9"])
def test_given_folder_serves_the_published_sets(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets, "pip_download", lambda *a, **k: pytest.fail("downloaded"))
    found = datasets.fetch(name, cache_dir=tmp_path, data_dir=os.environ["CONSILIENCE_TEST_DATA"])
    assert found.exists() and not list(tmp_path.iterdir())


@pytest.mark.skipif("CONSILIENCE_TEST_NETWORK" not in os.environ, reason="needs the network (200 MB)")
@pytest.mark.parametrize("entry", DATASETS, ids=lambda entry: entry.name)
def test_published_packages_are_what_the_catalogue_says(entry, tmp_path) -> None:
    folder = datasets.fetch(entry.name, cache_dir=tmp_path)
    size = sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "SOURCE.json"
    )
    assert size == entry.unpacked_size
