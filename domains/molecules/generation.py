"""How good generated molecules are: validity, uniqueness, novelty, diversity, properties beside real ones.

Definitions follow MOSES (Polykovskiy et al. 2020, doi:10.3389/fphar.2020.565644). Every share has its own
denominator, which stands in the docstring, and nothing invalid is dropped before it is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem import FilterCatalog
from scipy.stats import wasserstein_distance

from consilience.core.errors import ConsilienceError
from consilience.domains.molecules.properties import PROPERTIES
from consilience.domains.molecules.similarity import internal_diversity, morgan_bits, nearest
from consilience.tokenizers.molecule_notation import canonical, parse

DESCRIPTORS = ("logP", "TPSA", "molecular weight", "QED")
DIVERSITY_SAMPLE = 2000
"""Molecules compared pairwise at most: the first ones, as the samples come in no order."""
FINGERPRINT_BITS = 2048
"""Of the ECFP4 fingerprints; MOSES itself, `domains.molecules.moses`, has 1024."""


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """What `assess` measures.

    Args:
        generated: number of strings.
        valid: share of the strings that RDKit reads as a molecule with at least one atom.
        unique: share of different canonical SMILES among the valid ones; NaN when none is valid.
        novel: share of the unique ones that are not in the training set; NaN when none is valid.
        internal_diversity: 1 - mean Tanimoto similarity (ECFP4, 2048 bits) over all ordered pairs of valid
            molecules, each with itself included (IntDiv1); NaN when none is valid.
        nearest_similarity: mean Tanimoto similarity of a valid molecule to its nearest reference (SNN).
        pains: share of the valid ones with an alert of the PAINS filters (Baell & Holloway 2010).
        distances: property -> Wasserstein-1 distance between the valid ones and the reference, in the units
            of the property; NaN when none is valid.
    """

    generated: int
    valid: float
    unique: float
    novel: float
    internal_diversity: float
    nearest_similarity: float
    pains: float
    distances: Mapping[str, float]

    def line(self) -> str:
        """One line for a title or a log."""
        parts = [f"{_share(self.valid)} valid"]
        if self.valid > 0:
            parts += [f"{_share(self.unique)} of them unique", f"{_share(self.novel)} of those novel"]
        return f"{self.generated} generated, " + ", ".join(parts)


def _share(value: float) -> str:
    """A share in per cent; what is not all and not nothing is not rounded to either."""
    return f"{value:.0%}" if value in (0, 1) or 0.01 <= value <= 0.99 else f"{value:.2%}"


def canonical_or_none(strings: Sequence[str]) -> list[str | None]:
    """Canonical SMILES of every string; None where it is no molecule."""
    found: list[str | None] = []
    for text in strings:
        try:
            found.append(canonical(text))
        except ConsilienceError:
            found.append(None)
    return found


def tally(strings: Sequence[str]) -> str:
    """One line: generated, valid, and unique among the valid ones by canonical SMILES."""
    valid = [text for text in canonical_or_none(strings) if text is not None]
    line = f"{len(strings)} generated, {len(valid)} valid ({len(valid) / max(len(strings), 1):.1%})"
    if not valid:
        return line
    return f"{line}, {len(set(valid))} unique among the valid ({len(set(valid)) / len(valid):.1%})"


def describe(mols: Sequence[Chem.Mol]) -> dict[str, np.ndarray]:
    """Property -> (n,) values of DESCRIPTORS."""
    return {name: np.array([PROPERTIES[name](mol) for mol in mols], np.float64) for name in DESCRIPTORS}


def assess(
    strings: Sequence[str], training: Sequence[str], reference: Sequence[str] | None = None
) -> GenerationReport:
    """Measure generated strings.

    Args:
        strings: what a model wrote, invalid strings and duplicates included.
        training: the SMILES it was trained on; novelty is measured against them.
        reference: real SMILES that properties and similarity are compared with (held-out ones, best);
            default: the training ones.

    Raises:
        ConsilienceError: when there are no strings or no readable reference.
    """
    if not strings:
        raise ConsilienceError("no generated molecules to assess; generate at least one")
    smiles = [text for text in canonical_or_none(strings) if text is not None]
    real = [parse(text) for text in canonical_or_none(training if reference is None else reference) if text]
    if not real:
        raise ConsilienceError(
            "no readable molecule to compare the generated ones with; pass training SMILES"
        )
    if not smiles:
        nothing = float("nan")
        return GenerationReport(
            generated=len(strings),
            valid=0.0,
            unique=nothing,
            novel=nothing,
            internal_diversity=nothing,
            nearest_similarity=nothing,
            pains=nothing,
            distances=dict.fromkeys(DESCRIPTORS, nothing),
        )
    mols = [parse(text) for text in smiles]
    distinct = set(smiles)
    known = set(canonical_or_none(training))
    mine, theirs = describe(mols), describe(real)
    bits, real_bits = (morgan_bits(some, bits=FINGERPRINT_BITS) for some in (mols[:DIVERSITY_SAMPLE], real))
    return GenerationReport(
        generated=len(strings),
        valid=len(smiles) / len(strings),
        unique=len(distinct) / len(smiles),
        novel=len(distinct - known) / len(distinct),
        internal_diversity=internal_diversity(bits),
        nearest_similarity=float(nearest(bits, real_bits).mean()),
        pains=_pains_share(mols),
        distances={name: float(wasserstein_distance(mine[name], theirs[name])) for name in DESCRIPTORS},
    )


def _pains_share(mols: Sequence[Chem.Mol]) -> float:
    """Share of the molecules with at least one PAINS alert."""
    options = FilterCatalog.FilterCatalogParams()
    options.AddCatalog(FilterCatalog.FilterCatalogParams.FilterCatalogs.PAINS)
    alerts = FilterCatalog.FilterCatalog(options)
    return float(np.mean([alerts.HasMatch(mol) for mol in mols]))
