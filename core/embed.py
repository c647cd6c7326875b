"""Embedding extraction: records -> one vector each, bit-equal over repeated runs.

Records are tokenized without a generator, so nothing is random; samples are computed in batches of equal length
(padding is dropped before the core), and a mean never runs over padding or start marks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from consilience.core.errors import ConsilienceError
from consilience.core.records import Failure, take_records

if TYPE_CHECKING:
    from consilience.core.model import Embedding, FoundationModel, Pool


def embed_records(
    model: "FoundationModel",
    records: Any,
    domain: str,
    *,
    ids: Sequence[str] | np.ndarray | None,
    layer: int,
    pool: "Pool",
    batch_size: int,
) -> "Embedding":
    """See `FoundationModel.embed`."""
    from consilience.core.model import Embedding

    depth, width = model.core_config.depth, model.core_config.width
    if not -1 <= layer <= depth:
        raise ConsilienceError(f"layer must be -1 (final) or 0..{depth} for this model, not {layer}")
    if pool not in ("mean", "last", "first"):
        raise ConsilienceError(f"unknown pool '{pool}'; known: mean, last, first")
    if batch_size < 1:
        raise ConsilienceError(f"batch_size must be at least 1, not {batch_size}")
    names = np.asarray([str(i) for i in range(len(records))] if ids is None else ids, dtype=object)
    if len(names) != len(records):
        raise ConsilienceError(f"{len(names)} ids for {len(records)} records")
    tokenizer = model.tokenizers[domain]
    failures = tuple(
        Failure(index=found.index, id=str(names[found.index]), reason=found.reason)
        for found in tokenizer.check(records)
    )
    bad = {failure.index for failure in failures}
    good = np.array([i for i in range(len(records)) if i not in bad], dtype=np.int64)
    vectors = np.zeros((len(good), width), dtype=np.float32)
    if len(good):
        readable = take_records(records, good) if len(bad) else records
        by_length = np.argsort(tokenizer.lengths(readable), kind="stable")
        for first in range(0, len(by_length), batch_size):
            chosen = by_length[first : first + batch_size]
            vectors[chosen] = _embed_batch(model, take_records(readable, chosen), domain, layer, pool)
    return Embedding(vectors=vectors, ids=names[good].astype(str), index=good, failures=failures)


@torch.no_grad()
def _embed_batch(model: "FoundationModel", records: Any, domain: str, layer: int, pool: "Pool") -> np.ndarray:
    model.eval()
    tokens = model.tokenizers[domain].encode(records).to(model.device)
    view = model.objective.observe(tokens, model.tokenizers[domain].spec)
    states = model.forward({domain: view}, layers=layer >= 0)
    rows = states.final if layer == -1 else states.layers[layer]
    counted = view.tokens.real
    if view.start is not None:
        counted = counted & ~view.start
    return pool_rows(rows.float(), counted, pool).cpu().numpy()


def pool_rows(rows: Tensor, counted: Tensor, pool: "Pool") -> Tensor:
    """(B, M, D), (B, M) bool -> (B, D), over the counted rows alone."""
    if pool == "mean":
        # float64, so that the mean does not depend on how wide the batch was padded.
        total = (rows.double() * counted[..., None]).sum(1)
        return (total / counted.sum(1, keepdim=True)).float()
    place = torch.arange(counted.shape[1], device=counted.device)
    if pool == "first":
        chosen = torch.where(counted, place, counted.shape[1]).amin(1)
    else:
        chosen = torch.where(counted, place, -1).amax(1)
    return rows[torch.arange(rows.shape[0], device=rows.device), chosen]
