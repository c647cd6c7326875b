"""Named columns out of npz, HDF5, parquet and FITS tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    import pyarrow as pa


def read_columns(path: Path) -> dict[str, Any]:
    """All columns of a .npz, .h5, .hdf5 or .parquet file; nested ones as "group/name" or "struct.name"."""
    readers = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5, ".parquet": _parquet}
    try:
        return readers[path.suffix.lower()](path)
    except ConsilienceError:
        raise
    except (OSError, ValueError, EOFError, KeyError) as problem:
        raise ConsilienceError(f"{path}: cannot be read as {path.suffix[1:]} ({problem})") from problem


def _npz(path: Path) -> dict[str, Any]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except zipfile.BadZipFile as problem:
        raise ConsilienceError(f"{path}: not a npz file or cut short ({problem})") from problem


def _hdf5(path: Path) -> dict[str, Any]:
    import h5py

    columns: dict[str, Any] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.names:
            columns.update({f"{name}/{part}": item[part] for part in item.dtype.names})
        elif isinstance(item, h5py.Dataset) and item.ndim:
            columns[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(collect)
    return columns


def parquet_pieces(path: Path, size: int, *, nested: bool = True) -> Iterator[dict[str, Any]]:
    """All columns of a .parquet file, `size` rows at a time; without `nested`, those of one value a row alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = [
                field.name
                for field in file.schema_arrow
                if nested or pa.types.is_struct(field.type) or not pa.types.is_nested(field.type)
            ]
            for batch in file.iter_batches(batch_size=size, columns=wanted):
                yield _arrays(pa.Table.from_batches([batch]))
    except (pa.ArrowException, OSError) as problem:
        raise ConsilienceError(f"{path}: cannot be read as parquet ({problem})") from problem


def _parquet(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as problem:
        raise ConsilienceError(f"{path}: cannot be read as parquet ({problem})") from problem
    return _arrays(table)


def _arrays(table: "pa.Table") -> dict[str, Any]:
    import pyarrow as pa

    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return {name: table[name].to_numpy() for name in table.column_names}
