"""Classifier-free guidance: the prediction with conditions, pushed away from the one without.

    guided = (1 + w) * conditional - w * unconditional

of logits, and of velocities of flow matching (Ho & Salimans 2022, arXiv:2207.12598; others write w + 1 for this w).
w = 0 is the conditional model itself, greater w follows the conditions more closely and varies less. What is drawn with
w > 0 follows no distribution whose likelihood the model knows.

It wraps a predictor, so that every sampler gets it: each prediction is made twice.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.likelihoods import Categorical, Field, Velocity
from consilience.core.objectives.base import Predictor, Wrapped
from consilience.core.transformer import KeyValueCache
from consilience.core.view import View


@dataclass(frozen=True)
class Guided(Wrapped):
    """A model with conditions whose predictions are guided.

    Args:
        predict: the model.
        weight: w.
    """

    weight: float

    def __call__(self, view: View, *, cache: KeyValueCache | None = None) -> dict[Field, Tensor]:
        """Guided parameters of each likelihood for every row."""
        hidden = replace(view, tokens=replace(view.tokens, conditions=None))
        conditional = self.predict(view, cache=cache)
        unconditional = self.predict(hidden, cache=None if cache is None else cache.twin)
        return {
            field: (1 + self.weight) * rows.float() - self.weight * unconditional[field].float()
            for field, rows in conditional.items()
        }

    def new_cache(self, tokens: TokenBatch) -> KeyValueCache | None:
        """An empty cache of the rows with conditions; its twin holds the same rows without."""
        cache = self.predict.new_cache(tokens)
        if cache is not None:
            cache.twin = self.predict.new_cache(tokens)
        return cache


def guided(predict: Predictor, weight: float, *, conditioned: bool) -> Predictor:
    """The model with this guidance; with weight 0 the model itself.

    Args:
        predict: the model.
        weight: w, not negative.
        conditioned: whether the samples have conditions.

    Raises:
        ConsilienceError: without conditions, or where the parameters are no logits and no velocities: a sum of the
            parameters of two densities is not what guidance means.
    """
    if weight == 0:
        return predict
    if not conditioned:
        raise ConsilienceError(
            f"guidance {weight:g} needs a condition to be guided to: name one, or leave it out"
        )
    unfit = [one for one in predict.likelihoods.values() if not isinstance(one, Categorical | Velocity)]
    if unfit:
        raise ConsilienceError(
            f"guidance is for symbols and for denoising; {predict.spec.name} values have the head "
            f"{type(unfit[0]).__name__} here: leave guidance out, which draws from the plain conditional"
        )
    return Guided(predict, weight)
