"""CellStatistics: what the tokenizer of cells learns from training cells, in one pass over CSR chunks."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse as sp

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.cell_checks import require_counts
from consilience.tokenizers.cell_genes import clean_genes
from consilience.tokenizers.cell_rows import Expressed, pad
from consilience.tokenizers.cell_table import CellTable

CHUNK = 512  # cells per step: a few MB of nonzeros, which stay in the processor's cache
FIT_CELLS = 50_000  # at most this many evenly spaced training cells are read
MEDIAN_CELLS = 5_000  # of these, at most this many evenly spaced ones for the medians and ranks
QUANTILES = 101


@dataclass(frozen=True, kw_only=True, eq=False)
class CellStatistics:
    """The fitted state, over a vocabulary of V genes in token order.

    Args:
        genes: V clean gene names.
        mean: (V,) float64, mean counts per 10,000 of all training cells.
        median: (V,) float64, median counts per 10,000 of the training cells that express the gene.
        rank_score: (K,) float64, mean log of counts per 10,000 over the gene's median, by rank in the cell.
        depth: (101,) float64 quantiles of the training cells' total counts.
        length: (101,) float64 quantiles of the number of expressed vocabulary genes.
        log_count: mean and standard deviation of log1p(count) over expressed genes.
        log_depth: mean and standard deviation of log(depth).
    """

    genes: np.ndarray
    mean: np.ndarray
    median: np.ndarray
    rank_score: np.ndarray
    depth: np.ndarray
    length: np.ndarray
    log_count: tuple[float, float]
    log_depth: tuple[float, float]

    @classmethod
    def fit(
        cls, table: CellTable, *, order: Literal["mean", "vocabulary"], limit: int | None, ranks: int
    ) -> Self:
        """Statistics of training cells.

        Args:
            table: n training cells; beyond 50,000 an evenly spaced selection is read.
            order: of the vocabulary: descending mean, or as the genes stand in the table.
            limit: keep only so many genes, those with the highest variance of log1p(counts per 10,000).
            ranks: K, the number of ranks described.
        """
        if not len(table):
            raise ConsilienceError("cells: there is no cell to fit the tokenizer on")
        names = list(dict.fromkeys(clean_genes(table.genes)))
        place = {gene: i for i, gene in enumerate(names)}
        columns = np.array([place[gene] for gene in clean_genes(table.genes)], dtype=np.int64)
        add_up = len(names) < len(columns)
        sums, depths, lengths = np.zeros((6, len(names))), [], []
        table = _evenly(table, FIT_CELLS)
        for start, chunk in table.chunks(CHUNK):
            totals = chunk.total_counts()
            require_counts(chunk, totals, start)
            cells = Expressed.of(chunk.counts, columns, add_up=add_up)
            normal = cells.counts * np.repeat(1e4 / totals, cells.length)
            logs, log_normal = np.log1p(cells.counts), np.log1p(normal)
            for row, weight in enumerate((None, normal, log_normal, log_normal**2, logs, logs**2)):
                sums[row] += np.bincount(cells.genes, weights=weight, minlength=len(names))
            depths.append(totals)
        n, depth = len(table), np.concatenate(depths)
        keep = _choose(sums, n, order=order, limit=limit)
        if not len(keep):
            raise ConsilienceError("cells: no gene is expressed in any training cell")
        back = np.full(len(names), -1)
        back[keep] = np.arange(len(keep))
        sample = _evenly(table, MEDIAN_CELLS)
        parts, sizes = [], []
        for _, chunk in sample.chunks(CHUNK):
            cells = Expressed.of(chunk.counts, back[columns], add_up=add_up)
            scale = np.repeat(1e4 / chunk.total_counts(), cells.length)
            parts.append((cells.genes, cells.counts * scale))
            sizes.append(cells.length)
        genes, normal = (np.concatenate(part) for part in zip(*parts))
        lengths = np.concatenate(sizes)
        median = _medians(genes, normal, len(keep))
        grid = np.linspace(0, 1, QUANTILES)
        entries = sums[0, keep].sum()
        mean_log = sums[4, keep].sum() / entries
        spread_log = np.sqrt(max(sums[5, keep].sum() / entries - mean_log**2, 0.0))
        return cls(
            genes=np.array(names, dtype=object)[keep],
            mean=sums[1, keep] / n,
            median=median,
            rank_score=_rank_scores(normal / median[genes], lengths, ranks),
            depth=np.quantile(depth, grid),
            length=np.quantile(lengths[lengths > 0], grid),
            log_count=(float(mean_log), float(spread_log) or 1.0),
            log_depth=(float(np.log(depth).mean()), float(np.log(depth).std()) or 1.0),
        )

    def state(self) -> dict[str, Any]:
        """As JSON types."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else list(v) for k, v in asdict(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        arrays = {k: np.array(v, dtype=object if k == "genes" else np.float64) for k, v in state.items()}
        pairs = {k: (float(state[k][0]), float(state[k][1])) for k in ("log_count", "log_depth")}
        return cls(**{**arrays, **pairs})


def _evenly(table: CellTable, limit: int) -> CellTable:
    """At most `limit` evenly spaced cells."""
    if len(table) <= limit:
        return table
    return table.take(np.linspace(0, len(table) - 1, limit).astype(np.int64))


def _choose(sums: np.ndarray, n: int, *, order: str, limit: int | None) -> np.ndarray:
    """Indices of the vocabulary's genes, in token order."""
    expressed = np.flatnonzero(sums[0] > 0)
    if limit is not None and len(expressed) > limit:
        variance = sums[3, expressed] / n - (sums[2, expressed] / n) ** 2
        expressed = np.sort(expressed[np.argsort(-variance, kind="stable")[:limit]])
    if order == "mean":
        expressed = expressed[np.argsort(-sums[1, expressed], kind="stable")]
    return expressed


def _medians(genes: np.ndarray, values: np.ndarray, vocabulary: int) -> np.ndarray:
    """(V,) median of the values of each gene; genes that the sample lacks get the median of all."""
    by_gene = sp.csr_array((values, (genes, np.arange(len(genes)))), shape=(vocabulary, len(genes)))
    number = np.diff(by_gene.indptr)
    order = np.lexsort((by_gene.data, np.repeat(np.arange(vocabulary), number)))
    ordered = by_gene.data[order]
    first, seen = by_gene.indptr[:-1], number > 0
    median = np.full(vocabulary, np.median(values))
    low, high = first + (number - 1) // 2, first + number // 2
    median[seen] = (ordered[low[seen]] + ordered[high[seen]]) / 2
    return median


def _rank_scores(scores: np.ndarray, lengths: np.ndarray, ranks: int) -> np.ndarray:
    """(K,) mean log score of the gene at every rank, over the cells that have the rank."""
    total, number = np.zeros(ranks), np.zeros(ranks)
    ends = np.cumsum(lengths)
    for start in range(0, len(lengths), CHUNK):
        part = lengths[start : start + CHUNK]
        flat = scores[ends[start] - lengths[start] : ends[start + len(part) - 1]]
        block = -np.sort(-pad(flat, part, flat.dtype.type(0)), axis=1)[:, :ranks]
        width = block.shape[1]
        total[:width] += np.log(np.where(block > 0, block, 1)).sum(0)
        number[:width] += (block > 0).sum(0)
    reached = number > 0
    return total[reached] / number[reached]
