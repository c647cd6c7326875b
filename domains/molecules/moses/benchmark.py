"""MOSES as a benchmark of the command line."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from consilience.core.errors import ConsilienceError
from consilience.domains import benchmark
from consilience.domains.molecules.moses.chemnet import ChemNet
from consilience.domains.molecules.moses.measures import COLUMNS, PROPERTIES, measure, nothing_valid
from consilience.domains.molecules.moses.published import published, source
from consilience.domains.molecules.moses.references import references
from consilience.domains.molecules.moses.strings import generated_strings
from consilience.tokenizers.molecule_notation import parse


def _valid(text: str) -> bool:
    try:
        return bool(parse(text).GetNumAtoms())
    except ConsilienceError:
        return False


class Moses(benchmark.Benchmark):
    """Distribution learning of drug-like molecules: Polykovskiy et al. 2020, doi:10.3389/fphar.2020.565644."""

    name: ClassVar[str] = "moses"
    dataset: ClassVar[str] = "moses"
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    further: ClassVar[tuple[str, ...]] = PROPERTIES
    notes: ClassVar[tuple[str, str]] = (
        "Lower is better for FCD alone.",
        "Wasserstein-1 distances of properties to the test set",
    )

    def __init__(self, *, fcd: bool = True, device: str = "cpu") -> None:
        self.net = ChemNet(device) if fcd else None

    def read(self, path: Path, *, column: str | None = None) -> list[str]:
        """The strings of a file; see `strings.generated_strings`."""
        return generated_strings(path, column=column)

    def measure(
        self,
        generated: Sequence[list[str]],
        folder: Path,
        cache: Path,
        *,
        processes: int = 1,
        on_steps: benchmark.OnSteps = benchmark.silent,
    ) -> list[dict[str, float]]:
        """See `measures.measure`; the references are computed once, and not for strings of which none is valid."""
        if not any(_valid(text) for strings in generated for text in strings):
            return [nothing_valid() for _ in generated]
        against = references(folder, cache, net=self.net, processes=processes, on_steps=on_steps)
        return [
            measure(strings, against, net=self.net, processes=processes, on_steps=on_steps)
            for strings in generated
        ]

    def published(self) -> tuple[benchmark.Row, ...]:
        """Nine models, the training set itself among them."""
        return published()

    def source(self) -> str:
        """The README of MOSES."""
        return source()

    def versions(self) -> dict[str, str]:
        """RDKit reads and writes all molecules; fcd_torch brings ChemNet."""
        return {name: version(name) for name in ("rdkit", *(("fcd_torch",) if self.net else ()))}
