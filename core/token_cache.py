"""Tokens of a collection, written once and read by every epoch of every run: a folder of memory-mapped shards.

    token-cache.json        what the cache holds; written last, so that a folder with it is whole
    token-cache.plan.json   what it is to hold, while it is being written
    records.arrow           one row a record: id, part of the split, group, labels
    train-0-00000.arrow     shards: part, draw, number (see `token_shard.py`)

Randomness of training (matched zeros, randomised SMILES, rotations) is kept as `draws`: K tokenizations of every
training record with K generators; epoch e reads draw e mod K. Held-out parts have one draw. With draws=0 there is one
tokenization without a generator. Shards are a function of the plan alone: a writer that was killed goes on behind its
last whole shard and ends with the same bytes as one that was not.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source, step_generator
from consilience.core.files import replace_text
from consilience.core.records import fingerprint, take_records
from consilience.core.references import load_class, reference_of
from consilience.core.token_shard import Ragged, Shard, read_marks, write_shard
from consilience.core.tokenizer import Tokenizer

FORMAT = 1
MANIFEST, PLAN, RECORDS, LOCK = "token-cache.json", "token-cache.plan.json", "records.arrow", ".lock"
CHUNK_RECORDS = 512
"""Records tokenized at once."""
SHARD_BYTES = 256 * 2**20
"""A shard ends with the chunk that brings it to this size; a writer holds about two of them in memory."""
TRAIN = "train"
_NOT_PLANNED = ("id", "shards", "versions")
_STREAM = 16  # the streams below belong to the training step


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What a cache is to hold.

    Args:
        science: name of the science.
        tokenizer: fitted.
        parts: name of a part -> how many records it has; "train" is the one with several draws.
        draws: tokenizations of each training record; 0 = one, without a generator.
        data: where the records come from, with their fingerprint, and what was asked for; JSON types.
        seed: of the draws.
        chunk_records: records tokenized at once; the draws depend on it.
        shard_bytes: see SHARD_BYTES.
    """

    science: str
    tokenizer: Tokenizer[Any]
    parts: Mapping[str, int]
    draws: int
    data: Mapping[str, Any]
    seed: int = 0
    chunk_records: int = CHUNK_RECORDS
    shard_bytes: int = SHARD_BYTES

    def draws_of(self, part: str) -> int:
        """How many sets of shards a part has."""
        return max(self.draws, 1) if part == TRAIN else 1

    @property
    def total(self) -> int:
        """Samples that are written, over all parts and draws."""
        return sum(n * self.draws_of(part) for part, n in self.parts.items())

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that every shard of this cache carries."""
        return _id_of(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """JSON types, the tokenizer's state included."""
        return {
            "format": FORMAT,
            "science": self.science,
            "tokenizer": {"class": reference_of(type(self.tokenizer)), "state": self.tokenizer.state()},
            "parts": dict(self.parts),
            "draws": self.draws,
            "seed": self.seed,
            "chunk_records": self.chunk_records,
            "shard_bytes": self.shard_bytes,
            "data": dict(self.data),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any], path: Path) -> Self:
        """The inverse of `as_json`; ConsilienceError names the file when it does not fit."""
        if found.get("format") != FORMAT:
            raise ConsilienceError(
                f"{path} has format {found.get('format')}, this version of consilience reads format {FORMAT}: "
                "write the token cache again with `consilience tokenize`"
            )
        try:
            kept = {k: found[k] for k in cls.__dataclass_fields__ if k != "tokenizer"}
            kind = load_class(found["tokenizer"]["class"], Tokenizer)  # type: ignore[type-abstract]
            plan = cls(tokenizer=kind.from_state(found["tokenizer"]["state"]), **kept)
            plan.as_json()  # meets what has another type than it should
            return plan
        except (KeyError, TypeError, AttributeError) as error:
            raise ConsilienceError(
                f"{path} is no token cache of this version ({error!r}); write it again: consilience tokenize"
            ) from error


def is_cache(path: Path) -> bool:
    """Whether a folder is a token cache, finished or not."""
    return any((path / name).is_file() for name in (MANIFEST, PLAN))


def is_random(tokenizer: Tokenizer[Any], records: Any) -> bool:
    """Whether tokenizing in training draws anything: whether the generator has moved after a few records."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    tokenizer.encode(take_records(records, range(min(len(records), 8))), generator=generator)
    return not torch.equal(before, generator.get_state())


def read_plan(folder: Path) -> CachePlan | None:
    """What a folder holds or was to hold; None when it is no cache."""
    for name in (MANIFEST, PLAN):
        if (folder / name).is_file():
            return CachePlan.from_json(_read_json(folder / name), folder / name)
    return None


def write_cache(
    folder: Path,
    plan: CachePlan,
    records: Any,
    parts: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    on_records: Callable[[int], None] | None = None,
) -> "TokenCache":
    """Write a cache, or go on with one that was cut off.

    Args:
        folder: new, empty, or with an unfinished cache of the same plan.
        plan: what it is to hold.
        records: all records.
        parts: name -> positions of its records.
        columns: what is known of each record, for `records.arrow`; one entry a record.
        on_records: called with the number of samples that are done, those of an earlier sitting included.

    Raises:
        ConsilienceError: the folder holds something else, or another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            _begin(folder, plan, columns)
            if not (folder / MANIFEST).is_file():
                done = 0
                shards = []
                for part, index in parts.items():
                    for draw in range(plan.draws_of(part)):
                        for shard in _write_draw(folder, plan, records, part, draw, index):
                            shards.append(shard)
                            done += shard["records"]
                            if on_records:
                                on_records(done)
                _write_json(
                    folder / MANIFEST, plan.as_json() | {"id": plan.id, "shards": shards} | _versions()
                )
            (folder / PLAN).unlink(missing_ok=True)
    except Timeout as error:
        raise ConsilienceError(
            f"another process is writing {folder}; wait for it, or choose another --out"
        ) from error
    return TokenCache.open(folder)


