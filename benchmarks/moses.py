"""MOSES: next-token, masked-diffusion and any-order at one budget of operations, and how the best goes on with more.

Every objective and seed trains the same core on 99% of the official training set (1%, other scaffolds, is for the
held-out loss) for the same number of measured operations, writes 30,000 strings, and is scored on all columns beside
the published rows. Shares of the budget (seed 0, each with a whole schedule of its own) give the curve of FCD against
training tokens. Everything is kept in `--work`: what was stopped, also by `--minutes`, goes on with the same command.
The scores of every model are added to `moses_models.jsonl` in the folder of results, so that a machine without the
models adds its rows to those that are there.

    python benchmarks/moses.py --minutes 120 --jobs 2
    python benchmarks/moses.py --only 'next-token-seed1,any-order-*'  # some of the models
    python benchmarks/moses.py --width 512 --depth 8 --heads 8 --million 2000 --batch 32768 --jobs 1  # one GPU
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from harness import RESULTS, Report, options
from scipy import stats

import consilience
from consilience import datasets, registry
from consilience.core.cache_plan import MANIFEST
from consilience.core.feed import TokenFeed
from consilience.core.flops import step_cost
from consilience.core.model import FoundationModel
from consilience.core.transformer import CoreConfig
from consilience.domains.cached import PreparedTokens
from consilience.domains.molecules.generation import canonical_or_none
from consilience.domains.molecules.moses.published import published
from consilience.domains.molecules.moses.strings import generated_strings
from consilience.domains.settings import same_or_new

OBJECTIVES = ("next-token", "masked-diffusion", "any-order")
PARTS = (0.99, 0.01, 0.0)
COUNTED_STEPS = 4
STOPPED = 3
"""Exit code when the time was up before everything was done."""


@dataclass(frozen=True)
class Job:
    """One model: an objective, a seed, and how much of the budget it gets."""

    objective: str
    seed: int
    share: float = 1.0

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.objective}-seed{self.seed}" + ("" if self.share == 1 else f"-x{self.share:g}")

    @classmethod
    def of(cls, name: str) -> Self:
        """The model of a name."""
        found = re.fullmatch(r"(.+)-seed(\d+)(?:-x([\d.]+))?", name)
        assert found is not None, name
        return cls(found[1], int(found[2]), float(found[3] or 1))


def plan(seeds: int, shares: Sequence[float], longest: Sequence[float]) -> list[Job]:
    """The long runs of next-token first, then seed by seed, then the small shares."""
    jobs = [Job(OBJECTIVES[0], 0, share) for share in longest]
    jobs += [Job(objective, seed) for seed in range(seeds) for objective in OBJECTIVES]
    return jobs + [Job(objective, 0, share) for share in shares for objective in OBJECTIVES]


def costs(tokens: Path, core: CoreConfig, batch: int, kept: Path) -> dict[str, float]:
    """Measured operations of a step of every objective, counted once."""
    if kept.is_file():
        found: dict[str, float] = json.loads(kept.read_text())
        return found
    source = PreparedTokens.open(registry.domain("molecules"), tokens)
    found = {}
    for objective in OBJECTIVES:
        feed = TokenFeed(
            {"molecules": source.source("train")}, steps=COUNTED_STEPS, tokens_per_batch=batch, seed=0
        )
        torch.manual_seed(0)
        built = registry.objective(objective)()
        model = FoundationModel(core, {"molecules": source.tokenizer}, built)
        found[objective] = step_cost(model, [feed[step] for step in range(COUNTED_STEPS)]).flops
    kept.write_text(json.dumps(found, indent=1))
    return found


class Clock:
    """Time that is left; work is stopped as by Ctrl-C when there is none."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes if minutes else math.inf

    @property
    def left(self) -> float | None:
        """Seconds; None without a limit."""
        return None if self.end == math.inf else max(0.0, self.end - time.monotonic())

    def run(self, words: Sequence[object], log: Path) -> bool:
        """A `consilience` command; False if the time was up (what it did is kept)."""
        if self.left == 0.0:
            return False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "consilience", *map(str, words)],
                stdout=file,
                stderr=file,
            )
            try:
                process.wait(self.left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                process.wait()
                return False
        if process.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))} exited with {process.returncode}: see {log}")
        return True


