"""A file in pieces: what embedding large files reads, so that memory does not grow with the number of records."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from consilience.core.records import Collection, Failure


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive records of a source.

    Args:
        collection: the readable ones, with the failures among and after them; `index` counts in the source.
        places: (n,) int64 where each record stands in the source, unreadable ones counted.
    """

    collection: Collection
    places: np.ndarray


def pieces_of(collection: Collection, size: int) -> Iterator[Piece]:
    """A collection in pieces of `size` records, the last one smaller."""
    n, failures = len(collection), collection.failures
    places = places_in_source(collection)
    for first in range(0, max(n, 1), size):
        last = first + size >= n
        if places is None:  # the source counts in another way (files of a folder): all failures come first
            own, here = (failures if first == 0 else ()), np.arange(first, min(first + size, n))
        else:
            here = places[first : first + size]
            begin, end = (0 if first == 0 else here[0]), (np.inf if last else places[first + size])
            own = tuple(failure for failure in failures if begin <= failure.index < end)
        part = collection if n <= size else collection.take(np.arange(first, first + len(here)))
        yield Piece(collection=replace(part, failures=own), places=here)


def places_in_source(collection: Collection) -> np.ndarray | None:
    """(n,) where each record stands in its source; None where the failures do not tell."""
    unread = [failure.index for failure in collection.failures]
    total = len(collection) + len(unread)
    if len(set(unread)) < len(unread) or any(not 0 <= place < total for place in unread):
        return None
    return np.setdiff1d(np.arange(total), unread)


def failures_of(collection: Collection, refused: Iterable[Failure]) -> list[Failure]:
    """Records of a collection that somebody refused by their position, with their place in the source and their id."""
    places = places_in_source(collection)
    return [
        replace(
            failure,
            index=failure.index if places is None else int(places[failure.index]),
            id=str(collection.ids[failure.index]),
        )
        for failure in refused
    ]


def end_to_end(parts: Sequence[Any]) -> list[Any]:
    """Lists of records as one."""
    return list(chain.from_iterable(parts))


def regroup(
    pieces: Iterable[Piece], size: int, join: Callable[[Sequence[Any]], Any] = end_to_end
) -> Iterator[Piece]:
    """The same records in pieces of exactly `size`, the last one smaller: the cuts do not depend on failures.

    Args:
        pieces: in the order of the source; of any sizes, all with the same labels.
        size: records.
        join: the records of several pieces as one; default: lists end to end.
    """
    held: Piece | None = None
    for piece in pieces:
        held = piece if held is None else _joined(held, piece, join)
        while len(held.collection) >= size:
            full, held = _cut(held, size)
            yield full
    if held is not None and (len(held.collection) or held.collection.failures):
        yield held


def _joined(first: Piece, second: Piece, join: Callable[[Sequence[Any]], Any]) -> Piece:
    a, b = first.collection, second.collection
    if not len(a):  # nothing but failures: what is joined next may be of another kind
        return replace(second, collection=replace(b, failures=a.failures + b.failures))
    if not len(b):
        return replace(first, collection=replace(a, failures=a.failures + b.failures))
    return Piece(
        collection=replace(
            a,
            records=join([a.records, b.records]),
            ids=np.concatenate([a.ids, b.ids]),
            labels={name: np.concatenate([column, b.labels[name]]) for name, column in a.labels.items()},
            groups=None,
            failures=a.failures + b.failures,
            beside={name: np.concatenate([column, b.beside[name]]) for name, column in a.beside.items()},
        ),
        places=np.concatenate([first.places, second.places]),
    )


def _cut(piece: Piece, size: int) -> tuple[Piece, Piece]:
    """The first `size` records, and the rest; failures go with the record before them."""
    collection, n = piece.collection, len(piece.collection)
    border = piece.places[size] if n > size else np.inf

    def part(first: int, stop: int, failures: tuple[Failure, ...]) -> Piece:
        taken = collection.take(np.arange(first, stop)) if (first, stop) != (0, n) else collection
        return Piece(collection=replace(taken, failures=failures), places=piece.places[first:stop])

    before = tuple(failure for failure in collection.failures if failure.index < border)
    after = tuple(failure for failure in collection.failures if failure.index >= border)
    return part(0, size, before), part(size, n, after)
