"""Records with measured labels, as a benchmark takes them: one record an object, nothing dropped unsaid."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from consilience.core.records import Collection
from consilience.domains.penalties import Kind


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledTable:
    """Records with labels.

    Args:
        collection: canonical strings, different and sorted; groups that a split keeps together; float labels, NaN
            where unknown. Its failures are the rows of the file left out (`index` counts from 0).
        targets: T names of columns.
        kind: of all targets. Classes are 0 and 1.
        classes: target -> what 0 and 1 are called in the file; empty for numbers.
        rows: of the file.
        left_out: why rows of the file were not used -> how many.
    """

    collection: Collection
    targets: tuple[str, ...]
    kind: Kind
    classes: Mapping[str, tuple[str, str]]
    rows: int
    left_out: Mapping[str, int]

    @property
    def labels(self) -> np.ndarray:
        """(n, T) float64, NaN where unknown."""
        return np.column_stack([self.collection.labels[name] for name in self.targets])

    def take(self, index: np.ndarray) -> Self:
        """The records at these places; what was left out of the file stays on record."""
        part = replace(self.collection.take(index), failures=self.collection.failures)
        return replace(self, collection=part)
