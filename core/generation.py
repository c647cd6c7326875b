"""New records from a model: whole ones, ones that keep a pattern, and ones with some tokens kept from records."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.conditions import Asked, rows_of
from consilience.core.context import Beside, beside, encoded
from consilience.core.errors import ConsilienceError
from consilience.core.guidance import guided
from consilience.core.objectives.base import Objective, predictable
from consilience.core.options import check_seed, check_whole
from consilience.core.pair_lengths import TEMPLATES, draw_lengths, of_length
from consilience.core.sampling import Sampling
from consilience.core.tokenizer import Ending, Tokenizer

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel

Hidden = Tensor | Callable[[TokenBatch], Tensor]
"""(n, N) bool, True for tokens to fill, or what makes it of the tokens of the records."""


@torch.no_grad()
def generate_tokens(
    model: "FoundationModel",
    n: int,
    *,
    domain: str,
    seed: int,
    batch_size: int,
    pattern: str | None = None,
    conditions: Asked | Tensor | None = None,
    context: Beside | None = None,
    **options: Any,
) -> TokenBatch:
    """See `FoundationModel.generate_tokens`."""
    check_seed(seed)
    check_whole("n", n)
    check_whole("batch_size", batch_size)
    if n < 1:
        raise ConsilienceError(f"n must be at least 1, not {n}")
    if batch_size < 1:
        raise ConsilienceError(f"batch_size must be at least 1, not {batch_size}")
    model.eval()
    tokenizer, objective = model.tokenizers[domain], model.objective
    sampling = Sampling.of(options, end_id=tokenizer.end_id)
    objective.check_steps(sampling)
    asked, given = rows_of(model, domain, conditions, n), encoded(model, domain, context, n)
    predict = guided(model.predictor(domain), sampling.guidance, conditioned=asked is not None)
    ending: Ending | None = None if pattern is None else ending_of(pattern, tokenizer, objective)
    if ending == "kept":
        sampling = replace(sampling, end_id=None, banned=tokenizer.marks)
    done = []
    for place, start in enumerate(range(0, n, batch_size)):
        rows = range(start, min(start + batch_size, n))
        generator = torch.Generator().manual_seed(batch_seed(seed, place))
        beside_these = None if given is None else {name: one.take(rows) for name, one in given.items()}
        if pattern is not None and ending is not None:
            template, hidden = tokenizer.pattern(pattern, len(rows), generator=generator, ending=ending)
        else:
            template = _template(model, domain, len(rows), beside_these, generator)
            hidden = predictable(template)
        if asked is not None:
            template = replace(template, conditions=asked[rows.start : rows.stop])
        template = beside(template, given, np.array(rows))
        filled = objective.sample(
            predict, template.to(model.device), hidden.to(model.device), generator, sampling
        )
        done.append(filled.to("cpu"))
    return TokenBatch.concatenate(done)


def batch_seed(seed: int, place: int) -> int:
    """The seed of a batch: the first has that of the whole, later ones their own, so that each can be drawn alone."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0]) if place else seed


def _template(
    model: "FoundationModel",
    domain: str,
    n: int,
    given: Mapping[str, TokenBatch] | None,
    generator: torch.Generator,
) -> TokenBatch:
    """Empty tokens of n samples, as long as fits what stands beside them where that is known."""
    tokenizer, ends = model.tokenizers[domain], model.objective.ends_samples
    known = model.provenance.get("pairs", {}).get("lengths", ())
    if given is not None and not (ends and tokenizer.end_id is not None):
        lengths = draw_lengths(known, domain, given, generator)
        if lengths is not None:
            return of_length(tokenizer.template(TEMPLATES, generator=generator), lengths, generator)
    return tokenizer.template(n, generator=generator, open_end=ends)


def ending_of(pattern: str, tokenizer: Tokenizer[Any], objective: Objective) -> Ending:
    """How samples of this pattern end under this objective; ConsilienceError where it cannot fill the pattern.

    An objective that looks both ways is told where the sample ends. One that looks back only is not, and can then
    go on from a beginning.
    """
    trial = torch.Generator().manual_seed(0)
    refusal = objective.unread(*tokenizer.pattern(pattern, 1, generator=trial, ending="kept"))
    if refusal is None:
        return "kept"
    ending: Ending = "open" if objective.ends_samples else "drawn"
    if objective.unread(*tokenizer.pattern(pattern, 1, generator=trial, ending=ending)) is not None:
        raise ConsilienceError(f"pattern {pattern!r}: {refusal}")
    return ending


@torch.no_grad()
def complete_tokens(
    model: "FoundationModel",
    tokens: TokenBatch,
    hidden: Hidden,
    *,
    domain: str,
    seed: int,
    batch_size: int,
    **options: Any,
) -> TokenBatch:
    """See `FoundationModel.complete`; the same of tokens."""
    check_seed(seed)
    model.eval()
    objective, tokenizer = model.objective, model.tokenizers[domain]
    mask = torch.as_tensor(hidden(tokens) if callable(hidden) else hidden)
    if mask.shape != tokens.real.shape or mask.dtype != torch.bool:
        raise ConsilienceError(
            f"hidden must be bool of shape {tuple(tokens.real.shape)} (records, tokens of the longest), not "
            f"{str(mask.dtype).removeprefix('torch.')} of {tuple(mask.shape)}"
        )
    mask = mask & predictable(tokens)
    sampling = Sampling.of(options, end_id=tokenizer.end_id)
    objective.check_steps(sampling)
    predict = guided(model.predictor(domain), sampling.guidance, conditioned=tokens.conditions is not None)
    if tokenizer.end_id is not None and tokens.ids is not None:
        told = mask & (tokens.ids != tokenizer.end_id)
        if objective.unread(tokens, told) is None:  # it is told where the records end
            mask, sampling = told, replace(sampling, end_id=None, banned=tokenizer.marks)
    refusal = objective.unread(tokens, mask)
    if refusal is not None:
        raise ConsilienceError(refusal)
    generator = torch.Generator().manual_seed(seed)
    done = []
    for first in range(0, tokens.size, batch_size):
        rows = torch.arange(first, min(first + batch_size, tokens.size))
        part = tokens.take(rows).to(model.device)
        filled = objective.sample(predict, part, mask[rows].to(model.device), generator, sampling)
        done.append(filled.to("cpu"))
    return TokenBatch.concatenate(done)
