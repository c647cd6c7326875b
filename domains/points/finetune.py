"""Fine-tuning on the properties of QM9: from scratch beside pre-trained, over numbers of labels, on the usual split.

    python -m consilience.domains.points.finetune --data qm9.npz --out runs/qm9 --pretrain-steps 2500 \
        --properties homo u0 --labels 1000 10000

Pre-training sees the geometries of the training molecules and no label. Energies that grow with the molecule are
learned as differences from atomic references (`references`) through sums over atoms, the others through means.
Rows differ in where they start and in nothing else: same core, steps, batches and learning rates to choose from.
"""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.records import Collection
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.base import Task
from consilience.domains.points import data
from consilience.domains.points.domain import DOMAIN
from consilience.domains.points.qm9_split import TRAIN, VALIDATION, draw, draw_hash, split_of, write_indices
from consilience.domains.points.references import References
from consilience.domains.preparation import prepare
from consilience.domains.pretraining import pretrain
from consilience.domains.splits import Split
from consilience.domains.supervised import Supervised, fit_supervised
from consilience.tokenizers.point_records import PointTable

Method = Literal["full", "frozen"]
METHODS: Mapping[Method, Mapping[str, Any]] = {"full": {}, "frozen": {"freeze_core": True}}
"""How a pre-trained core takes part -> what `fit_supervised` is told; more (adapters) are one line each."""
TOKENIZER: Mapping[str, Any] = {"geometry": "invariant", "augment": "none"}
LABEL = "target"


@dataclass(frozen=True, kw_only=True)
class Property:
    """One property of QM9.

    Args:
        label: of the reader (`qm9.PROPERTIES`).
        unit: of the reported error.
        factor: from the label's unit to it.
        extensive: it grows with the molecule: atomic references are subtracted and the head reads a sum.
    """

    label: str
    unit: str
    factor: float
    extensive: bool = False


