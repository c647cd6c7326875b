"""Gene identifiers: symbols or Ensembl ids of any species, matched to a vocabulary with a report.

The vocabulary is data (built by `CellTokenizer.fit`), so no species is built in. Rules, in this order:

1. white space around a name is dropped;
2. the version of an Ensembl id is dropped (ENSG00000141510.17 -> ENSG00000141510), and of nothing else: clone
   names such as RP11-34P13.7 keep their number;
3. equal names match; what is left matches without regard to case where that is unique on both sides;
4. columns with the same name are one gene, and their counts are added (a symbol with two Ensembl ids).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from consilience.core.errors import ConsilienceError

_ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*[GTP]\d{5,})\.\d+(_PAR_Y)?$", re.IGNORECASE)


def clean_genes(genes: Iterable[object]) -> list[str]:
    """Names without white space around them and Ensembl ids without their version."""
    return [_ENSEMBL_VERSION.sub(r"\1\2", str(gene).strip()) for gene in genes]


def genome_ranks(chromosomes: Iterable[object], starts: np.ndarray) -> np.ndarray:
    """(G,) int64: the place of every gene when they are sorted by chromosome, then start.

    Numbered chromosomes come first, in the order of their numbers; then named ones (X, Y), short names first; then
    MT; then genes whose start is NaN. A leading "chr" is dropped.

    Args:
        chromosomes: G names or numbers.
        starts: (G,) in bases; NaN where unknown.
    """
    names = [str(name).strip().removeprefix("chr") for name in chromosomes]
    keys = [
        (bool(np.isnan(start)), not name.isdigit(), int(name) if name.isdigit() else 0,
         name in ("M", "MT"), len(name), name, float(np.nan_to_num(start)))
        for name, start in zip(names, starts, strict=True)
    ]  # fmt: skip
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return ranks


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneMatch:
    """How the genes of a table meet a vocabulary of V genes.

    Args:
        columns: (G,) int64, the vocabulary index of every column of the table; -1 = not in it.
        matched: the number of vocabulary genes that the table has.
        missing: the vocabulary genes that the table lacks.
        fraction: matched over the smaller of both gene numbers: a panel of 300 genes and a transcriptome of
            30,000 both reach 1 where their names agree with the vocabulary.
        by_case: how many of the matched genes differ in case.
        duplicates: how many columns were added to another column of the same gene.
    """

    columns: np.ndarray
    matched: int
    missing: tuple[str, ...]
    fraction: float
    by_case: int
    duplicates: int

    def report(self) -> str:
        """One line for a person."""
        size = self.matched + len(self.missing)
        line = f"{self.matched:,} of {size:,} vocabulary genes found in {len(self.columns):,} columns"
        line += f" (match {self.fraction:.0%})"
        if self.by_case:
            line += f"; {self.by_case:,} differ in case (another species?)"
        if self.duplicates:
            line += f"; counts of {self.duplicates:,} duplicate columns were added up"
        return line


def match_genes(genes: Iterable[object], vocabulary: Iterable[str], *, min_matched: float = 0.0) -> GeneMatch:
    """Match the columns of a table to a vocabulary (names already clean).

    Raises:
        ConsilienceError: fewer than `min_matched` of the genes match, or none; shows both namings.
    """
    names, known = clean_genes(genes), list(vocabulary)
    place = {gene: i for i, gene in enumerate(known)}
    columns = np.fromiter((place.get(name, -1) for name in names), dtype=np.int64, count=len(names))
    free = set(range(len(known))) - set(columns.tolist())
    folded_known = Counter(gene.casefold() for gene in known)
    folded_free = {known[i].casefold(): i for i in free}
    left = [i for i in np.flatnonzero(columns < 0) if names[i].casefold() in folded_free]
    folded_left = Counter(names[i].casefold() for i in left)
    by_case = 0
    for i in left:
        fold = names[i].casefold()
        if folded_known[fold] == 1 and folded_left[fold] == 1:
            columns[i] = folded_free[fold]
            by_case += 1
    found = np.unique(columns[columns >= 0])
    fraction = len(found) / max(1, min(len(set(names)), len(known)))
    if not len(found) or fraction < min_matched:
        raise ConsilienceError(
            f"{len(found)} of the {len(names):,} genes are in the model's vocabulary ({fraction:.1%}, needed "
            f"{min_matched:.0%}): the data has {_examples(names)}, the vocabulary has {_examples(known)}; use "
            "the same kind of identifier (often another column of adata.var) and the same species"
        )
    lacking = np.ones(len(known), dtype=bool)
    lacking[found] = False
    return GeneMatch(
        columns=columns,
        matched=len(found),
        missing=tuple(known[i] for i in np.flatnonzero(lacking)),
        fraction=fraction,
        by_case=by_case,
        duplicates=int((columns >= 0).sum()) - len(found),
    )


def _examples(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) or "none"
