"""Context: the same object in another modality, seen whole while this one is predicted: log p(string | conformer).

A batch carries it in `TokenBatch.context`, so that whatever takes, moves, stacks or corrupts samples takes it along.
The core sees the tokens of the context before those of the batch, as the objective shows uncorrupted tokens
(`observe`); none of them is scored, and the states that come back are those of the batch alone. Every objective whose
attention is full or causal then gives the conditional of what it gives without, of the same kind: exact, a bound or a
surrogate. A causal core reads the context first, and the context does not look ahead at what is predicted.

By the chain rule over modalities, -log p(a, b) = -log p(a) - log p(b | a) in either order. Training draws one of its
terms a step (`PairedSource`), so that one set of weights learns each modality alone and given the other.

    >>> model.generate(3, domain="molecules", context={"points": clouds})
    >>> model.log_likelihood(smiles, domain="molecules", context={"points": clouds})
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.feed import Source
from consilience.core.objectives.base import Objective
from consilience.core.view import View

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel
    from consilience.core.network import Network

Beside = Mapping[str, Any]
"""Modality -> n records of it, record i of the same object as sample i."""

ALONE = 0.25
"""Share of the steps that predict a modality without the other, unless something else is asked for."""


def context_views(model: "Network", views: Mapping[str, View], objective: Objective) -> dict[str, View]:
    """Modality -> its uncorrupted view, of all that stands beside the tokens of these views."""
    found: dict[str, View] = {}
    for view in views.values():
        for name, tokens in (view.tokens.context or {}).items():
            if name in views or name in found:
                raise ConsilienceError(
                    f"{name} stands twice in one batch: as tokens and as the context of others"
                )
            found[name] = objective.observe(tokens, model.tokenizers[model.domain_of(name)].spec)
    return found


def encoded(
    model: "FoundationModel", domain: str, context: Beside | None, n: int
) -> dict[str, TokenBatch] | None:
    """Modality -> tokens of what stands beside n samples of a science; None where nothing does.

    Raises:
        ConsilienceError: for a science that the model does not know, the science itself, another number of records,
            or a record that cannot be tokenized.
    """
    if not context:
        return None
    found = {}
    for name, records in context.items():
        if model.domain_of(name) == domain:
            raise ConsilienceError(
                f"context: {domain} cannot be given beside {domain}; name the other modality"
            )
        count = records.size if isinstance(records, TokenBatch) else len(records)
        if count != n:
            raise ConsilienceError(
                f"context: {count} records of {name} for {n} of {domain}; give one for each"
            )
        try:
            found[name] = (
                records if isinstance(records, TokenBatch) else model.tokenizers[name].encode(records)
            )
        except UnreadableRecordError as error:
            raise ConsilienceError(f"context: record {error.index} of {name}: {error.reason}") from error
    return found


def beside(
    tokens: TokenBatch, context: Mapping[str, TokenBatch] | None, index: np.ndarray | None = None
) -> TokenBatch:
    """The tokens with the context of these samples. index: (B,) their places in it; None = all, in order."""
    if context is None:
        return tokens
    if index is not None:
        places = torch.as_tensor(index)
        context = {name: other.take(places) for name, other in context.items()}
    return replace(tokens, context=context)


@dataclass(frozen=True, kw_only=True)
class PairedSource(Source):
    """Training records of one modality with the same objects in others.

    A batch is one term of the chain rule: its tokens given the others, or alone. Which one is drawn from the generator
    of the step, for the whole batch, so that no sample waits for a context of length zero.

    Args:
        others: modality -> its source, record i of the same object as record i here.
        alone: probability that a batch comes without the others.
    """

    others: Mapping[str, Source] = field(default_factory=dict)
    alone: float = ALONE

    def __post_init__(self) -> None:
        if not 0 <= self.alone <= 1:
            raise ConsilienceError(f"alone is a share of the steps in [0, 1], not {self.alone}")
        for name, other in self.others.items():
            if len(other.records) != len(self.records):
                raise ConsilienceError(
                    f"pairs: {len(other.records)} records of {name} for {len(self.records)}; align them by row"
                )

    def lengths(self, epoch: int) -> np.ndarray:
        """(n,) int64: tokens of each object in all its modalities."""
        total: np.ndarray = super().lengths(epoch)
        for other in self.others.values():
            total = total + other.lengths(epoch)
        return total

    def batch(self, index: np.ndarray, epoch: int, generator: torch.Generator) -> TokenBatch:
        """The batch of these records in an epoch, with or without the others."""
        tokens = super().batch(index, epoch, generator)
        if float(torch.rand((), generator=generator)) < self.alone:
            return tokens
        return beside(
            tokens, {name: other.batch(index, epoch, generator) for name, other in self.others.items()}
        )


def paired(sources: Mapping[str, Source], alone: float) -> dict[str, PairedSource]:
    """Each modality with the others beside it. Record i of all is the same object."""
    return {
        name: PairedSource(
            records=own.records,
            tokenizer=own.tokenizer,
            weight=own.weight,
            conditions=own.conditions,
            others={other: sources[other] for other in sources if other != name},
            alone=alone,
        )
        for name, own in sources.items()
    }
