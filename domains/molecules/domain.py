"""Molecules as a domain: everything the rest of the package asks of this science."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.core.records import Collection
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Baseline, Domain, QuickPreset, Task
from consilience.domains.labelled import LabelledTable
from consilience.domains.molecules import conditions, data, evaluate, readers
from consilience.domains.penalties import Kind
from consilience.domains.pieces import Piece
from consilience.tokenizers.molecule_notation import canonical
from consilience.tokenizers.molecules import MoleculeTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from consilience.core.model import FoundationModel


class MoleculesDomain(Domain):
    """SMILES strings: bundled NCI molecules, files of users, ECFP4 as the baseline, drawn samples."""

    name: ClassVar[str] = "molecules"
    tokenizer: ClassVar[type[Tokenizer[Any]]] = MoleculeTokenizer
    suffixes: ClassVar[tuple[str, ...]] = readers.SUFFIXES
    text_records: ClassVar[bool] = True
    classical: ClassVar[int] = 2
    keeps_columns: ClassVar[tuple[str, ...]] = (".csv", ".parquet")
    computed: ClassVar[tuple[str, ...]] = tuple(conditions.COMPUTED)
    # 96 tokens hold 99.5% of the bundled molecules; the longest has 240 characters.
    quick: ClassVar[QuickPreset] = QuickPreset(
        objectives=("next-token", "masked", "masked-diffusion", "address-only"),
        tokenizer={"max_length": 96},
        tasks=("logP",),
    )

    def bundled(self) -> Collection:
        """RDKit's NCI set; see `data.bundled`."""
        return data.bundled()

    def read(self, path: Path, **options: Any) -> Collection:
        """Molecules of a file; options and errors as in `data.read`."""
        return data.read(path, **options)

    def beside(self, records: Any, like: Collection) -> Collection:
        """The molecules of conformers, grouped by scaffold; without labels."""
        found = data.of_smiles(list(records), source=like.source, ids=like.ids.tolist())
        return replace(found, origin=like.origin)

    def stream(self, path: Path, size: int, **options: Any) -> Iterator[Piece]:
        """Molecules of a file in pieces; see `data.stream`."""
        return data.stream(path, size, **options)

    def tasks(self, collection: Collection) -> list[Task]:
        """One task per label; see `evaluate.tasks`."""
        return evaluate.tasks(collection)

    def baseline(self, collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
        """ECFP4 fingerprints."""
        return evaluate.baseline(collection, train)

    def baselines(self, collection: Collection, train: np.ndarray) -> list[Baseline]:
        """ECFP4 counts read by ridge and by a random forest."""
        return evaluate.baselines(collection, train)

    def descriptors(self, collection: Collection) -> np.ndarray:
        """RDKit's; see `evaluate.descriptors`."""
        return evaluate.descriptors(collection.records)

    def read_labels(
        self, path: Path, targets: Sequence[str], *, column: str | None = None, kind: Kind | None = None
    ) -> LabelledTable:
        """SMILES and labels of a .csv or .tsv file; see `labels.read_labels`."""
        from consilience.domains.molecules.labels import read_labels

        return read_labels(path, targets, smiles_column=column, kind=kind)

    def canonical(self, record: str) -> str:
        """RDKit's canonical SMILES."""
        return canonical(record)

    def compute(self, records: Any, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """What RDKit computes; see `conditions.compute`."""
        return conditions.compute(records, names)

    def summary(self, records: Any) -> str:
        """How many are valid, and different among those."""
        from consilience.domains.molecules.generation import tally

        return tally(records)

    def scaffold_patterns(self, scaffold: str) -> list[str]:
        """Strings with the scaffold and its attachment points free; see `decoration.scaffold_patterns`."""
        from consilience.domains.molecules.decoration import scaffold_patterns

        return scaffold_patterns(scaffold)

    def holds(self, records: Any, *, pattern: str | None, scaffold: str | None) -> np.ndarray | None:
        """Valid molecules with the scaffold, or what a pattern keeps where that is a molecule, as a substructure."""
        from consilience.domains.molecules.decoration import holds_scaffold, scaffold_of_pattern

        wanted = scaffold if pattern is None else scaffold_of_pattern(pattern)
        return None if wanted is None else holds_scaffold(records, wanted)

    def write_records(self, records: Any, path: Path, columns: Mapping[str, Any] | None = None) -> None:
        """Molecules as .smi, .csv or .parquet; see `writers.write_records`."""
        from consilience.domains.molecules.writers import write_records

        write_records(records, path, columns)

    def embedding_columns(self, collection: Collection, index: np.ndarray) -> dict[str, np.ndarray]:
        """The SMILES of every molecule, then the labels."""
        from consilience.domains.molecules.writers import smiles_of

        return {"smiles": smiles_of(collection, index), **super().embedding_columns(collection, index)}

    def figure(
        self, models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray
    ) -> "Figure":
        """Drawn samples and their properties; see `figure.figure`."""
        from consilience.domains.molecules.figure import figure

        return figure(models, collection, test)


DOMAIN = MoleculesDomain()
