"""Embeddings as rows, and what writes them piece by piece; parquet is the one layout of every science."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Failure

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PLACE, FAILURES = "place in the source", b"failures"


@dataclass(frozen=True, kw_only=True)
class EmbeddedRows:
    """Embedded records and what is written beside them.

    Args:
        ids: (n,) of the embedded records.
        vectors: (n, D) float32.
        columns: name -> (n,) labels and what else belongs to a record, in the order of the output.
        places: (n,) int64 where each stands in the source, or None where they come from no file.
        failures: the other records, with their place in the source.
    """

    ids: np.ndarray
    vectors: np.ndarray
    columns: Mapping[str, np.ndarray]
    places: np.ndarray | None
    failures: tuple[Failure, ...]

    def table(self) -> "pa.Table":
        """`id`, the columns and `embedding_0` ... (float32), one row per embedded record."""
        import pyarrow as pa

        # Said, so that a piece in which a column has no value is like the others.
        kinds = {"U": pa.string(), "f": pa.float64(), "i": pa.int64(), "b": pa.bool_()}
        table: dict[str, Any] = {"id": pa.array([str(name) for name in self.ids], pa.string())}
        for name, column in self.columns.items():
            table.setdefault(name, pa.array(column.tolist(), kinds.get(column.dtype.kind)))
        vectors = np.asarray(self.vectors, np.float32)
        return pa.table(table | {f"embedding_{i}": vectors[:, i] for i in range(vectors.shape[1])})

    def save(self, path: Path) -> None:
        """Write everything to one parquet file, under another name first: it is there whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = self.table()
        if self.places is not None:
            table = table.append_column(PLACE, pa.array(self.places, pa.int64()))
        told = json.dumps([asdict(failure) for failure in self.failures]).encode()
        part = path.with_name(f".{path.name}.{os.getpid()}")
        pq.write_table(table.replace_schema_metadata({FAILURES: told}), part)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The inverse of `save`."""
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        told = json.loads((table.schema.metadata or {})[FAILURES])
        place = table[PLACE].to_numpy() if PLACE in table.column_names else None
        width = sum(name.startswith("embedding_") for name in table.column_names)
        vectors = np.empty((len(table), width), np.float32)
        for number in range(width):
            vectors[:, number] = table[f"embedding_{number}"].to_numpy()
        others = [name for name in table.column_names if not name.startswith("embedding_") and name != PLACE]
        columns = {name: _column(table[name]) for name in others}
        return cls(
            ids=columns.pop("id"),
            vectors=vectors,
            columns=columns,
            places=place,
            failures=tuple(Failure(**entry) for entry in told),
        )


def _column(column: "pa.ChunkedArray") -> np.ndarray:
    """A column as `EmbeddedRows.table` takes it: text, or numbers."""
    import pyarrow as pa

    return np.array(column.to_pylist(), dtype=str) if pa.types.is_string(column.type) else column.to_numpy()


class EmbeddingWriter(ABC):
    """Writes rows as they come; used as a context, after which the file is there, whole or not at all."""

    @abstractmethod
    def write(self, rows: EmbeddedRows) -> None:
        """Write what follows in the order of the source."""

    @abstractmethod
    def close(self) -> None:
        """Put the finished file in its place."""

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing behind."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()


class EmbeddingTable(EmbeddingWriter):
    """Parquet: one group of rows a piece. Records that could not be embedded have no row.

    Args:
        path: ends in .parquet.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() != ".parquet":
            raise ConsilienceError(f"{path}: embeddings are written as .parquet; choose that ending")
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.file: pq.ParquetWriter | None = None

    def write(self, rows: EmbeddedRows) -> None:
        """One group of rows."""
        import pyarrow.parquet as pq

        table = rows.table()
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = pq.ParquetWriter(self.part, table.schema)
        self.file.write_table(table)

    def close(self) -> None:
        """Complete the file and name it."""
        assert self.file is not None, "nothing was written"
        self.file.close()
        os.replace(self.part, self.path)

    def discard(self) -> None:
        """Remove what was begun."""
        if self.file is not None:
            self.file.close()
        self.part.unlink(missing_ok=True)
