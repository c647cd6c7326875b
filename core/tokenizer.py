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
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.records import Failure

Records = TypeVar("Records")


class Tokenizer(ABC, Generic[Records]):
    """Turns records of one science into a TokenBatch and back."""

    science: ClassVar[str]

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

    @abstractmethod
    def lengths(self, records: Records) -> np.ndarray:
        """(n,) int64: the number of tokens of each record without tokenizing it in full; used for bucketing.

        An upper estimate is fine where augmentation changes the length.
        """

    @abstractmethod
    def check(self, records: Records) -> list[Failure]:
        """The records that `encode` would refuse, with reasons; `id` may be left empty."""

    @abstractmethod
    def template(self, n: int, *, generator: torch.Generator, objective: str) -> TokenBatch:
        """n samples whose addresses are drawn from what `fit` saw and whose content is to be generated.

        Given tokens carry their content. Lengths come from the training lengths, except for objectives that
        end a sample themselves (next-token over strings with an end symbol), which get the longest length.
        """

    @abstractmethod
    def describe(self, record: Any) -> str:
        """A few lines that show a person the tokens of one record (one element of the records)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything needed to rebuild the tokenizer, as JSON types."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""

    @property
    def end_id(self) -> int | None:
        """The symbol that ends a sample, when there is one: samplers stop there."""
        return None
