"""CellTokenizer: single cells as gene + count tokens, or as a ranking of genes.

Two views of the same cell (`CellOptions.view`):

* **counts**: a token is (gene, count). The first token is given and holds the cell's depth (total counts); the
  others stand in one fixed order, descending mean expression in the training cells. Counts are scored by a
  negative binomial whose exposure is depth / 10,000.
* **ranks**: a token is (rank, gene), the transpose (`cell_ranks.py`).

Notable choices: counts stay sparse from the file to the token; no gene is chosen at random unless a generator is
passed; where a cell expresses more than `max_genes`, those furthest above their training mean (in proportion) are
kept; ties go to the earlier gene of the vocabulary, so that tokens depend on nothing but the cell.
"""

import logging
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.records import Failure
from consilience.core.tokenizer import Tokenizer
from consilience.tokenizers.cell_checks import require_counts, unreadable
from consilience.tokenizers.cell_fit import CellStatistics
from consilience.tokenizers.cell_genes import GeneMatch, match_genes
from consilience.tokenizers.cell_options import CellOptions
from consilience.tokenizers.cell_ranks import RanksView
from consilience.tokenizers.cell_rows import Expressed
from consilience.tokenizers.cell_sources import is_anndata, of_anndata, unique_ids
from consilience.tokenizers.cell_table import CellTable, StoredCounts
from consilience.tokenizers.cell_views import CellView, CountsView

__all__ = ["CellOptions", "CellTable", "CellTokenizer", "StoredCounts"]

log = logging.getLogger(__name__)

_ENCODE_ROWS = 128  # cells per step: temporaries of a few MB, whatever the number of cells
_CHECK_ROWS = 4096
_OUTSIDE = "{} expresses no gene of the model's vocabulary; drop it"


