"""Options of all samplers, checked before anything is drawn."""

from collections.abc import Mapping
from typing import Any

from consilience.core.errors import ConsilienceError

OPTIONS = ("steps", "temperature", "mean")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ConsilienceError for an unknown option, fewer than one step or a negative temperature."""
    for name in options:
        if name not in OPTIONS:
            raise ConsilienceError(f"unknown option '{name}' of a sampler; known: {', '.join(OPTIONS)}")
    steps, temperature = options.get("steps"), options.get("temperature", 1.0)
    if steps is not None and steps < 1:
        raise ConsilienceError(f"steps must be at least 1, not {steps}")
    if not temperature >= 0:
        raise ConsilienceError(f"temperature must not be negative, not {temperature}")