PROPERTIES: Mapping[str, Property] = {
    "homo": Property(label="homo_ev", unit="meV", factor=1e3),
    "lumo": Property(label="lumo_ev", unit="meV", factor=1e3),
    "gap": Property(label="gap_ev", unit="meV", factor=1e3),
    "u0": Property(label="u0_ev", unit="meV", factor=1e3, extensive=True),
    "mu": Property(label="dipole_debye", unit="D", factor=1.0),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class FineTuned:
    """One property learned from so many labels.

    Args:
        mae: mean absolute error on the test molecules, in `unit`.
        trivial: that of the median of the training labels (after references, where there are any).
        unit: meV or D.
        learning_rate: the one with the lowest validation error.
        validation: standardised validation error of each learning rate.
        references: of an extensive property.
        supervised: the trained model.
    """

    mae: float
    trivial: float
    unit: str
    learning_rate: float
    validation: Mapping[float, float]
    references: References | None
    supervised: Supervised


def property_of(name: str) -> Property:
    """A property by name; ConsilienceError for one that is not known."""
    if name not in PROPERTIES:
        raise ConsilienceError(f"unknown property '{name}'; known: {', '.join(PROPERTIES)}")
    return PROPERTIES[name]


def with_target(
    collection: Collection, train: np.ndarray, wanted: Property
) -> tuple[Collection, References | None]:
    """The molecules with what is learned as their one label, and the references fitted on rows `train`.

    Groups go: the usual split of QM9 is by molecule.
    """
    if wanted.label not in collection.labels:
        raise ConsilienceError(f"{collection.source}: there is no label '{wanted.label}'; is this QM9?")
    labels = np.asarray(collection.labels[wanted.label], dtype=np.float64)
    references = None
    if wanted.extensive:
        clouds = PointTable.of(collection.records)
        references = References.fit(clouds.take(train), labels[train])
        labels = labels - references.of(clouds)
    return replace(collection, labels={LABEL: labels}, groups=None), references


def fine_tune(
    collection: Collection,
    split: Split,
    wanted: Property,
    *,
    core: CoreConfig,
    training: TrainingConfig,
    init: Path | FoundationModel | None = None,
    method: Method = "full",
    learning_rates: Sequence[float] = (),
    seed: int = 0,
) -> FineTuned:
    """Learn one property from the training part; choose the learning rate and the step on the validation part.

    Args:
        collection: QM9.
        split: positions of the molecules; the labels of `train` alone are learned from.
        wanted: what to learn.
        core: size of the transformer.
        training: how.
        init: start from this model; None = from scratch.
        method: full trains everything, frozen all but the core.
        learning_rates: to choose from; default: that of `training`.
        seed: of initialisation and order.

    Raises:
        ConsilienceError: an unknown method, frozen without a model to start from, or data without the label.
    """
    if method not in METHODS:
        raise ConsilienceError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    if method != "full" and init is None:
        raise ConsilienceError(f"method '{method}' needs a pre-trained model to start from: give init")
    labelled, references = with_target(collection, split.train, wanted)
    start = FoundationModel.load(init) if isinstance(init, Path) else init
    tokenizer: Any = TOKENIZER if start is None else start.tokenizers.get(DOMAIN.name, TOKENIZER)
    prepared = prepare(DOMAIN, labelled, tokenizer=tokenizer, split=split)
    runs = {
        rate: fit_supervised(
            prepared,
            Task(name=wanted.label, label=LABEL, kind="regression"),
            core=core,
            training=replace(training, learning_rate=rate),
            objective=Denoising() if start is None else start.objective,
            init=start,
            pool="sum" if wanted.extensive else "mean",
            error="absolute",
            seed=seed,
            **METHODS[method],
        )
        for rate in dict.fromkeys(learning_rates or (training.learning_rate,))
    }
    validation = {rate: min(loss for _, loss in run.curve) for rate, run in runs.items()}
    best = min(validation, key=validation.__getitem__)
    result = runs[best].result
    middle = np.median(labelled.labels[LABEL][split.train])
    return FineTuned(
        mae=float(np.abs(result.predicted - result.truth).mean()) * wanted.factor,
        trivial=float(np.abs(middle - result.truth).mean()) * wanted.factor,
        unit=wanted.unit,
        learning_rate=best,
        validation=validation,
        references=references,
        supervised=runs[best],
    )


def pretrain_on(
    collection: Collection,
    split: Split,
    *,
    noise: float,
    core: CoreConfig,
    training: TrainingConfig,
    folder: Path,
    progress: bool = True,
) -> FoundationModel:
    """Denoise the geometries of the training part, without labels; the model is saved in `folder`.

    Args:
        collection: QM9.
        split: positions of the molecules.
        noise: its standard deviation in ångström.
        core: size of the transformer.
        training: how.
        folder: where to.
        progress: show a bar.
    """
    prepared = prepare(DOMAIN, replace(collection, groups=None), tokenizer=TOKENIZER, split=split)
    done = pretrain(
        {DOMAIN.name: prepared},
        Denoising(noise=noise),
        core=core,
        training=training,
        folder=folder,
        progress=progress,
    )
    return done.model.eval()


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
    seed: int = 0,
    out: Path,
    sizes: tuple[int, int] = (TRAIN, VALIDATION),
) -> Iterator[dict[str, Any]]:
    """Rows of the table, each written to `out/results.csv` as soon as it is known; scratch stands first.

    Args:
        collection: QM9.
        properties: names in `PROPERTIES`.
        labels: numbers of training labels.
        choose_on: validation labels that choose step and learning rate.
        init: pre-trained model; None = from scratch alone.
        methods: how the pre-trained core takes part.
        core: size of the transformer.
        training: how.
        learning_rates: to choose from, the same for every row.
        split_seed: of the permutation.
        seed: of training.
        out: folder of results, indices and reference energies.
        sizes: of the training and validation part.
    """
    train, validation = sizes
    order = draw(len(collection), seed=split_seed, train=train, validation=validation)
    starts: list[tuple[str, Path | None, Method]] = [("scratch", None, "full")]
    starts += [] if init is None else [(f"pre-trained, {method}", init, method) for method in methods]
    rows: list[dict[str, Any]] = []
    for name in properties:
        for count in labels:
            split = split_of(order, train=train, validation=validation, labels=count, choose_on=choose_on)
            write_indices(split, out / f"indices_{split_seed}_{count}.npz")
            for row, start, method in starts:
                found = fine_tune(
                    collection, split, property_of(name), core=core, training=training, init=start,
                    method=method, learning_rates=learning_rates, seed=seed,
                )  # fmt: skip
                rows.append({
                    "property": name, "labels": count, "start": row, "mae": round(found.mae, 3),
                    "unit": found.unit, "median": round(found.trivial, 3),
                    "learning_rate": found.learning_rate, "best_step": found.supervised.best_step,
                    "steps": found.supervised.steps, "test": len(split.test), "seed": seed,
                    "split": f"{split_seed}:{draw_hash(order)}",
                })  # fmt: skip
                _write(rows, found.references, out)
                yield rows[-1]


