"""CellView: the part of the tokenizer that differs between its two views; and the counts view."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.tokenizers.cell_fit import CellStatistics
from consilience.tokenizers.cell_options import CellOptions
from consilience.tokenizers.cell_rows import Expressed, in_gene_order, keep_best, matched_zeros
from consilience.tokenizers.cell_table import CellTable

Parts = dict[str, np.ndarray]


class CellView(ABC):
    """How expressed genes become rows of a TokenBatch, and back.

    `empty` allocates the arrays of a whole batch once; `fill` writes the rows of one chunk of cells into them.
    """

    given: ClassVar[int]

    def __init__(self, options: CellOptions, statistics: CellStatistics) -> None:
        self.options = options
        self.statistics = statistics
        self.genes: list[str] = statistics.genes.tolist()
        self.spec = self._make_spec()  # once: with 20,000 symbols it costs as much as a few cells

    @abstractmethod
    def _make_spec(self) -> TokenSpec:
        """What the tokens look like."""

    @abstractmethod
    def empty(self, n: int, width: int) -> Parts:
        """Arrays of n samples of `width` tokens, named like the fields of TokenBatch."""

    @abstractmethod
    def fill(
        self, parts: Parts, cells: Expressed, totals: np.ndarray, rng: np.random.Generator | None
    ) -> None:
        """Write the tokens of these cells, whose total counts are `totals`."""

    @abstractmethod
    def decode(self, tokens: TokenBatch) -> CellTable:
        """Cells over the vocabulary."""

    @abstractmethod
    def template(self, quantile: np.ndarray) -> Parts:
        """Parts of samples to be generated, one for each quantile (0 to 1) of depth or length."""

    @abstractmethod
    def describe(self, tokens: TokenBatch) -> list[str]:
        """Lines that show the first sample."""

    def batch(self, parts: Parts) -> TokenBatch:
        """The TokenBatch of filled parts, without columns that no sample uses."""
        tensors: dict[str, Any] = {name: torch.from_numpy(part) for name, part in parts.items()}
        return TokenBatch(**tensors).trim().validate(self.spec)

    def table(self, row: np.ndarray, gene: np.ndarray, counts: np.ndarray, depth: np.ndarray) -> CellTable:
        """A CellTable over the vocabulary from entries (row, gene, count); zeros are left out."""
        seen = counts > 0
        entries = (counts[seen].astype(np.float32), (row[seen], gene[seen]))
        table = sp.csr_array(entries, shape=(len(depth), len(self.genes)))
        return CellTable(counts=table, genes=np.array(self.genes, dtype=object), depth=depth)


class CountsView(CellView):
    """(gene, count) tokens after one given token with the depth; address 0 is the depth, gene i is 1 + i.

    The depth token holds log(depth), standardised over training cells, on the scale of the counts' own
    standardisation: a raw depth would lie ten deviations off and saturate every encoding of counts. The depth
    itself is in `TokenBatch.exposure`, in units of 10,000 counts.
    """

    given = 1

    @property
    def standardisation(self) -> tuple[float, float]:
        """Shift and scale of log1p(count).

        Soft bins see -3 to 3, and all counts from 0 to the highest are spread over it; counts beyond three
        standard deviations (15 in 10x data) would look alike. Else the usual mean and standard deviation.
        """
        if self.options.value_encoding == "soft-bins":
            return self.statistics.log_top / 2, self.statistics.log_top / 6
        return self.statistics.log_count

    def _make_spec(self) -> TokenSpec:
        """One channel of counts at 1 + V addresses."""
        shift, scale = self.standardisation
        return TokenSpec(
            name="cells",
            channels=1,
            addresses=1 + len(self.genes),
            value_likelihood="negative-binomial",
            value_encoding="soft-bins" if self.options.value_encoding == "soft-bins" else "linear",
            value_shift=shift,
            value_scale=scale,
        )

    def empty(self, n: int, width: int) -> Parts:
        """Addresses, values and exposures; the depth token is marked as given."""
        given = np.zeros((n, width), dtype=bool)
        given[:, 0] = True
        return {
            "length": np.ones(n, dtype=np.int64),
            "values": np.zeros((n, width, 1), dtype=np.float32),
            "address": np.zeros((n, width), dtype=np.int64),
            "given": given,
            "exposure": np.zeros(n, dtype=np.float32),
        }

    def fill(
        self, parts: Parts, cells: Expressed, totals: np.ndarray, rng: np.random.Generator | None
    ) -> None:
        """Without rng, the genes furthest above their training mean; with it, random ones and matched zeros."""
        limit = self.options.max_genes
        if rng is None:
            kept = cells
            if int(cells.length.max()) > limit:
                weight = (1 / self.statistics.mean).astype(np.float32)
                kept = keep_best(cells, cells.counts * weight[cells.genes], np.full_like(cells.length, limit))
        else:
            silent = len(self.genes) - cells.length
            most = limit - np.minimum(silent, limit // 2)
            kept = cells
            if (cells.length > most).any():
                kept = keep_best(cells, rng.random(len(cells.genes), dtype=np.float32), most)
            number = np.minimum(np.minimum(kept.length, silent), limit - kept.length)
            kept = kept.join(matched_zeros(cells, number, len(self.genes), rng))
        genes, counts = in_gene_order(kept)
        real = np.arange(genes.shape[1]) < kept.length[:, None]
        parts["address"][:, 1 : 1 + genes.shape[1]] = np.where(real, genes + 1, 0)
        parts["values"][:, 1 : 1 + genes.shape[1], 0] = counts
        parts["length"][:] = 1 + kept.length
        self._set_depth(parts, totals)

    def _set_depth(self, parts: Parts, totals: np.ndarray) -> None:
        shift, scale = self.standardisation
        mean, spread = self.statistics.log_depth
        parts["values"][:, 0, 0] = np.expm1(shift + scale * (np.log(totals) - mean) / spread)
        parts["exposure"][:] = totals / 1e4

    def decode(self, tokens: TokenBatch) -> CellTable:
        """Counts rounded to integers, and the depths from the exposure."""
        assert tokens.values is not None and tokens.address is not None and tokens.exposure is not None
        row, place = np.nonzero((tokens.real & ~tokens.is_given).numpy())
        gene = tokens.address.numpy()[row, place] - 1
        counts = np.round(tokens.values.numpy()[row, place, 0])
        kept = (gene >= 0) & (
            counts > 0
        )  # a gene's token may have been generated at the depth's address: drop
        depth = np.round(tokens.exposure.numpy().astype(np.float64) * 1e4)
        return self.table(row[kept], gene[kept], counts[kept], depth)

    def template(self, quantile: np.ndarray) -> Parts:
        """The most expressed genes, up to max_genes, in token order, at depths of the training cells."""
        genes = np.sort(np.argsort(-self.statistics.mean, kind="stable")[: self.options.max_genes])
        parts = self.empty(len(quantile), 1 + len(genes))
        parts["length"][:] = 1 + len(genes)
        parts["address"][:, 1:] = 1 + genes
        grid = np.linspace(0, 1, len(self.statistics.depth))
        self._set_depth(parts, np.maximum(1.0, np.round(np.interp(quantile, grid, self.statistics.depth))))
        return parts

    def describe(self, tokens: TokenBatch) -> list[str]:
        """The depth and the genes with the highest counts."""
        assert tokens.values is not None and tokens.address is not None and tokens.exposure is not None
        length = int(tokens.length[0])
        counts, seen = tokens.values[0, :, 0], self.spec.standardise(tokens.values)[0, :, 0]
        best = (torch.argsort(-counts[1:length], stable=True)[:10] + 1).tolist()
        lines = [f"{'address':>7}  {'token':<18}{'count':>7}  seen by the core as"]
        lines.append(f"{0:7d}  {'<depth>':<18}{float(tokens.exposure[0]) * 1e4:7.0f}  {seen[0]:+.2f} (given)")
        for i in best:
            address = int(tokens.address[0, i])
            lines.append(f"{address:7d}  {self.genes[address - 1]:<18}{counts[i]:7.0f}  {seen[i]:+.2f}")
        return [*lines, f"(the {len(best)} highest counts of {length - 1} genes)"]
