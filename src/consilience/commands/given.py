"""Pairs of modalities as commands use them: those of a run, and what `--given` of generate and embed shows a model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from consilience.commands.choices import file_words, options_by_science, parse_files
from consilience.commands.models import find_data, read_collection, science_of
from consilience.core.errors import ConsilienceError
from consilience.core.records import Failure
from consilience.domains.settings import read_settings

if TYPE_CHECKING:
    from consilience.core.batch import TokenBatch
    from consilience.core.model import FoundationModel
    from consilience.domains.pieces import Piece
    from consilience.domains.preparation import Prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """Records of one modality beside which others are drawn or embedded.

    Args:
        domain: their science.
        tokens: n samples.
        ids: (n,) of their records.
    """

    domain: str
    tokens: "TokenBatch"
    ids: np.ndarray

    def take(self, rows: Sequence[int]) -> "dict[str, TokenBatch]":
        """Some of them, as `FoundationModel.generate_tokens` takes its context."""
        return {self.domain: self.tokens.take(rows).trim()}

    def first(self, n: int) -> "Shown":
        """The first n."""
        return Shown(domain=self.domain, tokens=self.tokens.take(torch.arange(n)), ids=self.ids[:n])

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id -> its sample; ConsilienceError where an id stands twice."""
        names, counts = np.unique(self.ids.astype(str), return_counts=True)
        if (counts > 1).any():
            raise ConsilienceError(
                f"given: id {names[counts > 1][0]!r} stands twice among {self.domain}; records are matched by id"
            )
        return {name: row for row, name in enumerate(self.ids.astype(str).tolist())}

    def matched(self, piece: "Piece") -> "tuple[Piece, dict[str, TokenBatch]]":
        """The records of a piece that have a partner here, by id, with it; the others become failures."""
        rows = [self.rows.get(str(name)) for name in piece.collection.ids]
        kept = np.array([place for place, row in enumerate(rows) if row is not None], dtype=np.int64)
        reason = f"its id does not stand among the {self.domain} given"
        lost = [
            Failure(index=int(piece.places[place]), id=str(name), reason=reason)
            for place, (name, row) in enumerate(zip(piece.collection.ids, rows))
            if row is None
        ]
        own = piece.collection
        part = replace(own.take(kept), failures=(*own.failures, *lost))
        return replace(piece, collection=part, places=piece.places[kept]), self.take(
            [row for row in rows if row is not None]
        )


def pairs_of_run(
    model: "FoundationModel", folder: Path, *, limit: int | None = None
) -> "dict[str, Prepared]":
    """Science -> the data of a run on pairs, split as in training; `limit` None = as in training."""
    from consilience.domains.pairing import prepare_pairs

    settings = read_settings(folder)
    if not settings.get("pairs"):
        raise ConsilienceError(f"{folder} was not trained on pairs; train one: consilience train --pairs")
    files = parse_files(file_words(settings.get("data")))
    return prepare_pairs(
        [science_of(model, folder, name) for name in model.domains],
        data={name: find_data(path) for name, path in files.items()} if isinstance(files, dict) else None,
        read=options_by_science(settings.get("read_options"), model.domains, "read_options"),
        tokenizers=model.tokenizers,
        limit=settings.get("limit") if limit is None else limit,
        fractions=settings.get("parts"),
    )


def shown_by(model: "FoundationModel", folder: Path | None, domain: str, path: Path, each: int) -> Shown:
    """The records of a file, each `each` times in a row; those that cannot be read are told of and left out.

    Args:
        model: trained on pairs.
        folder: of its run: its options for reading count.
        domain: what is to be drawn.
        path: of the other modality.
        each: draws for each record.

    Raises:
        ConsilienceError: for a model that was not trained on pairs, or a file without a readable record.
    """
    from consilience.core.embed import readable_tokens

    if "pairs" not in model.provenance:
        raise ConsilienceError(
            f"given {path}: this model never saw two modalities of one object; train one: consilience train --pairs"
        )
    others = [name for name in model.domains if name != domain]
    if len(others) > 1:
        raise ConsilienceError(
            f"given {path}: this model knows {', '.join(others)} beside {domain}; in Python give them as context="
        )
    science = science_of(model, folder, others[0])
    settings = {} if folder is None else read_settings(folder)
    options = options_by_science(settings.get("read_options"), model.domains, "read_options").get(
        science.name
    )
    own = settings.get("data") or []
    ending = next(
        (Path(text.partition("=")[2]).suffix for text in own if text.startswith(f"{science.name}=")), ""
    )
    collection = read_collection(science, path, options if path.suffix == ending else None)
    tokens, good, refused = readable_tokens(model, collection.records, science.name)
    lost = [f.reason for f in collection.failures] + [
        f"{collection.ids[f.index]}: {f.reason}" for f in refused
    ]
    if tokens is None:
        raise ConsilienceError(f"given {path}: no record of {science.name} can be read; first: {lost[0]}")
    if lost:
        logger.warning(
            "given %s: %d record%s left out; first: %s", path, len(lost), "s" * (len(lost) > 1), lost[0]
        )
    rows = np.repeat(np.arange(tokens.size), each)
    return Shown(
        domain=science.name, tokens=tokens.take(torch.from_numpy(rows)), ids=collection.ids[good][rows]
    )
