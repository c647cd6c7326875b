"""FoundationModel: the trained network as its users meet it, from records to records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.conditions import Asked, told
from consilience.core.context import Beside, beside, encoded
from consilience.core.network import Network
from consilience.core.readouts import Pool
from consilience.core.records import Failure
from consilience.core.sampling import Sampling
from consilience.core.view import Loss

if TYPE_CHECKING:
    from consilience.core.generation import Hidden
    from consilience.core.log_likelihood import LogLikelihood


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Vectors of records.

    Args:
        vectors: (n, D) float32.
        ids: (n,) ids of the embedded records.
        index: (n,) their places in the input.
        failures: records that could not be read, with reasons; they have no row in `vectors`.
    """

    vectors: np.ndarray
    ids: np.ndarray
    index: np.ndarray
    failures: tuple[Failure, ...] = ()


class FoundationModel(Network, ModelHubMixin, library_name="consilience", license="bsd-3-clause"):
    """A `core.network.Network` (see there for its arguments) that embeds, generates, completes and judges records."""

    @torch.no_grad()
    def evaluate(
        self, tokens: TokenBatch, *, domain: str | None = None, seed: int = 0, draws: int = 1
    ) -> Loss:
        """The held-out loss of the strongest kind that the objective can claim."""
        self.eval()
        generator = torch.Generator().manual_seed(seed)
        return self.objective.evaluate(self.predictor(domain), tokens.to(self.device), generator, draws=draws)

    def embed(
        self,
        records: Any,
        *,
        domain: str | None = None,
        ids: Sequence[str] | np.ndarray | None = None,
        layer: int = -1,
        pool: Pool = "mean",
        batch_size: int | None = None,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        context: Beside | None = None,
    ) -> Embedding:
        """Vectors of records: deterministic, whatever the batch size, the order and the neighbours.

        Args:
            records: as the science's tokenizer takes them.
            domain: the science; may be left out when the model knows one.
            ids: one id a record, for the result and for messages; default: their own names where the records have some
                (an AnnData), else the place in the input.
            layer: -1 the final normalised state, 0 the embedding, 1..L after that block.
            pool: mean or max over tokens, or the first or last token.
            batch_size: records at a time; changes speed and memory only. Default: by their tokens.
            precision: 32-true, or bf16-mixed: faster where the hardware has it, three digits of accuracy.
            context: the same objects in another modality, one record for each, which the states then have seen
                (`core.context`).
        """
        from consilience.core.embed import embed_records

        return embed_records(
            self,
            records,
            self.domain_of(domain),
            ids=ids,
            layer=layer,
            pool=pool,
            batch_size=batch_size,
            precision=precision,
            context=context,
        )

    def generate(
        self,
        n: int,
        *,
        domain: str | None = None,
        seed: int = 0,
        batch_size: int = 256,
        pattern: str | None = None,
        conditions: Asked | None = None,
        context: Beside | None = None,
        **options: Any,
    ) -> Any:
        """n new records.

        Args:
            n: how many.
            domain: the science; may be left out when the model knows one.
            seed: of all randomness.
            batch_size: records at a time.
            pattern: what every record must hold, in the notation of the science, where it has one (molecules:
                `c1ccc(*)cc1`).
            conditions: property -> the value that is asked for, one number or n of them (`core.conditions`); with
                `guidance` among the options it is followed more closely.
            context: modality -> n records, what each new record is of in another modality (`core.context`).
            options: of the objective's sampler (`core.sampling.Sampling`): steps, temperature, top_k, top_p,
                unmask_order, mean, guidance.
        """
        tokens = self.generate_tokens(
            n,
            domain=domain,
            seed=seed,
            batch_size=batch_size,
            pattern=pattern,
            conditions=conditions,
            context=context,
            **options,
        )
        return self.tokenizers[self.domain_of(domain)].decode(tokens)

    def generate_tokens(
        self,
        n: int,
        *,
        domain: str | None = None,
        seed: int = 0,
        batch_size: int = 256,
        pattern: str | None = None,
        conditions: Asked | Tensor | None = None,
        context: Beside | None = None,
        **options: Any,
    ) -> TokenBatch:
        """n new samples as tokens; see `generate`. Conditions may be the rows of `Conditions.rows`, contexts tokens."""
        from consilience.core.generation import generate_tokens

        return generate_tokens(
            self,
            n,
            domain=self.domain_of(domain),
            seed=seed,
            batch_size=batch_size,
            pattern=pattern,
            conditions=conditions,
            context=context,
            **options,
        )

    def complete(
        self,
        records: Any,
        hidden: "Hidden",
        *,
        domain: str | None = None,
        seed: int = 0,
        batch_size: int = 256,
        conditions: Asked | None = None,
        context: Beside | None = None,
        **options: Any,
    ) -> Any:
        """The records with some tokens drawn anew from all the others; those stay as they are.

        Args:
            records: as the science's tokenizer takes them.
            hidden: (n, N) bool over the tokens of `encode(records)`, True for tokens to draw; or a function that
                makes it of those tokens. Given tokens are never drawn, and a symbol that ends a sample only where
                the objective looks back.
            domain: the science; may be left out when the model knows one.
            seed: of all randomness.
            batch_size: records at a time; part of what a seed means.
            conditions: as in `generate`.
            context: as in `generate`, one record for each.
            options: as in `generate`.

        Raises:
            ConsilienceError: when the objective could not look at all that is kept (next-token after a gap).
        """
        from consilience.core.generation import complete_tokens

        name = self.domain_of(domain)
        tokenizer = self.tokenizers[name]
        whole = told(self, name, tokenizer.encode(tokenizer.accept(records)), conditions)
        tokens = complete_tokens(
            self,
            beside(whole, encoded(self, name, context, whole.size)),
            hidden,
            domain=name,
            seed=seed,
            batch_size=batch_size,
            **options,
        )
        return tokenizer.decode(tokens)

    def log_likelihood(
        self,
        records: Any,
        *,
        domain: str | None = None,
        draws: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        conditions: Asked | None = None,
        context: Beside | None = None,
    ) -> "LogLikelihood":
        """log p of every record in nats, and whether that is exact or a bound; see `core.log_likelihood`.

        The same whatever the batch size, the order and the neighbours: what is random about it (orders, masks) is
        drawn from the seed and the record itself.

        Args:
            records: as the science's tokenizer takes them.
            domain: the science; may be left out when the model knows one.
            draws: orders or masks that are averaged for each record; default: 1 order, 16 masks.
            seed: of orders and masks.
            batch_size: records at a time; changes speed and memory only.
            conditions: gives log p(x | conditions); as in `generate`.
            context: gives log p(x | the same object in another modality); as in `generate`, one record for each.

        Raises:
            ConsilienceError: for an objective whose loss is a surrogate.
        """
        from consilience.core.log_likelihood import of_records

        return of_records(
            self,
            records,
            self.domain_of(domain),
            draws=draws,
            seed=seed,
            batch_size=batch_size,
            conditions=conditions,
            context=context,
        )

    @torch.no_grad()
    def fill(
        self,
        tokens: TokenBatch,
        hidden: Tensor,
        *,
        domain: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        mean: bool = False,
        temperature: float = 1.0,
    ) -> TokenBatch:
        """The tokens with the content of the hidden ones generated from the others (infilling).

        A next-token model looks back only: what stands after a hidden token in its order does not inform it.
        """
        self.eval()
        filled = self.objective.sample(
            self.predictor(domain),
            tokens.to(self.device),
            hidden.to(self.device),
            torch.Generator().manual_seed(seed),
            Sampling(steps=steps, temperature=temperature, mean=mean),
        )
        return filled.to("cpu")

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write `model.safetensors`, `config.json` and a model card; see `core.checkpoint.save_model`."""
        from consilience.core.checkpoint import save_model

        return save_model(self, Path(folder), dtype)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> Self:
        """A saved model, ready to embed and generate without any other file."""
        from consilience.core.checkpoint import load_model

        return load_model(cls, Path(folder), device=device)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: str = "cpu", **options: Any
    ) -> Self:
        """A saved model from a folder or from the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: a folder, or owner/name on the Hub.
            device: where to put it.
            options: revision, cache_dir, token, local_files_only, force_download of the Hub.
        """
        from consilience.core.checkpoint import fetch_model

        # Not the mixin's own: it would rebuild the arguments of __init__ from config.json by their types.
        return cls.load(fetch_model(str(pretrained_model_name_or_path), options), device=device)
