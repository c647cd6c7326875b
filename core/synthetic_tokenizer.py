"""The smallest tokenizer there is: sequences of symbols or numbers from a synthetic source."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.records import Failure
from consilience.core.synthetic import MarkovChain, Source, source_from_state
from consilience.core.tokenizer import Tokenizer

Sequences = Sequence[np.ndarray]


class SyntheticTokenizer(Tokenizer[Sequences]):
    """One token an entry. Records: 1-D arrays of up to N symbols (integers) or values (floats).

    Args:
        source: where the records come from; its spec is the tokenizer's.
        end: the symbol that ends a sample, for chains that have one.
    """

    science = "synthetic"

    def __init__(self, source: Source, *, end: int | None = None) -> None:
        self.source = source
        self.end = end

    @property
    def spec(self) -> TokenSpec:
        """That of the source."""
        return self.source.spec

    @property
    def end_id(self) -> int | None:
        """The symbol that ends a sample."""
        return self.end

    @classmethod
    def fit(cls, records: Sequences, **options: Any) -> Self:
        """There is nothing to learn: `source` (a state) says it all, the default is the Markov chain."""
        unknown = set(options) - {"source", "end"}
        if unknown:
            raise ConsilienceError(f"unknown option '{sorted(unknown)[0]}'; known: source, end")
        return cls.from_state({"source": MarkovChain().state(), "end": None} | options)

    def encode(self, records: Sequences, *, generator: torch.Generator | None = None) -> TokenBatch:
        """One token an entry, padded to the longest record. Nothing is random."""
        for failure in self.check(records):
            raise UnreadableRecordError(failure.index, failure.reason)
        length = torch.as_tensor(self.lengths(records))
        symbols = self.spec.vocabulary > 0
        content = torch.zeros(
            len(records), int(length.max()), dtype=torch.int64 if symbols else torch.float32
        )
        rows = torch.arange(content.shape[1]) < length[:, None]
        content[rows] = torch.as_tensor(np.concatenate(records)).to(content.dtype)
        parts: dict[str, Any] = {"ids": content} if symbols else {"values": content[..., None]}
        return self.source.place(TokenBatch(length=length, **parts)).validate(self.spec)

    def decode(self, tokens: TokenBatch) -> list[np.ndarray]:
        """The entries of the real tokens."""
        content = tokens.ids if tokens.ids is not None else tokens.values
        assert content is not None
        return [row[:n].reshape(-1).numpy() for row, n in zip(content, tokens.length.tolist())]

    def lengths(self, records: Sequences) -> np.ndarray:
        """(n,) int64, the number of entries."""
        return np.array([len(record) for record in records], dtype=np.int64)

    def check(self, records: Sequences) -> list[Failure]:
        """Empty or too long records, entries that are not finite or no symbol."""
        found = []
        for index, record in enumerate(records):
            reason = self._fault(np.asarray(record))
            if reason:
                found.append(Failure(index=index, id="", reason=reason))
        return found

    def _fault(self, record: np.ndarray) -> str | None:
        if not 1 <= len(record) <= self.source.length:
            return f"{len(record)} entries, expected 1 to {self.source.length}"
        if not np.isfinite(record).all():
            return "an entry is not finite"
        symbols = self.spec.vocabulary
        if symbols and not ((record == np.round(record)) & (record >= 0) & (record < symbols)).all():
            return f"an entry is no symbol 0..{symbols - 1}"
        return None

    def template(self, n: int, *, generator: torch.Generator, open_end: bool = False) -> TokenBatch:
        """n samples of full length."""
        blank = self.source.tokens(1, generator).take([0] * n)
        zeros = {"ids": blank.ids, "values": blank.values}
        zeros = {name: None if x is None else torch.zeros_like(x) for name, x in zeros.items()}
        return TokenBatch(**{**vars(blank), **zeros})

    def describe(self, record: Any) -> str:
        """Every token with its slot."""
        names = self.spec.symbols
        entries = [names[int(entry)] if names else f"{entry:.3g}" for entry in record]
        return "\n".join(
            [
                f"{self.source.name}: {len(entries)} tokens",
                *(f"  slot {i}: {e}" for i, e in enumerate(entries)),
            ]
        )

    def state(self) -> dict[str, Any]:
        """The source and the end symbol."""
        return {"source": self.source.state(), "end": self.end}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        return cls(source_from_state(state["source"]), end=state["end"])
