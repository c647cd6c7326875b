"""Patterns: strings of which some symbols are kept and the rest is free, `c1ccc(*)cc1` or `CC*{2,8}N`.

Everything but `*` (or `[*]`, with or without a number) stands for itself, symbol by symbol. A `*` is one symbol or
more; `*{3}` is three, `*{2,8}` two to eight, `*{4,}` four or more. What is free may be a branch or all the rest of a
molecule: a pattern is about the string, not about the graph.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.molecule_symbols import split

_FREE = re.compile(r"(?:\*|\[\*(?::\d+)?\])(?:\{(\d+)(,(\d*))?\})?")


@dataclass(frozen=True, kw_only=True)
class Free:
    """A free part: how many symbols it has, at least and at most.

    Args:
        least: one or more.
        most: None = as many as the length of the molecule leaves.
    """

    least: int = 1
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Kept symbols and free parts, in the order of the string.

    Args:
        text: as it was written.
        parts: a tuple of symbols, or a free part.
    """

    text: str
    parts: tuple[tuple[str, ...] | Free, ...]

    @property
    def free(self) -> list[Free]:
        """The free parts."""
        return [part for part in self.parts if isinstance(part, Free)]

    @property
    def kept(self) -> int:
        """The number of kept symbols."""
        return sum(len(part) for part in self.parts if not isinstance(part, Free))

    @property
    def is_beginning(self) -> bool:
        """Whether all that is free is one part at the end, whose length is not said."""
        return len(self.free) == 1 and self.parts[-1] == Free()


def read_pattern(text: str) -> Pattern:
    """The pattern of a string.

    Raises:
        ConsilienceError: for a string without a free part, a length that cannot be, or characters that are no symbols.
    """
    parts: list[tuple[str, ...] | Free] = []
    end = 0
    for found in _FREE.finditer(text):
        parts.append(_symbols(text, end, found.start()))
        parts.append(_free(text, found))
        end = found.end()
    parts.append(_symbols(text, end, len(text)))
    read = Pattern(text=text, parts=tuple(part for part in parts if isinstance(part, Free) or part))
    if not read.free:
        raise ConsilienceError(
            f"pattern {text!r} has no free part: write * where symbols are to be filled, as in 'c1ccc(*)cc1'"
        )
    return read


def free_as_atoms(text: str) -> str:
    """The pattern with a plain `*`, an atom of any kind in SMILES, for every free part."""
    return _FREE.sub("*", text)


def _short(text: str, most: int = 60) -> str:
    """A text in quotes, cut where it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"


def _symbols(text: str, start: int, end: int) -> tuple[str, ...]:
    """The kept symbols of a stretch of the pattern."""
    try:
        return tuple(split(text[start:end]))
    except ConsilienceError as error:
        raise ConsilienceError(
            f"pattern {text!r}: {str(error).partition(';')[0]}; symbols are those of SMILES, lengths are written "
            "*{3}, *{2,8} or *{4,}"
        ) from error


def _free(text: str, found: re.Match[str]) -> Free:
    least, comma, most = found.groups()
    if least is None:
        return Free()
    part = Free(least=int(least), most=int(most) if most else None if comma else int(least))
    if part.least < 1 or (part.most is not None and part.most < part.least):
        raise ConsilienceError(
            f"pattern {text!r}: {found[0]} is no length; write {{3}}, {{2,8}} or {{4,}} with 1 or more"
        )
    return part


def draw_lengths(
    pattern: Pattern, n: int, length_counts: Sequence[int], longest: int | None, generator: torch.Generator
) -> torch.Tensor:
    """(n, F) int64 symbols of each of the F free parts.

    Parts with bounds are uniform between them. The others share what the length of a training molecule, drawn among
    those that are long enough, leaves: every way to share it is equally likely.

    Args:
        pattern: the pattern.
        n: how many.
        length_counts: entry k = the number of training molecules of k tokens, begin and end included.
        longest: tokens a sample may have, begin and end included; None: no limit.
        generator: all randomness.

    Raises:
        ConsilienceError: when no training molecule is long enough, or the limit is passed.
    """
    free, edge = pattern.free, pattern.kept + 2
    found = torch.zeros(n, len(free), dtype=torch.int64)
    for column, part in enumerate(free):
        top = part.least if part.most is None else part.most
        found[:, column] = torch.randint(part.least, top + 1, (n,), generator=generator)
    open_ended = [column for column, part in enumerate(free) if part.most is None]
    if open_ended:
        counts = torch.tensor(length_counts, dtype=torch.float64)
        need = edge + found.sum(1)
        share = counts * (torch.arange(len(counts)) >= need[:, None])
        if bool((share.sum(1) == 0).any()):
            raise ConsilienceError(
                f"pattern {_short(pattern.text)} needs {int(need.max())} tokens, begin and end included, and the "
                f"longest training molecule has {len(length_counts) - 1}: keep less of it, or with "
                "--pattern give free parts a length, as in *{1,8}"
            )
        for row, extra in enumerate((_drawn(share, generator) - need).tolist()):
            found[row, open_ended] += _shared(extra, len(open_ended), generator)
    if longest is not None and n and int(found.sum(1).max()) + edge > longest:
        raise ConsilienceError(
            f"pattern {pattern.text!r} with its free parts is longer than max_length={longest}: shorten it"
        )
    return found


def _drawn(share: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.multinomial(share, 1, generator=generator)[:, 0] if len(share) else share.sum(1).long()


def _shared(extra: int, parts: int, generator: torch.Generator) -> torch.Tensor:
    """(parts,) whole numbers >= 0 that sum to `extra`, all ways equally likely: bars between stars."""
    bars = torch.randperm(extra + parts - 1, generator=generator)[: parts - 1].sort().values
    edges = torch.cat([torch.tensor([-1]), bars, torch.tensor([extra + parts - 1])])
    return edges.diff() - 1
