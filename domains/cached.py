"""Training data that were tokenized before: from a science's data to a token cache, and from it to training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from consilience.core.cache_plan import TRAIN, CachePlan, read_plan
from consilience.core.cache_writer import is_random, write_cache
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source
from consilience.core.records import Failure
from consilience.core.token_cache import TokenCache
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Domain
from consilience.domains.preparation import Prepared, load_collection, prepare
from consilience.domains.splits import Split

logger = logging.getLogger(__name__)

RANDOM_DRAWS = 8
"""Draws where the tokenizer draws in training and nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class PreparedTokens:
    """One science's data from a token cache; what training asks of `Prepared`, without records.

    Args:
        domain: the science.
        cache: its tokens.
    """

    domain: Domain
    cache: TokenCache

    @classmethod
    def open(cls, domain: Domain, folder: Path) -> "PreparedTokens":
        """The cache in a folder; ConsilienceError when it is none, is damaged, or holds another science."""
        cache = TokenCache.open(folder)
        if cache.plan.science != domain.name:
            raise ConsilienceError(f"{folder} holds tokens of {cache.plan.science}, not of {domain.name}")
        return cls(domain=domain, cache=cache)

    @property
    def tokenizer(self) -> Tokenizer[Any]:
        """The one that wrote the tokens."""
        return self.cache.plan.tokenizer

    @property
    def fingerprint(self) -> str:
        """Of the records behind the tokens."""
        return str(self.cache.plan.data["provenance"]["fingerprint"])

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Records that could not be read or tokenized."""
        return tuple(Failure(index=i, id=id, reason=why) for i, id, why in self.cache.plan.data["failures"])

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Of the records in their order: id, part, group and label columns ("label: NAME")."""
        return self.cache.records()

    @property
    def split(self) -> Split:
        """The parts as `prepare` made them."""
        part = self.columns["part"].astype(str)
        return Split(**{name: np.flatnonzero(part == name) for name in self.cache.plan.parts})

    def source(self, part: str, weight: float = 1.0) -> Source:
        """The tokens of a part."""
        return self.cache.source(part, weight)

    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says of the data: as without a cache, and the draws."""
        return dict(self.cache.plan.data["provenance"]) | {
            "token_cache": {"id": self.cache.id, "draws": self.cache.plan.draws}
        }


def tokenize_collection(
    domain: Domain,
    folder: Path,
    *,
    data: Path | None = None,
    read: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    limit: int | None = None,
    parts: Sequence[float] | None = None,
    draws: int | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    on_records: Callable[[int, int], None] | None = None,
) -> TokenCache:
    """Write the tokens of a science's data, or go on with a cache that was cut off.

    Args:
        domain: the science.
        folder: where the cache goes.
        data: a file; the bundled data where left out.
        read: options of its reader.
        tokenizer: options of the tokenizer.
        limit: at most this many records.
        parts: shares of train, validation and test, see `prepare`.
        draws: see `CachePlan`; None = 0 where the tokenizer draws nothing in training, else 8.
        seed: of the draws.
        sizes: `chunk_records` and `shard_bytes` of the plan, where they are to differ.
        on_records: called with (samples done, all).
    """
    asked = {
        "data": None if data is None else str(data.absolute()),
        "read_options": dict(read or {}),
        "tokenizer_options": dict(tokenizer or {}),
        "limit": limit,
        "draws": draws,
        "seed": seed,
    } | ({} if parts is None else {"parts": list(parts)})
    before = read_plan(folder) if folder.is_dir() else None
    if before is not None:
        _check_asked(folder, before.data.get("asked", {}), asked)
    # What was fitted when the cache was begun is taken over, so that going on cannot change it.
    chosen = before.tokenizer if before is not None else tokenizer
    prepared = prepare(
        domain, load_collection(domain, data, read), tokenizer=chosen, limit=limit, fractions=parts
    )
    draws = before.draws if before is not None else _draws(prepared, draws)
    plan = CachePlan(
        science=domain.name,
        tokenizer=prepared.tokenizer,
        parts={name: len(index) for name, index in prepared.split.parts().items()},
        draws=draws,
        seed=seed,
        data={
            "asked": asked,
            "provenance": prepared.provenance(),
            "failures": [[f.index, f.id, f.reason] for f in prepared.failures],
        },
        **(sizes or {}),
    )
    return write_cache(
        folder,
        plan,
        prepared.collection.records,
        prepared.split.parts(),
        _columns(prepared),
        (lambda done: on_records(done, plan.total)) if on_records else None,
    )


def _draws(prepared: Prepared, asked: int | None) -> int:
    """How many draws make sense for this tokenizer."""
    if asked is not None and asked < 0:
        raise ConsilienceError(f"draws must not be negative, not {asked}")
    random = is_random(prepared.tokenizer, prepared.records(TRAIN))
    if not random:
        if asked:
            logger.info("%s: nothing is drawn in training, so that one draw is all", prepared.domain.name)
        return 0
    if asked == 0:
        logger.warning(
            "%s: with draws 0 training loses what its tokenizer draws (zeros, other strings, rotations): "
            "the tokens are those of inference",
            prepared.domain.name,
        )
    return RANDOM_DRAWS if asked is None else asked


def _columns(prepared: Prepared) -> dict[str, np.ndarray]:
    """What `records.arrow` says of each record."""
    collection = prepared.collection
    part = np.empty(len(collection), dtype=object)
    for name, index in prepared.split.parts().items():
        part[index] = name
    columns = {"id": collection.ids.astype(str), "part": part.astype(str)}
    if collection.groups is not None:
        columns["group"] = collection.groups.astype(str)
    for name, values in collection.labels.items():
        columns[f"label: {name}"] = values if values.dtype.kind in "fiub" else values.astype(str)
    return columns


def _check_asked(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            raise ConsilienceError(
                f"{folder} holds a token cache with {name} {before.get(name)}, this asks for {now.get(name)}: "
                "ask for the same to go on with it, choose another --out, or remove it"
            )
