"""`consilience data list | fetch NAME`: benchmark sets brought into a cache once, checked and unpacked.

A fetch is atomic: the folder of a data set appears only when it is complete. What an interrupted fetch left
is used again when its hash is right, and thrown away otherwise.
"""

import json
import os
import shutil
from difflib import get_close_matches
from pathlib import Path

from filelock import FileLock

from consilience.catalogue import DATASETS, DataSet
from consilience.core.errors import ConsilienceError
from consilience.core.files import cache_folder
from consilience.downloads import DownloadError, pip_download, sha256, unpack


def dataset(name: str) -> DataSet:
    """The entry of the catalogue with this name; raises ConsilienceError listing the known ones."""
    known = {entry.name: entry for entry in DATASETS}
    if name not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConsilienceError(f"unknown data set {name!r}; {hint}known: {', '.join(known)}")
    return known[name]


def find(
    name: str, *, cache_dir: Path | str | None = None, data_dir: Path | str | None = None
) -> Path | None:
    """Where a data set lies without fetching it: the folder of its published files, or one repacked file.

    Args:
        name: of the data set.
        cache_dir: see `cache_folder`.
        data_dir: a folder of data to look into first (`molecules/moses/train.csv.gz` and so on).

    Raises:
        ConsilienceError: an unknown name, a data_dir that is no folder, or a file in it of the wrong size.
    """
    entry = dataset(name)
    if data_dir is not None:
        given = Path(data_dir).expanduser()
        if not given.is_dir():
            raise ConsilienceError(f"data_dir={given} is not a folder")
        for path in (given / repacked for repacked in entry.repacked):
            if path.is_file():
                return path
        if _is_complete(given / entry.folder, entry, strict=True):
            return given / entry.folder
    cached = cache_folder(cache_dir) / entry.folder
    return cached if _is_complete(cached, entry) else None


def fetch(
    name: str,
    *,
    cache_dir: Path | str | None = None,
    data_dir: Path | str | None = None,
    progress: bool = False,
) -> Path:
    """Bring a data set into the cache unless it is there (or in `data_dir`) already, and say where it is.

    Args:
        name: moses, qm9 or core-mof.
        cache_dir: see `cache_folder`.
        data_dir: a folder that may hold the data, or the package as a file carried over from elsewhere.
        progress: draw pip's progress bar on the terminal.

    Returns:
        As `find`.

    Raises:
        ConsilienceError: an unknown name, no network, a wrong hash (the file is removed), or no room.
    """
    found = find(name, cache_dir=cache_dir, data_dir=data_dir)
    if found is not None:
        return found
    entry = dataset(name)
    cache = cache_folder(cache_dir)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # One process fetches, the others wait and find the result.
        with FileLock(cache / f".{entry.name}.lock"):
            return find(name, cache_dir=cache_dir) or _install(entry, cache, data_dir, progress)
    except OSError as error:
        raise ConsilienceError(
            f"cannot write {name} ({entry.unpacked_size / 1e6:.0f} MB) to {cache}: {error.strerror or error}; "
            "free some room or set CONSILIENCE_CACHE to another folder"
        ) from error


def _is_complete(folder: Path, entry: DataSet, *, strict: bool = False) -> bool:
    """Whether every member is there in full; strict (a folder given by hand): a file of the wrong size is an error,
    not an absence, and what is not needed may be absent.
    """
    for member in entry.members:
        path = folder / member.name
        if strict and not member.needed and not path.exists():
            continue
        if member.files is None:
            if not path.is_file():
                return False
            if path.stat().st_size != member.size:
                if strict:
                    raise ConsilienceError(
                        f"{path} has {path.stat().st_size} bytes, the published file {member.size}; "
                        "it is truncated or another file: replace or remove it"
                    )
                return False
        elif not path.is_dir() or sum(1 for _ in path.iterdir()) != member.files:
            return False
    return True


def _install(entry: DataSet, cache: Path, data_dir: Path | str | None, progress: bool) -> Path:
    """Download, check, unpack and move into place; the caller holds the lock."""
    partial = cache / f".{entry.name}.partial"
    wheel = _wheel(entry, partial, data_dir, progress)
    unpacked = partial / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    unpack(wheel, entry.members, unpacked)
    (unpacked / "SOURCE.json").write_text(json.dumps(_provenance(entry), indent=2) + "\n")
    target = cache / entry.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    # Whatever stands here is incomplete, else it would have been found.
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unpacked, target)
    shutil.rmtree(partial)
    return target


def _wheel(entry: DataSet, partial: Path, data_dir: Path | str | None, progress: bool) -> Path:
    """The package file with the right hash: from the data folder, an earlier attempt, or the Python index."""
    if data_dir is not None:
        given = Path(data_dir).expanduser() / entry.wheel
        if given.is_file():
            _check(given, entry)
            return given
    wheel = partial / entry.wheel
    if wheel.is_file() and sha256(wheel) == entry.sha256:
        return wheel
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        pip_download(entry.requirement, partial, progress=progress)
    except DownloadError as error:
        shutil.rmtree(partial)
        example = f"{entry.folder}/{entry.members[0].name}"
        raise ConsilienceError(
            f"could not download {entry.requirement}: {error}; connect to the network, "
            f"or pass --data-dir FOLDER (data_dir=FOLDER) that holds {entry.wheel} or {example}"
        ) from error
    if not wheel.is_file():
        names = ", ".join(sorted(path.name for path in partial.iterdir())) or "nothing"
        raise ConsilienceError(f"pip brought {names} instead of {entry.wheel}")
    try:
        _check(wheel, entry)
    except ConsilienceError:
        wheel.unlink()
        raise
    return wheel


def _check(wheel: Path, entry: DataSet) -> None:
    """Raise ConsilienceError when a package is not the published one, byte for byte."""
    found = sha256(wheel)
    if found != entry.sha256:
        raise ConsilienceError(
            f"{wheel} has SHA-256 {found[:16]}..., expected {entry.sha256[:16]}...; it is damaged or not the "
            "published file and was not used: fetch it again, or from another index"
        )


def _provenance(entry: DataSet) -> dict[str, object]:
    """What stands in SOURCE.json beside the data."""
    return {
        "name": entry.name,
        "package": entry.requirement,
        "sha256": entry.sha256,
        "members": [member.path for member in entry.members],
        "licence": entry.licence,
        "citation": entry.citation,
    }


def table(*, cache_dir: Path | str | None = None, data_dir: Path | str | None = None) -> list[dict[str, str]]:
    """One row a data set, for `consilience data list`: what it is, sizes, licence and where it lies."""
    rows = []
    for entry in DATASETS:
        found = find(entry.name, cache_dir=cache_dir, data_dir=data_dir)
        rows.append(
            {
                "name": entry.name,
                "domain": entry.domain,
                "what": entry.description,
                "package": entry.requirement,
                "download": f"{entry.wheel_size / 1e6:.0f} MB",
                "on disk": f"{entry.unpacked_size / 1e6:.0f} MB",
                "licence": entry.licence,
                "cite": entry.citation,
                "state": str(found) if found else f"not fetched: consilience data fetch {entry.name}",
            }
        )
    return rows
