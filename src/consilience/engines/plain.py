"""The engine of one process, and what every engine does with a piece."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consilience.core.embed import Precision
    from consilience.core.model import Embedding, FoundationModel, Pool
    from consilience.domains.base import Domain
    from consilience.domains.pieces import Piece
    from consilience.domains.tables import EmbeddedRows


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

    def embed(self, model: "FoundationModel", piece: "Piece") -> "Embedding":
        """The vectors of one piece."""
        return model.embed(
            piece.collection.records,
            domain=self.domain,
            ids=piece.collection.ids,
            layer=self.layer,
            pool=self.pool,
            batch_size=self.batch_size,
            precision=self.precision,
        )

    def rows(self, model: "FoundationModel", science: "Domain", piece: "Piece") -> "EmbeddedRows":
        """The vectors of one piece with what is written beside them."""
        return science.embedded_rows(piece.collection, self.embed(model, piece), piece.places)


def run(
    model: "FoundationModel", science: "Domain", pieces: Iterable["Piece"], reading: Reading
) -> Iterator["EmbeddedRows"]:
    """The rows of one piece after the other."""
    for piece in pieces:
        yield reading.rows(model, science, piece)
