"""What a model of one science is told of its records in training: from names of properties to a column of each.

A property is computed from the record by the science itself (`Domain.compute`), or stands beside it in the file as a
numeric column. Scales and ranges come from training rows alone; what is not known of a record stays hidden there.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from consilience.core.conditions import Conditions
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source
from consilience.domains.base import Domain
from consilience.domains.cached import PreparedTokens
from consilience.domains.preparation import Prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The conditions that a run is to be trained with.

    Args:
        computed: names of properties that the science computes.
        columns: names of numeric columns of the file.
        drop_each: see `core.conditions.Conditions`.
        drop_all: see `core.conditions.Conditions`.
    """

    computed: Sequence[str] = ()
    columns: Sequence[str] = ()
    drop_each: float = 0.1
    drop_all: float = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """Conditions with what they are for the records of one science's data.

    Args:
        conditions: their names, scales and ranges.
        values: (n, K) float32 of all n records, standardised, NaN where unknown.
    """

    conditions: Conditions
    values: np.ndarray

    def beside(self, source: Source, index: np.ndarray) -> Source:
        """The source of a part of the records, with what the model is told of each. index: of the part."""
        return replace(source, conditions=self.values[index])


def tell(data: Prepared | PreparedTokens, wanted: Wanted, kept: Conditions | None = None) -> Told:
    """The conditions of a science's data.

    Args:
        data: what is trained on.
        wanted: by name.
        kept: those of the run that is resumed: its scales count.

    Raises:
        ConsilienceError: for a property that cannot be computed here, a column that is not there or holds text, one
            without any spread, or others than those of the resumed run.
    """
    computed = computed_names(data.domain, wanted.computed)
    twice = sorted(set(computed) & set(wanted.columns))
    if twice:
        raise ConsilienceError(f"condition {twice[0]!r} is asked for as computed and as a column; choose one")
    columns = _computed(data, computed) | {name: _column(data, name) for name in wanted.columns}
    train = data.split.train
    fitted = Conditions.fit(
        {name: column[train] for name, column in columns.items()},
        computed=computed,
        drop_each=wanted.drop_each,
        drop_all=wanted.drop_all,
    )
    if kept is not None:
        if _choices(kept) != _choices(fitted):
            raise ConsilienceError(
                f"the run was trained with the conditions {', '.join(kept.names)}; resume it with the same"
            )
        fitted = kept
    return Told(conditions=fitted, values=fitted.standardise(columns))


def _choices(conditions: Conditions) -> tuple[object, ...]:
    """What a person chose of them."""
    origin = tuple((one.name, one.computed) for one in conditions.properties)
    return (*origin, conditions.drop_each, conditions.drop_all)


def computed_names(domain: Domain, names: Sequence[str]) -> list[str]:
    """The names as the science spells them, capitals aside; ConsilienceError for one that it does not compute."""
    found = []
    for name in names:
        spelled = next((known for known in domain.computed if known.lower() == name.lower()), None)
        if spelled is None:
            known = f"it computes {', '.join(domain.computed)}" if domain.computed else "it computes none"
            raise ConsilienceError(
                f"{domain.name}: there is no property {name!r}; {known}, and --condition-column takes a column of "
                "numbers of your file"
            )
        found.append(spelled)
    return list(dict.fromkeys(found))


def _computed(data: Prepared | PreparedTokens, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not names:
        return {}
    if isinstance(data, PreparedTokens):
        raise ConsilienceError(
            f"a token cache holds no records to compute {names[0]} from: train from the file itself, or write the "
            "property as a column of the file and use --condition-column"
        )
    return dict(data.domain.compute(data.collection.records, names))


def _column(data: Prepared | PreparedTokens, name: str) -> np.ndarray:
    """(n,) float64 of a column, NaN where it is empty."""
    labels = _labels(data)
    if name not in labels:
        known = ", ".join(labels) or "none"
        raise ConsilienceError(
            f"{data.domain.name}: the data have no column {name!r} of numbers; known: {known} (a column that "
            "is empty or holds text somewhere, such as > 5, is none)"
        )
    column = np.asarray(labels[name])
    if column.dtype.kind not in "fiub":
        raise ConsilienceError(
            f"{data.domain.name}: column {name!r} holds text such as {str(column[0])!r}; a condition is a number"
        )
    column = column.astype(np.float64)
    infinite = int(np.isinf(column).sum())
    if infinite:
        logger.warning(
            "%s: %d infinite value(s) of column %s count as not known", data.domain.name, infinite, name
        )
    return column


def _labels(data: Prepared | PreparedTokens) -> Mapping[str, np.ndarray]:
    if isinstance(data, Prepared):
        return data.collection.labels
    prefix = "label: "
    return {name.removeprefix(prefix): c for name, c in data.columns.items() if name.startswith(prefix)}
