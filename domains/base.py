"""What every science offers: a reader, bundled data, tasks, classical baselines, writers and one figure."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.core.tokenizer import Tokenizer
from consilience.domains.labelled import LabelledTable
from consilience.domains.penalties import Kind
from consilience.domains.pieces import Piece, pieces_of
from consilience.domains.tables import EmbeddedRows, EmbeddingTable, EmbeddingWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from consilience.core.model import Embedding, FoundationModel

Reading = Literal["linear", "forest", "boosted-trees"]
"""How the features of a baseline are read out; see `domains.probes.probe`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to read out of frozen embeddings.

    Args:
        name: for people, with its unit where it has one ("redshift", "logP").
        label: the column of `Collection.labels` that holds the truth.
        kind: classification (accuracy, macro F1) or regression (R2, mean absolute error).
    """

    name: str
    label: str
    kind: Literal["classification", "regression"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """A row that a pre-trained core must beat.

    Args:
        name: for people: the representation, and the method where it is not linear.
        features: (n, d) float features of all records; what was fitted, was fitted on training rows alone.
        method: how they are read out.
    """

    name: str
    features: np.ndarray
    method: Reading = "linear"


@dataclass(frozen=True, kw_only=True)
class QuickPreset:
    """What `study --preset quick` does with this science's bundled data.

    Args:
        objectives: what is compared, in the order of the table: objectives, or variants of `study.variants`.
        records: at most this many records, drawn with a fixed seed; None = all.
        tokenizer: options of the tokenizer.
        tasks: names of the tasks shown; empty = the first.
    """

    objectives: tuple[str, ...]
    records: int | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()


class Domain(ABC):
    """A science. One instance per science stands in `domains/<science>/domain.py` as DOMAIN."""

    name: ClassVar[str]
    tokenizer: ClassVar[type[Tokenizer[Any]]]
    suffixes: ClassVar[tuple[str, ...]] = ()
    tells: ClassVar[tuple[str, ...]] = ()
    """Sciences whose records of the same objects its bundled data and some of its files hold (`Collection.beside`)."""
    text_records: ClassVar[bool] = False
    """Whether a record can be typed on the command line (a SMILES)."""
    classical: ClassVar[int] = 1
    """How many rows `baselines` has: a study plans them before it computes them."""
    augments: ClassVar[bool] = True
    """Whether tokens with randomness are another view of the same record, fit to learn labels from."""
    quick: ClassVar[QuickPreset] = QuickPreset(objectives=("next-token", "masked"))

    @abstractmethod
    def bundled(self) -> Collection:
        """The data that ships inside a dependency."""

    def read(self, path: Path, **options: Any) -> Collection:
        """Records of a user's file. Raises ConsilienceError naming the file; bad rows go to `failures`."""
        raise ConsilienceError(f"{path}: {self.name} has no reader for files yet; leave out --data")

    def beside(self, records: Any, like: Collection) -> Collection:
        """Records of this science that stand beside those of another one (`Collection.beside`); bad ones are failures.

        Args:
            records: n of them.
            like: the n records of the other science: ids, source and origin are theirs.
        """
        raise ConsilienceError(f"{self.name} records do not stand beside others; give a file of their own")

    def stream(self, path: Path, size: int, **options: Any) -> Iterator[Piece]:
        """The records that `read` gives, in pieces of `size`: for files larger than memory.

        The default reads the file as a whole, which is right for records that stay on disk (cells of an .h5ad).
        """
        return pieces_of(self.read(path, **options), size)

    @abstractmethod
    def tasks(self, collection: Collection) -> list[Task]:
        """The tasks whose labels this collection has, best known first."""

    @abstractmethod
    def baseline(self, collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
        """The science's classical representation: (its name, (n, d) float features of all records).

        Whatever it fits (a PCA, a choice of genes) is fitted on the records at the indices `train` alone.
        """

    def baselines(self, collection: Collection, train: np.ndarray) -> list[Baseline]:
        """All classical rows of this science, the one of `baseline` first; what is fitted, is fitted on `train`."""
        name, features = self.baseline(collection, train)
        return [Baseline(name=name, features=features)]

    def descriptors(self, collection: Collection) -> np.ndarray:
        """(n, d) float32 computed properties of all records, of any scale, finite: what trees are given.

        Raises:
            ConsilienceError: for a science that has none.
        """
        raise ConsilienceError(f"{self.name} has no computed descriptors; leave that row out")

    def read_labels(
        self, path: Path, targets: Sequence[str], *, column: str | None = None, kind: Kind | None = None
    ) -> LabelledTable:
        """Records and labels of a user's table, cleaned for a benchmark.

        Args:
            path: the file.
            targets: label columns.
            column: of the records; default: the first of the usual names.
            kind: classification or regression; default: from the labels.
        """
        raise ConsilienceError(f"{path}: {self.name} has no reader for tables of labels; molecules have one")

    def canonical(self, record: str) -> str:
        """The string by which the records of `read_labels` are told apart; ConsilienceError for one unreadable."""
        return record

    computed: ClassVar[tuple[str, ...]] = ()
    """Properties that `compute` knows: a model may be told them in training and asked for them in generation."""

    def compute(self, records: Any, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Property -> (n,) float64 of records, generated ones included; NaN where a record has none.

        Args:
            records: n of them.
            names: of `computed`.
        """
        raise ConsilienceError(f"{self.name}: no property is computed from records here")

    keeps_columns: ClassVar[tuple[str, ...]] = ()
    """Endings of files of records that hold columns beside them."""

    def summary(self, records: Any) -> str:
        """One line on generated records."""
        return f"{len(records)} generated records"

    def scaffold_patterns(self, scaffold: str) -> list[str]:
        """Patterns (`Tokenizer.pattern`) that keep a scaffold, the best first."""
        raise ConsilienceError(f"{self.name} records have no scaffolds")

    def holds(self, records: Any, *, pattern: str | None, scaffold: str | None) -> np.ndarray | None:
        """(n,) bool, which records hold what they were asked to, where this science can tell."""
        return None

    def write_records(self, records: Any, path: Path, columns: Mapping[str, Any] | None = None) -> None:
        """Write generated records in a format of this science's community, chosen by the file ending."""
        raise ConsilienceError(f"{path}: {self.name} has no writer for records yet")

    def embedding_columns(self, collection: Collection, index: np.ndarray) -> dict[str, np.ndarray]:
        """What stands beside the vectors of the records at `index`: their labels unless the science has more."""
        return {name: column[index] for name, column in collection.labels.items()}

    def embedding_writer(
        self, path: Path, source: Path | None, whole: Callable[[], Collection]
    ) -> EmbeddingWriter:
        """What writes embeddings: parquet unless the science has its own format.

        Args:
            path: what to write; a wrong ending raises ConsilienceError.
            source: the file that is embedded, if it is one.
            whole: all the records, for a format that holds them.
        """
        return EmbeddingTable(path)

    def embedded_rows(
        self, collection: Collection, embedding: "Embedding", places: np.ndarray | None = None
    ) -> EmbeddedRows:
        """An embedding with what is written beside it.

        Args:
            collection: the records; its failures and the embedding's end up in one list.
            embedding: of these records.
            places: (n,) where each record of the collection stands in its source; None = not known.
        """
        refused = [
            failure if places is None else replace(failure, index=int(places[failure.index]))
            for failure in embedding.failures
        ]
        return EmbeddedRows(
            ids=embedding.ids,
            vectors=embedding.vectors,
            columns=self.embedding_columns(collection, embedding.index),
            places=None if places is None else places[embedding.index],
            failures=tuple(sorted([*collection.failures, *refused], key=lambda failure: failure.index)),
        )

    def write_embedding(self, collection: Collection, embedding: "Embedding", path: Path) -> None:
        """Write an embedding whole."""
        source = Path(collection.source)
        with self.embedding_writer(path, source if source.is_file() else None, lambda: collection) as writer:
            writer.write(self.embedded_rows(collection, embedding))

    def figure(
        self, models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray
    ) -> "Figure | None":
        """One matplotlib figure that a scientist of this field would look at; None when there is none.

        Args:
            models: objective name -> a model pre-trained with it on the training rows.
            collection: the whole collection.
            test: indices of held-out records; only these may be shown as results.
        """
        return None
