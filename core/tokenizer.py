"""The contract between a science and the core: records <-> tokens.

Implementations live in `tokenizers/`, one file a science. Rules that every one keeps, tested by
`tests/tokenizers/`:

* deterministic: without a generator, the same records give the same tokens on any machine;
* randomness (matched zeros, randomised SMILES, random rotations) only where a generator is passed, which
  training does and embedding does not;
* fitted on the records given to `fit` alone (training rows), and the whole fitted state goes through `state()`
  as plain JSON types, so that a checkpoint needs no other file;
* a record that cannot be tokenized raises UnreadableRecordError with its index; nothing is dropped in silence.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.records import Failure, take_records

Records = TypeVar("Records")

Ending = Literal["kept", "drawn", "open"]
"""Who says where a sample of a pattern ends; see `Tokenizer.pattern`."""


class Tokenizer(ABC, Generic[Records]):
    """Turns records of one science into a TokenBatch and back."""

    science: ClassVar[str]
    takes: ClassVar[str] = "a list of records"
    """What a person passes, for messages."""

    @property
    @abstractmethod
    def spec(self) -> TokenSpec:
        """What the tokens look like."""

    @classmethod
    @abstractmethod
    def fit(cls, records: Records, **options: Any) -> Self:
        """A tokenizer with its state (vocabulary, scales, lengths) learned from these training records.

        Options are the keyword-only fields of the tokenizer's config dataclass; an unknown one raises
        ConsilienceError naming the known ones.
        """

    @abstractmethod
    def encode(self, records: Records, *, generator: torch.Generator | None = None) -> TokenBatch:
        """Tokens of the records, padded to the longest; with a generator, with training-time randomness."""

    @abstractmethod
    def decode(self, tokens: TokenBatch) -> Records:
        """Records from tokens: the inverse of `encode` where the science allows it."""

    def accept(self, records: Any) -> Records:
        """Records that a person passed, as `encode` takes them.

        Raises:
            ConsilienceError: for what holds no record of this science at all; a bad one among others is for `check`.
        """
        listed = (
            hasattr(records, "__len__")
            and hasattr(records, "__getitem__")
            and not hasattr(records, "columns")
        )
        if not listed or isinstance(records, str | bytes | Mapping):
            raise ConsilienceError(f"{self.science}: pass {self.takes}, not {type(records).__name__}")
        if len(records) and not any(self.is_record(record) for record in records):
            told = f"{type(records).__name__} of {type(next(iter(records))).__name__}"
            raise ConsilienceError(f"{self.science}: pass {self.takes}, not {told}")
        return records

    def is_record(self, record: Any) -> bool:
        """Whether something is of the type of a record, good or bad. The default does not know."""
        return True

    def names(self, records: Any) -> np.ndarray | None:
        """(n,) ids that come with what a person passed; None where none do (the default)."""
        return None

    def lengths(self, records: Records) -> np.ndarray:
        """(n,) int64: the number of tokens of each record, for bucketing; an upper estimate is fine.

        The default tokenizes everything; a science whose lengths are cheap to know says so here.
        """
        return self.encode(records).length.numpy()

    def check(self, records: Records) -> list[Failure]:
        """The records that `encode` would refuse, with reasons; `id` may be left empty.

        The default tries them one by one.
        """
        failures = []
        for index in range(len(records)):  # type: ignore[arg-type]
            try:
                self.encode(take_records(records, [index]))
            except UnreadableRecordError as error:
                failures.append(Failure(index=index, id="", reason=error.reason))
        return failures

    @abstractmethod
    def template(self, n: int, *, generator: torch.Generator, open_end: bool = False) -> TokenBatch:
        """n samples whose addresses are drawn from what `fit` saw and whose content is to be generated.

        Given tokens carry their content. Lengths come from the training lengths; with `open_end`, samples end
        themselves with their end symbol, where the science has one, and get the longest length.
        """

    def pattern(
        self, text: str, n: int, *, generator: torch.Generator, ending: Ending
    ) -> tuple[TokenBatch, Tensor]:
        """n samples that hold what a pattern says, and which of their tokens are to be filled, (n, N) bool.

        Args:
            text: the pattern, in the notation of the science.
            n: how many.
            generator: lengths of free parts.
            ending: kept: the length is drawn and the end is told; drawn: the length is drawn, the end is to be
                filled; open: there is room for the longest sample, the end is to be filled.

        Raises:
            ConsilienceError: for a pattern that cannot be read, or a science without patterns (the default).
        """
        raise ConsilienceError(
            f"{self.science} records are not written as patterns: FoundationModel.complete keeps what tokens you choose"
        )

    def describe(self, record: Any) -> str:
        """A few lines that show a person the tokens of one record (one element of the records)."""
        tokens = self.encode([record])  # type: ignore[arg-type]
        shown = []
        for row in range(min(int(tokens.length[0]), 12)):
            parts = {f.name: getattr(tokens, f.name) for f in fields(tokens)}
            here = {k: v[0, row].tolist() for k, v in parts.items() if v is not None and v.dim() > 1}
            shown.append(f"{row:4d}  " + "  ".join(f"{name} {value}" for name, value in here.items()))
        return "\n".join([f"{int(tokens.length[0])} tokens", *shown])

    def state(self) -> dict[str, Any]:
        """Everything needed to rebuild the tokenizer, as JSON types. The default: nothing was fitted."""
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        return cls(**state)

    def log_rates(self) -> np.ndarray | None:
        """(A,) mean log rate of the counts at each address in the training records, when values are counts.

        Heads start from it: a model then learns what a cell adds to the average gene, not the average itself.
        """
        return None

    @property
    def end_id(self) -> int | None:
        """The symbol that ends a sample, when there is one: samplers stop there."""
        return None

    @property
    def marks(self) -> tuple[int, ...]:
        """Symbols that are no content, such as the end: they are not drawn where a known number of tokens is filled."""
        return () if self.end_id is None else (self.end_id,)
