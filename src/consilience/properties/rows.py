"""The rows of a table: each predicts the test part of the question, once or once a seed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from consilience.core.embed import embed_readouts
from consilience.core.lora import require_peft
from consilience.core.model import FoundationModel
from consilience.core.readouts import candidates
from consilience.domains.finetuning import METHODS, tune_by_validation
from consilience.domains.label_readouts import forest_scores, linear_scores, trivial_scores
from consilience.domains.preparation import Prepared
from consilience.domains.readout_search import search
from consilience.properties.question import Question

Tell = Callable[[str], None]

TITLES: Mapping[str, str] = {
    "trivial": "majority / mean",
    "forest": "random forest, ECFP4",
    "descriptors": "random forest, RDKit descriptors",
    "linear": "linear, ECFP4 counts",
    "random": "random core, linear probe",
    "frozen": "this core frozen, linear probe",
    "lora": "this core, LoRA",
    "full": "this core, fine-tuned",
    "scratch": "same core from scratch",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What a row says of the test part.

    Args:
        scores: (S, m, T) probabilities of class 1, or numbers; S is 1 for rows without chance.
        chosen: what was chosen on validation, in words, one a seed or a target.
        unread: test molecules that the model's tokenizer cannot read; they have the trivial prediction.
    """

    scores: np.ndarray
    chosen: tuple[str, ...] = ()
    unread: tuple[str, ...] = field(default=())


def predict_row(question: Question, row: str, tell: Tell) -> Predicted:
    """Compute one row."""
    if row in METHODS:
        return _tuned(question, row, tell)
    return {
        "trivial": _trivial,
        "forest": _forest,
        "descriptors": _descriptors,
        "linear": _linear,
        "random": _random,
        "frozen": _frozen,
    }[row](question, tell)


def check_row(row: str) -> None:
    """Raise ConsilienceError, before any work, for a row that needs a library that is not there."""
    if row == "lora":
        require_peft()


def _trivial(question: Question, tell: Tell) -> Predicted:
    return Predicted(scores=trivial_scores(question.data.labels, question.split)[None])


def _forest(question: Question, tell: Tell) -> Predicted:
    counts = question.domain.baseline(question.data.collection, question.split.train)[1]
    return _trees(question, "forest", (counts > 0).astype(np.float32), tell)  # bits, as in the published bar


def _descriptors(question: Question, tell: Tell) -> Predicted:
    return _trees(question, "descriptors", question.domain.descriptors(question.data.collection), tell)


def _trees(question: Question, row: str, features: np.ndarray, tell: Tell) -> Predicted:
    runs = []
    for seed in range(question.seeds):
        tell(f"{row}: seed {seed}")
        runs.append(
            forest_scores(features, question.data.labels, question.split, question.data.kind, seed=seed)
        )
    return Predicted(scores=np.stack(runs))


def _linear(question: Question, tell: Tell) -> Predicted:
    features = question.domain.baseline(question.data.collection, question.split.train)[1]
    columns = [
        linear_scores(features, own, question.split, question.data.kind) for own in question.data.labels.T
    ]
    return Predicted(scores=np.column_stack(columns)[None])


def _random(question: Question, tell: Tell) -> Predicted:
    prepared, places = question.readable()
    runs, chosen = [], []
    for seed in range(question.seeds):
        tell(f"random: seed {seed}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = question.model
            fresh = FoundationModel(model.core_config, model.tokenizers, model.objective)
        scores, words = _probed(question, prepared, fresh.to(model.device).eval())
        runs.append(scores)
        chosen += words
    return _filled(question, np.stack(runs), places, chosen)


def _frozen(question: Question, tell: Tell) -> Predicted:
    prepared, places = question.readable()
    tell("frozen: embedding and probing")
    scores, chosen = _probed(question, prepared, question.model)
    return _filled(question, scores[None], places, chosen)


def _probed(question: Question, prepared: Prepared, model: FoundationModel) -> tuple[np.ndarray, list[str]]:
    """(m, T) linear probes of a frozen core, each on the read-out that is best on validation; and these."""
    asked = candidates(model.objective, model.core_config.depth)
    vectors = embed_readouts(model, prepared.collection.records, prepared.domain.name, asked)
    features = {readout: found.vectors for readout, found in vectors.items()}
    columns, chosen = [], []
    for name in question.data.targets:
        labels = prepared.collection.labels[name]
        kind = question.data.kind
        best = search(features, labels, prepared.split, kind, ranking=kind == "classification").name
        columns.append(linear_scores(features[best], labels, prepared.split, kind))
        chosen.append(str(best))
    return np.column_stack(columns), chosen


def _tuned(question: Question, row: Any, tell: Tell) -> Predicted:
    prepared, places = question.readable()
    runs = tune_by_validation(
        prepared,
        question.data.targets,
        question.data.kind,
        question.model,
        row,
        seeds=question.seeds,
        epochs=question.epochs,
        tell=tell,
    )
    records = prepared.records("test")
    chosen = [f"learning rate {run.learning_rate:g}, {run.epoch} epochs" for run in runs]
    return _filled(question, np.stack([run.predict(records) for run in runs]), places, chosen)


def _filled(question: Question, scores: np.ndarray, places: np.ndarray, chosen: list[str]) -> Predicted:
    """Scores (S, k, T) of the molecules at these places of the test part; the others get the trivial prediction."""
    trivial = trivial_scores(question.data.labels, question.split)
    whole = np.tile(trivial, (len(scores), 1, 1))
    whole[:, places] = scores
    unread = np.setdiff1d(np.arange(len(trivial)), places)
    ids = question.data.collection.ids[question.split.test]
    return Predicted(scores=whole, chosen=tuple(chosen), unread=tuple(ids[unread].tolist()))
