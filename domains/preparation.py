"""From a science's data to something that can be trained on: readable records, grouped split, fitted tokenizer."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.cache_plan import is_cache, read_plan
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source
from consilience.core.records import Collection, Failure, take_records
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Domain
from consilience.domains.pieces import Piece, pieces_of, places_in_source
from consilience.domains.splits import FRACTIONS, Split, grouped_split, split_hash

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One science's data, ready for training.

    Args:
        domain: the science.
        collection: the records that can be tokenized.
        split: training, validation and test rows of the collection; no group stands in two.
        tokenizer: fitted on the training rows alone.
        failures: records that could not be read or tokenized.
    """

    domain: Domain
    collection: Collection
    split: Split
    tokenizer: Tokenizer[Any]
    failures: tuple[Failure, ...]

    def records(self, part: str) -> Any:
        """The records of a part: "train", "validation" or "test"."""
        return take_records(self.collection.records, getattr(self.split, part))

    def source(self, part: str, weight: float = 1.0) -> Source:
        """A part as training takes it."""
        return Source(records=self.records(part), tokenizer=self.tokenizer, weight=weight)

    @property
    def fingerprint(self) -> str:
        """Of the records."""
        return self.collection.fingerprint

    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says of the data."""
        return {
            "source": self.collection.source,
            "origin": self.collection.origin,
            "fingerprint": self.collection.fingerprint,
            "records": len(self.collection),
            "train": len(self.split.train),
            "failures": len(self.failures),
            "split": split_hash(self.split),
        }


def load_collection(
    domain: Domain, data: Path | None, options: Mapping[str, Any] | None = None
) -> Collection:
    """Records of a file, or the bundled ones when there is none; ConsilienceError when nothing is readable.

    A token cache stands for the records that it was written from.
    """
    plan = read_plan(data) if data is not None and is_cache(data) else None
    if plan is not None:
        asked = plan.data["asked"]
        source = None if asked["data"] is None else Path(asked["data"])
        return limited(load_collection(domain, source, options or asked["read_options"]), asked["limit"])
    try:
        collection = domain.bundled() if data is None else domain.read(data, **(options or {}))
    except TypeError as error:
        _tell(error, domain, data, options)
        raise
    if not len(collection):
        raise _unreadable(collection.source, collection.failures)
    return collection


def cached_parts(data: Path | None) -> Sequence[float] | None:
    """The shares of train, validation and test that a token cache was asked for; None for other data."""
    plan = read_plan(data) if data is not None and is_cache(data) else None
    return None if plan is None else plan.data["asked"].get("parts")


def _tell(error: TypeError, domain: Domain, data: Path | None, options: Mapping[str, Any] | None) -> None:
    """Raise ConsilienceError for an unknown option."""
    if options and "unexpected keyword argument" in str(error):
        raise ConsilienceError(f"{domain.name}: unknown option for reading {data}: {error}") from error


def _unreadable(source: str, failures: Sequence[Failure]) -> ConsilienceError:
    reasons = "; ".join(failure.reason for failure in failures[:3])
    return ConsilienceError(f"{source} holds no readable record{': ' + reasons if reasons else ''}")


def limited(collection: Collection, limit: int | None) -> Collection:
    """At most this many records, drawn with a fixed seed."""
    if limit is None or limit >= len(collection):
        return collection
    return collection.take(_drawn(len(collection), limit))


def _drawn(n: int, limit: int) -> np.ndarray:
    """Sorted positions of `limit` among n records."""
    return np.sort(np.random.default_rng(0).permutation(n)[:limit])


def stream_collection(
    domain: Domain, data: Path | None, options: Mapping[str, Any], size: int
) -> Iterator[Piece]:
    """The records of a file, or the bundled ones, in pieces of `size`; errors as in `load_collection`."""
    if data is None:
        yield from pieces_of(domain.bundled(), size)
        return
    found = False
    failures: list[Failure] = []
    try:
        for piece in domain.stream(data, size, **options):
            found = found or bool(len(piece.collection))
            failures += [] if found else piece.collection.failures[:3]
            yield piece
    except TypeError as error:
        _tell(error, domain, data, options)
        raise
    if not found:
        raise _unreadable(str(data), failures)


def prepare(
    domain: Domain,
    collection: Collection,
    *,
    tokenizer: Mapping[str, Any] | Tokenizer[Any] | None = None,
    limit: int | None = None,
    fractions: Sequence[float] | None = None,
    split_seed: int = 0,
    split: Split | None = None,
    tell: bool = True,
) -> Prepared:
    """Split by group, fit the tokenizer on training rows, set records aside that it cannot read.

    Args:
        domain: the science.
        collection: its records.
        tokenizer: options to fit one with, or one that is fitted already.
        limit: use at most this many records, drawn with a fixed seed.
        fractions: of the records for train, validation and test; default: 0.7, 0.1, 0.2.
        split_seed: of the split.
        split: positions of the collection's records to use instead, e.g. the official split of a benchmark; records
            in none of its parts are left out. Not together with `limit`, which would move the positions.
        tell: log how many records are set aside.

    Raises:
        ConsilienceError: a split that does not fit the collection or parts a group.
    """
    if split is not None and limit is not None:
        raise ConsilienceError("prepare: a given split names records by position; leave out limit")
    places, failures = places_in_source(collection), list(collection.failures)
    if places is None:
        places = np.arange(len(collection))
    if split is not None:
        collection, split, used = _given(collection, split)
        places = places[used]
    elif limit is not None and limit < len(collection):
        places, failures = places[_drawn(len(collection), limit)], []
        collection = limited(collection, limit)
    if split is None:
        split = _split(collection, fractions or FRACTIONS, split_seed)
    fitted: Tokenizer[Any]
    if isinstance(tokenizer, Tokenizer):
        fitted = tokenizer
    else:
        fitted = domain.tokenizer.fit(take_records(collection.records, split.train), **(tokenizer or {}))
    refused = fitted.check(collection.records)
    if refused:
        failures += [
            Failure(index=int(places[f.index]), id=str(collection.ids[f.index]), reason=f.reason)
            for f in refused
        ]
        failures.sort(key=lambda failure: failure.index)
        bad = {f.index for f in refused}
        keep = np.array([i for i in range(len(collection)) if i not in bad], dtype=np.int64)
        if not len(keep):
            raise ConsilienceError(
                f"{collection.source}: no record can be tokenized; first: {refused[0].reason}"
            )
        place = np.full(len(collection), -1)
        place[keep] = np.arange(len(keep))
        parts = {name: place[index][place[index] >= 0] for name, index in split.parts().items()}
        collection, split = collection.take(keep), Split(**parts)
    if tell:
        tell_failures(domain.name, failures, len(collection))
    return Prepared(
        domain=domain, collection=collection, split=split, tokenizer=fitted, failures=tuple(failures)
    )


def tell_failures(name: str, failures: Sequence[Failure], kept: int, listed: Path | None = None) -> None:
    """One line on the records of a science that reader and tokenizer set aside, where there are any.

    Args:
        name: of the science.
        failures: in the order of the source.
        kept: how many records are left.
        listed: the file that lists them.
    """
    if failures:
        total, where = len(failures) + kept, "" if listed is None else f", see {listed}"
        logger.warning(
            "%s: %d of %d records set aside%s; first: %s",
            name,
            len(failures),
            total,
            where,
            failures[0].reason,
        )


def _split(collection: Collection, fractions: Sequence[float], seed: int) -> Split:
    """The parts by group; ConsilienceError, naming the data, where there are too few groups or nothing to train on."""
    try:
        split = grouped_split(collection.group_of, fractions=fractions, seed=seed)
    except ConsilienceError as error:
        raise ConsilienceError(f"{collection.source}: {error}") from error
    if not len(split.train):
        raise ConsilienceError(
            f"{collection.source}: the parts {' '.join(map(str, fractions))} leave no record to train on; give the "
            "first one a share"
        )
    return split


def _given(collection: Collection, split: Split) -> tuple[Collection, Split, np.ndarray]:
    """The records of a given split, the split in their positions, and theirs; ConsilienceError when it is unfit."""
    used = np.sort(np.concatenate(list(split.parts().values())))
    if not len(split.train):
        raise ConsilienceError(f"{collection.source}: the given split has no training record")
    if used[-1] >= len(collection):
        raise ConsilienceError(
            f"{collection.source}: the given split names record {used[-1]}, but there are {len(collection)}"
        )
    part_of: dict[str, str] = {}
    groups = np.asarray(collection.group_of).astype(str)
    for name, index in split.parts().items():
        for group in np.unique(groups[index]).tolist():
            if part_of.setdefault(group, name) != name:
                raise ConsilienceError(
                    f"{collection.source}: the given split has group {group!r} in {part_of[group]} and in {name}"
                )
    if len(used) == len(collection):
        return collection, split, used
    moved = {name: np.searchsorted(used, index) for name, index in split.parts().items()}
    return collection.take(used), Split(**moved), used
