"""How long a sample is, given the same object in another modality.

An objective that cannot end its samples is told their length. Without a context that is drawn from the training
lengths, and with one from those of the training pairs whose context was as long: a string of nine heavy atoms is not
drawn for a conformer of four.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.records import take_records
from consilience.core.tokenizer import Tokenizer

PAIRS = 4096
"""Training pairs that are counted."""
CHUNK = 256
"""Pairs that are encoded at once: cells have thousands of tokens."""
TEMPLATES = 2048
"""Templates among which one of the wanted length is looked for."""

Lengths = Sequence[Mapping[str, Any]]
"""For every two modalities `names` and `counts`: rows (length of the first, length of the second, how often)."""


def count_lengths(tokenizers: Mapping[str, Tokenizer[Any]], records: Mapping[str, Any]) -> Lengths:
    """The lengths of training pairs, of JSON types; record i of every modality is the same object."""
    n = len(next(iter(records.values())))
    index = np.linspace(0, n - 1, min(n, PAIRS)).round().astype(int)
    length = {
        name: [
            count
            for start in range(0, len(index), CHUNK)
            for count in tokenizers[name]
            .encode(take_records(own, index[start : start + CHUNK]))
            .length.tolist()
        ]
        for name, own in records.items()
    }
    found = []
    for first, second in combinations(length, 2):
        counted = Counter(zip(length[first], length[second]))
        rows = [[a, b, times] for (a, b), times in sorted(counted.items())]
        found.append({"names": [first, second], "counts": rows})
    return found


def draw_lengths(
    lengths: Lengths, domain: str, context: Mapping[str, TokenBatch], generator: torch.Generator
) -> Tensor | None:
    """(B,) int64, a length for each sample from the pairs whose context is as long, or nearly; None = nothing is known.

    Args:
        lengths: of `count_lengths`.
        domain: the modality that is to be drawn.
        context: modality -> tokens of B samples; the first one that is known tells.
        generator: of the draw.
    """
    for other, tokens in context.items():
        for entry in lengths:
            if set(entry["names"]) == {domain, other}:
                rows = np.array(entry["counts"], dtype=np.int64)
                own, beside = (entry["names"].index(name) for name in (domain, other))
                return _drawn(
                    rows[:, beside], rows[:, own], rows[:, 2], tokens.length.cpu().numpy(), generator
                )
    return None


def _drawn(
    context: np.ndarray, own: np.ndarray, times: np.ndarray, asked: np.ndarray, generator: torch.Generator
) -> Tensor:
    """A draw of `own` for each of `asked`, from the rows of the nearest `context`."""
    uniform = torch.rand(len(asked), generator=generator, dtype=torch.float64).numpy()
    found = np.empty(len(asked), dtype=np.int64)
    for length in np.unique(asked):
        away = np.abs(context - length)
        rows = away == away.min()
        here = asked == length
        edges = np.cumsum(times[rows]) / times[rows].sum()
        found[here] = own[rows][
            np.minimum(np.searchsorted(edges, uniform[here], side="right"), rows.sum() - 1)
        ]
    return torch.from_numpy(found)


def of_length(templates: TokenBatch, wanted: Tensor, generator: torch.Generator) -> TokenBatch:
    """For each wanted length (B,) a random one of the templates that have it, or come nearest."""
    length = templates.length.numpy()
    uniform = torch.rand(len(wanted), generator=generator, dtype=torch.float64).numpy()
    chosen = np.empty(len(wanted), dtype=np.int64)
    for one in np.unique(wanted.numpy()):
        away = np.abs(length - one)
        rows = np.flatnonzero(away == away.min())
        here = wanted.numpy() == one
        chosen[here] = rows[(uniform[here] * len(rows)).astype(np.int64)]
    return templates.take(torch.from_numpy(chosen)).trim()
