"""Several modalities of one sample, side by side in the core."""

import torch
from torch import Tensor

from consilience.core.attention import Pattern
from consilience.core.errors import ConsilienceError
from consilience.core.view import View


def join_angles(
    parts: list[Tensor | None], widths: list[int], like: Tensor, head_width: int
) -> Tensor | None:
    """Angles side by side; modalities without positions do not turn."""
    if all(part is None for part in parts):
        return None
    planes = head_width // 2
    zero = [torch.zeros(like.shape[0], n, planes, device=like.device) for n in widths]
    return torch.cat([blank if part is None else part for part, blank in zip(parts, zero)], dim=1)


def join_times(views: list[View]) -> tuple[Tensor, Tensor | None]:
    """Levels of time of all modalities, and the level of every row."""
    if len(views) == 1:
        return views[0].time, views[0].time_index
    indices, first = [], 0
    for view in views:
        index = (
            view.time_index
            if view.time_index is not None
            else torch.zeros_like(view.hidden, dtype=torch.long)
        )
        indices.append(index + first)
        first += int(view.time.shape[0])
    return torch.cat([view.time for view in views]), torch.cat(indices, dim=1)


def join_patterns(patterns: list[Pattern]) -> Pattern:
    """The one pattern that all modalities share."""
    if len(patterns) == 1:
        return patterns[0]
    kinds = {pattern.kind for pattern in patterns}
    if len(kinds) > 1 or "block" in kinds:
        raise ConsilienceError("modalities of one sample must share the pattern of attention, full or causal")
    return Pattern(kind=patterns[0].kind)


def join_biases(parts: list[Tensor | None], widths: list[int], like: Tensor, heads: int) -> Tensor | None:
    """Biases as diagonal blocks; modalities see one another without bias.

    Each is (B, H, N, N), or (L, B, H, N, N) where every layer has its own; what is joined is the latter if any is.
    """
    if all(part is None for part in parts):
        return None
    if len(parts) == 1:
        return parts[0]
    total = sum(widths)
    layers = next((part.shape[:1] for part in parts if part is not None and part.dim() == 5), ())
    joined = like.new_zeros(*layers, like.shape[0], heads, total, total)
    first = 0
    for part, n in zip(parts, widths):
        if part is not None:
            joined[..., first : first + n, first : first + n] = part
        first += n
    return joined
