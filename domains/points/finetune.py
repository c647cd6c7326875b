"""Fine-tuning on the properties of QM9: from scratch beside pre-trained, over numbers of labels, on the usual split.

    python -m consilience.domains.points.finetune --data_file qm9.npz --out runs/qm9 --pretrain_steps 2500 \
        --properties '[homo,u0]' --labels '[1000,10000]'

Pre-training sees the geometries of the training molecules and no label. Rows differ in where they start and in nothing
else: same core, steps, batches and learning rates to choose from. The rate is chosen with the first seed; the others
take it over.
"""

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.checkpoint import read_config
from consilience.core.errors import ConsilienceError
from consilience.core.files import new_folder, replace_text, try_writing
from consilience.core.objectives import Denoising
from consilience.core.records import Collection
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.points import data
from consilience.domains.points.properties import Method, fine_tune, pretrain_on, property_of
from consilience.domains.points.qm9_split import TRAIN, VALIDATION, draw, draw_hash, split_of, write_indices
from consilience.domains.points.references import References
from consilience.domains.script import function_script, tell_row, write_rows
from consilience.domains.settings import same_or_new
from consilience.domains.splits import Split, split_hash

logger = logging.getLogger(__name__)


def compare(
    collection: Collection,
    *,
    properties: Sequence[str] = ("homo",),
    labels: Sequence[int] = (1000,),
    choose_on: int = 1000,
    init: Path | None,
    methods: Sequence[Method] = ("full",),
    core: CoreConfig,
    training: TrainingConfig,
    learning_rates: Sequence[float] = (),
    split_seed: int = 0,
    seeds: Sequence[int] = (0,),
    out: Path,
    sizes: tuple[int, int] = (TRAIN, VALIDATION),
) -> Iterator[dict[str, Any]]:
    """Rows of the table, each written to `out/results.csv` as soon as it is known; scratch stands first.

    Rows that stand there already are not trained again.

    Args:
        collection: QM9.
        properties: names in `PROPERTIES`.
        labels: numbers of training labels.
        choose_on: validation labels that choose step and learning rate.
        init: pre-trained model; None = from scratch alone.
        methods: how the pre-trained core takes part.
        core: size of the transformer.
        training: how.
        learning_rates: to choose from with the first seed, the same for every row.
        split_seed: of the permutation.
        seeds: of fine-tuning: initialisation and order; one row each.
        out: folder of results, indices and reference energies.
        sizes: of the training and validation part.
    """
    train, validation = sizes
    order = draw(len(collection), seed=split_seed, train=train, validation=validation)
    starts: list[tuple[str, Path | None, Method]] = [("scratch", None, "full")]
    starts += [] if init is None else [(f"pre-trained, {method}", init, method) for method in methods]
    told = f"{split_seed}:{draw_hash(order)}"
    rows = _written(out, told)
    known = {(row["property"], row["labels"], row["start"], row["seed"]): row for row in rows}
    for name, count in product(properties, labels):
        split = split_of(order, train=train, validation=validation, labels=count, choose_on=choose_on)
        write_indices(split, out / f"indices_{split_seed}_{count}.npz")
        for (row, start, method), seed in product(starts, seeds):
            if (name, str(count), row, str(seed)) in known:
                yield known[name, str(count), row, str(seed)]
                continue
            first = known.get((name, str(count), row, str(seeds[0])))
            found = fine_tune(
                collection, split, property_of(name), core=core, training=training, init=start, method=method,
                learning_rates=learning_rates if first is None else (float(first["learning_rate"]),), seed=seed,
            )  # fmt: skip
            rows.append({
                "property": name, "labels": count, "start": row, "mae": round(found.mae, 3),
                "unit": found.unit, "median": round(found.trivial, 3),
                "learning_rate": found.learning_rate, "best_step": found.supervised.best_step,
                "steps": found.supervised.steps, "test": len(split.test), "seed": seed,
                "split": told,
            })  # fmt: skip
            known[name, str(count), row, str(seed)] = rows[-1]
            _write(rows, found.references, out)
            yield rows[-1]


def _written(out: Path, split: str) -> list[dict[str, Any]]:
    """Rows of an earlier, interrupted comparison on the same split, as text."""
    path = out / "results.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in ("property", "labels", "start", "seed", "learning_rate", "mae", "split"):
        if any(not row.get(name) for row in rows):
            raise ConsilienceError(
                f"{path}: a row without `{name}`; remove the file, its rows are computed again"
            )
    other = next((row["split"] for row in rows if row["split"] != split), None)
    if other is not None:
        raise ConsilienceError(f"{path} holds rows of split {other}, this is {split}: choose another --out")
    return rows


def _write(rows: Sequence[Mapping[str, Any]], references: References | None, out: Path) -> None:
    write_rows(out / "results.csv", rows)
    if references is not None:
        energies = dict(zip(references.elements, references.energies.tolist()))
        told = {"unit": "eV", "energies": energies, "residual": references.residual}
        replace_text(out / f"references_{rows[-1]['labels']}.json", json.dumps(told, indent=1))


