"""Embedding extraction: records -> one vector each, bit-equal over repeated runs.

Records are taken in chunks of CHUNK, tokenized once and without a generator, so nothing is random; samples are
computed in batches of similar length (padding is dropped before the core), and a mean never runs over padding or
start marks. A vector depends on its batch only in the last bits of float32; the same chunks give the same bits,
however many processes share them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.context import Beside, beside, encoded
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.memory import give_back_memory
from consilience.core.options import check_whole
from consilience.core.readouts import Pool, Readout, check_readouts, observe_at
from consilience.core.records import Failure, take_records
from consilience.core.view import View

if TYPE_CHECKING:
    from consilience.core.model import Embedding, FoundationModel

Precision = Literal["32-true", "bf16-mixed"]

CHUNK = 1024
"""Records that are read, tokenized and computed before the next ones: bounds the memory."""
TOKENS = {"cpu": 2048, "cuda": 65536}
"""Real tokens of a batch unless a number of records is asked for: a CPU's cache, a GPU's many units."""


def embed_records(
    model: "FoundationModel",
    records: Any,
    domain: str,
    *,
    ids: Sequence[str] | np.ndarray | None,
    layer: int,
    pool: Pool,
    batch_size: int | None,
    precision: Precision = "32-true",
    context: Beside | None = None,
) -> "Embedding":
    """See `FoundationModel.embed`."""
    check_options(model, layer, pool, batch_size, precision)
    readout = Readout(layer=layer, pool=pool)
    return embed_readouts(
        model,
        records,
        domain,
        [readout],
        ids=ids,
        batch_size=batch_size,
        precision=precision,
        context=context,
    )[readout]


def embed_readouts(
    model: "FoundationModel",
    records: Any,
    domain: str,
    readouts: Sequence[Readout],
    *,
    ids: Sequence[str] | np.ndarray | None = None,
    batch_size: int | None = None,
    precision: Precision = "32-true",
    context: Beside | None = None,
) -> "dict[Readout, Embedding]":
    """Several read-outs of the same records, tokenized once, in one forward for each distinct time.

    Args:
        model: frozen.
        records: as the science's tokenizer takes them.
        domain: the science.
        readouts: what to read; see `core.readouts.candidates`.
        ids: one id a record; default: their own names where the records have some, else the place in the input.
        batch_size: records at a time; default: by their tokens.
        precision: see `FoundationModel.embed`.
        context: see `FoundationModel.embed`.

    Returns:
        Read-out -> its vectors; ids, index and failures are the same for all.
    """
    from consilience.core.model import Embedding

    _check(model, readouts, batch_size, precision)
    tokenizer = model.tokenizers[domain]
    ids = tokenizer.names(records) if ids is None else ids
    records = tokenizer.accept(records)
    n = len(records)
    names = np.asarray([str(i) for i in range(n)] if ids is None else ids, dtype=object)
    if names.shape != (n,):
        raise ConsilienceError(
            f"{names.size if names.ndim else names} ids for {n} records; give one for each"
        )
    given = encoded(model, domain, context, n)
    model.eval()
    index: list[np.ndarray] = [np.zeros(0, np.int64)]
    failures: list[Failure] = []
    vectors = {readout: [np.zeros((0, model.core_config.width), np.float32)] for readout in readouts}
    for first in range(0, n, CHUNK):
        places = np.arange(first, min(first + CHUNK, n))
        part = records if n <= CHUNK else take_records(records, places)
        part = part.load() if hasattr(part, "load") else part  # what lies on disk is read once
        tokens, good, refused = readable_tokens(model, part, domain)
        failures += [
            Failure(index=first + f.index, id=str(names[first + f.index]), reason=f.reason) for f in refused
        ]
        index.append(first + good)
        if tokens is not None:
            tokens = beside(tokens, given, first + good)
            read = embed_tokens(model, tokens, domain, readouts, batch_size, precision)
            for readout, rows in read.items():
                vectors[readout].append(rows)
    kept = np.concatenate(index)
    return {
        readout: Embedding(
            vectors=np.concatenate(parts),
            ids=names[kept].astype(str),
            index=kept,
            failures=tuple(failures),
        )
        for readout, parts in vectors.items()
    }


def check_options(
    model: "FoundationModel", layer: int, pool: str, batch_size: int | None, precision: str
) -> None:
    """Raise ConsilienceError for what this model cannot do, before anything is read."""
    _check(model, [Readout(layer=layer, pool=pool)], batch_size, precision)  # type: ignore[arg-type]


def _check(
    model: "FoundationModel", readouts: Sequence[Readout], batch_size: int | None, precision: str
) -> None:
    check_readouts(readouts, model.objective, model.core_config.depth)
    check_whole("batch_size", batch_size)
    if batch_size is not None and batch_size < 1:
        raise ConsilienceError(f"batch_size must be at least 1, not {batch_size}")
    check_precision(precision)


def readable_tokens(
    model: "FoundationModel", records: Any, domain: str
) -> tuple[TokenBatch | None, np.ndarray, list[Failure]]:
    """(tokens, places of the records that have them, the others with reasons); no tokens for no record."""
    tokenizer, good = model.tokenizers[domain], np.arange(len(records))
    try:
        return (tokenizer.encode(records) if len(records) else None), good, []
    except UnreadableRecordError:  # rare: only then is every record looked at
        failures = tokenizer.check(records)
    good = np.setdiff1d(good, [failure.index for failure in failures])
    return (tokenizer.encode(take_records(records, good)) if len(good) else None), good, failures


def check_precision(precision: str) -> None:
    """Raise ConsilienceError for a precision that inference does not know."""
    if precision not in get_args(Precision):
        raise ConsilienceError(f"unknown precision '{precision}'; known: {', '.join(get_args(Precision))}")


def embed_tokens(
    model: "FoundationModel",
    tokens: TokenBatch,
    domain: str,
    readouts: Sequence[Readout],
    batch_size: int | None = None,
    precision: Precision = "32-true",
) -> dict[Readout, np.ndarray]:
    """Read-out -> (B, D) float32 vectors of tokens, in their order."""
    at: dict[float, list[Readout]] = {}
    for readout in readouts:
        at.setdefault(readout.time, []).append(readout)
    vectors = {r: np.zeros((tokens.size, model.core_config.width), np.float32) for r in readouts}
    length = tokens.length.numpy()
    order = np.argsort(length, kind="stable")
    budget = TOKENS.get(model.device.type, TOKENS["cuda"])
    if batch_size is None:
        batches = by_tokens(length[order], budget)
    else:
        batches = [slice(first, first + batch_size) for first in range(0, len(order), batch_size)]
    with torch.inference_mode(), _casting(model, precision):
        for batch in batches:
            chosen = order[batch]
            part = tokens.take(torch.from_numpy(chosen)).trim().to(model.device)
            for time, asked in at.items():
                for readout, rows in _read(model, part, domain, time, asked).items():
                    vectors[readout][chosen] = rows.cpu().numpy()
    if model.device.type == "cpu":
        give_back_memory()
    return vectors


def _read(
    model: "FoundationModel", tokens: TokenBatch, domain: str, time: float, readouts: Sequence[Readout]
) -> Mapping[Readout, Tensor]:
    """(B, D) vectors of one batch, all at one time, from one forward."""
    tokens = replace(tokens, conditions=None)  # a vector is of the record alone
    view = observe_at(model.objective, tokens, model.tokenizers[domain].spec, time)
    states = model.forward({domain: view}, layers=any(readout.layer >= 0 for readout in readouts))
    counted = counted_rows(view)
    return {
        readout: pool_rows(
            (states.final if readout.layer == -1 else states.layers[readout.layer]).float(),
            counted,
            readout.pool,
        )
        for readout in readouts
    }


def counted_rows(view: View) -> Tensor:
    """(B, M) bool: the rows that stand for tokens: no padding, no start mark, of two streams the corrupted one."""
    counted = view.tokens.real
    for other in (view.start, None if view.pattern.query is None else ~view.pattern.query):
        counted = counted if other is None else counted & ~other
    return counted


def by_tokens(lengths: np.ndarray, budget: int) -> list[slice]:
    """Runs of samples with at most `budget` tokens each, one sample at least. lengths: (B,)."""
    runs, begin, total = [], 0, 0
    for place, n in enumerate(lengths.tolist()):
        if place > begin and total + n > budget:
            runs.append(slice(begin, place))
            begin, total = place, 0
        total += n
    return [*runs, slice(begin, len(lengths))] if len(lengths) else []


def _casting(model: "FoundationModel", precision: Precision) -> AbstractContextManager[Any]:
    return (
        nullcontext() if precision == "32-true" else torch.autocast(model.device.type, dtype=torch.bfloat16)
    )


def pool_rows(rows: Tensor, counted: Tensor, pool: Pool) -> Tensor:
    """(B, M, D), (B, M) bool -> (B, D), over the counted rows alone."""
    if pool == "mean":
        # float64, so that the mean does not depend on how wide the batch was padded.
        total = (rows.double() * counted[..., None]).sum(1)
        return (total / counted.sum(1, keepdim=True)).float()
    if pool == "max":
        return rows.masked_fill(~counted[..., None], -torch.inf).amax(1)
    place = torch.arange(counted.shape[1], device=counted.device)
    if pool == "first":
        chosen = torch.where(counted, place, counted.shape[1]).amin(1)
    else:
        chosen = torch.where(counted, place, -1).amax(1)
    return rows[torch.arange(rows.shape[0], device=rows.device), chosen]
