"""Classes by reference: "package.module:Name" -> the class, checked to be of the kind expected."""

import importlib
from typing import Any, TypeVar

from consilience.core.errors import ConsilienceError

Kind = TypeVar("Kind")


def reference_of(cls: type) -> str:
    """The reference of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def load_reference(reference: str) -> Any:
    """The object behind "package.module:Name"; ConsilienceError when there is none."""
    module_name, _, name = reference.partition(":")
    if not name:
        raise ConsilienceError(f"'{reference}' is not a reference; write package.module:Name")
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise ConsilienceError(f"cannot import '{module_name}' for '{reference}': {error}") from error
    if not hasattr(found, name):
        raise ConsilienceError(f"module '{module_name}' has no '{name}'")
    return getattr(found, name)


def load_class(reference: str, base: type[Kind]) -> type[Kind]:
    """The class behind a reference; ConsilienceError unless it derives from `base`."""
    found = load_reference(reference)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConsilienceError(f"'{reference}' is not a {base.__name__}")
    return found
