"""Writing a token cache (`token_cache.py`): chunk by chunk, shard by shard, going on where a writer was cut off."""

import json
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout

from consilience.core.cache_plan import MANIFEST, PLAN, CachePlan, read_plan
from consilience.core.errors import ConsilienceError
from consilience.core.feed import step_generator
from consilience.core.files import replace_text
from consilience.core.records import take_records
from consilience.core.token_cache import RECORDS, TokenCache
from consilience.core.token_shard import Ragged, read_marks, write_shard
from consilience.core.tokenizer import Tokenizer

LOCK = ".lock"
_STREAM = 16  # the streams below belong to the training step


def is_random(tokenizer: Tokenizer[Any], records: Any) -> bool:
    """Whether tokenizing in training draws anything: whether the generator has moved after a few records."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    tokenizer.encode(take_records(records, range(min(len(records), 8))), generator=generator)
    return not torch.equal(before, generator.get_state())


def write_cache(
    folder: Path,
    plan: CachePlan,
    records: Any,
    parts: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    on_records: Callable[[int], None] | None = None,
) -> TokenCache:
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


def _versions() -> dict[str, Any]:
    return {"versions": {name: metadata.version(name) for name in ("torch", "numpy", "pyarrow")}}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(content))
