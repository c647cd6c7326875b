"""What `generate --condition` asks for, and how near the generated records came to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from consilience.core.conditions import Conditions
    from consilience.domains.base import Domain

COMPARED = 1000
"""Unconditional samples at most that the asked ones are compared with."""


def parse_conditions(words: Sequence[str] | None) -> dict[str, float]:
    """Property -> number, of words such as logp=2.5; ConsilienceError for anything else."""
    found: dict[str, float] = {}
    for word in words or ():
        name, equals, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (name and equals and np.isfinite(value)):
            raise ConsilienceError(f"--condition {word!r}: write NAME=NUMBER, such as logp=2.5")
        if name in found:
            raise ConsilienceError(f"--condition: {name} is asked for twice, {found[name]:g} and {value:g}")
        found[name] = value
    return found


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How near records came to what was asked.

    Args:
        columns: asked_NAME for every property, and NAME where the science computes it (NaN where it cannot).
        line: the mean absolute errors beside those of records that nothing was asked of.
    """

    columns: Mapping[str, np.ndarray]
    line: str


def nearness(
    science: "Domain",
    known: "Conditions",
    asked: Mapping[str, float],
    records: Any,
    unconditional: Callable[[], Any],
) -> Nearness:
    """Compare generated records with what was asked of them.

    Args:
        science: computes properties.
        known: the conditions of the model.
        asked: property -> number.
        records: generated.
        unconditional: generates records of the same model that nothing is asked of; called only when it is needed.
    """
    wanted = {known.named(name).name: value for name, value in asked.items()}
    computed = [name for name in wanted if known.named(name).computed]
    found = science.compute(records, computed) if computed else {}
    others = science.compute(unconditional(), computed) if computed else {}
    columns: dict[str, np.ndarray] = {}
    parts = []
    for name, value in wanted.items():
        columns[f"asked_{name}"] = np.full(len(records), value)
        if name not in computed:
            parts.append(f"{name} {value:g} asked (a column of the file: it is not computed here)")
            continue
        columns[name] = found[name]
        parts.append(
            f"{name} {value:g} asked, mean absolute error {_error(found[name], value)} "
            f"(unconditional samples {_error(others[name], value)})"
        )
    return Nearness(columns=columns, line="; ".join(parts))


def _error(values: np.ndarray, asked: float) -> str:
    """The mean absolute error of those that have a value, for people."""
    known = values[np.isfinite(values)]
    return f"{np.abs(known - asked).mean():.3g}" if len(known) else "unknown, as none is valid"
