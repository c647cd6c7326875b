"""What is trained: embedders and heads per science around one core, and the loss of an objective."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from consilience.core.attention import Layout
from consilience.core.batch import TokenBatch
from consilience.core.conditions import Conditioner, Conditions
from consilience.core.context import context_views
from consilience.core.errors import ConsilienceError
from consilience.core.modalities import join_angles, join_biases, join_patterns, join_times
from consilience.core.objectives.base import Objective
from consilience.core.port import Port
from consilience.core.predictor import DomainPredictor
from consilience.core.tokenizer import Tokenizer
from consilience.core.transformer import CoreConfig, CoreInput, KeyValueCache, States, Transformer
from consilience.core.view import Loss, View


class Network(nn.Module):
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

    def port(self, name: str) -> Port:
        """The embedder and heads of a science."""
        port = self.ports[f"{self.domain_of(name)}_port"]
        assert isinstance(port, Port)
        return port

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
        ports = [self.port(name) for name in views]
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
            name: objective.view(tokens, self.port(name).spec, generator) for name, tokens in batches.items()
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
            port = self.port(name)
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