def finished(folder: Path) -> bool:
    """Whether a model has been trained to its end."""
    if not (folder / "config.json").is_file():
        return False
    done = json.loads((folder / "config.json").read_text())["provenance"].get("outcome")
    return done is not None and not done["interrupted"]


def train(job: Job, work: Path, steps: int, words: Sequence[str], clock: Clock) -> bool:
    """Train, or go on; True when the model is whole."""
    folder = work / "models" / job.name
    if finished(folder):
        return True
    log = work / "logs" / f"{job.name}.log"
    if (folder / "last.ckpt").is_file():
        return clock.run(["train", "--out", folder, "--resume"], log)
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    return clock.run(
        [
            "train", "molecules", "--objective", job.objective, "--data", work / "tokens", "--out", folder,
            f"--training.steps={steps}", f"--training.seed={job.seed}", *words,
        ],
        log,
    )  # fmt: skip


def sample(job: Job, work: Path, n: int, clock: Clock) -> bool:
    """Write the strings of a model."""
    target = work / "samples" / f"{job.name}.smi"
    target.parent.mkdir(exist_ok=True)
    if target.is_file():
        return True
    words = ["generate", work / "models" / job.name, "--n", n, "--seed", job.seed, "--out", target]
    return clock.run(words, work / "logs" / f"{job.name}.log")


def score(job: Job, work: Path, data: Path, clock: Clock) -> bool:
    """All columns of a model's strings."""
    target = work / "scores" / f"{job.name}.json"
    target.parent.mkdir(exist_ok=True)
    if target.is_file():
        return True
    words = ["benchmark", "moses", work / "samples" / f"{job.name}.smi", "--out", target,
             "--cache", work / "cache", "--data-dir", data]  # fmt: skip
    return clock.run(words, work / "logs" / f"{job.name}.log")


def look(job: Job, work: Path, clock: Clock) -> bool:
    """In place of `score`, to see that everything runs: the share of valid strings alone, without any data of MOSES."""
    strings = generated_strings(work / "samples" / f"{job.name}.smi")
    found = dict.fromkeys(registry.benchmark("moses").columns, math.nan)
    found["valid"] = sum(text is not None for text in canonical_or_none(strings)) / len(strings)
    target = work / "scores" / f"{job.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"mean": found}))
    return True


@dataclass(frozen=True)
class Scored:
    """A model that has been scored: the tokens it was trained on, and its columns."""

    job: Job
    tokens: float
    mean: dict[str, float]


def scored_models(work: Path, out: Path, settings: dict[str, Any]) -> list[Scored]:
    """Those of `work` and, with the same settings, those that `out` holds already; both are kept in `out`."""
    kept = out / "moses_models.jsonl"
    lines = kept.read_text().splitlines() if kept.is_file() else []
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for path in sorted((work / "scores").glob("*.json")):
        config = json.loads((work / "models" / path.stem / "config.json").read_text())
        row = {
            "name": path.stem,
            "tokens": config["provenance"]["outcome"]["tokens"],
            "mean": json.loads(path.read_text())["mean"],
            "settings": settings,
        }
        found = [other for other in found if (other["name"], other["settings"]) != (path.stem, settings)]
        found.append(row)
    found.sort(key=lambda row: row["name"])
    if found:
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text("".join(json.dumps(row) + "\n" for row in found))
    return [
        Scored(Job.of(row["name"]), row["tokens"], row["mean"])
        for row in found
        if row["settings"] == settings
    ]


