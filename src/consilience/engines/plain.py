"""The engine of one process, and what every engine does with a piece."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consilience.core.context import Beside
    from consilience.core.embed import Precision
    from consilience.core.model import Embedding, FoundationModel, Pool
    from consilience.domains.base import Domain
    from consilience.domains.pieces import Piece
    from consilience.domains.tables import EmbeddedRows


def remember_few_shapes() -> None:
    """Let torch's CPU library keep the plans of a few shapes; call before the first computation of a process.

    It keeps the last 1,024 of two kinds by default. Batches of a stream have nearly all another number of tokens: a
    plan serves the layers of one batch and is not asked for again, and memory would grow for thousands of records.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model is read out; the options of `FoundationModel.embed`.

    Args:
        domain: the science, as the model calls it.
        layer: -1 the final normalised state, 0 the embedding, 1..L after that block.
        pool: mean over tokens, or the first or last token.
        batch_size: records at a time; None = by their tokens.
        precision: 32-true or bf16-mixed.
    """

    domain: str
    layer: int = -1
    pool: "Pool" = "mean"
    batch_size: int | None = None
    precision: "Precision" = "32-true"

    def embed(self, model: "FoundationModel", piece: "Piece", context: "Beside | None" = None) -> "Embedding":
        """The vectors of one piece. context: the same objects in another modality (`core.context`)."""
        return model.embed(
            piece.collection.records,
            domain=self.domain,
            ids=piece.collection.ids,
            layer=self.layer,
            pool=self.pool,
            batch_size=self.batch_size,
            precision=self.precision,
            context=context,
        )

    def rows(
        self,
        model: "FoundationModel",
        science: "Domain",
        piece: "Piece",
        context: "Beside | None" = None,
    ) -> "EmbeddedRows":
        """The vectors of one piece with what is written beside them; context: see `embed`."""
        return science.embedded_rows(piece.collection, self.embed(model, piece, context), piece.places)


def run(
    model: "FoundationModel", science: "Domain", pieces: Iterable["Piece"], reading: Reading
) -> Iterator["EmbeddedRows"]:
    """The rows of one piece after the other."""
    for piece in pieces:
        yield reading.rows(model, science, piece)
