"""Writers: generated molecules in the formats of chemistry and of data frames."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.molecules.generation import canonical_or_none


def write_records(records: Sequence[Any], path: Path, columns: Mapping[str, Any] | None = None) -> None:
    """Write generated molecules, invalid strings and duplicates included, in the order they came.

    .csv and .parquet: smiles, valid, canonical_smiles ("" when invalid), count (how many of all records have this
    canonical SMILES; 0 when invalid), then `columns`.
    .smi: without header, parted by tabs: the string, an id (the column `id`, or generated-1, ...), and
    `valid` or `invalid`.

    Raises:
        ConsilienceError: for another ending, or a column whose length is not that of the records.
    """
    if path.suffix not in (".smi", ".csv", ".parquet"):
        raise ConsilienceError(
            f"{path}: molecules are written as .smi, .csv or .parquet, not {path.suffix!r}"
        )
    strings = [
        str(Chem.MolToSmiles(record)) if isinstance(record, Chem.Mol) else str(record) for record in records
    ]
    frame = pd.DataFrame({"smiles": pd.Series(strings, dtype=str)})
    canonical = canonical_or_none(strings)
    frame["valid"] = [text is not None for text in canonical]
    frame["canonical_smiles"] = [text or "" for text in canonical]
    times = Counter(text for text in canonical if text is not None)
    frame["count"] = [0 if text is None else times[text] for text in canonical]
    for name, column in (columns or {}).items():
        if len(column) != len(strings):
            raise ConsilienceError(
                f"{path}: column {name!r} has {len(column)} entries for {len(strings)} molecules"
            )
        frame[name] = np.asarray(column)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        ids = frame["id"] if "id" in frame else [f"generated-{row}" for row in range(1, len(frame) + 1)]
        marks = ["valid" if valid else "invalid" for valid in frame["valid"]]
        lines = ["\t".join(map(str, cells)) for cells in zip(strings, ids, marks)]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def smiles_of(collection: Collection, index: np.ndarray) -> np.ndarray:
    """(n,) the strings of the molecules at these places."""
    chosen = [collection.records[int(place)] for place in index]
    texts = [str(Chem.MolToSmiles(item)) if isinstance(item, Chem.Mol) else str(item) for item in chosen]
    return np.array(texts, dtype=str)
