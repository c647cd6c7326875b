"""Port: how one science enters and leaves the core."""

from typing import Any

import torch
from torch import Tensor, nn

from consilience.core.embedding import PairBias, TokenEmbedder
from consilience.core.kernels import apply_linear
from consilience.core.likelihoods import Field, Likelihood, NegativeBinomial
from consilience.core.objectives.base import Objective
from consilience.core.tokenizer import Tokenizer
from consilience.core.transformer import CoreConfig


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

    def _start_at_rates(self, tokenizer: Tokenizer[Any]) -> None:
        rates = tokenizer.log_rates()
        if rates is not None and isinstance(self.likelihoods.get("values"), NegativeBinomial):
            table = self.offsets["values_offset"].get_parameter("weight")
            with torch.no_grad():
                table[:, 0] = torch.as_tensor(rates, dtype=table.dtype)

    def predict(self, states: Tensor, address: Tensor | None) -> dict[Field, Tensor]:
        """Parameters of each likelihood (..., parameters).

        Args:
            states: (..., D).
            address: (...) the discrete address of the token that each row predicts; None without addresses.
        """
        found: dict[Field, Tensor] = {}
        for name in self.likelihoods:
            found[name] = apply_linear(self.heads[f"{name}_head"], states)
            if address is not None and self.spec.addresses:
                found[name] = found[name] + self.offsets[f"{name}_offset"](address)
        return found
