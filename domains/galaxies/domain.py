"""Galaxies: spectra on their instrument's wavelength grid, with inverse variances."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Baseline, Domain, QuickPreset, Task
from consilience.domains.galaxies.data import read_spectra, stream_spectra
from consilience.domains.galaxies.evaluate import pca_baseline, pca_baselines, tasks_of
from consilience.domains.galaxies.writers import write_spectra
from consilience.domains.pieces import Piece
from consilience.tokenizers.spectra import SpectrumTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from consilience.core.model import FoundationModel


class Galaxies(Domain):
    """Galaxy spectra; the bundled ones are model spectra, see `bundled.py`."""

    name: ClassVar[str] = "galaxies"
    tokenizer: ClassVar[type[Tokenizer[Any]]] = SpectrumTokenizer
    suffixes: ClassVar[tuple[str, ...]] = (".fits", ".fit", ".fits.gz", ".npz", ".h5", ".hdf5", ".parquet")
    classical: ClassVar[int] = 2
    quick: ClassVar[QuickPreset] = QuickPreset(
        objectives=("next-token", "masked", "denoising", "reversed", "address-only"),
        records=2000,
        tokenizer={"patch_size": 32},
        tasks=("redshift",),
    )

    def bundled(self, n: int | None = None) -> Collection:
        """Model spectra of n (None = all 10,000) galaxies whose photometry and redshift ship with kcorrect."""
        from consilience.domains.galaxies.bundled import model_spectra

        return model_spectra(n)

    def read(self, path: Path, **options: Any) -> Collection:
        """A file, a folder or a pattern of files; for the options see `data.read_spectra`."""
        return read_spectra(Path(path), **_known(options))

    def stream(self, path: Path, size: int, **options: Any) -> Iterator[Piece]:
        """The same in pieces; see `data.stream_spectra`."""
        return stream_spectra(Path(path), size, **_known(options))

    def tasks(self, collection: Collection) -> list[Task]:
        """The redshift first, then other labels."""
        return tasks_of(collection)

    def baseline(self, collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
        """PCA of the scaled flux, with the log of the scale."""
        return pca_baseline(collection, train)

    def baselines(self, collection: Collection, train: np.ndarray) -> list[Baseline]:
        """The PCA read by a linear model and by boosted trees."""
        return pca_baselines(collection, train)

    def write_records(self, records: Any, path: Path, columns: Mapping[str, Any] | None = None) -> None:
        """Write spectra as .npz, .fits or .parquet."""
        write_spectra(records, Path(path), columns)

    def figure(
        self, models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray
    ) -> "Figure":
        """Held-out spectra whose masked patches were filled in by a model."""
        from consilience.domains.galaxies.figure import filled_spectra

        return filled_spectra(models, collection, test)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """The options, when all are known."""
    known = ("format", "error", "wavelength_unit")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConsilienceError(
            f"unknown option `{unknown[0]}` for reading galaxies; known: {', '.join(known)}"
        )
    return options


DOMAIN = Galaxies()
