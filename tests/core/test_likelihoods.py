"""Nats against torch.distributions and scipy, moments of samples, units, and values that were not measured."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal

from consilience.core.batch import TokenSpec
from consilience.core.likelihoods import (
    Categorical,
    Gaussian,
    NegativeBinomial,
    Velocity,
    natural_likelihoods,
)
from consilience.core.view import Scored

SYMBOLS = TokenSpec(name="symbols", vocabulary=4)
VALUES = TokenSpec(name="values", channels=3, value_shift=2.0, value_scale=5.0)
COUNTS = TokenSpec(
    name="counts", channels=2, value_likelihood="negative-binomial", value_shift=1.0, value_scale=0.7
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scored(**parts: Tensor) -> Scored:
    rows = len(next(iter(parts.values())))
    return Scored(sample=torch.arange(rows), **parts)


def test_categorical_nats():
    logits, ids = randn(50, 4), torch.arange(50) % 4
    found = Categorical(SYMBOLS).nats(logits, scored(ids=ids))
    assert torch.allclose(found, -TorchCategorical(logits=logits).log_prob(ids), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_categorical_samples_have_the_softmax_frequencies(temperature):
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    drawn = Categorical(SYMBOLS).sample(
        logits.expand(40_000, 4), torch.Generator().manual_seed(0), exposure=None, temperature=temperature
    )
    frequency = torch.bincount(drawn, minlength=4) / 40_000
    assert torch.allclose(frequency, (logits / temperature).softmax(0), atol=0.01)


def test_categorical_noise_is_double_precision():
    """float32 Gumbel noise never draws what is rarer than about 1e-7; symbols of 1e-5 come at their rate."""
    logits = torch.tensor([0.0, np.log(1e-4), -40.0, -40.0])
    drawn = Categorical(SYMBOLS).sample(
        logits.expand(200_000, 4), torch.Generator().manual_seed(0), exposure=None
    )
    assert 10 <= int((drawn == 1).sum()) <= 32
    assert not (drawn >= 2).any()


def test_gaussian_nats_in_original_units():
    parameters, values = randn(50, 6), 10 * randn(50, 3, seed=1)
    mean, log_spread = parameters.chunk(2, dim=-1)
    expected = -Normal(5 * mean + 2, 5 * log_spread.exp()).log_prob(values).sum(-1)
    assert torch.allclose(
        Gaussian(VALUES).nats(parameters, scored(values=values)), expected, rtol=1e-5, atol=1e-4
    )


def test_gaussian_nats_are_a_change_of_variable():
    """The same parameters over standardised values cost log(scale) less per channel."""
    parameters, values = randn(20, 6), 10 * randn(20, 3, seed=1)
    plain = replace(VALUES, value_shift=0.0, value_scale=1.0)
    inside = Gaussian(plain).nats(parameters, scored(values=VALUES.standardise(values)))
    outside = Gaussian(VALUES).nats(parameters, scored(values=values))
    assert torch.allclose(outside, inside + 3 * np.log(5.0), atol=1e-3)


def test_gaussian_adds_the_variance_of_the_measurement():
    parameters, values = randn(50, 6), 10 * randn(50, 3, seed=1)
    precision = 0.01 + randn(50, 3, seed=2).abs()
    mean, log_spread = parameters.double().chunk(2, dim=-1)
    spread = torch.sqrt((5 * log_spread.exp()) ** 2 + 1 / precision.double())
    expected = -scipy.stats.norm(5 * mean + 2, spread).logpdf(values).sum(-1)
    found = Gaussian(VALUES).nats(parameters, scored(values=values, precision=precision))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_unmeasured_channels_do_not_count():
    parameters, values = randn(50, 6).requires_grad_(), 10 * randn(50, 3, seed=1)
    precision = torch.ones(50, 3)
    precision[:, 1] = 0
    kept = torch.tensor([0, 2])
    both = Gaussian(VALUES).nats(parameters, scored(values=values, precision=precision))
    narrow = Gaussian(replace(VALUES, channels=2)).nats(
        parameters[:, [0, 2, 3, 5]], scored(values=values[:, kept], precision=precision[:, kept])
    )
    assert torch.allclose(both, narrow, atol=1e-5)
    both.sum().backward()
    assert not parameters.grad[:, [1, 4]].any()
    nothing = Gaussian(VALUES).nats(parameters, scored(values=0 * values, precision=0 * precision))
    assert not nothing.any()


def test_exact_values_are_the_limit_of_high_precision():
    parameters, values = randn(20, 6), 10 * randn(20, 3, seed=1)
    exact = Gaussian(VALUES).nats(parameters, scored(values=values))
    nearly = Gaussian(VALUES).nats(parameters, scored(values=values, precision=torch.full((20, 3), 1e10)))
    assert torch.allclose(exact, nearly, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_gaussian_samples_have_the_mean_and_spread(temperature):
    parameters = torch.tensor([[0.3, -1.0, 2.0, 0.0, -1.0, 0.5]])
    likelihood = Gaussian(VALUES)
    drawn = likelihood.sample(
        parameters.expand(40_000, 6), torch.Generator().manual_seed(0), exposure=None, temperature=temperature
    )
    mean = likelihood.mean(parameters, exposure=None)[0]
    spread = temperature * 5 * parameters[0, 3:].exp()
    assert torch.allclose(mean, 5 * parameters[0, :3] + 2)
    assert torch.allclose(drawn.mean(0), mean, atol=0.15)
    assert torch.allclose(drawn.std(0), spread, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("log_dispersion", [-3.0, 0.0, 3.0, 7.0])
def test_negative_binomial_nats(log_dispersion):
    """Against scipy in float64, from rare to very large counts."""
    counts = torch.tensor([[0.0, 1.0], [3.0, 40.0], [500.0, 0.0], [8000.0, 12.0]])
    log_rate = torch.tensor([[0.1, -2.0], [1.0, 3.5], [6.0, -6.0], [8.5, 2.0]])
    exposure = torch.tensor([1.0, 0.3, 2.5, 1.7])
    dispersion = np.exp(log_dispersion)
    mean = exposure[:, None].double().numpy() * np.exp(log_rate.double().numpy())
    expected = (
        -scipy.stats.nbinom(dispersion, dispersion / (dispersion + mean)).logpmf(counts.numpy()).sum(-1)
    )
    parameters = torch.cat([log_rate, torch.full((4, 2), log_dispersion)], dim=-1)
    found = NegativeBinomial(COUNTS).nats(parameters, scored(values=counts, exposure=exposure))
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_negative_binomial_sums_to_one():
    counts = torch.arange(2000.0)[:, None]
    spec = replace(COUNTS, channels=1)
    parameters = torch.tensor([[3.0, 0.5]]).expand(2000, 2)
    total = (-NegativeBinomial(spec).nats(parameters, scored(values=counts)).double()).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-4)


def test_negative_binomial_samples_have_the_mean_and_variance():
    parameters = torch.tensor([[1.5, 3.0, 0.5, 2.0]]).expand(60_000, 4)
    exposure = torch.full((60_000,), 2.0)
    likelihood = NegativeBinomial(COUNTS)
    drawn = likelihood.sample(parameters, torch.Generator().manual_seed(0), exposure=exposure)
    mean = likelihood.mean(parameters[:1], exposure=exposure[:1])[0]
    assert torch.allclose(mean, 2 * torch.tensor([1.5, 3.0]).exp())
    assert torch.equal(drawn, drawn.round())
    assert float(drawn.min()) >= 0
    assert torch.allclose(drawn.mean(0), mean, rtol=0.02)
    assert torch.allclose(drawn.var(0), mean + mean**2 / torch.tensor([0.5, 2.0]).exp(), rtol=0.04)
    mode = likelihood.sample(parameters, torch.Generator(), exposure=exposure, temperature=0)
    assert torch.equal(mode[0], mean.round())


def test_gradients_of_counts_are_finite_at_the_edges():
    parameters = torch.tensor([[-40.0, 40.0, -40.0, 40.0]]).requires_grad_()
    nats = NegativeBinomial(COUNTS).nats(parameters, scored(values=torch.tensor([[0.0, 1e5]])))
    nats.sum().backward()
    assert torch.isfinite(nats).all()
    assert torch.isfinite(parameters.grad).all()


def test_velocity_is_a_squared_error_weighted_by_trust():
    parameters, velocity = randn(10, 3), randn(10, 3, seed=1)
    likelihood = Velocity(VALUES)
    plain = likelihood.nats(parameters, scored(velocity=velocity))
    assert torch.allclose(plain, F.mse_loss(parameters, velocity, reduction="none").mean(-1))
    sure = likelihood.nats(parameters, scored(velocity=velocity, precision=torch.full((10, 3), 1e8)))
    assert torch.allclose(plain, sure, rtol=1e-4)
    assert not likelihood.nats(parameters, scored(velocity=velocity, precision=torch.zeros(10, 3))).any()


def test_natural_likelihoods_follow_the_spec():
    assert list(natural_likelihoods(SYMBOLS)) == ["ids"]
    assert isinstance(natural_likelihoods(COUNTS)["values"], NegativeBinomial)
    both = natural_likelihoods(replace(VALUES, vocabulary=3))
    assert [type(x) for x in both.values()] == [Categorical, Gaussian]
    assert [x.parameters for x in both.values()] == [3, 6]


@pytest.mark.parametrize("spec", [VALUES, COUNTS], ids=lambda s: s.name)
def test_restore_is_the_inverse_of_standardise(spec):
    values = torch.tensor([0.0, 1.0, 7.0, 300.0])
    assert torch.allclose(spec.restore(spec.standardise(values)), values, rtol=1e-4, atol=1e-4)
