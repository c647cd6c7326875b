"""What all benchmarks share: interleaved timing, the machine, one table on the screen and in `results/`.

Ratios come from rounds in which every contender runs once (A B C, A B C, ...): a machine that slows down slows
all of them. A ratio is the median over rounds of (theirs / ours), with its quartiles.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Times:
    """Seconds per round of each contender; round i of all of them ran side by side in time."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, ours: str) -> tuple[float, float, float]:
        """How many times longer `name` took than `ours`: median and quartiles over rounds."""
        ratios = [theirs / mine for theirs, mine in zip(self.seconds[name], self.seconds[ours])]
        if len(ratios) < 2:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high


def race(contenders: Mapping[str, Callable[[], Any]], *, rounds: int = 7, warm: int = 1) -> Times:
    """Time each contender once a round, in turn.

    Args:
        contenders: name -> the work, without arguments.
        rounds: timed rounds.
        warm: untimed rounds before them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm + rounds):
        for name, work in contenders.items():
            gc.collect()
            begin = time.perf_counter()
            work()
            spent = time.perf_counter() - begin
            if number >= warm:
                seconds[name].append(spent)
    return Times(seconds)


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, threads and versions; the packages named are those that matter to the benchmark."""
    import torch

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclass
class Report:
    """One table of a benchmark: rows are added as they are measured, `write` prints and keeps them.

    Args:
        name: of the files in `results/`.
        title: one line.
        columns: names of the columns, in order.
        packages: whose versions are printed.
        notes: lines under the table: what was measured, and what the reach is.
    """

    name: str
    title: str
    columns: Sequence[str]
    packages: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """One row, printed at once so that a long benchmark shows where it stands."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(list(cells))
        print("  ".join(show(cell) for cell in cells), flush=True)

    def write(self, folder: Path = RESULTS, *, keys: int = 0) -> None:
        """Print the table; keep it as markdown and as JSON.

        Args:
            folder: where.
            keys: with k > 0, rows of the last result whose first k cells were not measured now stay as they are
                (a part of a table was run again); the notes say at which commit.
        """
        facts = machine(self.packages)
        if keys and (folder / f"{self.name}.json").is_file():
            self._keep_others(json.loads((folder / f"{self.name}.json").read_text(encoding="utf-8")), keys)
        text = self.markdown(facts)
        print("\n" + text)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(text, encoding="utf-8")
        record = {
            "title": self.title,
            "machine": facts,
            "columns": list(self.columns),
            "rows": self.rows,
            "notes": self.notes,
        }
        (folder / f"{self.name}.json").write_text(
            json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8"
        )

    def _keep_others(self, last: dict[str, Any], keys: int) -> None:
        measured = {tuple(row[:keys]) for row in self.rows}
        kept = [row for row in last["rows"] if tuple(row[:keys]) not in measured]
        if not kept or last["columns"] != list(self.columns):
            return
        order = {tuple(row[:keys]): place for place, row in reversed(list(enumerate(last["rows"])))}
        rows = [[tuple(cell) if isinstance(cell, list) else cell for cell in row] for row in kept] + self.rows
        self.rows = sorted(rows, key=lambda row: order.get(tuple(row[:keys]), len(order)))
        again = sorted({" ".join(map(str, key)) for key in measured})
        self.notes += [
            note for note in last["notes"] if note not in self.notes and note.startswith("Run again")
        ]
        self.notes.append(
            f"Run again on {time.strftime('%Y-%m-%d')} at {_commit()}: {'; '.join(again)}. "
            f"Other rows: {last['machine']['date']} at {last['machine']['commit']}."
        )

    def markdown(self, facts: Mapping[str, Any]) -> str:
        """The table with the machine under it."""
        lines = [f"# {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(show(cell) for cell in row) + " |" for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)]
        lines += ["", "Machine: " + ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
        return "\n".join(lines)


def show(cell: Any) -> str:
    """A cell as text: three significant digits; (median, low, high) as a median with its quartiles."""
    if isinstance(cell, tuple):
        middle, low, high = cell
        return f"{show(middle)} [{show(low)}, {show(high)}]"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return str(cell)


def options(description: str | None, **extra: Any) -> argparse.Namespace:
    """`--quick` (small sizes: to see that a benchmark runs, not to quote), `--threads`, `--out`.

    Args:
        description: the benchmark's docstring.
        extra: more options, name=default.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = all cores")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: results/")
    for name, default in extra.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    chosen = parser.parse_args()
    import torch

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    # A quick look must not overwrite figures that were measured.
    chosen.out = chosen.out or (Path("runs/benchmarks-quick") if chosen.quick else RESULTS)
    return chosen


def installed(*packages: str) -> bool:
    """Whether the peers are there (`make bench` installs them)."""
    import importlib.util

    return all(importlib.util.find_spec(package) is not None for package in packages)


def peak_memory(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds and peak resident memory (MiB) of a command with all that it starts, sampled 20 times a second."""
    import psutil

    begin = time.perf_counter()
    process = subprocess.Popen(list(command), env={**os.environ, **(environment or {})})
    top = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        try:
            family: Iterable[Any] = [top, *top.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return time.perf_counter() - begin, peak / 2**20


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
