"""log p of single records, in nats: exact, or the bound that their objective is trained on.

* next-token: exact, by the chain rule, of a record that ends where it ends.
* any-order: exact for the order drawn: log p(x | order). With several draws their mean, a lower bound of the log of the
  mean over orders.
* block: with erasure exact for the order in which the tokens of each block are revealed, drawn for every record, one
  forward for each token of a block; with noise exact by an ODE a block, where values have a density.
* masked-diffusion: an unbiased estimate of the lower bound of log p that is its loss, from `draws` masks.
* denoising: exact by the ODE, where values have a density.
* address-only: exact, of tokens drawn alone.
* masked, two-phase, and whatever else is a surrogate: refused.

All but next-token and block 1 in the natural order are told how long a record is, and give log p(content | length).
Of tokens that carry conditions or a context all of them are log p(x | conditions, context).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from consilience.core.batch import TokenBatch
from consilience.core.conditions import Asked, rows_of
from consilience.core.context import Beside, beside, encoded
from consilience.core.embed import CHUNK, TOKENS, by_tokens, readable_tokens
from consilience.core.errors import ConsilienceError
from consilience.core.objectives.base import predictable
from consilience.core.records import Failure, take_records
from consilience.core.view import Kind

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel

MASKS = 16
"""Masks a record that a bound is averaged over unless something else is asked for."""


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """log p of records.

    Args:
        values: (n,) float64, nats. With measured values a log density, in their units.
        kind: exact, or bound: a lower bound of log p (its estimate from a few masks has noise).
        tokens: (n,) int64, how many tokens each value is a sum over.
        index: (n,) places of the records in the input.
        failures: records that could not be read, with reasons; they have no value.
    """

    values: np.ndarray
    kind: Kind
    tokens: np.ndarray
    index: np.ndarray
    failures: tuple[Failure, ...] = ()


def of_records(
    model: "FoundationModel",
    records: Any,
    domain: str,
    *,
    draws: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    conditions: Asked | None = None,
    context: Beside | None = None,
) -> LogLikelihood:
    """See `FoundationModel.log_likelihood`."""
    kind, draws = kind_of(model, domain, draws, batch_size)
    records = model.tokenizers[domain].accept(records)
    asked = rows_of(model, domain, conditions, len(records))
    given = encoded(model, domain, context, len(records))
    values: list[np.ndarray] = [np.zeros(0)]
    counts, index = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    failures: list[Failure] = []
    for first in range(0, len(records), CHUNK):
        places = np.arange(first, min(first + CHUNK, len(records)))
        tokens, good, refused = readable_tokens(model, take_records(records, places), domain)
        failures += [
            Failure(index=first + f.index, id=str(first + f.index), reason=f.reason) for f in refused
        ]
        if tokens is not None:
            if asked is not None:
                tokens = replace(tokens, conditions=asked[first + good])
            tokens = beside(tokens, given, first + good)
            part = of_tokens(model, tokens, domain, draws=draws, seed=seed, batch_size=batch_size)
            values.append(part.values)
            counts.append(part.tokens)
            index.append(first + good)
    return LogLikelihood(
        values=np.concatenate(values),
        kind=kind,
        tokens=np.concatenate(counts),
        index=np.concatenate(index),
        failures=tuple(failures),
    )


def likelihood_of(model: "FoundationModel", domain: str) -> Kind:
    """What log p this model has of a science: exact or a bound, and surrogate where it has none."""
    return model.objective.likelihood_kind(model.predictor(domain))


def kind_of(
    model: "FoundationModel", domain: str, draws: int | None = None, batch_size: int | None = None
) -> tuple[Kind, int]:
    """What the likelihood of this model is, and from how many draws.

    Raises:
        ConsilienceError: when there is none, or an option is out of bounds.
    """
    predict, objective = model.predictor(domain), model.objective
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConsilienceError(f"{name} must be at least 1, not {value}")
    kind = objective.likelihood_kind(predict, draws=draws or 1)
    if kind == "surrogate":
        raise ConsilienceError(
            f"the loss of {objective.name} on {domain} is a surrogate, from which no likelihood follows; next-token, "
            "any-order, block and masked-diffusion have one of symbols, counts and measured values"
        )
    return kind, draws or (MASKS if kind == "bound" else 1)


@torch.no_grad()
def of_tokens(
    model: "FoundationModel",
    tokens: TokenBatch,
    domain: str,
    *,
    draws: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> LogLikelihood:
    """The same of tokens, such as generated ones, whose records need not be readable."""
    kind, draws = kind_of(model, domain, draws, batch_size)
    model.eval()
    predict = model.predictor(domain)
    length = tokens.length.numpy()
    order = np.argsort(length, kind="stable")
    budget = max(1, TOKENS.get(model.device.type, TOKENS["cuda"]) // draws)
    batches: Iterator[slice] | list[slice] = by_tokens(length[order], budget)
    if batch_size is not None:
        batches = [slice(first, first + batch_size) for first in range(0, len(order), batch_size)]
    values = np.zeros(tokens.size)
    for batch in batches:
        chosen = order[batch]
        part = tokens.take(torch.from_numpy(chosen)).trim()
        generators = [_generator(part, row, seed) for row in range(part.size)]
        found = model.objective.log_likelihood(predict, part.to(model.device), generators, draws=draws)
        values[chosen] = found.double().cpu().numpy()
    return LogLikelihood(
        values=values,
        kind=kind,
        tokens=predictable(tokens).sum(1).numpy(),
        index=np.arange(tokens.size),
    )


def _generator(tokens: TokenBatch, row: int, seed: int) -> torch.Generator:
    """The generator of one sample: the same wherever it stands, another for other content or another seed."""
    digest = hashlib.sha256(str(seed).encode())
    length = int(tokens.length[row])
    for field in fields(tokens):
        tensor = getattr(tokens, field.name)
        # Not of what it is told: the same masks then compare a record with conditions (or a context) and without.
        if tensor is not None and field.name not in ("conditions", "context"):
            own = tensor[row][:length] if tensor.dim() > 1 else tensor[row]
            digest.update(field.name.encode() + own.contiguous().numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7], "big"))
