"""The question that a table answers: data, split, model and options, under a name that tells it from others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilience.core.checkpoint import weights_digest
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.records import fingerprint
from consilience.domains.base import Domain
from consilience.domains.finetuning import EPOCHS, LEARNING_RATES, METHODS
from consilience.domains.label_readouts import TREES, check_labels
from consilience.domains.labelled import LabelledTable
from consilience.domains.labelled_split import group_split, read_split, split_digest
from consilience.domains.penalties import Kind
from consilience.domains.preparation import Prepared
from consilience.domains.splits import Split

ROWS = ("trivial", "forest", "descriptors", "linear", "random", "frozen", "lora", "full", "scratch")
"""What a table can hold, in its order."""
OF_DATA_ALONE = ("trivial", "forest", "descriptors", "linear")
"""Rows that the model has no part in."""
SEEDS = 3
FORMAT = 1
"""Of saved rows; raised when what a row means changes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """A model on a table of molecules.

    Args:
        data: the molecules.
        split: positions of training, validation and test molecules.
        digest: SHA-256 of the split.
        unplaced: molecules of the file that a given split does not place.
        model: of any domains, molecules among them.
        model_digest: SHA-256 of its weights.
        domain: molecules.
        seeds: runs of every row that has chance in it.
        epochs: of fine-tuning, at most.
    """

    data: LabelledTable
    split: Split
    digest: str
    unplaced: int
    model: FoundationModel
    model_digest: str
    domain: Domain
    seeds: int = SEEDS
    epochs: int = EPOCHS

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.epochs < 1:
            raise ConsilienceError(f"seeds and epochs must be at least 1, not {self.seeds} and {self.epochs}")

    def key(self, row: str) -> str:
        """Names everything that the predictions of a row depend on."""
        parts = [str(FORMAT), row, self.data.collection.fingerprint, self.digest, self.data.kind]
        parts += [*self.data.targets, str(self.seeds)]
        if row in ("forest", "descriptors"):
            parts.append(str(TREES))
        if row not in OF_DATA_ALONE:
            parts.append(self.model_digest)
        if row in METHODS:
            parts += [str(self.epochs), json.dumps(LEARNING_RATES[row])]
        return fingerprint(["\0".join(parts)])

    def readable(self) -> tuple[Prepared, np.ndarray]:
        """The molecules that the model's tokenizer reads, and the places in the test part that they fill.

        Raises:
            ConsilienceError: where what is left of a part cannot serve.
        """
        collection, tokenizer = self.data.collection, self.model.tokenizers[self.domain.name]
        refused = {failure.index for failure in tokenizer.check(collection.records)}
        kept = np.array([place for place in range(len(collection)) if place not in refused], dtype=np.int64)
        moved = np.full(len(collection), -1)
        moved[kept] = np.arange(len(kept))
        split = Split(*(moved[index][moved[index] >= 0] for index in self.split.parts().values()))
        check_labels(self.data.labels[kept], self.data.targets, split, self.data.kind)
        prepared = Prepared(
            domain=self.domain,
            collection=collection.take(kept),
            split=split,
            tokenizer=tokenizer,
            failures=(),
        )
        return prepared, np.flatnonzero(moved[self.split.test] >= 0)


def ask(
    model: FoundationModel,
    folder: Path,
    domain: Domain,
    file: Path,
    targets: Sequence[str],
    *,
    smiles_column: str | None = None,
    split: Path | None = None,
    kind: Kind | None = None,
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
) -> Question:
    """Read the file, split it and look whether every part can serve.

    Args:
        model: loaded from `folder`.
        folder: of the run.
        domain: molecules.
        file: .csv or .tsv (also .gz).
        targets: label columns.
        smiles_column: default: by the usual names.
        split: a split that was written before; default: by scaffold.
        kind: default: from the labels.
        seeds: runs of every row that has chance in it.
        epochs: of fine-tuning, at most.
    """
    data, unplaced = domain.read_labels(file, targets, column=smiles_column, kind=kind), 0
    if split is None:
        parts = group_split(data)
    else:
        data, parts, unplaced = read_split(split, data, domain.canonical)
    check_labels(data.labels, data.targets, parts, data.kind)
    return Question(
        data=data,
        split=parts,
        digest=split_digest(parts, data),
        unplaced=unplaced,
        model=model,
        model_digest=weights_digest(folder),
        domain=domain,
        seeds=seeds,
        epochs=epochs,
    )