def _begin(folder: Path, plan: CachePlan, columns: Mapping[str, np.ndarray]) -> None:
    """Check that the folder is ours to write to, and leave the plan there."""
    before = read_plan(folder)
    if before is not None:
        if before.id != plan.id:
            raise ConsilienceError(
                f"{folder} holds a token cache of other data, options or another version: choose another --out, "
                "or remove it"
            )
    elif any(path.name != LOCK and not path.name.endswith(".part") for path in folder.iterdir()):
        raise ConsilienceError(f"{folder} is not empty: choose another --out, or remove what is in it")
    else:
        _write_json(folder / PLAN, plan.as_json())
    if not (folder / RECORDS).is_file():
        part = folder / f"{RECORDS}.part"
        table = pa.table({name: pa.array(column) for name, column in columns.items()})
        with part.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.replace(part, folder / RECORDS)


def _write_draw(folder: Path, plan: CachePlan, records: Any, part: str, draw: int, index: np.ndarray) -> Any:
    """Yield the shards of one draw of one part: first those that are there, then new ones."""
    first, number = 0, 0
    while first < len(index):
        path = folder / f"{part}-{draw}-{number:05d}.arrow"
        marks = {"cache": plan.id, "part": part, "draw": str(draw), "first": str(first)}
        try:
            found = read_marks(path) if path.is_file() else {}
        except ConsilienceError:  # cut off by a machine that stopped: written again
            found = {}
        if not marks.items() <= found.items():
            samples = _tokenize(plan, records, part, draw, index, first)
            found = marks | {"records": str(len(samples.length)), "tokens": str(int(samples.length.sum()))}
            write_shard(path, samples, found)
        n = int(found["records"])
        yield {
            "file": path.name, "part": part, "draw": draw, "first": first, "records": n,
            "tokens": int(found["tokens"]), "bytes": path.stat().st_size,
        }  # fmt: skip
        first, number = first + n, number + 1


