"""The ways back from an objective to data: autoregression, unmasking, transport."""

from consilience.core.samplers.autoregressive import autoregress
from consilience.core.samplers.transport import log_likelihood, transport
from consilience.core.samplers.unmasking import unmask

__all__ = ["autoregress", "log_likelihood", "transport", "unmask"]
