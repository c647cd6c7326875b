"""Any-order: next-token in a new random order for every sample and step.

E over orders of sum_i -log p(x_s(i) | x_s(<i)): exact for each order drawn, and its mean over orders equals the
bound of masked diffusion (Uria et al. 2014, arXiv:1310.1757; Hoogeboom et al. 2021, arXiv:2110.02037; Pannatier et
al. 2024, arXiv:2404.09562). One model then fills in any tokens from any others.
"""

from dataclasses import dataclass

from consilience.core.errors import ConsilienceError
from consilience.core.objectives.next_token import NextToken
from consilience.core.objectives.orders import Order


@dataclass(frozen=True, kw_only=True)
class AnyOrder(NextToken):
    """Autoregression in random orders under a name of its own; see `NextToken`."""

    order: Order = "random"

    name = "any-order"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order != "random":
            raise ConsilienceError(
                f"any-order: the order is random, not {self.order}; use next-token with order={self.order}"
            )
