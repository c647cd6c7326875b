"""Noise of one level: the best prediction is the score of the noisy data, and nothing more is claimed."""

import numpy as np
import pytest
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.synthetic_tokenizer import SyntheticTokenizer

LEVEL = 0.4
MEANS, SPREAD, SHARE = np.array([-1.0, 1.5]), 0.3, np.array([0.35, 0.65])
SPEC = TokenSpec(name="mixture", channels=1, value_scale=2.0, value_shift=0.5)


class Mixture:
    """One token a sample whose value is one of two Gaussians."""

    name, spec = "mixture", SPEC

    def tokens(self, n: int, generator: torch.Generator) -> TokenBatch:
        chosen = torch.rand(n, generator=generator) < SHARE[1]
        means = torch.tensor(MEANS, dtype=torch.float32)[chosen.long()]
        values = means + SPREAD * torch.randn(n, generator=generator)
        return TokenBatch(length=torch.ones(n, dtype=torch.int64), values=values[:, None, None])


def scaled_score(x: np.ndarray) -> np.ndarray:
    """LEVEL times the derivative of log p of the noisy mixture, in original units."""
    variance = SPREAD**2 + LEVEL**2
    log_parts = np.log(SHARE) - 0.5 * (x[:, None] - MEANS) ** 2 / variance
    weight = np.exp(log_parts - log_parts.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return LEVEL * (weight * (MEANS - x[:, None]) / variance).sum(1)


def test_the_mean_target_given_the_noisy_value_is_the_score(tools):
    """Tweedie's formula on the objective itself, without any model: 400,000 draws, in bins of the noisy value."""
    tokens = Mixture().tokens(400_000, tools.seeded())
    view, targets = Denoising(noise=LEVEL).view(tokens, SPEC, tools.seeded(1))
    x = SPEC.restore(view.tokens.values).double().numpy().ravel()
    target = targets.velocity.double().numpy().ravel()
    edges = np.linspace(-2, 2.5, 31)
    place = np.digitize(x, edges)
    for i in range(1, len(edges)):
        inside = place == i
        wanted = scaled_score(x[inside]).mean()
        error = target[inside].std() / np.sqrt(inside.sum())
        assert abs(target[inside].mean() - wanted) < 5 * error, (
            f"between {edges[i - 1]:.2f} and {edges[i]:.2f}"
        )


def test_a_trained_model_predicts_the_score(tools):
    torch.manual_seed(0)
    source = Mixture()
    model = FoundationModel(
        tools.tiny, {source.name: SyntheticTokenizer(source)}, Denoising(noise=LEVEL)
    ).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = tools.seeded(2)
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 4e-3 * min(1.0, 2 * (1 - step / 400))
        loss = model.loss({source.name: source.tokens(512, generator)}, generator)[source.name]
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
    assert loss.kind == "surrogate"
    x = torch.linspace(-1.6, 2.1, 50)
    grid = TokenBatch(length=torch.ones(50, dtype=torch.int64), values=x[:, None, None])
    with torch.no_grad():
        found = model.eval().predictor()(model.objective.observe(grid, SPEC))["values"].ravel().numpy()
    wanted = scaled_score(x.double().numpy())
    assert np.sqrt(np.square(found - wanted).mean()) < 0.1 * wanted.std()


def test_it_is_a_surrogate_that_keeps_symbols_and_generates_nothing(tools):
    objective = Denoising(noise=0.1)
    spec, tokens = tools.spec_of("mixed"), tools.batch_of("mixed")
    view, targets = objective.view(tokens, spec, tools.seeded())
    assert torch.equal(view.tokens.ids, tokens.ids), "symbols are not erased at one small level"
    assert not targets.erased.any()
    moved = (view.tokens.values - spec.standardise(tokens.values)).abs().amax(-1) > 0
    assert torch.equal(moved, tokens.real & ~tokens.given)
    model = tools.model_of(spec, objective)
    assert model.evaluate(tokens).kind == "surrogate"
    assert tools.model_of(SPEC, objective).evaluate(Mixture().tokens(4, tools.seeded())).kind == "surrogate"
    with pytest.raises(ConsilienceError, match="cannot generate: train denoising without noise="):
        model.fill(tokens, tokens.real)


def test_without_a_level_nothing_changed(tools):
    """The whole path draws what it drew before the option was there: noise, times and erasures, in this order."""
    spec, tokens, generator = tools.spec_of("mixed"), tools.batch_of("mixed"), tools.seeded(4)
    view, _ = Denoising().view(tokens, spec, tools.seeded(4))
    clean = spec.standardise(tokens.values)
    noise = torch.randn(clean.shape, generator=generator)
    jitter, order = torch.rand(5, generator=generator), torch.randperm(5, generator=generator)
    t = ((order + jitter) / 5)[:, None, None]
    free = tokens.real & ~tokens.given
    assert torch.equal(view.tokens.values, torch.where(free[..., None], (1 - t) * noise + t * clean, clean))


@pytest.mark.parametrize("noise", [0.0, -0.1, float("inf"), float("nan")])
def test_levels_that_are_none(noise):
    with pytest.raises(ConsilienceError, match="noise must be a positive number"):
        Denoising(noise=noise)


def test_counts_are_refused():
    spec = TokenSpec(name="counts", channels=1, value_likelihood="negative-binomial")
    with pytest.raises(ConsilienceError, match="tokens are counts; leave noise out"):
        Denoising(noise=0.1).likelihoods(spec)
