"""What a billion records take, computed from the figures in `results/` (run the other benchmarks first).

Rates of this machine are measured; everything about a GPU is computed from an assumed utilisation and says so.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from harness import RESULTS, Report, options

import consilience

BILLION = 1e9
PARAMETERS = 100e6
GPU_FLOPS = 0.45 * 989e12
"""45% of the dense bf16 peak of an H100: the target of `gpu.py`, not a measurement."""


def rows_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """A result as one dictionary a row; empty where it was not measured."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(found["columns"], row)) for row in found["rows"]]


def first(rows: list[dict[str, Any]], column: str, **wanted: str) -> float | None:
    """The first number in a column of the rows whose other columns match these patterns."""
    for row in rows:
        fits = all(
            re.search(pattern, str(row.get(key.replace("_", " "), ""))) for key, pattern in wanted.items()
        )
        number = str(row.get(column, "")).replace(",", "")
        if fits and re.fullmatch(r"[\d.eE+-]*\d[\d.eE+-]*", number):
            return float(number)
    return None


def bytes_a_token(science: str) -> float:
    """Of a cache of the bundled data, one draw."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / science
        consilience.tokenize(science, out=out, draws=0)
        size = sum(path.stat().st_size for path in out.rglob("*.arrow"))
        return size / sum(_numbers([json.loads(path.read_text()) for path in out.rglob("*.json")], "tokens"))


def _numbers(found: Any, key: str) -> list[float]:
    """Every number under this key of the shards' descriptions."""
    if isinstance(found, dict):
        own = [found[key]] if isinstance(found.get(key), int | float) else []
        return own + [n for k, value in found.items() if k != key for n in _numbers(value, key)]
    return [n for value in found for n in _numbers(value, key)] if isinstance(found, list) else []


def duration(work: float, rate: float | None) -> str:
    """Work over a rate a second, in years, days or hours."""
    if rate is None:
        return "not measured"
    hours = work / rate / 3600
    for unit, length in (("years", 8766.0), ("days", 24.0)):
        if hours >= 2 * length:
            return f"{hours / length:,.3g} {unit}"
    return f"{hours:,.3g} hours"


def measured(rate: float | None, what: str, bench: str) -> str:
    """Where a rate comes from."""
    return "" if rate is None else f"{rate:,.3g} {what}/s measured ({bench})"


def main() -> None:
    """One row a science and job."""
    chosen = options(__doc__)
    steps = rows_of("train_step", RESULTS)
    milliseconds = first(
        steps,
        "ms",
        model="decoder",
        tokens_a_sample="^64$",
        precision="float32",
        compiled="no",
        who="^consilience$",
    )
    weights = 12 * 256**2 * 8
    core_flops = None if milliseconds is None else 6 * weights * 4096 / (milliseconds / 1000)
    report = Report(
        "projection",
        "What a billion records take",
        ["science", "job", "quantity", "how it follows"],
        notes=[
            f"Training: one pass, {PARAMETERS / 1e6:.0f} M parameters in the blocks, 6 FLOPs a parameter and token.",
            "H100: 45% of 989 TFLOP/s, the target of gpu.py; computed, not measured.",
            "Cells with 1,000 expressed genes as tokens; molecules of 36 symbols, as in MOSES's test set.",
        ],
    )
    for science, tokens, jobs in (
        ("cells", 1001.0, {
            "tokenize, counts": ("tokenize_cells", "cells/s", {"work": "counts, CSR", "contender": "^consilience$"}),
            "tokenize, as in training": ("tokenize_cells", "cells/s", {"contender": "matched zeros"}),
        }),
        ("molecules", 36.0, {
            "tokenize, SMILES as given": ("tokenize_molecules", "molecules/s", {"work": "as given"}),
            "tokenize, canonical": ("tokenize_molecules", "molecules/s", {"contender": "canonical, first"}),
        }),
    ):  # fmt: skip
        total = BILLION * tokens
        flops = 6 * PARAMETERS * total
        a_token = bytes_a_token(science)
        report.add(science, "tokens", f"{total:.3g}", f"{tokens:.0f} a record")
        for job, (bench, column, wanted) in jobs.items():
            rate = first(rows_of(bench, RESULTS), column, **wanted)
            report.add(science, f"{job}, one core", duration(BILLION, rate), measured(rate, "records", bench))
        report.add(
            science, "token cache", f"{total * a_token / 1e12:.3g} TB a draw", f"{a_token:.1f} bytes a token measured"
        )  # fmt: skip
        report.add(
            science,
            "train, one H100",
            duration(flops, GPU_FLOPS),
            f"{flops:.3g} FLOPs; computed, not measured",
        )
        report.add(
            science, "train, one core", duration(flops, core_flops), measured(core_flops, "FLOPs", "train_step")
        )  # fmt: skip
        rate = first(
            rows_of("embed", RESULTS), "records/s beyond the first size", science=science, records="10,000"
        )
        job = "embed at width 256, depth 6, one core"
        report.add(science, job, duration(BILLION, rate), measured(rate, "records", "embed"))
    report.write(chosen.out)


if __name__ == "__main__":
    main()
