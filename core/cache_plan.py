"""What a token cache is to hold: the file that says so, and the id that all its shards carry."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from consilience.core.errors import ConsilienceError
from consilience.core.records import fingerprint
from consilience.core.references import load_class, reference_of
from consilience.core.tokenizer import Tokenizer

FORMAT = 1
MANIFEST, PLAN = "token-cache.json", "token-cache.plan.json"
CHUNK_RECORDS = 512
"""Records tokenized at once."""
SHARD_BYTES = 256 * 2**20
"""A shard ends with the chunk that brings it to this size; a writer holds about two of them in memory."""
TRAIN = "train"
_NOT_PLANNED = ("id", "shards", "versions")


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What a cache is to hold.

    Args:
        science: name of the science.
        tokenizer: fitted.
        parts: name of a part -> how many records it has; "train" is the one with several draws.
        draws: tokenizations of each training record; 0 = one, without a generator.
        data: where the records come from, with their fingerprint, and what was asked for; JSON types.
        seed: of the draws.
        chunk_records: records tokenized at once; the draws depend on it.
        shard_bytes: see SHARD_BYTES.
    """

    science: str
    tokenizer: Tokenizer[Any]
    parts: Mapping[str, int]
    draws: int
    data: Mapping[str, Any]
    seed: int = 0
    chunk_records: int = CHUNK_RECORDS
    shard_bytes: int = SHARD_BYTES

    def draws_of(self, part: str) -> int:
        """How many sets of shards a part has."""
        return max(self.draws, 1) if part == TRAIN else 1

    @property
    def total(self) -> int:
        """Samples that are written, over all parts and draws."""
        return sum(n * self.draws_of(part) for part, n in self.parts.items())

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that every shard of this cache carries."""
        return _id_of(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """JSON types, the tokenizer's state included."""
        return {
            "format": FORMAT,
            "science": self.science,
            "tokenizer": {"class": reference_of(type(self.tokenizer)), "state": self.tokenizer.state()},
            "parts": dict(self.parts),
            "draws": self.draws,
            "seed": self.seed,
            "chunk_records": self.chunk_records,
            "shard_bytes": self.shard_bytes,
            "data": dict(self.data),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any], path: Path) -> Self:
        """The inverse of `as_json`; ConsilienceError names the file when it does not fit."""
        if found.get("format") != FORMAT:
            raise ConsilienceError(
                f"{path} has format {found.get('format')}, this version of consilience reads format {FORMAT}: "
                "write the token cache again with `consilience tokenize`"
            )
        try:
            kept = {k: found[k] for k in cls.__dataclass_fields__ if k != "tokenizer"}
            kind = load_class(found["tokenizer"]["class"], Tokenizer)  # type: ignore[type-abstract]
            plan = cls(tokenizer=kind.from_state(found["tokenizer"]["state"]), **kept)
            plan.as_json()  # meets what has another type than it should
            return plan
        except (KeyError, TypeError, AttributeError) as error:
            raise ConsilienceError(
                f"{path} is no token cache of this version ({error!r}); write it again: consilience tokenize"
            ) from error


def is_cache(path: Path) -> bool:
    """Whether a folder is a token cache, finished or not."""
    return any((path / name).is_file() for name in (MANIFEST, PLAN))


def read_plan(folder: Path) -> CachePlan | None:
    """What a folder holds or was to hold; None when it is no cache."""
    for name in (MANIFEST, PLAN):
        if (folder / name).is_file():
            return CachePlan.from_json(read_json(folder / name), folder / name)
    return None


def id_in(found: Mapping[str, Any]) -> str:
    """The id of what a manifest lists: a later version may describe the same tokenizer in other words."""
    return _id_of({key: value for key, value in found.items() if key not in _NOT_PLANNED})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a cache; ConsilienceError names the file when there is none."""
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConsilienceError(
            f"{path} is truncated or not JSON ({error}); write the token cache again: consilience tokenize"
        ) from error
    if not isinstance(found, dict):
        raise ConsilienceError(f"{path} belongs to something else: it is not a token cache")
    return found


def _id_of(plan: Mapping[str, Any]) -> str:
    return fingerprint([json.dumps(plan, sort_keys=True)])
