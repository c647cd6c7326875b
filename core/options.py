"""Options that a person writes (`--tokenizer-options '{max_length: 96}'`): each value of the type of its field."""

from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


LARGEST_SEED = 2**63 - 1


def check_whole(name: str, value: Any) -> None:
    """Raise ConsilienceError for what is no whole number; None is left out."""
    if value is not None and not _is(value, int):
        raise ConsilienceError(f"{name} must be {WORDS[int]}, not {value!r}")


def check_seed(seed: int) -> None:
    """Raise ConsilienceError for a seed that no generator takes."""
    check_whole("seed", seed)
    if not 0 <= seed <= LARGEST_SEED:
        raise ConsilienceError(f"seed must lie in 0 to {LARGEST_SEED}, not {seed}")


def check_types(options: "DataclassInstance", what: str) -> None:
    """Raise ConsilienceError for a plain value (number, yes or no, text) of another type than its field has.

    Fields of other types (choices, tables) are left to the class itself.

    Args:
        options: as built from what was written.
        what: begins the message, such as "molecules".
    """
    hints = get_type_hints(type(options))
    for field in fields(options):
        value, kinds = getattr(options, field.name), _kinds(hints[field.name])
        plain = [kind for kind in kinds if kind in WORDS]
        if len(plain) + (NoneType in kinds) < len(kinds) or not plain:
            continue
        if not (value is None and NoneType in kinds) and not any(_is(value, kind) for kind in plain):
            wanted = " or ".join(WORDS[kind] for kind in plain)
            left = ", or left out" if NoneType in kinds else ""
            raise ConsilienceError(f"{what}: {field.name} must be {wanted}{left}, not {value!r}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; numpy's numbers are numbers, and a yes or no is none."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)
