"""A model seen through one science: what samplers and likelihoods ask."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.likelihoods import Field, Likelihood
from consilience.core.port import Port
from consilience.core.transformer import KeyValueCache
from consilience.core.view import View

if TYPE_CHECKING:
    from consilience.core.network import Network


@dataclass(frozen=True)
class DomainPredictor:
    """A model seen through one science; see `core.objectives.base.Predictor`."""

    model: "Network"
    domain: str

    @property
    def port(self) -> Port:
        """The embedder and heads of the science."""
        return self.model.port(self.domain)

    @property
    def spec(self) -> TokenSpec:
        """The tokens of the science."""
        return self.port.spec

    @property
    def likelihoods(self) -> dict[Field, Likelihood]:
        """The likelihood of each field."""
        return self.port.likelihoods

    def __call__(self, view: View, *, cache: KeyValueCache | None = None) -> dict[Field, Tensor]:
        """Parameters of each likelihood for every row."""
        asked = view.tokens.address if view.ask_address is None else view.ask_address
        states = self.model.forward({self.domain: view}, cache=cache).final
        return self.port.predict(states, asked, self.port.moved(view, states))

    def new_cache(self, tokens: TokenBatch) -> KeyValueCache | None:
        """An empty key-value cache; None where a pairwise bias would need more of a row than that."""
        context = tokens.context or {}
        ports = [self.port, *map(self.model.port, context)]
        if any(port.pair_bias is not None or port.distances is not None for port in ports):
            return None
        rows = tokens.width + sum(other.width + 1 for other in context.values())  # each after a start mark
        return KeyValueCache(self.model.core_config, tokens.size, rows, next(self.model.parameters()))
