"""FoundationModel: embedders and heads per science around one core, trained with one objective."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from consilience.core.attention import Layout
from consilience.core.batch import TokenBatch
from consilience.core.conditions import Asked, Conditioner, Conditions, told
from consilience.core.context import Beside, beside, context_views, encoded
from consilience.core.errors import ConsilienceError
from consilience.core.modalities import join_angles, join_biases, join_patterns, join_times
from consilience.core.objectives.base import Objective
from consilience.core.port import Port
from consilience.core.predictor import DomainPredictor
from consilience.core.readouts import Pool
from consilience.core.records import Failure
from consilience.core.sampling import Sampling
from consilience.core.tokenizer import Tokenizer
from consilience.core.transformer import CoreConfig, CoreInput, KeyValueCache, States, Transformer
from consilience.core.view import Loss, View

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


class FoundationModel(nn.Module, ModelHubMixin, library_name="consilience", license="bsd-3-clause"):
    """One transformer core with an embedder and heads for each science it knows.

    Args:
        core: size of the transformer.
        tokenizers: science -> fitted tokenizer.
        objective: what it is trained with; fixes the heads and the sampler.
        provenance: what it was trained on and with (saved beside the weights).
        conditions: science -> the properties that it can be told of a sample (`core.conditions`), where there are any.
    """

    def __init__(
        self,
        core: CoreConfig,
        tokenizers: Mapping[str, Tokenizer[Any]],
        objective: Objective,
        provenance: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Conditions] | None = None,
    ) -> None:
        super().__init__()
        if not tokenizers:
            raise ConsilienceError("a model needs at least one science")
        self.core_config = core
        self.tokenizers = dict(tokenizers)
        self.objective = objective
        self.provenance = dict(provenance or {})
        self.core = Transformer(core)
        # The suffix keeps a science called "values" or "train" from hiding a method of ModuleDict.
        ports = {f"{name}_port": Port(t, core, objective) for name, t in tokenizers.items()}
        self.ports = nn.ModuleDict(ports)
        self.conditions = {self.domain_of(name): known for name, known in (conditions or {}).items()}
        # Built last, so that the other weights start the same with conditions and without.
        self.conditioners = nn.ModuleDict(
            {f"{name}_told": Conditioner(known, core.width) for name, known in self.conditions.items()}
        )

    @property
    def domains(self) -> tuple[str, ...]:
        """The sciences it knows."""
        return tuple(self.tokenizers)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    def domain_of(self, name: str | None) -> str:
        """The named science, or the only one."""
        if name is None:
            if len(self.domains) > 1:
                raise ConsilienceError(
                    f"this model knows {', '.join(self.domains)}: say which one with domain="
                )
            return self.domains[0]
        if name not in self.tokenizers:
            raise ConsilienceError(f"this model knows {', '.join(self.domains)}, not '{name}'")
        return name

    def forward(
        self,
        views: Mapping[str, View],
        *,
        layers: bool = False,
        attention: bool = False,
        cache: KeyValueCache | None = None,
    ) -> States:
        """States of all modalities of each sample, side by side in the order of `views`. (B, M1 + M2 + ..., D).

        What stands beside their tokens (`core.context`) is seen before them, and has rows in the attention maps alone.
        """
        # A cache that has rows has those of the context, which came first.
        first = {} if cache is not None and cache.filled else context_views(self, views, self.objective)
        states: States = self.core(
            self._core_input({**first, **views}), layers=layers, attention=attention, cache=cache
        )
        skip = sum(view.tokens.width for view in first.values())
        if not skip:
            return states
        return replace(
            states, final=states.final[:, skip:], layers=tuple(layer[:, skip:] for layer in states.layers)
        )

    def _core_input(self, views: Mapping[str, View]) -> CoreInput:
        ports = [self._port(name) for name in views]
        parts = list(views.values())
        entered = [port.enter(view) for port, view in zip(ports, parts)]
        rows = torch.cat(
            [self._told(name, v, own) for (name, v), (own, _) in zip(views.items(), entered)], dim=1
        )
        real = torch.cat([view.tokens.real for view in parts], dim=1)
        turns = [port.embed.angles(view) for port, view in zip(ports, parts)]
        widths = [view.tokens.width for view in parts]
        angles = join_angles([keys for keys, _ in turns], widths, rows, self.core_config.head_width)
        asked = [keys if queries is None else queries for keys, queries in turns]
        differ = any(queries is not None for _, queries in turns)
        query_angles = join_angles(asked, widths, rows, self.core_config.head_width) if differ else None
        time, time_index = join_times(parts)
        return CoreInput(
            rows=rows,
            layout=Layout(real, join_patterns([view.pattern for view in parts])),
            time=time.to(rows.dtype),
            time_index=time_index,
            angles=angles,
            query_angles=query_angles,
            bias=join_biases([bias for _, bias in entered], widths, rows, self.core_config.heads),
        )

    def _told(self, name: str, view: View, rows: Tensor) -> Tensor:
        """The rows of one modality, with what is told of its samples."""
        values = view.tokens.conditions
        if values is None:
            return rows
        self.conditions_of(name)
        return rows + self.conditioners[f"{name}_told"](values)[:, None]

    def conditions_of(self, domain: str | None = None) -> Conditions:
        """What it can be told of the samples of a science; ConsilienceError where that is nothing."""
        name = self.domain_of(domain)
        if name not in self.conditions:
            raise ConsilienceError(
                f"this model was trained on {name} without conditions; train one: consilience train --condition"
            )
        return self.conditions[name]

    def drop_conditions(self, domain: str, tokens: TokenBatch, generator: torch.Generator) -> TokenBatch:
        """The tokens of a training step with some of their conditions hidden; without any, as they are."""
        if tokens.conditions is None:
            return tokens
        return replace(tokens, conditions=self.conditions_of(domain).drop(tokens.conditions, generator))

    def _port(self, name: str) -> Port:
        port = self.ports[f"{self.domain_of(name)}_port"]
        assert isinstance(port, Port)
        return port

    def loss(
        self,
        batches: Mapping[str, TokenBatch],
        generator: torch.Generator,
        *,
        samples: Tensor | None = None,
        objective: Objective | None = None,
    ) -> dict[str, Loss]:
        """The training loss of each modality of one batch of samples.

        Args:
            batches: modality -> tokens; sample i of each is the same object.
            generator: of the corruption, which is drawn for the whole batch.
            samples: compute the loss of these alone, each corrupted as in the whole batch; None = all.
            objective: a phase of the model's objective (`Objective.at`); None = the objective itself.
        """
        objective = objective or self.objective
        drawn = {
            name: objective.view(tokens, self._port(name).spec, generator) for name, tokens in batches.items()
        }
        if samples is not None:
            drawn = {
                name: (view.take(samples), targets.take(samples)) for name, (view, targets) in drawn.items()
            }
        states = self.forward({name: view for name, (view, _) in drawn.items()}).final
        losses, first = {}, 0
        for name, (view, targets) in drawn.items():
            own = states[:, first : first + view.tokens.width]
            first += view.tokens.width
            port = self._port(name)
            motion = port.moved(view, own)
            losses[name] = port.loss(
                own[targets.scored],
                targets.select(),
                objective,
                motion=None if motion is None else motion[targets.scored],
            )
        return losses

    def predictor(self, domain: str | None = None) -> DomainPredictor:
        """The model seen through one science, for samplers and likelihoods."""
        return DomainPredictor(self, self.domain_of(domain))

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
