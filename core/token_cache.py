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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch

from consilience.core.batch import TokenBatch
from consilience.core.cache_plan import MANIFEST, PLAN, CachePlan, id_in, read_json
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source
from consilience.core.token_shard import Shard

RECORDS = "records.arrow"


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
        found = read_json(path)
        plan = CachePlan.from_json(found, path)
        shards = tuple(found.get("shards", ()))
        again = "write the token cache again: consilience tokenize"
        id = id_in(found)
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
