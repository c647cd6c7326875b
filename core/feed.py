"""Training batches as a pure function of the step: any worker, any restart, the same batch.

Records are shuffled anew in every epoch, gathered into batches of a fixed budget of tokens from records of
similar length, and tokenized with a generator seeded by the step. Several sciences alternate by stated weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
        total, begin = 0, 0
        for place, n in enumerate(lengths[chunk]):
            if place > begin and total + n > budget:
                batches.append(chunk[begin:place])
                begin, total = place, 0
            total += int(n)
        batches.append(chunk[begin:])
    return [batches[i] for i in rng.permutation(len(batches))]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Training records of one science with their tokenizer."""

    records: Any
    tokenizer: Tokenizer[Any]
    weight: float = 1.0


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
        self.lengths = {name: source.tokenizer.lengths(source.records) for name, source in sources.items()}
        names = list(sources)
        shares = np.array([sources[name].weight for name in names])
        chosen = np.random.default_rng([seed, 7]).choice(len(names), size=steps, p=shares / shares.sum())
        self.turn = [names[i] for i in chosen]
        self.count = {name: np.cumsum(chosen == i) - 1 for i, name in enumerate(names)}
        self._epoch = lru_cache(maxsize=2 * len(names))(self._make_epoch)
        self._start: dict[str, list[int]] = {name: [0] for name in names}

    def __len__(self) -> int:
        return self.steps

    def _make_epoch(self, name: str, epoch: int) -> list[np.ndarray]:
        return epoch_batches(self.lengths[name], self.tokens_per_batch, self.seed, epoch)

    def indices(self, step: int) -> tuple[str, np.ndarray]:
        """The science of a step and the records of its batch."""
        name = self.turn[step]
        number = int(self.count[name][step])
        starts = self._start[name]
        while starts[-1] <= number:
            starts.append(starts[-1] + len(self._epoch(name, len(starts) - 1)))
        epoch = int(np.searchsorted(starts, number, side="right")) - 1
        return name, self._epoch(name, epoch)[number - starts[epoch]]

    def epoch_of(self, step: int) -> float:
        """How often the records of the science of this step have been seen, roughly."""
        name = self.turn[step]
        return (
            (int(self.count[name][step]) + 1) * self.tokens_per_batch / max(int(self.lengths[name].sum()), 1)
        )

    def __getitem__(self, step: int) -> tuple[str, TokenBatch]:
        name, index = self.indices(step)
        source = self.sources[name]
        records = take_records(source.records, index)
        return name, source.tokenizer.encode(records, generator=step_generator(self.seed, step))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_epoch"]  # caches do not travel to worker processes
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2 * len(self.sources))(self._make_epoch)


class StepSampler(Sampler[int]):
    """Steps in order, from wherever the run stands; its length stays that of the whole run."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.steps))

    def __len__(self) -> int:
        return self.steps
