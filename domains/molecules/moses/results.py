"""The outcome of a benchmark: one run a file, mean and deviation over several, and the published rows beside them."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.domains.molecules.moses.measures import COLUMNS, PROPERTIES
from consilience.domains.molecules.moses.published import Row, published, source

ENDINGS = (".json", ".csv")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One file of generated strings.

    Args:
        file: its path.
        generated: strings in it.
        values: column -> value.
    """

    file: str
    generated: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Runs of one model, one a seed.

    Args:
        benchmark: its name.
        runs: at least one.
        versions: package -> version, of those that decide the values.
    """

    benchmark: str
    runs: tuple[Run, ...]
    versions: Mapping[str, str]

    @property
    def mean(self) -> dict[str, float]:
        """Column -> mean over the runs."""
        return {
            name: float(np.mean([run.values[name] for run in self.runs])) for name in (*COLUMNS, *PROPERTIES)
        }

    @property
    def deviation(self) -> dict[str, float] | None:
        """Column -> standard deviation over the runs (n - 1); None for a single run."""
        if len(self.runs) < 2:
            return None
        values = {name: [run.values[name] for run in self.runs] for name in (*COLUMNS, *PROPERTIES)}
        return {name: float(np.std(column, ddof=1)) for name, column in values.items()}

    def rows(self, name: str) -> tuple[Row, ...]:
        """These results under a name, then the published rows."""
        return (Row(model=name, mean=self.mean, deviation=self.deviation), *published())

    def write(self, path: Path) -> None:
        """As .json (everything), or as .csv (a line a run, then mean, deviation and the published means).

        Raises:
            ConsilienceError: another ending.
        """
        if path.suffix == ".json":
            whole = {
                **asdict(self),
                "mean": self.mean,
                "deviation": self.deviation,
                "published": {"source": source(), "rows": [asdict(row) for row in published()]},
            }
            path.write_text(json.dumps(_plain(whole), indent=1) + "\n")
        elif path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["row", "kind", *COLUMNS, *PROPERTIES])
                writer.writeheader()
                for row, kind, values in self._lines():
                    writer.writerow({"row": row, "kind": kind, **values})
        else:
            raise ConsilienceError(f"{path}: results are written as {' or '.join(ENDINGS)}")

    def _lines(self) -> list[tuple[str, str, Mapping[str, float]]]:
        lines = [(run.file, "run", run.values) for run in self.runs]
        for row in self.rows("mean of the runs"):
            kind = "mean" if row.model == "mean of the runs" else "published mean"
            lines.append((row.model, kind, row.mean))
            if row.deviation is not None:
                lines.append((row.model, kind.replace("mean", "deviation"), row.deviation))
        return lines


def _plain(value: object) -> object:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
