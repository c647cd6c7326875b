"""CellOptions: what a user may choose about the tokens of cells."""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from consilience.core.errors import ConsilienceError
from consilience.core.options import check_types


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """Options of CellTokenizer.

    Args:
        view: "counts" (gene + count tokens) or "ranks" (genes from the most to the least remarkable).
        max_genes: at most this many gene tokens per cell.
        value_encoding: how visible counts enter the core: "soft-bins" or "log" (a line in log1p).
        zeros: "matched" adds, in training only (when `encode` gets a generator), as many random genes that the
            cell does not express as genes that it does, up to half of max_genes; where that leaves no room for
            all expressed genes, a random choice of them stays. "none" adds none. The ranks view has no zeros.
        min_matched: the smallest fraction of genes that must be in the vocabulary, 0 to 1 (see GeneMatch).
        max_vocabulary: keep only so many genes, those with the highest variance of log1p(counts per 10,000) in
            the training cells; None keeps every gene that a training cell expresses.
        order: of the tokens: "mean" (descending training mean), "vocabulary" (as in the training table) or "genome"
            (by chromosome and start, for .h5ad files whose var has such columns). Tables that Cell Ranger wrote are
            in genome order already, chromosomes as in its annotation (1 to 7, X, 8 ... 18, 20, 19, Y, 22, 21, MT,
            then unplaced scaffolds): there "vocabulary" is genome position too.
    """

    view: Literal["counts", "ranks"] = "counts"
    max_genes: int = 1024
    value_encoding: Literal["soft-bins", "log"] = "soft-bins"
    zeros: Literal["matched", "none"] = "matched"
    min_matched: float = 0.1
    max_vocabulary: int | None = None
    order: Literal["mean", "vocabulary", "genome"] = "mean"

    def __post_init__(self) -> None:
        check_types(self, "cells")
        choices = {
            "view": ("counts", "ranks"),
            "value_encoding": ("soft-bins", "log"),
            "zeros": ("matched", "none"),
            "order": ("mean", "vocabulary", "genome"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConsilienceError(
                    f"cells: {name}={getattr(self, name)!r} is not one of {', '.join(known)}"
                )
        if self.max_genes < 2:
            raise ConsilienceError(f"cells: max_genes={self.max_genes} must be at least 2")
        if not 0 <= self.min_matched <= 1:
            raise ConsilienceError(f"cells: min_matched={self.min_matched} must lie between 0 and 1")
        if self.max_vocabulary is not None and self.max_vocabulary < 2:
            raise ConsilienceError(f"cells: max_vocabulary={self.max_vocabulary} must be at least 2, or None")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """From keyword arguments; an unknown one raises ConsilienceError naming the known ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConsilienceError(f"cells: unknown tokenizer option {name!r}; known: {', '.join(known)}")
        return cls(**options)
