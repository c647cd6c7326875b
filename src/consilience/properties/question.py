"""The question that a table answers: data, split, model and options, under a name that tells it from others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from consilience.core.checkpoint import weights_digest
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.records import Failure, fingerprint
from consilience.domains.base import Domain
from consilience.domains.finetuning import EPOCHS, LEARNING_RATES, METHODS
from consilience.domains.label_readouts import TREES, check_labels
from consilience.domains.labelled import LabelledTable
from consilience.domains.labelled_split import Aside, group_split, read_split, split_digest
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
        aside: what a given split does not settle.
        model: of any domains, molecules among them.
        model_digest: SHA-256 of its weights.
        domain: molecules.
        seeds: runs of every row that has chance in it.
        epochs: of fine-tuning, at most.
    """

    data: LabelledTable
    split: Split
    digest: str
    aside: Aside
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

    @cached_property
    def refused(self) -> tuple[Failure, ...]:
        """The molecules that the model's tokenizer cannot read, by their position among the molecules."""
        tokenizer, ids = self.model.tokenizers[self.domain.name], self.data.collection.ids
        found = tokenizer.check(self.data.collection.records)
        return tuple(replace(failure, id=str(ids[failure.index])) for failure in found)

    @property
    def left_out(self) -> list[Failure]:
        """Every row of the file, molecule and row of the split that is not used, with the reason."""
        unread = [
            Failure(index=failure.index, id=failure.id, reason=f"the model cannot read it: {failure.reason}")
            for failure in self.refused
        ]
        rows = [Failure(index=place, id="", reason=text) for place, text in enumerate(self.aside.unreadable)]
        return [*self.data.collection.failures, *unread, *rows]

    def readable(self) -> tuple[Prepared, np.ndarray]:
        """The molecules that the model's tokenizer reads, and the places in the test part that they fill.

        Raises:
            ConsilienceError: where what is left of a part cannot serve.
        """
        collection, tokenizer = self.data.collection, self.model.tokenizers[self.domain.name]
        refused = {failure.index for failure in self.refused}
        kept = np.array([place for place in range(len(collection)) if place not in refused], dtype=np.int64)
        moved = np.full(len(collection), -1)
        moved[kept] = np.arange(len(kept))
        split = Split(*(moved[index][moved[index] >= 0] for index in self.split.parts().values()))
        try:
            check_labels(self.data.labels[kept], self.data.targets, split, self.data.kind)
        except ConsilienceError as error:
            told = ""
            if refused:
                first = self.refused[0].reason
                told = (
                    f"the model cannot read {len(refused)} of {len(collection)} molecules (first: {first}); "
                )
            raise ConsilienceError(f"{collection.source}: {told}{error}") from error
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
    data, aside = domain.read_labels(file, targets, column=smiles_column, kind=kind), Aside()
    if split is None:
        parts = group_split(data)
    else:
        data, parts, aside = read_split(split, data, domain.canonical)
    try:
        check_labels(data.labels, data.targets, parts, data.kind)
    except ConsilienceError as error:
        raise ConsilienceError(f"{file}: {error}{_shortened(data)}") from error
    return Question(
        data=data,
        split=parts,
        digest=split_digest(parts, data),
        aside=aside,
        model=model,
        model_digest=weights_digest(folder),
        domain=domain,
        seeds=seeds,
        epochs=epochs,
    )


def _shortened(data: LabelledTable) -> str:
    """How many rows of the file had to be left out, for a message about what is missing."""
    found = ", ".join(f"{count} {reason}" for reason, count in data.left_out.items() if count)
    first = f"; first, {data.collection.failures[0].reason}" if data.collection.failures else ""
    return f" (left out of {data.rows} rows: {found}{first})" if found else ""
