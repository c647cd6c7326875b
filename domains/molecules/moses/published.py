"""The published table of MOSES, which generated molecules are shown beside."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from consilience.domains.benchmark import Row


@lru_cache(maxsize=1)
def published() -> tuple[Row, ...]:
    """The rows, in the order of the table: means and deviations of three seeds, rounded to four digits by the authors.

    `Train` is the training set itself: it has no deviation, and novelty 1 by the table's convention.
    """
    table = _table()
    rows = []
    for model, values in table["rows"].items():
        deviation = values["deviation"] and dict(zip(table["columns"], values["deviation"], strict=True))
        mean = dict(zip(table["columns"], values["mean"], strict=True))
        rows.append(Row(model=model, mean=mean, deviation=deviation))
    return tuple(rows)


def source() -> str:
    """Where the rows were taken from."""
    return str(_table()["source"])


def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table
