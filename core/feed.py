"""Training batches as a pure function of the step: any worker, any restart, the same batch.

Records are shuffled anew in every epoch, gathered into batches of a fixed budget of tokens from records of
similar length, and tokenized with a generator seeded by the step. Several sciences alternate by stated weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.records import take_records
from consilience.core.tokenizer import Tokenizer


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The generator of one step; streams keep tokenization and corruption apart."""
    mixed = np.random.SeedSequence([seed, step, stream]).generate_state(2)
    return torch.Generator().manual_seed(int(mixed[0]) << 31 ^ int(mixed[1]))


def epoch_batches(
    lengths: np.ndarray, budget: int, seed: int, epoch: int, *, window: int = 32
) -> list[np.ndarray]:
    """Index arrays of one epoch's batches: at most `budget` tokens each, records of similar length together.

    Sorting by length happens within windows of about `window` batches, so that batches stay random. Every record
    appears once. A record longer than the budget makes a batch of its own.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    mean = max(float(lengths.mean()), 1.0)
    per_window = max(int(window * budget / mean), 1)
    batches: list[np.ndarray] = []
    for first in range(0, len(order), per_window):
        chunk = order[first : first + per_window]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        ends = np.cumsum(lengths[chunk])
        begin, used = 0, 0
        while begin < len(chunk):
            end = max(int(np.searchsorted(ends, used + budget, side="right")), begin + 1)
            batches.append(chunk[begin:end])
            begin, used = end, int(ends[end - 1])
    return [batches[i] for i in rng.permutation(len(batches))]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Training records of one science with their tokenizer.

    `token_cache.CachedSource` reads tokens that were written before instead.

    Args:
        records: n of them.
        tokenizer: fitted.
        weight: share of the steps among several sciences.
        conditions: (n, K) float32, what the model is told of each record (`core.conditions`); None = nothing.
    """

    records: Any
    tokenizer: Tokenizer[Any]
    weight: float = 1.0
    conditions: np.ndarray | None = None

    cached: ClassVar[bool] = False
    """Whether tokens and lengths lie in files that any process can map, so that none need to travel."""

    @property
    def draws(self) -> int:
        """How many epochs may differ in the lengths of the records; epoch e has those of e mod draws."""
        return 1

    def lengths(self, epoch: int) -> np.ndarray:
        """(n,) int64: tokens of each record in an epoch; an upper estimate is fine."""
        return self.tokenizer.lengths(self.records)

    def tokens(self, index: np.ndarray, epoch: int, generator: torch.Generator) -> TokenBatch:
        """The batch of these records in an epoch."""
        return self.tokenizer.encode(take_records(self.records, index), generator=generator)

    def batch(self, index: np.ndarray, epoch: int, generator: torch.Generator) -> TokenBatch:
        """The same with the conditions of these records, where there are any."""
        tokens = self.tokens(index, epoch, generator)
        if self.conditions is None:
            return tokens
        return replace(tokens, conditions=torch.from_numpy(self.conditions[index]))


class TokenFeed(Dataset[tuple[str, TokenBatch]]):
    """Item `step` is (science, tokens) for that step of the run.

    Args:
        sources: science -> records, tokenizer and weight; the weights are the shares of the steps.
        steps: length of the run.
        tokens_per_batch: budget of tokens.
        seed: of everything.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        steps: int,
        tokens_per_batch: int,
        seed: int,
    ) -> None:
        for name, source in sources.items():
            if not len(source.records):
                raise ConsilienceError(f"{name}: there are no records to train on")
            if source.weight <= 0:
                raise ConsilienceError(f"{name}: its weight must be positive, not {source.weight}")
        self.sources = dict(sources)
        self.steps, self.tokens_per_batch, self.seed = steps, tokens_per_batch, seed
        self.lengths = {(name, 0): source.lengths(0) for name, source in sources.items()}
        self._prepare()

    def _prepare(self) -> None:
        """What follows from the arguments and is cheap to make again in a worker process."""
        self.names = list(self.sources)
        shares = np.array([self.sources[name].weight for name in self.names])
        rng = np.random.default_rng([self.seed, 7])
        self._chosen = rng.choice(len(self.names), size=self.steps, p=shares / shares.sum()).astype(np.int16)
        self._count = np.zeros(self.steps, dtype=np.int64)
        for i in range(len(self.names)):
            own = self._chosen == i
            self._count[own] = np.arange(np.count_nonzero(own))
        self._epoch = lru_cache(maxsize=2 * len(self.names))(self._make_epoch)
        self._start: dict[str, list[int]] = {name: [0] for name in self.names}

    def __len__(self) -> int:
        return self.steps

    def _lengths(self, name: str, epoch: int) -> np.ndarray:
        draw = epoch % self.sources[name].draws
        if (name, draw) not in self.lengths:
            self.lengths[name, draw] = self.sources[name].lengths(epoch)
        return self.lengths[name, draw]

    def _make_epoch(self, name: str, epoch: int) -> list[np.ndarray]:
        return epoch_batches(self._lengths(name, epoch), self.tokens_per_batch, self.seed, epoch)

    def place(self, step: int) -> tuple[str, int, np.ndarray]:
        """The science of a step, the epoch in which it stands and the records of its batch."""
        name, number = self.names[self._chosen[step]], int(self._count[step])
        starts = self._start[name]
        while starts[-1] <= number:
            starts.append(starts[-1] + len(self._epoch(name, len(starts) - 1)))
        epoch = int(np.searchsorted(starts, number, side="right")) - 1
        return name, epoch, self._epoch(name, epoch)[number - starts[epoch]]

    def indices(self, step: int) -> tuple[str, np.ndarray]:
        """The science of a step and the records of its batch."""
        name, _, index = self.place(step)
        return name, index

    def epoch_of(self, step: int) -> float:
        """How often the records of the science of this step have been seen, roughly."""
        name = self.names[self._chosen[step]]
        seen = (int(self._count[step]) + 1) * self.tokens_per_batch
        return seen / max(int(self._lengths(name, 0).sum()), 1)

    def __getitem__(self, step: int) -> tuple[str, TokenBatch]:
        name, epoch, index = self.place(step)
        return name, self.sources[name].batch(index, epoch, step_generator(self.seed, step))

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned worker needs: not what it can make again from the seed, nor lengths that a cache holds."""
        kept = ("sources", "steps", "tokens_per_batch", "seed")
        lengths = {key: value for key, value in self.lengths.items() if not self.sources[key[0]].cached}
        return {name: self.__dict__[name] for name in kept} | {"lengths": lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()


class StepSampler(Sampler[int]):
    """Steps in order, from wherever the run stands; its length stays that of the whole run."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.steps))

    def __len__(self) -> int:
        return self.steps
