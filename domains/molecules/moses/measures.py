"""The columns of MOSES for a set of generated strings (Polykovskiy et al. 2020, doi:10.3389/fphar.2020.565644).

`valid` is counted over all strings, everything else over the canonical SMILES of the valid ones, duplicates included,
but for novelty, which is counted over different molecules.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import sqrt

from scipy.stats import wasserstein_distance

from consilience.core.errors import ConsilienceError
from consilience.domains.benchmark import OnSteps, silent
from consilience.domains.molecules.moses.chemnet import ChemNet, frechet_distance
from consilience.domains.molecules.moses.facts import Facts, look_at
from consilience.domains.molecules.moses.references import SETS, Reference, References
from consilience.domains.molecules.properties import DISTRIBUTION
from consilience.domains.molecules.similarity import internal_diversity, nearest

UNIQUE = (1000, 10000)
COLUMNS = (
    "valid",
    *(f"unique@{k}" for k in UNIQUE),
    *(f"{metric}/{name}" for metric in ("FCD", "SNN", "Frag", "Scaf") for name in SETS),
    "IntDiv",
    "IntDiv2",
    "Filters",
    "Novelty",
)
"""The columns of the published table, in its order and with the names of MOSES. Lower is better for FCD alone."""
PROPERTIES = tuple(DISTRIBUTION)
"""Further columns: Wasserstein-1 distances to the test set, in the units of the property (weight in g/mol)."""


def measure(
    strings: Sequence[str],
    against: References,
    *,
    net: ChemNet | None = None,
    processes: int = 1,
    on_steps: OnSteps = silent,
) -> dict[str, float]:
    """All columns of MOSES for generated strings.

    Args:
        strings: what a model wrote, in the order it was written: uniqueness is that of the first valid ones.
        against: the references.
        net: computes the Frechet distance; None = its columns are NaN.
        processes: that look at molecules side by side.
        on_steps: draws the progress.

    Returns:
        COLUMNS, then PROPERTIES -> value; NaN where too few strings are valid to say.

    Raises:
        ConsilienceError: there are no strings, or a net is given and the references have no moments.
    """
    if not strings:
        raise ConsilienceError("no generated molecules to measure; generate at least one")
    facts = look_at(
        strings,
        patterns=against.patterns,
        processes=processes,
        on_strings=on_steps("generated molecules", len(strings)),
    )
    found = nothing_valid()
    if not facts.smiles:
        return found
    found["valid"] = len(facts.smiles) / facts.generated
    for k in UNIQUE:
        first = facts.smiles[:k]
        found[f"unique@{k}"] = len(set(first)) / len(first)
    for name, reference in against.sets.items():
        advance = on_steps(f"nearest neighbours in {name}", len(reference.facts.fingerprints))
        found |= {f"{metric}/{name}": value for metric, value in _compared(facts, reference, advance).items()}
    if net is not None and len(facts.smiles) > 1:
        moments = net.moments(facts.smiles, on_strings=on_steps("ChemNet", len(facts.smiles)))
        for name, reference in against.sets.items():
            if reference.moments is None:
                raise ConsilienceError(
                    "the references were made without ChemNet; pass net= to references too"
                )
            found[f"FCD/{name}"] = frechet_distance(moments, reference.moments)
    found["IntDiv"] = internal_diversity(facts.fingerprints)
    found["IntDiv2"] = internal_diversity(facts.fingerprints, power=2)
    found["Filters"] = float(facts.passed.mean())
    distinct = set(facts.smiles)
    found["Novelty"] = 1 - len(against.seen_in_training(distinct)) / len(distinct)
    for name, values in against.sets["Test"].facts.properties.items():
        found[name] = float(wasserstein_distance(values, facts.properties[name]))
    return found


def nothing_valid() -> dict[str, float]:
    """The columns where not one string is valid: there is nothing to say of the others."""
    return dict.fromkeys((*COLUMNS, *PROPERTIES), float("nan")) | {"valid": 0.0}


def cosine(one: Counter[str], other: Counter[str]) -> float:
    """Cosine similarity of two tables of counts; what stands in one of them alone counts 0 in the other."""
    if not one or not other:
        return float("nan")
    product = sum(count * other[name] for name, count in one.items())
    lengths = [sqrt(sum(count * count for count in table.values())) for table in (one, other)]
    return product / (lengths[0] * lengths[1])


def _compared(facts: Facts, reference: Reference, on_rows: Callable[[int], object]) -> dict[str, float]:
    """What needs no network."""
    theirs = reference.facts
    return {
        "SNN": float(nearest(facts.fingerprints, theirs.fingerprints, on_rows=on_rows).mean()),
        "Frag": cosine(theirs.fragments, facts.fragments),
        "Scaf": cosine(theirs.scaffolds, facts.scaffolds),
    }