def _tokenize(plan: CachePlan, records: Any, part: str, draw: int, index: np.ndarray, first: int) -> Ragged:
    """The samples of the shard that begins at record `first` of a part. The draw depends on the chunk alone."""
    chunks: list[Ragged] = []
    size = 0
    for start in range(first, len(index), plan.chunk_records):
        generator = None
        if plan.draws:
            stream = _STREAM + len(plan.parts) * draw + list(plan.parts).index(part)
            generator = step_generator(plan.seed, start // plan.chunk_records, stream)
        chosen = take_records(records, index[start : start + plan.chunk_records])
        chunks.append(Ragged.of(plan.tokenizer.encode(chosen, generator=generator), plan.tokenizer.spec))
        size += chunks[-1].nbytes
        if size >= plan.shard_bytes:
            break
    return Ragged.joined(chunks)


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """A finished cache.

    Args:
        folder: where it lies.
        id: what its shards carry.
        plan: what it holds.
        shards: file, part, draw, first record, records, tokens and bytes of every shard.
    """

    folder: Path
    id: str
    plan: CachePlan
    shards: tuple[Mapping[str, Any], ...]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read what the cache holds and check that its files are there in full; tokens are not read.

        Raises:
            ConsilienceError: no cache, an unfinished one, another version, or a file that is missing or truncated.
        """
        path = folder / MANIFEST
        if not path.is_file():
            if (folder / PLAN).is_file():
                raise ConsilienceError(
                    f"{folder} is an unfinished token cache: run the same `consilience tokenize` again, it goes on "
                    "where it stopped"
                )
            raise ConsilienceError(f"{folder} is no token cache: it holds no {MANIFEST}")
        found = _read_json(path)
        plan = CachePlan.from_json(found, path)
        shards = tuple(found.get("shards", ()))
        again = "write the token cache again: consilience tokenize"
        # Of what stands in the file: a later version may describe the same tokenizer in other words.
        id = _id_of({key: value for key, value in found.items() if key not in _NOT_PLANNED})
        if found.get("id") != id:
            raise ConsilienceError(f"{path} was changed after it was written (another tokenizer?); {again}")
        for shard in shards:
            file = folder / shard["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                what = "is missing" if size is None else f"has {size:,} bytes instead of {shard['bytes']:,}"
                raise ConsilienceError(f"{file} {what}; {again}")
        for part, n in plan.parts.items():
            for draw in range(plan.draws_of(part)):
                own = sum(s["records"] for s in shards if s["part"] == part and s["draw"] == draw)
                if own != n:
                    raise ConsilienceError(
                        f"{path} lists {own} of {n} records of draw {draw} of {part}; {again}"
                    )
        return cls(folder=folder, id=id, plan=plan, shards=shards)

    @property
    def size_bytes(self) -> int:
        """Of all shards."""
        return sum(shard["bytes"] for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Of all shards, over all draws."""
        return sum(shard["tokens"] for shard in self.shards)

    def records(self) -> dict[str, np.ndarray]:
        """The columns of `records.arrow`: id, part, and what else was known; in the order of the collection."""
        path = self.folder / RECORDS
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (pa.ArrowException, OSError) as error:
            raise ConsilienceError(
                f"{path} is damaged or missing; write the token cache again: consilience tokenize"
            ) from error
        return {name: table[name].to_numpy() for name in table.column_names}

    def part(self, name: str) -> "CachedPart":
        """The tokens of a part of the split."""
        draws = [
            tuple(s for s in self.shards if s["part"] == name and s["draw"] == draw)
            for draw in range(self.plan.draws_of(name))
        ]
        return CachedPart(self.folder, self.id, self.plan.parts[name], tuple(draws))

    def source(self, name: str, weight: float = 1.0) -> "CachedSource":
        """A part as training takes it."""
        return CachedSource(records=self.part(name), tokenizer=self.plan.tokenizer, weight=weight)


@dataclass(eq=False)
class CachedPart:
    """The samples of one part, n a draw. Shards are mapped when first read, in every process for itself.

    Args:
        folder: of the cache.
        id: of the cache.
        size: n.
        shards: for each draw, the entries of its shards in order.
    """

    folder: Path
    id: str
    size: int
    shards: tuple[tuple[Mapping[str, Any], ...], ...]
    _open: dict[str, Shard] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.size

    @property
    def draws(self) -> int:
        """K."""
        return len(self.shards)

    def lengths(self, draw: int) -> np.ndarray:
        """(n,) int64 tokens of every record in a draw."""
        parts = [self._shard(entry).length for entry in self.shards[draw]]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def tokens(self, index: np.ndarray, draw: int) -> TokenBatch:
        """The batch of the records with these indices, in this order."""
        entries = self.shards[draw]
        first = np.array([entry["first"] for entry in entries])
        owner = np.searchsorted(first, index, side="right") - 1
        used = np.unique(owner)
        if len(used) == 1:
            shard = self._shard(entries[used[0]])
            local = index - first[used[0]]
            parts = shard.empty(len(index), int(shard.length[local].max()))
            shard.fill(parts, slice(None), local)
            length = shard.length[local]
        else:
            length = np.empty(len(index), dtype=np.int64)
            places = [(np.flatnonzero(owner == k), self._shard(entries[k]), first[k]) for k in used]
            for rows, shard, begin in places:
                length[rows] = shard.length[index[rows] - begin]
            parts = places[0][1].empty(len(index), int(length.max()))
            for rows, shard, begin in places:
                shard.fill(parts, rows, index[rows] - begin)
        tensors: dict[str, Any] = {name: torch.from_numpy(part) for name, part in parts.items()}
        return TokenBatch(length=torch.from_numpy(length), **tensors)

    def _shard(self, entry: Mapping[str, Any]) -> Shard:
        name = entry["file"]
        if name not in self._open:
            marks = {key: str(entry[key]) for key in ("part", "draw", "first", "records", "tokens")}
            path = self.folder / name
            self._open[name] = Shard(path, {"cache": self.id} | marks, entry["records"])
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # another process maps the files itself


@dataclass(frozen=True, kw_only=True)
class CachedSource(Source):
    """Training tokens from a cache; the generator of the step is not needed."""

    records: CachedPart
    cached: ClassVar[bool] = True

    @property
    def draws(self) -> int:
        """K."""
        return self.records.draws

    def lengths(self, epoch: int) -> np.ndarray:
        """(n,) int64: exact."""
        return self.records.lengths(epoch % self.draws)

    def tokens(self, index: np.ndarray, epoch: int, generator: torch.Generator) -> TokenBatch:
        """These records as draw `epoch mod K` has them."""
        return self.records.tokens(index, epoch % self.draws)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tokenizer": None}  # a worker reads, it does not tokenize


def _id_of(plan: Mapping[str, Any]) -> str:
    return fingerprint([json.dumps(plan, sort_keys=True)])


def _versions() -> dict[str, Any]:
    return {"versions": {name: metadata.version(name) for name in ("torch", "numpy", "pyarrow")}}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(content))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConsilienceError(
            f"{path} is truncated or not JSON ({error}); write the token cache again: consilience tokenize"
        ) from error
    if not isinstance(found, dict):
        raise ConsilienceError(f"{path} belongs to something else: it is not a token cache")
    return found
