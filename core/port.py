"""Port: how one science enters and leaves the core."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from consilience.core.embedding import PairBias, TokenEmbedder
from consilience.core.errors import ConsilienceError
from consilience.core.geometry import DistanceView, EquivariantVelocity
from consilience.core.kernels import apply_linear
from consilience.core.likelihoods import Field, Likelihood, NegativeBinomial, Velocity
from consilience.core.objectives.base import Objective, sum_fields
from consilience.core.tokenizer import Tokenizer
from consilience.core.transformer import CoreConfig
from consilience.core.view import Loss, Scored, View

HEAD_NUMBERS = 2**23
"""Parameters of likelihoods that are held at once in training (32 MB); more are computed in pieces."""


class Port(nn.Module):
    """How one science enters and leaves the core: its embedder and its heads.

    Heads are linear; where tokens have discrete addresses, each address has an offset of its own, so that the
    marginal of a gene need not pass through the core. What heads and offsets add up to are the parameters of a
    likelihood, or the condition of its network where it has one (`core.heads.FlowHead`).
    """

    def __init__(self, tokenizer: Tokenizer[Any], core: CoreConfig, objective: Objective) -> None:
        super().__init__()
        self.spec = spec = tokenizer.spec
        self.likelihoods: dict[Field, Likelihood] = {}
        # The suffixes keep "values" from hiding a method of ModuleDict.
        self.networks = nn.ModuleDict()
        for name, likelihood in objective.likelihoods(spec).items():
            network = likelihood.network(core.width)
            if network is not None:
                self.networks[f"{name}_network"] = network
            self.likelihoods[name] = likelihood.attached(network)
        self.embed = TokenEmbedder(spec, core)
        self.heads = nn.ModuleDict(
            {
                f"{name}_head": nn.Linear(core.width, likelihood.parameters)
                for name, likelihood in self.likelihoods.items()
            }
        )
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        self.offsets = nn.ModuleDict()
        if spec.addresses:
            for name, likelihood in self.likelihoods.items():
                self.offsets[f"{name}_offset"] = nn.Embedding(spec.addresses, likelihood.parameters)
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)
        self._start_at_rates(tokenizer)
        self.pair_bias = PairBias(spec, core.heads) if spec.pairwise_bias else None
        self.distances = DistanceView(spec, core) if spec.invariant else None
        self.motion: EquivariantVelocity | None = None
        if spec.invariant:
            if not isinstance(self.likelihoods["values"], Velocity):
                raise ConsilienceError(
                    f"{spec.name}: places that are seen as distances can be denoised only, and objective "
                    f"{objective.name} predicts them one by one: choose objective denoising, or geometry='absolute'"
                )
            self.motion = EquivariantVelocity(spec, core.width)

    def _start_at_rates(self, tokenizer: Tokenizer[Any]) -> None:
        rates = tokenizer.log_rates()
        if rates is not None and isinstance(self.likelihoods.get("values"), NegativeBinomial):
            table = self.offsets["values_offset"].get_parameter("weight")
            with torch.no_grad():
                table[:, 0] = torch.as_tensor(rates, dtype=table.dtype)

    def enter(self, view: View) -> tuple[Tensor, Tensor | None]:
        """Rows for the core (B, M, D), and their bias of attention (B, H, M, M) or (L, B, H, M, M)."""
        rows = self.embed(view)
        if self.distances is not None:
            bias, near = self.distances(view)
            return rows + near, bias
        return rows, None if self.pair_bias is None else self.pair_bias(view)

    def entrance(self) -> dict[str, nn.Module]:
        """What turns tokens into rows of the core, by name: all but the heads."""
        parts = {"embed": self.embed, "pair_bias": self.pair_bias, "distances": self.distances}
        return {name: part for name, part in parts.items() if part is not None}

    def moved(self, view: View, states: Tensor) -> Tensor | None:
        """Velocities of places (B, M, 3) that turn with them; None unless tokens are invariant.

        They need whole samples, which `predict` does not.

        Args:
            view: what the core saw.
            states: (B, M, D) what came out.
        """
        return None if self.motion is None else self.motion(view, states)

    def predict(
        self, states: Tensor, address: Tensor | None, motion: Tensor | None = None
    ) -> dict[Field, Tensor]:
        """Parameters of each likelihood (..., parameters).

        Args:
            states: (..., D).
            address: (...) the discrete address of the token that each row predicts; None without addresses.
            motion: (..., 3) of `moved`, for the same rows: it stands for the first three values.
        """
        found: dict[Field, Tensor] = {}
        for name in self.likelihoods:
            found[name] = apply_linear(self.heads[f"{name}_head"], states)
            if address is not None and self.spec.addresses:
                found[name] = found[name] + self.offsets[f"{name}_offset"](address)
        if motion is not None:
            found["values"] = torch.cat([motion.to(found["values"].dtype), found["values"][..., 3:]], dim=-1)
        return found

    def loss(
        self, states: Tensor, scored: Scored, objective: Objective, *, motion: Tensor | None = None
    ) -> Loss:
        """Heads and likelihoods of the scored rows; in pieces that are computed again backwards where they are big.

        4,096 rows of a vocabulary of 20,000 genes are 330 MB, several times over with their gradients.

        Args:
            states: (R, D) of the scored rows alone.
            scored: what they should have said.
            objective: how nats become a loss.
            motion: (R, 3) of `moved`, for the same rows.
        """

        def nats(states: Tensor, motion: Tensor | None, scored: Scored) -> Tensor:
            return sum_fields(self.likelihoods, self.predict(states, scored.address, motion), scored)

        width = sum(likelihood.parameters for likelihood in self.likelihoods.values())
        rows, count = max(1, HEAD_NUMBERS // width), states.shape[0]
        if count <= rows:
            return objective.reduce(nats(states, motion, scored), self.likelihoods, scored)
        parts = [
            checkpoint(
                nats,
                states[first : first + rows],
                None if motion is None else motion[first : first + rows],
                scored.rows(first, first + rows),
                use_reentrant=False,
            )
            for first in range(0, count, rows)
        ]
        return objective.reduce(torch.cat(parts), self.likelihoods, scored)
