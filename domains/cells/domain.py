"""Cells as a domain: everything the rest of the package asks of this science."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.core.records import Collection
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Domain, QuickPreset, Task
from consilience.domains.cells import data, evaluate, readers
from consilience.domains.tables import EmbeddingWriter
from consilience.tokenizers.cells import CellTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from consilience.core.model import FoundationModel


class CellsDomain(Domain):
    """Single cells: bundled blood cells, AnnData and 10x files, PCA of log counts as the baseline, UMAPs."""

    name: ClassVar[str] = "cells"
    tokenizer: ClassVar[type[Tokenizer[Any]]] = CellTokenizer
    suffixes: ClassVar[tuple[str, ...]] = readers.SUFFIXES
    # Matched zeros are there to be predicted; a cell to be read has none, and a mean over its tokens is another one.
    augments: ClassVar[bool] = False
    # The 160 most variable genes tell the bundled cell types apart as well as all 765 do (PCA + logistic
    # regression). A cell expresses 94 of them on average, so that no cell is cut and training sees most zeros.
    quick: ClassVar[QuickPreset] = QuickPreset(
        objectives=("next-token", "masked", "masked-diffusion", "block 16", "address-only"),
        tokenizer={"max_vocabulary": 160, "max_genes": 160},
        tasks=("cell type",),
    )

    def bundled(self) -> Collection:
        """scanpy's pbmc68k_reduced with its counts; see `data.bundled`."""
        return data.bundled()

    def read(self, path: Path, **options: Any) -> Collection:
        """Cells of a file or 10x folder; options and errors as in `data.read`."""
        return data.read(path, **options)

    def tasks(self, collection: Collection) -> list[Task]:
        """Cell types first; see `evaluate.tasks`."""
        return evaluate.tasks(collection)

    def baseline(self, collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
        """log1p + PCA; see `evaluate.baseline`."""
        return evaluate.baseline(collection, train)

    def write_records(self, records: Any, path: Path, columns: Mapping[str, Any] | None = None) -> None:
        """Cells as .h5ad; see `writers.write_records`."""
        from consilience.domains.cells.writers import write_records

        write_records(records, path, columns)

    def embedding_writer(
        self, path: Path, source: Path | None, whole: Callable[[], Collection]
    ) -> EmbeddingWriter:
        """`.obsm["X_consilience"]` or parquet; see `writers.embedding_writer`."""
        from consilience.domains.cells.writers import embedding_writer

        return embedding_writer(path, source, whole)

    def figure(
        self, models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray
    ) -> "Figure":
        """UMAPs by cell type and the detection of genes; see `figure.figure`."""
        from consilience.domains.cells.figure import figure

        return figure(models, collection, test)


DOMAIN = CellsDomain()