def table(scored: Sequence[Scored], out: Path, notes: list[str]) -> None:
    """Our rows beside the published ones."""
    columns = list(registry.benchmark("moses").columns)
    report = Report(
        "moses", "MOSES: models of one core beside the published ones", ["model", "tokens", "seeds", *columns],
        packages=("rdkit", "fcd_torch"), notes=notes,
    )  # fmt: skip
    groups: dict[tuple[str, float], list[Scored]] = {}
    for model in scored:
        groups.setdefault((model.job.objective, model.job.share), []).append(model)
    for (objective, share), members in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        tokens = float(np.mean([model.tokens for model in members]))
        name = objective if share == 1 else f"{objective}, {share:g} x the budget"
        cells = [spread([model.mean[column] for model in members]) for column in columns]
        report.add(name, f"{tokens / 1e6:.1f} M", len(members), *cells)
    for row in published():
        cells = [
            f"{row.mean[c]:.4f}" + ("" if row.deviation is None else f" ± {row.deviation[c]:.4f}")
            if c in row.mean
            else ""
            for c in columns
        ]
        report.add(f"{row.model} (published)", "", "" if row.deviation is None else 3, *cells)
    report.write(out)


def spread(found: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(found) == 1:
        return f"{found[0]:.4f}"
    return f"{np.mean(found):.4f} ± {np.std(found, ddof=1):.4f}"


def extrapolate(
    tokens: np.ndarray, fcd: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A power law of FCD against tokens: its prediction and 95% prediction interval at other numbers of tokens."""
    x, y = np.log(tokens), np.log(fcd)
    fit = stats.linregress(x, y)
    middle = fit.intercept + fit.slope * np.log(at)
    free = len(x) - 2
    error = np.sqrt(((y - fit.intercept - fit.slope * x) ** 2).sum() / free)
    away = (np.log(at) - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    half = stats.t.ppf(0.975, free) * error * np.sqrt(1 + 1 / len(x) + away)
    return np.exp(middle), np.exp(middle - half), np.exp(middle + half)


def curve(models: Sequence[Scored], out: Path) -> list[str]:
    """FCD against training tokens with its extrapolation, as a figure; what it says, as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scored = [
        (model.job.objective, model.tokens, model.mean["FCD/Test"])
        for model in models
        if model.job.seed == 0 and math.isfinite(model.mean["FCD/Test"])
    ]
    if not scored:
        return []
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    notes = []
    for colour, objective in enumerate(OBJECTIVES):
        points = sorted((tokens, fcd) for name, tokens, fcd in scored if name == objective)
        if not points:
            continue
        tokens, fcd = np.array(points).T
        axis.plot(tokens, fcd, "o-", color=f"C{colour}", label=objective)
        if len(points) > 2:
            at = np.geomspace(tokens[-1], tokens[-1] * 100, 30)
            middle, low, high = extrapolate(tokens, fcd, at)
            axis.plot(at, middle, "--", color=f"C{colour}")
            axis.fill_between(at, low, high, color=f"C{colour}", alpha=0.15, linewidth=0)
            for more in (10, 100):
                mid, low_end, high_end = (part[0] for part in extrapolate(tokens, fcd, tokens[-1:] * more))
                notes.append(
                    f"{objective}: a power law through {len(points)} runs gives FCD/Test {mid:.3f} "
                    f"[{low_end:.3f}, {high_end:.3f}] at {tokens[-1] * more / 1e6:,.0f} M tokens with this core "
                    "(95% prediction interval; a core of this size must level off somewhere, unlike a power law)."
                )
    for row in published():
        if row.model in ("CharRNN", "JTN-VAE"):
            axis.axhline(row.mean["FCD/Test"], color="grey", linewidth=0.8)
            place = axis.get_yaxis_transform()  # from the left edge, at the row's distance
            axis.text(
                0.01,
                row.mean["FCD/Test"],
                f"{row.model}, published",
                va="bottom",
                fontsize=8,
                transform=place,
            )
    axis.set(
        xscale="log", yscale="log", xlabel="training tokens", ylabel="FCD to the test set (lower is better)"
    )
    axis.legend(frameon=False)
    figure.savefig(out / "moses.png", dpi=150)
    return notes


def deciding(chosen: Any) -> dict[str, Any]:
    """The settings that make models comparable."""
    decides = ("width", "depth", "heads", "million", "batch", "rate", "precision", "n")
    return {name: getattr(chosen, name) for name in decides}


def stages(chosen: Any) -> list[Callable[[Job, Clock], bool]]:
    """What is done with every job, in order."""
    work = chosen.work
    core = CoreConfig(width=chosen.width, depth=chosen.depth, heads=chosen.heads)
    same_or_new(work / "settings.json", deciding(chosen))
    data = None if chosen.quick else datasets.fetch("moses", data_dir=chosen.data or None, progress=True)
    if not (work / "tokens" / MANIFEST).is_file():
        consilience.tokenize(
            "molecules", out=work / "tokens", parts=PARTS, progress=True,
            data=None if data is None else data / "train.csv.gz",
            read_options=None if data is None else {"properties": False, "processes": chosen.jobs},
        )  # fmt: skip
    flops = costs(work / "tokens", core, chosen.batch, work / "costs.json")
    whole = chosen.million * 1e6 / chosen.batch * flops[OBJECTIVES[0]]
    words = [
        f"--core.width={core.width}", f"--core.depth={core.depth}", f"--core.heads={core.heads}",
        f"--training.tokens_per_batch={chosen.batch}", f"--training.learning_rate={chosen.rate}",
        f"--training.precision={chosen.precision}", f"--training.devices={chosen.devices}",
        "--training.optimizer=muon", "--training.save_every=250", "--training.validations=5", "--progress=false",
    ]  # fmt: skip
    return [
        lambda job, clock: train(job, work, round(whole * job.share / flops[job.objective]), words, clock),
        lambda job, clock: sample(job, work, chosen.n, clock),
        lambda job, clock: (
            look(job, work, clock) if data is None else score(job, work, data.parents[1], clock)
        ),
    ]


def main() -> int:
    """Go on with whatever is left, then write what there is."""
    chosen = options(
        __doc__, work="runs/moses", data="", minutes=0.0, jobs=1, seeds=3, n=30_000, million=10.0, longest="3",
        width=192, depth=6, heads=6, batch=4096, rate=8e-3, precision="auto", devices=1, only="*",
    )  # fmt: skip
    chosen.work = Path(chosen.work)
    chosen.work.mkdir(parents=True, exist_ok=True)
    if chosen.quick:
        chosen.million, chosen.n, chosen.seeds, chosen.longest = 0.02, 20, 1, ""
        chosen.width, chosen.depth, chosen.heads = 32, 1, 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A shell has what it starts in the background ignore SIGINT; children would inherit that, and not a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shares = () if chosen.quick else (0.125, 0.25, 0.5)
    jobs = plan(chosen.seeds, shares, [float(share) for share in chosen.longest.split(",") if share])
    jobs = [job for job in jobs if any(fnmatch(job.name, name) for name in chosen.only.split(","))]
    clock, work = Clock(chosen.minutes), stages(chosen)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        done = list(pool.map(lambda job: all(stage(job, clock) for stage in work), jobs))
    whole = all(done)
    out = RESULTS if chosen.out is None else chosen.out
    # All that was ever scored, not only what was asked for now.
    if scored := scored_models(chosen.work, out, deciding(chosen)):
        notes = [
            f"Core: width {chosen.width}, {chosen.depth} layers, {chosen.heads} heads; Muon, peak learning rate "
            f"{chosen.rate:g}, at most {chosen.batch:,} tokens a step, {chosen.precision}. One budget of measured "
            f"operations for all objectives; {chosen.n:,} strings a seed, at temperature 1.",
        ]  # fmt: skip
        table(scored, out, notes + curve(scored, out))
    if not whole:
        print("the time is up; the same command goes on")
    return 0 if whole else STOPPED


if __name__ == "__main__":
    sys.exit(main())
