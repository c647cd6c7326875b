"""A published benchmark of generated records: what a science offers, and the outcome beside the published rows."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.files import without_nan

ENDINGS = (".json", ".csv")

OnSteps = Callable[[str, int], Callable[[int], object]]
"""Told of long work, what it is and how many steps it has; gives what is to be told of steps done."""


def silent(what: str, steps: int) -> Callable[[int], object]:
    """Draws no bar."""
    return lambda done: None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of a table.

    Args:
        model: its name.
        mean: column -> mean over seeds.
        deviation: column -> standard deviation over seeds; None where there is none.
    """

    model: str
    mean: Mapping[str, float]
    deviation: Mapping[str, float] | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One file of generated records.

    Args:
        file: its path.
        generated: records in it.
        values: column -> value.
    """

    file: str
    generated: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Runs of one model, one a seed, and the published rows.

    Args:
        benchmark: its name.
        runs: at least one; all with the same columns.
        versions: package -> version, of those that decide the values.
        published: rows of the published table, which may have fewer columns.
        source: where they were taken from.
    """

    benchmark: str
    runs: tuple[Run, ...]
    versions: Mapping[str, str]
    published: tuple[Row, ...]
    source: str

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order."""
        return tuple(self.runs[0].values)

    @property
    def mean(self) -> dict[str, float]:
        """Column -> mean over the runs."""
        return {name: float(np.mean(self._all(name))) for name in self.columns}

    @property
    def deviation(self) -> dict[str, float] | None:
        """Column -> standard deviation over the runs (n - 1); None for a single run."""
        if len(self.runs) < 2:
            return None
        return {name: float(np.std(self._all(name), ddof=1)) for name in self.columns}

    def rows(self, name: str) -> tuple[Row, ...]:
        """These results under a name, then the published rows."""
        return (Row(model=name, mean=self.mean, deviation=self.deviation), *self.published)

    def write(self, path: Path) -> None:
        """As .json (everything), or as .csv (a line a run, then mean, deviation and the published rows).

        Raises:
            ConsilienceError: another ending.
        """
        if path.suffix == ".json":
            whole = asdict(self) | {"mean": self.mean, "deviation": self.deviation}
            path.write_text(json.dumps(without_nan(whole), indent=1) + "\n")
        elif path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["row", "kind", *self.columns])
                writer.writeheader()
                for row, kind, values in self._lines():
                    writer.writerow({"row": row, "kind": kind, **values})
        else:
            raise ConsilienceError(f"{path}: results are written as {' or '.join(ENDINGS)}")

    def _all(self, name: str) -> list[float]:
        return [run.values[name] for run in self.runs]

    def _lines(self) -> list[tuple[str, str, Mapping[str, float]]]:
        lines = [(run.file, "run", run.values) for run in self.runs]
        for place, row in enumerate(self.rows("all runs")):
            published = "published " if place else ""
            lines.append((row.model, f"{published}mean", row.mean))
            if row.deviation is not None:
                lines.append((row.model, f"{published}deviation", row.deviation))
        return lines


class Benchmark(ABC):
    """A benchmark; what its class is built with is checked then, before any data are fetched.

    Args:
        fcd: measure what needs a trained network too.
        device: of that network.
    """

    name: ClassVar[str]
    dataset: ClassVar[str]
    """The data set of the catalogue that it compares with."""
    columns: ClassVar[tuple[str, ...]]
    """Columns of the published table."""
    further: ClassVar[tuple[str, ...]] = ()
    """Columns beyond it."""
    notes: ClassVar[tuple[str, str]] = ("", "")
    """What people are told below the table, and above the further columns."""

    @abstractmethod
    def __init__(self, *, fcd: bool = True, device: str = "cpu") -> None: ...

    @abstractmethod
    def read(self, path: Path, *, column: str | None = None) -> list[Any]:
        """The generated records of a file, unreadable ones included."""

    @abstractmethod
    def measure(
        self,
        generated: Sequence[list[Any]],
        folder: Path,
        cache: Path,
        *,
        processes: int = 1,
        on_steps: OnSteps = silent,
    ) -> list[dict[str, float]]:
        """Column -> value of each set of records.

        Args:
            generated: sets of records, one a seed.
            folder: of the fetched data set.
            cache: a folder for what is computed once.
            processes: work side by side in this many processes.
            on_steps: draws the progress.
        """

    @abstractmethod
    def published(self) -> tuple[Row, ...]:
        """The rows of the published table."""

    @abstractmethod
    def source(self) -> str:
        """Where these rows were taken from."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Package -> version, of those that decide the values."""

    def results(self, files: Sequence[Path], generated: Sequence[list[Any]], values: Any) -> Results:
        """The outcome of `measure`."""
        runs = [
            Run(file=str(file), generated=len(records), values=found)
            for file, records, found in zip(files, generated, values, strict=True)
        ]
        return Results(
            benchmark=self.name,
            runs=tuple(runs),
            versions=self.versions(),
            published=self.published(),
            source=self.source(),
        )
