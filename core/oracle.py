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
        if view.pattern.kind == "block":
            return self._blocks(view)
        if isinstance(self.likelihoods.get("values"), Velocity):
            return self._velocity(view)
        if view.start is not None:
            return self._next_token(view)
        return self.source.parameters(self._in_units(view.tokens), ~view.hidden)

    def new_cache(self, tokens: TokenBatch) -> None:
        """There is no core to keep keys and values of."""

    def _in_units(self, tokens: TokenBatch) -> TokenBatch:
        """The content of a view in original units."""
        return tokens if tokens.values is None else replace(tokens, values=self.spec.restore(tokens.values))

    def _velocity(self, view: View) -> dict[Field, Tensor]:
        assert isinstance(self.source, GaussianAR1), "only the Gaussian source has a velocity"
        assert view.tokens.values is not None
        assert view.time_index is not None
        time = view.time[view.time_index[:, 0]]
        return {"values": self.source.velocity(view.tokens.values[..., 0], time)[..., None]}

    def _blocks(self, view: View) -> dict[Field, Tensor]:
        """Queries know the context of earlier blocks and what is not hidden, or noisy, in their own.

        Answers of context rows, which nobody asks, are those of queries of their block.
        """
        block, query = view.pattern.block, view.pattern.query
        assert block is not None and query is not None, "only queries have an answer"
        real, slot = view.tokens.real, _slot(view.tokens.address, view.tokens.positions)
        tokens, found = self._in_units(view.tokens), dict[Field, Tensor]()
        for number in torch.unique(block[real & query]).tolist():
            before, own = real & ~query & (block < number), real & query & (block == number)
            part: dict[Field, Tensor]
            if isinstance(self.likelihoods.get("values"), Velocity):
                part = {"values": self._block_velocity(view, slot, before, own)}
            else:
                known = (before | own) & ~view.hidden
                placed, visible = self._placed(tokens, slot, known)
                answers = self.source.parameters(placed, visible)
                part = {
                    field: torch.gather(rows, 1, slot[..., None].expand(-1, -1, rows.shape[-1]))
                    for field, rows in answers.items()
                }
            for field, rows in part.items():
                mine = (real & (block == number))[..., None]
                found[field] = torch.where(mine, rows, found.get(field, torch.zeros_like(rows)))
        return found

    def _placed(self, tokens: TokenBatch, slot: Tensor, known: Tensor) -> tuple[TokenBatch, Tensor]:
        """The known rows at their places in the source, and which places are known."""
        n = self.source.length
        place = torch.where(known, slot, n)  # the others go to a place that is cut off
        visible = torch.zeros(tokens.size, n + 1, dtype=torch.bool).scatter(1, place, True)[:, :n]
        parts: dict[str, Any] = {}
        for name in ("ids", "values"):
            content = getattr(tokens, name)
            if content is not None:
                index = place if content.dim() == 2 else place[..., None]
                blank = content.new_zeros(tokens.size, n + 1, *content.shape[2:])
                parts[name] = blank.scatter(1, index, content)[:, :n]
        return TokenBatch(length=torch.full_like(tokens.length, n), **parts), visible

    def _block_velocity(self, view: View, slot: Tensor, before: Tensor, own: Tensor) -> Tensor:
        """E[z - noise | noisy z of a block, clean z before it], (B, M, 1), zeros outside of the block."""
        assert isinstance(self.source, GaussianAR1), "only the Gaussian source has a velocity"
        assert view.tokens.values is not None and view.time_index is not None
        z, time = view.tokens.values[..., 0].double(), view.time[view.time_index].double()
        covariance = self.source.covariance[slot[:, :, None], slot[:, None]]
        eye = torch.eye(z.shape[1], dtype=torch.float64)

        def restricted(rows: Tensor) -> Tensor:
            return torch.where(rows[:, :, None] & rows[:, None], covariance, eye)

        cross = covariance * (own[:, :, None] & before[:, None])
        gain = torch.linalg.solve(restricted(before), cross.mT).mT
        mean = (gain @ torch.where(before, z, 0.0)[..., None])[..., 0]
        both = own[:, :, None] & own[:, None]
        spread = (covariance - gain @ cross.mT) * both
        t = time[:, :, None]
        mixed = torch.where(both, t**2 * spread + (1 - t) ** 2 * eye, eye)
        rest = torch.where(own, z - time * mean, 0.0)[..., None]
        change = (t * spread - (1 - t) * eye) @ torch.linalg.solve(mixed, rest)
        return ((mean[..., None] + change) * own[..., None]).to(view.tokens.values.dtype)

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