def _write(rows: Sequence[Mapping[str, Any]], references: References | None, out: Path) -> None:
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if references is not None:
        energies = dict(zip(references.elements, references.energies.tolist()))
        told = {"unit": "eV", "energies": energies, "residual": references.residual}
        (out / f"references_{rows[-1]['labels']}.json").write_text(json.dumps(told, indent=1))


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
    seed: int = 0,
    core: CoreConfig | None = None,
    training: TrainingConfig | None = None,
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
        methods: how the pre-trained core takes part: full, frozen.
        learning_rates: to choose from on validation, the same for every row.
        choose_on: validation labels that choose step and learning rate.
        split_seed: of the permutation that splits the molecules.
        seed: of training.
        core: size of the transformer.
        training: of pre-training and of every row; pre-training takes its own number of steps.
    """
    core = core or CoreConfig(width=64, depth=4, heads=4)
    training = training or TrainingConfig(steps=1000, tokens_per_batch=1024, learning_rate=1e-3, seed=seed)
    folder = Path(out).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise ConsilienceError(f"{folder} is not empty: choose another --out or remove it")
    if init is not None and pretrain_steps:
        raise ConsilienceError(
            "give init or pretrain_steps, not both: the first is a model that was pre-trained"
        )
    for name in properties:
        property_of(name)
    collection = data.read(Path(data_file).expanduser())
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"core": asdict(core), "training": asdict(training), "noise": noise, "init": init,
                "pretrain_steps": pretrain_steps, "learning_rates": list(learning_rates),
                "choose_on": choose_on, "data": collection.fingerprint}  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    start = None if init is None else Path(init).expanduser()
    if pretrain_steps:
        split = split_of(draw(len(collection), seed=split_seed), choose_on=choose_on)
        start = folder / "pretrained"
        pretrain_on(
            collection, split, noise=noise, core=core, folder=start,
            training=replace(training, steps=pretrain_steps, tokens_per_batch=2048, learning_rate=2e-3),
        )  # fmt: skip
    found = []
    for row in compare(
        collection, properties=properties, labels=labels, choose_on=choose_on, init=start, methods=methods,
        core=core, training=training, learning_rates=learning_rates, split_seed=split_seed, seed=seed, out=folder,
    ):  # fmt: skip
        sys.stdout.write(", ".join(f"{key} {value}" for key, value in row.items()) + "\n")
        sys.stdout.flush()
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; the exit code."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m consilience.domains.points.finetune")
    parser.add_function_arguments(run)
    options = parser.instantiate_classes(parser.parse_args(None if argv is None else list(argv)))
    try:
        run(**vars(options))
    except ConsilienceError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
