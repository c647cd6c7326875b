"""CellStatistics: what the tokenizer of cells learns from training cells, in one pass over CSR chunks."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.cell_checks import Unreadable, are_few, is_readable, unreadable
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
        log_top: log1p of the highest count.
        log_depth: mean and standard deviation of log(depth).
    """

    genes: np.ndarray
    mean: np.ndarray
    median: np.ndarray
    rank_score: np.ndarray
    depth: np.ndarray
    length: np.ndarray
    log_count: tuple[float, float]
    log_top: float
    log_depth: tuple[float, float]

    @classmethod
    def fit(
        cls,
        table: CellTable,
        *,
        order: Literal["mean", "vocabulary", "genome"],
        limit: int | None,
        ranks: int,
    ) -> Self:
        """Statistics of training cells; unreadable ones among them are passed over (`CellTokenizer.check` names them).

        Args:
            table: n training cells; beyond 50,000 an evenly spaced selection is read.
            order: of the vocabulary: descending mean, as the genes stand in the table, or along the genome.
            limit: keep only so many genes, those with the highest variance of log1p(counts per 10,000).
            ranks: K, the number of ranks described.
        """
        if not len(table):
            raise ConsilienceError("cells: there is no cell to fit the tokenizer on")
        if order == "genome" and table.genome_rank is None:
            raise ConsilienceError(
                "cells: order='genome' needs columns `chromosome` and `start` in the var of an .h5ad file; add them, "
                "or choose order='vocabulary' where the table is in genome order (Cell Ranger's is)"
            )
        cleaned = clean_genes(table.genes)
        names = list(dict.fromkeys(cleaned))
        place = {gene: i for i, gene in enumerate(names)}
        columns = np.array([place[gene] for gene in cleaned], dtype=np.int64)
        first = np.unique(columns, return_index=True)[1]
        rank = table.genome_rank[first] if order == "genome" and table.genome_rank is not None else None
        table = _evenly(table, FIT_CELLS)
        sums, depth, refused = _gene_sums(table, columns, len(names))
        if refused:
            _require_few(refused, len(table))
            table = table.take(np.setdiff1d(np.arange(len(table)), [cell.index for cell in refused]))
        keep = _choose(sums, len(table), order=order, limit=limit)
        keep = keep if rank is None else keep[np.argsort(rank[keep], kind="stable")]
        if not len(keep):
            raise ConsilienceError("cells: no gene is expressed in any training cell")
        back = np.full(len(names), -1)
        back[keep] = np.arange(len(keep))
        genes, normal, lengths, top = _sample(_evenly(table, MEDIAN_CELLS), back[columns])
        median = _medians(genes, normal, len(keep))
        entries = sums["cells"][keep].sum()
        mean_log = sums["log"][keep].sum() / entries
        spread_log = np.sqrt(max(sums["log squared"][keep].sum() / entries - mean_log**2, 0.0))
        grid, logs = np.linspace(0, 1, QUANTILES), np.log(depth)
        return cls(
            genes=np.array(names, dtype=object)[keep],
            mean=sums["normal"][keep] / len(table),
            median=median,
            rank_score=_rank_scores(normal / median[genes], lengths, ranks),
            depth=np.quantile(depth, grid),
            length=np.quantile(lengths[lengths > 0], grid),
            log_count=(float(mean_log), float(spread_log) or 1.0),
            log_top=float(np.log1p(top)),
            log_depth=(float(logs.mean()), float(logs.std()) or 1.0),
        )

    def state(self) -> dict[str, Any]:
        """As JSON types."""
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in asdict(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        values: dict[str, Any] = {}
        for name, value in state.items():
            if name in ("log_count", "log_depth", "log_top"):
                values[name] = value if name == "log_top" else (value[0], value[1])
            else:
                values[name] = np.array(value, dtype=object if name == "genes" else np.float64)
        return cls(**values)


def _evenly(table: CellTable, limit: int) -> CellTable:
    """At most `limit` evenly spaced cells."""
    if len(table) <= limit:
        return table
    return table.take(np.linspace(0, len(table) - 1, limit).astype(np.int64))


def _gene_sums(
    table: CellTable, columns: np.ndarray, genes: int
) -> tuple[dict[str, np.ndarray], np.ndarray, list[Unreadable]]:
    """Sums over all readable cells, (G,) each, their (n,) depths, and the unreadable ones.

    `normal` means counts per 10,000 of the depth.
    """
    names = ("cells", "normal", "log normal", "log normal squared", "log", "log squared")
    sums, depths = {name: np.zeros(genes) for name in names}, [np.zeros(0)]
    refused: list[Unreadable] = []
    for start, chunk in table.chunks(CHUNK):
        totals = chunk.total_counts()
        if not is_readable(chunk, totals):
            found = unreadable(chunk, totals)
            refused += [replace(cell, index=start + cell.index) for cell in found]
            good = np.setdiff1d(np.arange(len(chunk)), [cell.index for cell in found])
            chunk, totals = chunk.take(good), totals[good]
        cells = Expressed.of(chunk.counts, columns, add_up=genes < len(columns))
        normal = cells.counts * np.repeat(1e4 / totals, cells.length)
        logs, log_normal = np.log1p(cells.counts), np.log1p(normal)
        for name, weight in zip(names, (None, normal, log_normal, log_normal**2, logs, logs**2)):
            sums[name] += np.bincount(cells.genes, weights=weight, minlength=genes)
        depths.append(totals)
    return sums, np.concatenate(depths), refused


def _require_few(refused: list[Unreadable], cells: int) -> None:
    """Raise ConsilienceError where no cell is left, or so many hold other numbers that the matrix is none of counts."""
    wrong = [cell for cell in refused if not cell.empty]
    if len(refused) < cells and (not wrong or are_few(len(wrong), cells)):
        return
    first = (wrong or refused)[0].reason
    raise ConsilienceError(
        f"cells: the tokenizer cannot be fitted, as {len(wrong or refused):,} of {cells:,} training cells cannot be "
        f"read{'; raw counts are needed, not normalised ones' if wrong else ''}; first: {first}"
    )


def _sample(table: CellTable, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Every expressed vocabulary gene, cell after cell.

    Returns:
        (T,) genes, (T,) counts per 10,000, (n,) numbers of genes, and the highest count.
    """
    genes, normal, lengths, top = [], [], [], 1.0
    found = columns[columns >= 0]
    for _, chunk in table.chunks(CHUNK):
        cells = Expressed.of(chunk.counts, columns, add_up=len(np.unique(found)) < len(found))
        scale = np.repeat(1e4 / chunk.total_counts(), cells.length)
        genes.append(cells.genes.astype(np.int32))
        normal.append((cells.counts * scale).astype(np.float32))
        lengths.append(cells.length)
        top = max(top, float(cells.counts.max(initial=0)))
    return np.concatenate(genes), np.concatenate(normal), np.concatenate(lengths), top


def _choose(sums: dict[str, np.ndarray], n: int, *, order: str, limit: int | None) -> np.ndarray:
    """Indices of the vocabulary's genes, in token order."""
    expressed = np.flatnonzero(sums["cells"] > 0)
    if limit is not None and len(expressed) > limit:
        variance = sums["log normal squared"][expressed] / n - (sums["log normal"][expressed] / n) ** 2
        expressed = np.sort(expressed[np.argsort(-variance, kind="stable")[:limit]])
    if order == "mean":
        expressed = expressed[np.argsort(-sums["normal"][expressed], kind="stable")]
    return expressed


def _medians(genes: np.ndarray, values: np.ndarray, vocabulary: int) -> np.ndarray:
    """(V,) median of the values of each gene; genes that the sample lacks get the median of all.

    One sort of 64-bit keys, gene above value: bits of positive float32 numbers sort like the numbers.
    """
    keys = (genes.astype(np.uint64) << np.uint64(32)) | values.view(np.uint32)
    keys.sort()
    ordered = keys.astype(np.uint32).view(np.float32)
    number = np.bincount(genes, minlength=vocabulary)
    first, seen = np.cumsum(number) - number, number > 0
    median = np.full(vocabulary, np.median(values), dtype=np.float64)
    low, high = first + (number - 1) // 2, first + number // 2
    median[seen] = (ordered[low[seen]].astype(np.float64) + ordered[high[seen]]) / 2
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
