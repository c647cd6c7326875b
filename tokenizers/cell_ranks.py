"""RanksView: a cell as a ranking of its genes, the transpose of the counts view.

After Geneformer (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9): genes in descending order of counts per
10,000 over the gene's median among the training cells that express it. The depth divides every score of a cell
alike and is left out of the comparison, which then needs no rounding that could break ties differently.
"""

import numpy as np

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.tokenizers.cell_rows import Expressed, ranked
from consilience.tokenizers.cell_table import CellTable
from consilience.tokenizers.cell_views import CellView, Parts


class RanksView(CellView):
    """(rank, gene) tokens: the address is the rank, the content is the gene."""

    given = 0

    def _make_spec(self) -> TokenSpec:
        """V symbols at max_genes addresses and one rotary coordinate, both the rank."""
        return TokenSpec(
            name="cells",
            vocabulary=len(self.genes),
            symbols=tuple(self.genes),
            addresses=self.options.max_genes,
            coordinates=1,
        )

    def empty(self, n: int, width: int) -> Parts:
        """Genes, ranks and ranks as coordinates."""
        return {
            "length": np.ones(n, dtype=np.int64),
            "ids": np.zeros((n, width), dtype=np.int64),
            "address": np.zeros((n, width), dtype=np.int64),
            "positions": np.zeros((n, width, 1), dtype=np.float32),
        }

    def fill(
        self, parts: Parts, cells: Expressed, totals: np.ndarray, rng: np.random.Generator | None
    ) -> None:
        """The best ranked genes, up to max_genes; nothing is random."""
        score = (1 / self.statistics.median).astype(np.float32).take(cells.genes)
        score *= cells.counts
        genes, length = ranked(cells, score, self.options.max_genes)
        parts["ids"][:, : genes.shape[1]] = genes
        self._set_ranks(parts, length)

    @staticmethod
    def _set_ranks(parts: Parts, length: np.ndarray) -> None:
        parts["length"][:] = length
        rank = np.arange(parts["ids"].shape[1])
        parts["address"][:] = np.where(rank < length[:, None], rank, 0)
        parts["positions"][..., 0] = parts["address"]

    def decode(self, tokens: TokenBatch) -> CellTable:
        """Cells of median depth whose genes have the count that is usual at their rank, at least 1.

        A ranking keeps no counts; they are rebuilt from the gene's median and the mean training score at the
        rank. A gene that stands twice counts at its best rank.
        """
        assert tokens.ids is not None
        row, rank = np.nonzero(tokens.real.numpy())
        gene = tokens.ids.numpy()[row, rank]
        _, first = np.unique(row * len(self.genes) + gene, return_index=True)
        row, gene, rank = row[first], gene[first], rank[first]
        depth = float(np.round(np.median(self.statistics.depth)))
        usual = np.exp(self.statistics.rank_score)[np.minimum(rank, len(self.statistics.rank_score) - 1)]
        counts = np.maximum(1, np.round(usual * self.statistics.median[gene] * depth / 1e4))
        return self.table(row, gene, counts, np.full(tokens.size, depth))

    def template(self, quantile: np.ndarray) -> Parts:
        """As many ranks as training cells have expressed genes."""
        grid = np.linspace(0, 1, len(self.statistics.length))
        length = np.interp(quantile, grid, self.statistics.length).astype(np.int64)
        length = np.clip(length, 1, min(self.options.max_genes, len(self.genes)))
        parts = self.empty(len(quantile), int(length.max()))
        self._set_ranks(parts, length)
        return parts

    def describe(self, tokens: TokenBatch) -> list[str]:
        """The first ranks."""
        assert tokens.ids is not None
        length = int(tokens.length[0])
        shown = [
            f"{i:6d}  {self.genes[gene]}" for i, gene in enumerate(tokens.ids[0, : min(length, 12)].tolist())
        ]
        return ["  rank  gene", *shown, f"(the first {len(shown)} of {length} ranks)"]
