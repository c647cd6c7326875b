"""The perfect model of a synthetic source: exact conditionals in the place of a trained core.

It stands where a trained model stands (`core.objectives.base.Predictor`), so that an objective's view, weights
and accounting, and every sampler, can be checked without any training: the loss of the oracle is the truth.
Evaluated with the same seed, a model and the oracle see the same views, and their difference is free of
sampling noise.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.likelihoods import Field, Likelihood, Velocity
from consilience.core.objectives.base import Objective
from consilience.core.synthetic import GaussianAR1, Source
from consilience.core.transformer import KeyValueCache
from consilience.core.view import View


@dataclass(frozen=True)
class Oracle:
    """Answers every question that an objective asks about a source, exactly."""

    source: Source
    objective: Objective

    @property
    def spec(self) -> TokenSpec:
        """The tokens of the source."""
        return self.source.spec

    @property
    def likelihoods(self) -> dict[Field, Likelihood]:
        """The likelihood of each field of the content."""
        return self.objective.likelihoods(self.spec)

    def __call__(self, view: View, *, cache: KeyValueCache | None = None) -> dict[Field, Tensor]:
        """Exact parameters for every row, (B, M, parameters)."""
        if isinstance(self.likelihoods.get("values"), Velocity):
            return self._velocity(view)
        if view.start is not None:
            return self._next_token(view)
        return self.source.parameters(self._in_units(view.tokens), ~view.hidden)

    def new_cache(self, batch: int, rows: int) -> KeyValueCache:
        """Not possible: there is no core."""
        raise ConsilienceError("the oracle has no key-value cache: sample with cached=False")

    def _in_units(self, tokens: TokenBatch) -> TokenBatch:
        """The content of a view in original units."""
        return tokens if tokens.values is None else replace(tokens, values=self.spec.restore(tokens.values))

    def _velocity(self, view: View) -> dict[Field, Tensor]:
        assert isinstance(self.source, GaussianAR1), "only the Gaussian source has a velocity"
        assert view.tokens.values is not None
        assert view.time_index is not None
        time = view.time[view.time_index[:, 0]]
        return {"values": self.source.velocity(view.tokens.values[..., 0], time)[..., None]}

    def _next_token(self, view: View) -> dict[Field, Tensor]:
        """Row m knows the tokens of rows 1..m, wherever they stand, and is asked for one more."""
        tokens = self._in_units(view.tokens)
        own = _slot(tokens.address, tokens.positions)
        asked = _slot(view.ask_address, view.ask_positions)
        rows = []
        for last in range(own.shape[1]):
            visible = torch.zeros(tokens.size, self.source.length, dtype=torch.bool)
            parts: dict[str, Any] = {}
            known = own[:, 1 : last + 1]
            visible.scatter_(1, known, True)
            for name in ("ids", "values"):
                content = getattr(tokens, name)
                if content is not None:
                    blank = content.new_zeros(tokens.size, self.source.length, *content.shape[2:])
                    index = known if content.dim() == 2 else known[..., None]
                    parts[name] = blank.scatter(1, index, content[:, 1 : last + 1])
            placed = TokenBatch(length=torch.full_like(tokens.length, self.source.length), **parts)
            answers = self.source.parameters(placed, visible)
            rows.append({field: _pick(answer, asked[:, last]) for field, answer in answers.items()})
        return {field: torch.stack([row[field] for row in rows], dim=1) for field in rows[0]}


def _slot(address: Tensor | None, positions: Tensor | None) -> Tensor:
    """(B, M) which token of the source a row holds or asks for."""
    if address is not None:
        return address
    assert positions is not None
    return positions[..., 0].round().long()


def _pick(rows: Tensor, slot: Tensor) -> Tensor:
    return rows[torch.arange(rows.shape[0]), slot]
