"""Options of the spectrum tokenizer."""

import math
from dataclasses import dataclass

from consilience.core.errors import ConsilienceError
from consilience.core.options import check_types


@dataclass(frozen=True, kw_only=True)
class SpectrumOptions:
    """Options of the spectrum tokenizer.

    Args:
        patch_size: pixels a token; a power of two near the width of a broad line is a fair choice.
        max_weight: cut for inverse variances in units of the scale; 1e4 is a floor of 1 % on a pixel's error.
        min_weight: pixels below are taken as not measured; 1e-2 is an error of ten times the spectrum's scale.
        max_grids: how many wavelength grids of the training rows are kept, the most common first.
    """

    patch_size: int = 32
    max_weight: float = 1e4
    min_weight: float = 1e-2
    max_grids: int = 4

    def __post_init__(self) -> None:
        check_types(self, "galaxies")
        if self.patch_size < 1:
            raise ConsilienceError(f"patch_size must be at least 1 pixel, not {self.patch_size}")
        if not 0 <= self.min_weight < self.max_weight < math.inf:
            raise ConsilienceError(
                f"weights need 0 <= min_weight < max_weight < inf, not {self.min_weight} and {self.max_weight}"
            )
        if self.max_grids < 1:
            raise ConsilienceError(f"max_grids must be at least 1, not {self.max_grids}")
