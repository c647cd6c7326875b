"""The log-likelihood of each sample of a batch by what an objective scores, free of its neighbours.

An objective draws its orders and masks for a batch as a whole, spread over it. Here each sample gets views from a
generator of its own, which are then put side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.likelihoods import Field, Likelihood
from consilience.core.view import Scored, Targets, View

if TYPE_CHECKING:
    from consilience.core.objectives.base import Objective, Predictor

Generators = Sequence[torch.Generator]


def views_of(
    objective: "Objective", predict: "Predictor", tokens: TokenBatch, generators: Generators, draws: int
) -> tuple[View, Targets]:
    """`draws` views of every sample, from its own generator, one sample after another (B * draws samples)."""
    drawn = []
    for row, generator in enumerate(generators):
        # Spread over the draws, where an objective spreads what is random over a batch.
        own = tokens.take([row]).trim().take([0] * draws)
        drawn.append(objective.view(own, predict.spec, generator))
    return stacked_views([view for view, _ in drawn]), stacked_targets([targets for _, targets in drawn])


def nats_by_sample(
    predict: "Predictor", view: View, targets: Targets, generators: Generators, draws: int
) -> Tensor:
    """(B,) float64 nats of the scored rows, by their weights, averaged over the draws of each sample.

    Args:
        predict: the model.
        view: (B * draws) views, those of one sample side by side.
        targets: of the views.
        generators: of the B samples, for heads whose nats are integrals with random probes.
        draws: of each sample.
    """
    scored, found = targets.select(), predict(view)
    parameters = {field: rows[targets.scored] for field, rows in found.items()}
    owner = scored.sample.div(draws, rounding_mode="floor")
    if all(one.proper for one in predict.likelihoods.values()):
        nats = sum_rows(predict.likelihoods, parameters, scored)
    else:  # a flow a token: its probes must be those of the sample, whatever stands beside it
        parts = []
        for sample, generator in enumerate(generators):
            rows = (owner == sample).nonzero()[:, 0]
            first, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
            likelihoods = {field: one.evaluated(generator) for field, one in predict.likelihoods.items()}
            own = {field: out[first:stop] for field, out in parameters.items()}
            parts.append(sum_rows(likelihoods, own, scored.rows(first, stop)))
        nats = torch.cat(parts)
    weighted = nats.double() if scored.weight is None else nats.double() * scored.weight
    return nats.new_zeros(len(generators), dtype=torch.float64).index_add_(0, owner, weighted) / draws


def sum_rows(
    likelihoods: Mapping[Field, Likelihood], parameters: Mapping[Field, Tensor], scored: Scored
) -> Tensor:
    """(S,) nats of all fields of the content of each scored row."""
    return torch.stack([likelihoods[field].nats(parameters[field], scored) for field in likelihoods]).sum(0)


def stacked_views(views: Sequence[View]) -> View:
    """The views side by side, padded to the widest; all at one level of time, the same for all."""
    first = views[0]
    assert all(view.time_index is None and torch.equal(view.time, first.time) for view in views)
    tokens = TokenBatch.concatenate([view.tokens for view in views])
    names = ("hidden", "start", "ask_address", "ask_positions")
    changed: dict[str, Any] = {name: _stacked([getattr(view, name) for view in views]) for name in names}
    pattern = replace(
        first.pattern,
        block=_stacked([view.pattern.block for view in views]),
        query=_stacked([view.pattern.query for view in views]),
    )
    return replace(first, tokens=tokens, pattern=pattern, **changed)


def stacked_targets(targets: Sequence[Targets]) -> Targets:
    """The targets side by side, padded as their views are."""
    changed: dict[str, Any] = {
        one.name: _stacked([getattr(part, one.name) for part in targets])
        for one in fields(Targets)
        if one.name != "tokens"
    }
    return Targets(tokens=TokenBatch.concatenate([part.tokens for part in targets]), **changed)


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """(B_i, M_i, ...) one below the other, padded with zeros; None when there are none."""
    tensors = [part for part in parts if part is not None]
    if not tensors:
        return None
    width = max(part.shape[1] for part in tensors)
    return torch.cat(
        [
            torch.cat([part, part.new_zeros(part.shape[0], width - part.shape[1], *part.shape[2:])], dim=1)
            for part in tensors
        ]
    )
