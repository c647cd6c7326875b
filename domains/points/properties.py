"""Properties of QM9 learned by fine-tuning: what is learned, from which start, and the pre-training before it.

Energies that grow with the molecule are learned as differences from atomic references (`references`) through sums
over atoms, the others through means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.lora import LoraOptions
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.records import Collection
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.base import Task
from consilience.domains.points.domain import DOMAIN
from consilience.domains.points.references import References
from consilience.domains.preparation import prepare
from consilience.domains.pretraining import finished, pretrain
from consilience.domains.splits import Split
from consilience.domains.supervised import Supervised, fit_supervised
from consilience.tokenizers.point_records import PointTable

Method = Literal["full", "lora", "frozen"]
METHODS: Mapping[Method, Mapping[str, Any]] = {
    "full": {},
    "lora": {"lora": LoraOptions()},
    "frozen": {"freeze_core": True},
}
"""How a pre-trained core takes part -> what `fit_supervised` is told."""
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
    unknown = np.flatnonzero(~np.isfinite(labels))
    if len(unknown):
        raise ConsilienceError(
            f"{collection.source}: '{wanted.label}' of {collection.ids[unknown[0]]} is {labels[unknown[0]]} (so in "
            f"{len(unknown)} molecules); QM9 has all of them: fetch the file again"
        )
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
        method: full trains everything, lora adapters in place of the core, frozen all but the core.
        learning_rates: to choose from; default: that of `training`.
        seed: of initialisation and order.

    Raises:
        ConsilienceError: an unknown method, one other than full without a model to start from, or data without the
            label.
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
    resume: bool = False,
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
        resume: go on with the run in `folder`.
        progress: show a bar.
    """
    prepared = prepare(DOMAIN, replace(collection, groups=None), tokenizer=TOKENIZER, split=split)
    done = pretrain(
        {DOMAIN.name: prepared},
        Denoising(noise=noise),
        core=core,
        training=training,
        folder=folder,
        resume=resume,
        progress=progress,
    )
    return finished(done, training.steps).eval()
