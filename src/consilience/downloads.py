"""Packages of the Python index as carriers of data: download with pip, check, unpack. Nothing is imported or run.

Only wheels are accepted: pip would run the `setup.py` of a source package.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from consilience.catalogue import Member
from consilience.core.errors import ConsilienceError


class DownloadError(ConsilienceError):
    """The package could not be had; the message holds pip's own reason in one line."""


def pip_download(requirement: str, folder: Path, *, progress: bool = False) -> None:
    """Put the wheel of `name==version` into the folder.

    Args:
        requirement: the package with its exact version.
        folder: exists; pip writes the file there when it is complete.
        progress: let pip draw its progress bar on the terminal.

    Raises:
        DownloadError: no pip in this environment, no network, or no such package.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            "this environment has no pip (`python -m ensurepip` or `uv pip install pip` adds it)"
        )
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    stdout = None if progress else subprocess.DEVNULL
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise DownloadError(_reason(done.stderr))


def _reason(stderr: str) -> str:
    """Why pip failed, in one line."""
    # Without a network pip ends with "No matching distribution", which hides the reason.
    if "connection broken" in stderr:
        return "the package index cannot be reached"
    lines = [line.removeprefix("ERROR:").strip() for line in stderr.splitlines() if line.startswith("ERROR:")]
    return lines[-1] if lines else "pip failed without a reason"


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(wheel: Path, members: Sequence[Member], folder: Path) -> None:
    """Copy members of a wheel into an empty folder, under their bare names.

    Raises:
        ConsilienceError: a member is missing or of another size, or an archive inside holds anything but
            single files with plain names; the folder is then to be thrown away.
    """
    with zipfile.ZipFile(wheel) as package:
        for member in members:
            try:
                info = package.getinfo(member.path)
            except KeyError:
                raise ConsilienceError(f"{wheel.name} does not hold {member.path}") from None
            if info.file_size != member.size:
                raise ConsilienceError(
                    f"{member.path} of {wheel.name} has {info.file_size} bytes, {member.size} expected"
                )
            target = folder / member.name
            with package.open(info) as source:
                if member.files is None:
                    with target.open("wb") as copy:
                        shutil.copyfileobj(source, copy, 1 << 20)
                else:
                    # tarfile reads the stream from front to back: nothing is stored twice.
                    with tarfile.open(fileobj=source, mode="r|*") as archive:
                        _unpack_tar(archive, member, target)


def _unpack_tar(archive: tarfile.TarFile, member: Member, folder: Path) -> None:
    """Write the files of an archive into a new folder; only single files with plain names are accepted."""
    folder.mkdir()
    count = 0
    for entry in archive:
        name = entry.name.removeprefix("./")
        if not entry.isreg() or name != Path(name).name or "\\" in name or name in ("", ".", ".."):
            raise ConsilienceError(
                f"{member.path} holds {entry.name!r}, which is not a single file; not unpacked"
            )
        source = archive.extractfile(entry)
        if source is None:
            raise ConsilienceError(f"{member.path}: {entry.name!r} cannot be read")
        with source, (folder / name).open("xb") as copy:
            shutil.copyfileobj(source, copy)
        count += 1
    if count != member.files:
        raise ConsilienceError(f"{member.path} holds {count} files, {member.files} expected")
