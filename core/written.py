"""How options are written down: what was written before an option existed stays as it was."""

from dataclasses import MISSING, Field, asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LATE = {"late": True}
"""`field(default=..., metadata=LATE)` marks an option that came later; at its default it is not written."""


def written(options: "DataclassInstance") -> dict[str, Any]:
    """The fields of a dataclass by name, without late ones that stand at their default.

    Saved models, and whatever is keyed by their description, then stay the same when an option is added.
    """
    held = asdict(options)
    return {f.name: held[f.name] for f in fields(options) if not _is_silent(f, held[f.name])}


def _is_silent(field: Field[Any], value: Any) -> bool:
    return bool(field.metadata.get("late")) and field.default is not MISSING and value == field.default
