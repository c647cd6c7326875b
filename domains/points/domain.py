"""Points as a domain: everything the rest of the package asks of this science."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.core.records import Collection
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Baseline, Domain, QuickPreset, Task
from consilience.domains.pieces import Piece
from consilience.domains.points import data, evaluate, readers
from consilience.tokenizers.points import PointTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from consilience.core.model import FoundationModel


class PointsDomain(Domain):
    """Conformers and other clouds: bundled computed conformers, files of users, distances and voxels as baselines."""

    name: ClassVar[str] = "points"
    tokenizer: ClassVar[type[Tokenizer[Any]]] = PointTokenizer
    suffixes: ClassVar[tuple[str, ...]] = readers.SUFFIXES
    tells: ClassVar[tuple[str, ...]] = ("molecules",)
    classical: ClassVar[int] = 2
    # Principal axes: embeddings of a molecule then do not depend on how its file happened to turn it.
    quick: ClassVar[QuickPreset] = QuickPreset(
        objectives=("next-token", "masked", "denoising"),
        records=1200,
        tokenizer={"align": "principal"},
        tasks=("asphericity",),
    )

    def bundled(self) -> Collection:
        """Computed conformers; see `data.bundled`."""
        return data.bundled()

    def read(self, path: Path, **options: Any) -> Collection:
        """Clouds of a file or folder; options and errors as in `data.read`."""
        return data.read(path, **options)

    def stream(self, path: Path, size: int, **options: Any) -> Iterator[Piece]:
        """Clouds of a file in pieces; see `data.stream`."""
        return data.stream(path, size, **options)

    def tasks(self, collection: Collection) -> list[Task]:
        """QM9's properties, own labels, shapes; see `evaluate.tasks`."""
        return evaluate.tasks(collection)

    def baseline(self, collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
        """Sorted distances and composition."""
        return evaluate.baseline(collection, train)

    def baselines(self, collection: Collection, train: np.ndarray) -> list[Baseline]:
        """Sorted distances, which no rotation changes, and the occupancy of voxels, for clouds that lie alike."""
        found = (evaluate.baseline(collection, train), evaluate.occupancy(collection, train))
        return [Baseline(name=name, features=features) for name, features in found]

    def write_records(self, records: Any, path: Path, columns: Mapping[str, Any] | None = None) -> None:
        """Clouds as .xyz, .extxyz, .npz or .ply; see `writers.write_records`."""
        from consilience.domains.points.writers import write_records

        write_records(records, path, columns)

    def figure(
        self, models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray
    ) -> "Figure":
        """A denoised conformer and bond lengths; see `figure.figure`."""
        from consilience.domains.points.figure import figure

        return figure(models, collection, test)


DOMAIN = PointsDomain()