def run(
    data_file: str,
    out: str,
    *,
    properties: Sequence[str] = ("homo",),
    labels: Sequence[int] = (1000,),
    init: str | None = None,
    pretrain_steps: int = 0,
    noise: float = 0.05,
    methods: Sequence[Method] = ("full",),
    learning_rates: Sequence[float] = (),
    choose_on: int = 1000,
    split_seed: int = 0,
    seeds: Sequence[int] = (0,),
    core: CoreConfig | None = None,
    training: TrainingConfig | None = None,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Fine-tune on properties of QM9, from scratch beside pre-trained, and write a table.

    Args:
        data_file: QM9 as .npz or .csv.
        out: folder of the results; must be new or empty.
        properties: of homo, lumo, gap, u0, mu.
        labels: numbers of training labels.
        init: a model pre-trained on the same split.
        pretrain_steps: pre-train so many steps on the training geometries first, instead of init.
        noise: of that pre-training, in ångström.
        methods: how the pre-trained core takes part: full, lora (adapters alone), frozen.
        learning_rates: to choose from on validation with the first seed, the same for every row.
        choose_on: validation labels that choose step and learning rate.
        split_seed: of the permutation that splits the molecules.
        seeds: of fine-tuning; one row each. That of pre-training is training.seed.
        core: size of the transformer.
        training: of pre-training and of every row; pre-training takes its own number of steps.
        resume: go on with an interrupted comparison in `out`, asked for in the same way.
    """
    core = core or CoreConfig(width=64, depth=4, heads=4)
    training = training or TrainingConfig(steps=1000, tokens_per_batch=1024, learning_rate=1e-3)
    folder = Path(out).expanduser()
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ConsilienceError(f"{folder} is not empty: choose another --out, --resume true, or remove it")
    if folder.is_dir():
        try_writing(folder / "settings.json", lambda path: path.touch())
    else:
        new_folder(folder)
    start = None if init is None else Path(init).expanduser()
    _check(properties, labels, seeds, methods, learning_rates, choose_on, start, pretrain_steps, noise, core)
    collection = data.read(Path(data_file).expanduser())
    # Before anything is written: a file that cannot be split leaves nothing behind.
    order = draw(len(collection), seed=split_seed, source=collection.source)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"core": asdict(core), "training": asdict(training), "noise": noise, "init": init,
                "pretrain_steps": pretrain_steps, "learning_rates": list(learning_rates),
                "choose_on": choose_on, "split_seed": split_seed, "data": collection.fingerprint}  # fmt: skip
    same_or_new(folder / "settings.json", settings)
    if pretrain_steps:
        split = split_of(order, choose_on=choose_on)
        start = folder / "pretrained"
        pretrain_on(
            collection, split, noise=noise, core=core, folder=start, resume=(start / "config.json").is_file(),
            training=replace(training, steps=pretrain_steps, tokens_per_batch=2048, learning_rate=2e-3),
        )  # fmt: skip
    elif start is not None:
        _warn_of_another_split(start, [split_of(order, choose_on=count) for count in {choose_on, VALIDATION}])
    found = []
    for row in compare(
        collection, properties=properties, labels=labels, choose_on=choose_on, init=start, methods=methods,
        core=core, training=training, learning_rates=learning_rates, split_seed=split_seed, seeds=seeds, out=folder,
    ):  # fmt: skip
        tell_row(row)
        found.append(row)
    return found


def _check(
    properties: Sequence[str],
    labels: Sequence[int],
    seeds: Sequence[int],
    methods: Sequence[Method],
    learning_rates: Sequence[float],
    choose_on: int,
    init: Path | None,
    pretrain_steps: int,
    noise: float,
    core: CoreConfig,
) -> None:
    """Raise ConsilienceError for what is asked wrongly, before minutes of reading and training; see `run`."""
    for name in properties:
        property_of(name)
    if not seeds or not labels or not properties or not methods:
        raise ConsilienceError("give at least one property, one number of labels, one seed and one method")
    if min(seeds) < 0 or pretrain_steps < 0:
        raise ConsilienceError(
            f"seeds and pretrain_steps must not be negative, not {min(seeds)} and {pretrain_steps}"
        )
    if any(rate <= 0 for rate in learning_rates):
        raise ConsilienceError(f"learning_rates must be positive, not {min(learning_rates)}")
    some = np.arange(TRAIN + VALIDATION + 1)
    for count in labels:
        split_of(some, labels=count, choose_on=choose_on)
    if init is not None and pretrain_steps:
        raise ConsilienceError(
            "give init or pretrain_steps, not both: the first is a model that was pre-trained"
        )
    if init is None and not pretrain_steps and tuple(methods) != ("full",):
        raise ConsilienceError(
            f"methods {', '.join(methods)} are of a pre-trained core: give init or pretrain_steps"
        )
    if pretrain_steps:
        Denoising(noise=noise)
    if init is not None:
        width = read_config(init).get("core", {}).get("width")
        if width != core.width:
            raise ConsilienceError(f"the core of {init} has width {width}: give --core.width {width}")


def _warn_of_another_split(init: Path, splits: Sequence[Split]) -> None:
    """Say so where a model was pre-trained on other molecules than these training parts."""
    data_of = read_config(init).get("provenance", {}).get("data", {}).get("points", {})
    if data_of.get("split") not in {split_hash(split) for split in splits}:
        logger.warning(
            "%s was not pre-trained on the training part of this split: it may have seen geometries of test molecules",
            init,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; the exit code."""
    kept = "finished rows are kept: the same command with --resume true goes on"
    return function_script(run, "consilience.domains.points.finetune", argv, kept=kept)


if __name__ == "__main__":
    raise SystemExit(main())
