"""QM9: what pre-training by denoising geometries gives on five properties, beside the published rows.

One small core is pre-trained on the 110,000 training geometries (no label) and fine-tuned on 1,000, 10,000 or all
labels, beside the same core from scratch: same steps, batches and learning rates to choose from on validation. "Longer"
gives the core from scratch the tokens of pre-training too. Everything is kept in `--work`: the same command goes on.

    python benchmarks/qm9.py --data qm9.npz --minutes 120
"""

import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, Report, options

from consilience import datasets
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.points import data
from consilience.domains.points.domain import DOMAIN
from consilience.domains.points.finetune import compare
from consilience.domains.points.properties import Method, pretrain_on
from consilience.domains.points.qm9_split import TRAIN, VALIDATION, draw, split_of
from consilience.domains.settings import same_or_new

NOISE = 0.05
"""Of pre-training, in ångström."""
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
PRETRAINING = TrainingConfig(steps=2500, tokens_per_batch=2048, learning_rate=2e-3)
FINE_TUNING = TrainingConfig(steps=1200, tokens_per_batch=1024)
PUBLISHED = (
    "Published with 100,000 to 110,000 labels, MAE of HOMO / LUMO / gap / U0 in meV and mu in D: SchNet 41 / 34 / 63 / "
    "14 / .033, PaiNN 27.6 / 20.4 / 45.7 / 5.85 / .012, equivariant transformer of TorchMD-NET 20.3 / 17.5 / 36.1 / "
    "6.15 / .011. Read in the comparison table of the Ginformer repository, not in the papers; SchNetPack's own "
    "documentation gives its SchNet 47 / 39 / 74 / 12 / .021."
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that are trained alike.

    Args:
        name: of their folder.
        properties: what is learned.
        labels: how many.
        methods: of the pre-trained core; none = from scratch alone.
        steps: of fine-tuning, times those of `FINE_TUNING`.
        seeds: how many.
        rates: to choose from.
    """

    name: str
    properties: Sequence[str]
    labels: Sequence[int]
    methods: Sequence[Method] = ("full",)
    steps: float = 1.0
    seeds: int = 3
    rates: Sequence[float] = RATES


# Pre-training took 2,500 x 2,048 tokens: 4.2 times those of 1,200 steps of 1,024.
PARTS = (
    Part(name="homo", properties=("homo",), labels=(10_000, 1_000), methods=("full", "lora")),
    Part(name="longer", properties=("homo",), labels=(10_000,), methods=(), steps=5.2, seeds=1, rates=RATES[1:3]),
    Part(name="others", properties=("lumo", "gap", "u0", "mu"), labels=(10_000,), seeds=2, rates=RATES[1:3]),
    Part(name="all", properties=("homo",), labels=(TRAIN,), steps=3.0, seeds=1, rates=RATES[1:3]),
)  # fmt: skip
QUICK = (Part(name="quick", properties=("homo",), labels=(40,), methods=("full", "lora"), seeds=2),)


def rows(
    part: Part, collection: Any, init: Path, chosen: Any, sizes: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Of a part, one after the other."""
    out = chosen.work / part.name
    out.mkdir(parents=True, exist_ok=True)
    training = FINE_TUNING if not chosen.quick else replace(FINE_TUNING, steps=4, tokens_per_batch=256)
    settings = {
        "core": asdict(core_of(chosen)),
        "training": asdict(training),
        "steps": part.steps,
        "rates": part.rates,
    }
    same_or_new(out / "settings.json", settings)
    yield from compare(
        collection,
        properties=part.properties,
        labels=part.labels,
        choose_on=1000 if not chosen.quick else 20,
        init=init if part.methods else None,
        methods=part.methods,
        core=core_of(chosen),
        training=replace(training, steps=round(training.steps * part.steps)),
        learning_rates=part.rates if not chosen.quick else part.rates[:1],
        seeds=range(part.seeds),
        out=out,
        sizes=sizes,
    )


def core_of(chosen: Any) -> CoreConfig:
    """Of every row."""
    return CoreConfig(width=chosen.width, depth=chosen.depth, heads=4)


def table(parts: Sequence[Part], chosen: Any) -> None:
    """What there is: mean and standard deviation over seeds."""
    report = Report(
        "qm9", "QM9: fine-tuning with and without pre-training on geometries",
        ["property", "labels", "start", "steps", "rate", "seeds", "MAE", "unit", "median", "to scratch"],
        packages=("rdkit", "peft"), notes=[
            f"Core of width {chosen.width}, {chosen.depth} layers; pre-trained for {PRETRAINING.steps:,} steps of "
            f"{PRETRAINING.tokens_per_batch:,} tokens with noise of {NOISE} Å; fine-tuned in batches of "
            f"{FINE_TUNING.tokens_per_batch:,} tokens. Learning rate and step chosen on 1,000 validation molecules, "
            "the rate with the first seed. MAE on the 10,831 test molecules, mean ± standard deviation over seeds of "
            "fine-tuning (one pre-trained model). 'median' answers every molecule with the median of the labels.",
            PUBLISHED,
        ],
    )  # fmt: skip
    for part in parts:
        path = chosen.work / part.name / "results.csv"
        if not path.is_file():
            continue
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        scratch: dict[tuple[str, str], float] = {}
        for key in dict.fromkeys((row["property"], row["labels"], row["start"]) for row in found):
            own = [row for row in found if (row["property"], row["labels"], row["start"]) == key]
            errors = np.array([float(row["mae"]) for row in own])
            scratch.setdefault(key[:2], errors.mean())
            digits = 3 if own[0]["unit"] == "D" else 1
            spread = f" ± {errors.std(ddof=1):.{digits}f}" if len(own) > 1 else ""
            start = key[2] + (", longer" if part.name == "longer" else "")
            report.add(
                key[0], int(key[1]), start, round(part.steps * FINE_TUNING.steps), own[0]["learning_rate"], len(own),
                f"{errors.mean():.{digits}f}{spread}", own[0]["unit"], own[0]["median"],
                "" if key[2] == "scratch" else f"{errors.mean() / scratch[key[:2]] - 1:+.1%}",
            )  # fmt: skip
    report.write(RESULTS if chosen.out is None else chosen.out)


def main() -> int:
    """Go on with whatever is left, then write what there is."""
    chosen = options(__doc__, work="runs/qm9", data="", minutes=0.0, width=64, depth=4, only="")
    chosen.work = Path(chosen.work)
    end = time.monotonic() + 60 * chosen.minutes if chosen.minutes else float("inf")
    sizes, parts, pretraining = (TRAIN, VALIDATION), PARTS, PRETRAINING
    if chosen.quick:
        collection = DOMAIN.bundled()
        # A stand-in for HOMO: the bundled conformers have no computed property.
        collection = replace(collection, labels={"homo_ev": collection.labels["radius_of_gyration"]})
        sizes, parts, pretraining = (200, 40), QUICK, replace(PRETRAINING, steps=4, tokens_per_batch=256)
        chosen.width, chosen.depth = 16, 1
    else:
        collection = data.read(Path(chosen.data) if chosen.data else datasets.fetch("qm9", progress=True))
    init = chosen.work / "pretrained"
    train, validation = sizes
    order = draw(len(collection), train=train, validation=validation)
    pretrain_on(
        collection, split_of(order, train=train, validation=validation),
        noise=NOISE, core=core_of(chosen), training=pretraining, folder=init,
        resume=(init / "config.json").is_file(), progress=not chosen.quick,
    )  # fmt: skip
    whole = True
    for part in parts:
        if chosen.only not in part.name:
            continue
        for _ in rows(part, collection, init, chosen, sizes):
            whole = time.monotonic() < end
            if not whole:
                break
        if not whole:
            break
    table(parts, chosen)
    if not whole:
        print("the time is up; the same command goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
