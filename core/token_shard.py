"""One file of a token cache: samples end to end in Arrow's IPC format, mapped into memory when read.

A shard is one record batch. Row i is a sample:

* `tokens`: large_list<struct>, one entry a token. The fields are those of TokenBatch that the science has: `ids` and
  `address` in the smallest unsigned type that holds them, `values`, `weight` and `positions` as lists of C or P floats.
  All fields share one array of offsets, and each lies in the file from end to end.
* `given`: how many of the first tokens are given (given tokens stand before all others).
* `exposure`: the size factor of counts.

Any Arrow library reads it. Shape letters: R samples of a shard, T their tokens end to end, B samples of a batch,
N tokens of the longest, C channels, P coordinates.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError

PER_TOKEN = ("ids", "values", "weight", "address", "positions")
_NUMBERS = {"ids": np.int64, "address": np.int64}
"""Types in a TokenBatch where they differ from those in the file."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """R samples end to end.

    Args:
        length: (R,) int64 tokens of each sample.
        fields: name -> (T,) unsigned integers or (T, C) float32.
        given: (R,) int32 given tokens of each sample; None = the science gives none.
        exposure: (R,) float32; None where values are no counts.
    """

    length: np.ndarray
    fields: Mapping[str, np.ndarray]
    given: np.ndarray | None = None
    exposure: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        rest = [array for array in (self.given, self.exposure) if array is not None]
        return sum(array.nbytes for array in (self.length, *self.fields.values(), *rest))

    @classmethod
    def of(cls, tokens: TokenBatch, spec: TokenSpec) -> Self:
        """The real tokens of a batch, in the types of the file."""
        if tokens.pairs is not None:
            raise ConsilienceError(
                f"{spec.name}: a token cache holds tokens and no pairs of them: train from the records, or leave "
                "bonds out of the tokenizer's options"
            )
        real = tokens.real.numpy()
        fields = {}
        for name in PER_TOKEN:
            tensor = getattr(tokens, name)
            if tensor is not None:
                flat = tensor.numpy()[real]
                limit = {"ids": spec.vocabulary, "address": spec.addresses}.get(name)
                dtype = np.float32 if limit is None else np.min_scalar_type(max(limit - 1, 0))
                fields[name] = flat.astype(dtype, copy=False)
        return cls(
            length=tokens.length.numpy(),
            fields=fields,
            given=None if tokens.given is None else tokens.given.sum(1).numpy().astype(np.int32),
            exposure=None if tokens.exposure is None else tokens.exposure.numpy(),
        )

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """The samples of all parts, in order; parts are of one science."""
        first = parts[0]
        return cls(
            length=np.concatenate([part.length for part in parts]),
            fields={name: np.concatenate([part.fields[name] for part in parts]) for name in first.fields},
            given=None if first.given is None else np.concatenate([part.given for part in parts]),
            exposure=None if first.exposure is None else np.concatenate([part.exposure for part in parts]),
        )


def write_shard(path: Path, samples: Ragged, marks: Mapping[str, str]) -> None:
    """Write a shard under its name in one step; `marks` go into the metadata of its schema."""
    offsets = np.concatenate([[0], np.cumsum(samples.length)]).astype(np.int64)
    inner = pa.StructArray.from_arrays([_column(a) for a in samples.fields.values()], list(samples.fields))
    columns: dict[str, pa.Array] = {"tokens": pa.LargeListArray.from_arrays(pa.array(offsets), inner)}
    for name in ("given", "exposure"):
        if getattr(samples, name) is not None:
            columns[name] = pa.array(getattr(samples, name))
    batch = pa.record_batch(columns)
    schema = batch.schema.with_metadata(dict(marks))
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch.replace_schema_metadata(dict(marks)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _column(array: np.ndarray) -> pa.Array:
    """(T,) as it is, (T, C) as lists of C; without copies."""
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def read_marks(path: Path) -> dict[str, str]:
    """The metadata of a shard; ConsilienceError when the file is damaged."""
    with _damaged(path), pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        found = reader.schema.metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}


class Shard:
    """A shard in a memory map: nothing is read before it is needed, and pages are shared between processes.

    Args:
        path: the file.
        marks: what its metadata must hold; another cache's shard is told apart by it.
        samples: R, as the cache says.

    Raises:
        ConsilienceError: naming the file, when it is damaged or belongs elsewhere.
    """

    def __init__(self, path: Path, marks: Mapping[str, str], samples: int) -> None:
        with _damaged(path):
            # Closing the file gives its descriptor back; the mapping lives on as long as the arrays.
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
                found = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
                batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
            if batch is None or found != dict(marks) or batch.num_rows != samples:
                raise ConsilienceError(
                    f"{path} belongs to another token cache; write this one again with `consilience tokenize`"
                )
            batch.validate()  # offsets and sizes of buffers; no pass over the tokens
            tokens = batch.column("tokens")
            self.offsets = tokens.offsets.to_numpy()
            self.fields = {f.name: _numpy(tokens.values.field(f.name)) for f in tokens.values.type}
            names = batch.schema.names
            self.given = batch.column("given").to_numpy() if "given" in names else None
            self.exposure = batch.column("exposure").to_numpy() if "exposure" in names else None
            self.length = np.diff(self.offsets)
            if (self.length < 1).any():
                raise pa.ArrowInvalid("a sample without tokens")

    def fill(self, parts: dict[str, np.ndarray], rows: np.ndarray | slice, index: np.ndarray) -> None:
        """Write the samples `index` of this shard to the rows `rows` of the arrays of a batch.

        No loop over samples: one gather a field. Where lengths differ, padding is read from the sample's own last
        token (never beyond its end) and then zeroed.
        """
        start, length = self.offsets[index], self.length[index]
        column = np.arange(int(length.max()))
        real = column < length[:, None]
        padded = not real.all()
        place = start[:, None] + (np.minimum(column, length[:, None] - 1) if padded else column)
        for name, flat in self.fields.items():
            block = np.take(flat, place, axis=0)
            if padded:
                block[~real] = 0
            parts[name][rows, : len(column)] = block
        if self.given is not None:
            parts["given"][rows, : len(column)] = column < self.given[index][:, None]
        if self.exposure is not None:
            parts["exposure"][rows] = self.exposure[index]

    def empty(self, b: int, n: int) -> dict[str, np.ndarray]:
        """Zeroed arrays of a batch of b samples of up to n tokens."""
        parts: dict[str, np.ndarray] = {
            name: np.zeros((b, n, *flat.shape[1:]), dtype=_NUMBERS.get(name, flat.dtype))
            for name, flat in self.fields.items()
        }
        if self.given is not None:
            parts["given"] = np.zeros((b, n), dtype=bool)
        if self.exposure is not None:
            parts["exposure"] = np.zeros(b, dtype=np.float32)
        return parts


def _numpy(column: pa.Array) -> np.ndarray:
    """A view of a column: (T,), or (T, C) of a fixed-size list."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=True).reshape(-1, column.type.list_size)
    return column.to_numpy(zero_copy_only=True)


class _damaged:
    """What Arrow says of a broken file, as one line that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, OSError, KeyError, ValueError)) and not isinstance(
            error, ConsilienceError
        ):
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConsilienceError(
                f"{self.path} is damaged or missing ({reason}); write the token cache again: consilience tokenize"
            ) from error
