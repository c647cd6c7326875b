"""Embeddings as parquet: the one layout of every science."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection

if TYPE_CHECKING:
    from consilience.core.model import Embedding


def write_embedding_table(
    collection: Collection,
    embedding: "Embedding",
    path: Path,
    *,
    columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
) -> None:
    """Write `id`, extra columns, the labels and `embedding_0` ... (float32), one row per embedded record.

    Records that could not be embedded have no row; they are in `embedding.failures`. The file appears whole or
    not at all.

    Args:
        collection: what was embedded, for its labels.
        embedding: the vectors.
        path: ends in .parquet.
        columns: extra columns, one entry per embedded record.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() != ".parquet":
        raise ConsilienceError(f"{path}: embeddings are written as .parquet; choose that ending")
    table: dict[str, Any] = {"id": [str(name) for name in embedding.ids]}
    table |= {name: list(column) for name, column in (columns or {}).items()}
    for name, column in collection.labels.items():
        table.setdefault(name, column[embedding.index].tolist())
    vectors = np.asarray(embedding.vectors, np.float32)
    table |= {f"embedding_{i}": vectors[:, i] for i in range(vectors.shape[1])}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.table(table), part)
    os.replace(part, path)