class CellTokenizer(Tokenizer[CellTable]):
    """See the module docstring.

    Example: `CellTokenizer.fit(training_cells, view="counts", max_genes=1024).encode(cells)`.
    """

    science: ClassVar[str] = "cells"
    takes: ClassVar[str] = "an AnnData with raw counts, or a CellTable"

    def __init__(self, options: CellOptions, statistics: CellStatistics) -> None:
        self.options = options
        self.statistics = statistics
        view: type[CellView] = RanksView if options.view == "ranks" else CountsView
        self.view = view(options, statistics)
        self._match: tuple[np.ndarray, GeneMatch] | None = None

    def log_rates(self) -> np.ndarray | None:
        """(A,) log of the mean counts per 10,000 of each gene in the training cells; 0 for the depth token."""
        if self.options.view == "ranks":
            return None
        return np.concatenate([[0.0], np.log(np.maximum(self.statistics.mean, 1e-6))])

    @classmethod
    def fit(cls, records: CellTable, **options: Any) -> Self:
        """Learn vocabulary, means, medians and scales from training cells; options: see CellOptions."""
        chosen = CellOptions.of(options)
        statistics = CellStatistics.fit(
            records, order=chosen.order, limit=chosen.max_vocabulary, ranks=chosen.max_genes
        )
        return cls(chosen, statistics)

    @property
    def spec(self) -> TokenSpec:
        """(gene, count) tokens with the depth at address 0, or (rank, gene) tokens."""
        return self.view.spec

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The V genes in token order, most expressed first by default."""
        return tuple(self.view.genes)

    def match(self, records: CellTable) -> GeneMatch:
        """How the genes of a table meet the vocabulary; raises ConsilienceError below `min_matched`."""
        if self._match is None or self._match[0] is not records.genes:
            found = match_genes(records.genes, self.view.genes, min_matched=self.options.min_matched)
            self._match = (records.genes, found)
            # Names that differ in case alone are mostly those of another species (CD3D in man, Cd3d in mouse).
            log.log(logging.WARNING if 2 * found.by_case > found.matched else logging.INFO, found.report())
        return self._match[1]

    def accept(self, records: Any) -> CellTable:
        """A CellTable as it is, and an AnnData with the counts, depths and names that its file would give."""
        if isinstance(records, CellTable):
            return records
        if (isinstance(records, list | tuple) or is_anndata(records)) and not len(records):
            return CellTable(counts=sp.csr_array((0, len(self.vocabulary))), genes=np.array(self.vocabulary))
        if is_anndata(records):
            return of_anndata(records)
        raise ConsilienceError(f"cells: pass {self.takes}, not {type(records).__name__}")

    def names(self, records: Any) -> np.ndarray | None:
        """The names of the cells of an AnnData."""
        return unique_ids(records.obs_names) if is_anndata(records) else None

    def encode(self, records: CellTable, *, generator: torch.Generator | None = None) -> TokenBatch:
        """Tokens of the cells, padded to the longest; a generator brings matched zeros (training).

        Raises:
            UnreadableRecordError: the first cell that `check` would report.
            ConsilienceError: no cell, or genes that do not match the vocabulary.
        """
        if not len(records):
            raise ConsilienceError("cells: there is no cell to encode")
        match, rng = self.match(records), self._random(generator)
        widest = min(records.widest() * (1 if rng is None else 2), self.options.max_genes)
        parts = self.view.empty(len(records), max(1, widest) + self.view.given)
        for start, chunk in records.chunks(_ENCODE_ROWS):
            totals = chunk.total_counts()
            require_counts(chunk, totals, start)
            cells = Expressed.of(chunk.counts, match.columns, add_up=match.duplicates > 0)
            if not cells.length.all():
                index = int(np.flatnonzero(cells.length == 0)[0])
                raise UnreadableRecordError(start + index, _OUTSIDE.format(chunk.name_of(index)))
            rows = {name: part[start : start + len(chunk)] for name, part in parts.items()}
            self.view.fill(rows, cells, totals, rng)
        return self.view.batch(parts)

    def _random(self, generator: torch.Generator | None) -> np.random.Generator | None:
        """numpy's generator, seeded by one draw from torch's; None where nothing is random."""
        if generator is None or self.options.zeros == "none" or self.options.view == "ranks":
            return None
        draw = torch.randint(0, 2**62, (), generator=generator, device=generator.device, dtype=torch.int64)
        return np.random.default_rng(int(draw))

    def decode(self, tokens: TokenBatch) -> CellTable:
        """Integer counts over the vocabulary: exact for the counts view, rebuilt for the ranks view."""
        return self.view.decode(tokens.to("cpu"))

    def lengths(self, records: CellTable) -> np.ndarray:
        """(n,) tokens per cell; with matched zeros the number in training, an upper bound in embedding."""
        found = np.concatenate(
            [self._number(chunk) for _, chunk in records.chunks(_CHECK_ROWS)] or [np.zeros(0)]
        )
        if self.options.view == "counts" and self.options.zeros == "matched":
            found = found + np.minimum(found, len(self.view.genes) - found)
        return np.minimum(found, self.options.max_genes).astype(np.int64) + self.view.given

    def _number(self, table: CellTable) -> np.ndarray:
        """(n,) how many columns with a vocabulary gene each cell expresses; table in memory."""
        inside = (self.match(table).columns[table.counts.indices] >= 0) & (table.counts.data > 0)
        return np.diff(np.concatenate([[0], np.cumsum(inside)])[table.counts.indptr])

    def check(self, records: CellTable) -> list[Failure]:
        """Cells without counts, with numbers that are not counts, or without a gene of the vocabulary."""
        failures: dict[int, str] = {}
        for start, chunk in records.chunks(_CHECK_ROWS):
            for index in np.flatnonzero(self._number(chunk) == 0).tolist():
                failures[start + index] = _OUTSIDE.format(chunk.name_of(index))
            for cell in unreadable(chunk, chunk.total_counts()):
                failures[start + cell.index] = cell.reason
        return [Failure(index=index, id="", reason=failures[index]) for index in sorted(failures)]

    def template(self, n: int, *, generator: torch.Generator, open_end: bool = False) -> TokenBatch:
        """n cells to be generated: the most expressed genes at training depths, or ranks to be filled.

        The objective makes no difference: no symbol ends a cell.
        """
        draw = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        return self.view.batch(self.view.template(draw.cpu().numpy()))

    def describe(self, record: CellTable) -> str:
        """Depth, gene match and the first tokens of one cell (a table of one row)."""
        tokens = self.encode(record)
        head = (
            f"{int(tokens.length[0])} tokens, {self.options.view} view, depth {record.total_counts()[0]:,.0f}"
        )
        return "\n".join(
            [f"{record.name_of(0)}: {head}", self.match(record).report(), *self.view.describe(tokens)]
        )

    def state(self) -> dict[str, Any]:
        """Options and statistics as JSON types."""
        return {"options": asdict(self.options), "statistics": self.statistics.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        return cls(CellOptions.of(state["options"]), CellStatistics.from_state(state["statistics"]))
