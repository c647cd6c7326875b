"""The information profile against exact curves, enumeration, and the entropy that all its areas must reach."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.information import (
    captured_dependence,
    erasure_profile,
    exact_erasure,
    exact_gaussian,
    gaussian_profile,
    paired_captured_dependence,
    profiled_by,
)
from consilience.core.objectives import Denoising, Masked, MaskedDiffusion, NextToken
from consilience.core.oracle import Oracle
from consilience.core.profiles import ErasureProfile, GaussianProfile
from consilience.core.synthetic import GaussianAR1, MarkovChain, Source
from consilience.core.unmasking_cost import parallel_unmasking_gap, steps_needed

CHAIN, AR1 = MarkovChain(), GaussianAR1(mean=3.0, spread=2.0)
SOURCES = pytest.mark.parametrize("source", [CHAIN, AR1], ids=lambda source: source.name)


def samples(source: Source, n: int, seed: int = 1) -> TokenBatch:
    return source.tokens(n, torch.Generator().manual_seed(seed))


@cache
def profile_of(source: Source, n: int = 20_000) -> ErasureProfile:
    return erasure_profile(Oracle(source, MaskedDiffusion()), samples(source, n), draws=2, batch_size=4096)


@cache
def flow_profile_of(n: int = 20_000) -> GaussianProfile:
    return gaussian_profile(Oracle(AR1, Denoising()), samples(AR1, n), batch_size=4096)


def exact_profile(source: Source, nodes: int = 8) -> ErasureProfile:
    places, weights = np.polynomial.legendre.leggauss(nodes)
    rates = np.concatenate([[0.0], (places + 1) / 2, [1.0]])
    return ErasureProfile(
        rates=rates,
        weights=np.concatenate([[0.0], weights / 2, [0.0]]),
        nats=source.length * exact_erasure(source, rates)[None],
        tokens=np.array([source.length]),
        kind="bound",
    )


def within(estimate, truth: float, errors: float = 3.0) -> bool:
    return abs(estimate.value - truth) < errors * estimate.error


@SOURCES
def test_the_perfect_model_has_the_exact_curve(source):
    profile = profile_of(source)
    exact = exact_erasure(source, profile.rates)
    assert profile.kind == "bound"
    assert len(profile.rates) == 10
    assert (np.abs(profile.curve - exact) < 3 * profile.curve_error).all()
    assert profile.curve_error.max() < 0.005
    assert profile.leave_one_out.value == pytest.approx(profile.curve[0])
    assert profile.marginal.error == pytest.approx(profile.curve_error[-1])


@SOURCES
def test_the_area_is_the_entropy_and_the_parts_beside_it_are_the_correlations(source):
    profile = profile_of(source)
    assert within(profile.entropy, source.entropy)
    assert profile.entropy.value == pytest.approx(source.entropy, rel=0.01)
    n = source.length
    for estimate, per_token, truth in (
        (profile.total_correlation, profile.total_correlation_per_token, source.total_correlation),
        (
            profile.dual_total_correlation,
            profile.dual_total_correlation_per_token,
            source.dual_total_correlation,
        ),
    ):
        assert within(estimate, truth)
        assert estimate.value == pytest.approx(truth, rel=0.02)
        assert per_token.value == pytest.approx(estimate.value / n)
        assert per_token.error == pytest.approx(estimate.error / n)
    # Sample by sample the area is the true nll, but for the sets drawn: the noise of the source cancels.
    excess = profile.area - source.nll(samples(source, 20_000)).numpy()
    assert abs(excess.mean()) < 3 * excess.std() / math.sqrt(len(excess))


@SOURCES
def test_quadrature_is_exact_for_exact_curves(source):
    profile = exact_profile(source)
    assert profile.entropy.value == pytest.approx(source.entropy, abs=1e-12)
    assert profile.total_correlation.value == pytest.approx(source.total_correlation, abs=1e-11)
    assert profile.dual_total_correlation.value == pytest.approx(source.dual_total_correlation, abs=1e-11)
    assert math.isnan(profile.entropy.error), "one sample has no spread"


def test_correlations_of_the_gaussian_source_in_closed_form():
    covariance = AR1.covariance
    assert AR1.total_correlation == pytest.approx(-0.5 * float(torch.logdet(covariance)))
    # H(x) - sum H(x_i | rest), where the variance of x_i given the rest is 1 / precision_ii.
    alone = -0.5 * float(torch.linalg.inv(covariance).diagonal().log().sum())
    assert AR1.dual_total_correlation == pytest.approx(0.5 * float(torch.logdet(covariance)) - alone)


@pytest.mark.parametrize(
    ("source", "objective"),
    [(CHAIN, Masked()), (GaussianAR1(), MaskedDiffusion())],
    ids=lambda case: case.name,
)
def test_a_trained_model_lies_little_above_the_entropy(source, objective, tools):
    tokens = samples(source, 4000, seed=999)
    profile = erasure_profile(tools.trained(source, objective).predictor(), tokens, seed=5)
    truth = erasure_profile(Oracle(source, objective), tokens, seed=5)
    nll = source.nll(tokens).numpy()
    assert -0.01 < (profile.area - nll).sum() / tokens.n_tokens < 0.04
    excess = profile.curve - truth.curve  # same seed, same views: the noise cancels
    assert (excess > -0.01).all()
    assert (excess < 0.06).all()
    assert abs(profile.total_correlation_per_token.value - source.total_correlation / 6) < 0.04


@SOURCES
def test_standard_errors_cover(source):
    """A large profile cut into 200 small ones: three estimates, each within two errors 95 times of 100."""
    profile, size = profile_of(source), 100
    pulls = []
    for first in range(0, 20_000, size):
        rows = slice(first, first + size)
        small = replace(profile, nats=profile.nats[rows], tokens=profile.tokens[rows])
        for estimate, truth in (
            (small.entropy, source.entropy),
            (small.total_correlation, source.total_correlation),
            (small.dual_total_correlation, source.dual_total_correlation),
            (small.leave_one_out, source.masked_curve(0.0)),
        ):
            pulls.append((estimate.value - truth) / estimate.error)
    pulls = np.array(pulls).reshape(-1, 4)
    assert (np.abs((np.abs(pulls) < 2).mean(0) - 0.95) < 0.05).all()
    assert np.allclose(pulls.std(0), 1, atol=0.2)


def test_ragged_lengths_are_weighted_by_tokens_and_their_errors_cover():
    generator = torch.Generator().manual_seed(3)
    tokens = samples(CHAIN, 12_000)
    length = torch.randint(1, 7, (tokens.size,), generator=generator)
    profile = erasure_profile(
        Oracle(CHAIN, Masked()), replace(tokens, length=length), draws=1, batch_size=4096
    )
    chains = [MarkovChain(length=n) for n in range(1, 7)]

    def truth(per_sample) -> float:
        return sum(per_sample(chain) for chain in chains) / sum(chain.length for chain in chains)

    exact = [truth(lambda chain, r=r: chain.length * chain.masked_curve(r)) for r in profile.rates]
    assert profile.tokens.tolist() == length.tolist()
    assert (np.abs(profile.curve - exact) < 3.5 * profile.curve_error).all()
    assert within(profile.entropy, truth(lambda chain: chain.length * chain.entropy))
    assert within(profile.total_correlation, sum(chain.total_correlation for chain in chains) / 6)
    assert within(profile.dual_total_correlation_per_token, truth(lambda chain: chain.dual_total_correlation))
    pulls = []
    for first in range(0, 12_000, 100):
        rows = slice(first, first + 100)
        small = replace(profile, nats=profile.nats[rows], tokens=profile.tokens[rows])
        pulls.append((small.entropy.value - profile.entropy.value) / small.entropy.error)
    assert np.std(pulls) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("kind", ["ids", "values", "weighted", "counts", "mixed", "cloud"])
def test_padding_neighbours_and_given_tokens_do_not_change_numbers(kind, tools):
    tokens = tools.batch_of(kind)
    model = tools.model_of(tools.spec_of(kind), MaskedDiffusion())
    profile = erasure_profile(model.predictor(), tokens, nodes=3)
    assert profile.tokens.tolist() == [6, 3, 5, 6, 1], "the first token of every sample is given"
    assert np.isfinite(profile.nats).all()
    padded = erasure_profile(model.predictor(), tokens.pad(12), nodes=3, batch_size=2)
    assert np.allclose(padded.nats, profile.nats, rtol=1e-4, atol=1e-4)
    garbled = replace(tokens, ids=None if tokens.ids is None else tokens.ids.masked_fill(~tokens.real, 1))
    if tokens.values is not None:
        garbled = replace(garbled, values=tokens.values.masked_fill(~tokens.real[..., None], 3.0))
    again = erasure_profile(model.predictor(), garbled, nodes=3)
    assert np.allclose(again.nats, profile.nats, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["values", "weighted", "counts", "mixed", "cloud"])
def test_padding_does_not_change_a_gaussian_profile(kind, tools):
    tokens = tools.batch_of(kind)
    model = tools.model_of(tools.spec_of(kind), Denoising())
    profile = gaussian_profile(model.predictor(), tokens, nodes=6)
    assert profile.kind == ("bound" if kind == "values" else "surrogate")
    padded = gaussian_profile(model.predictor(), tokens.pad(12), nodes=6, batch_size=2)
    assert np.allclose(padded.errors, profile.errors, rtol=1e-4, atol=1e-4)
    free = tokens.real & ~tokens.given
    if kind == "weighted":
        assert profile.dimensions.tolist() == ((tokens.weight > 0) & free[..., None]).sum((1, 2)).tolist()
    else:
        assert profile.dimensions.tolist() == (free.sum(1) * tokens.values.shape[2]).tolist()


def test_unmeasured_channels_do_not_count(tools):
    tokens = tools.batch_of("weighted")
    model = tools.model_of(tools.spec_of("weighted"), Denoising())
    found = gaussian_profile(model.predictor(), replace(tokens, weight=torch.zeros_like(tokens.weight)))
    assert not found.errors.any()


def test_samples_without_predictable_tokens_count_for_nothing(tools):
    tokens = tools.batch_of("ids", lengths=(7, 1, 4))
    predict = tools.model_of(tools.spec_of("ids"), Masked()).predictor()
    profile = erasure_profile(predict, tokens)
    assert profile.tokens.tolist() == [6, 0, 3]
    assert not profile.nats[1].any()
    with pytest.raises(ConsilienceError, match="no token to predict"):
        erasure_profile(predict, tools.batch_of("ids", lengths=(1, 1)))


def test_content_without_a_density_makes_a_surrogate(tools):
    for objective, measure in ((Masked(), erasure_profile), (Denoising(), gaussian_profile)):
        tokens = tools.batch_of("values")
        spec = replace(tools.spec_of("values"), constrained=True)
        assert measure(tools.model_of(spec, objective).predictor(), tokens).kind == "surrogate"


def test_the_gaussian_channel_integrates_to_the_entropy_with_the_exact_error():
    for source in (AR1, GaussianAR1(length=64, correlation=0.98)):
        n, grid = source.length, np.linspace(-7, 9, 24)
        profile = GaussianProfile(
            log_snr=grid,
            errors=n * exact_gaussian(source, grid)[None],
            dimensions=np.array([n]),
            tokens=np.array([n]),
            value_scale=source.spread,
            kind="bound",
        )
        assert profile.entropy.value == pytest.approx(source.entropy, abs=2e-4)


def test_the_perfect_denoiser_has_the_exact_error_and_entropy():
    profile = flow_profile_of()
    exact = exact_gaussian(AR1, profile.log_snr)
    assert profile.kind == "bound"
    assert profile.mmse == pytest.approx(exact, rel=0.03)
    assert (np.abs(profile.mmse - exact) < 3.5 * profile.mmse_error).all()
    assert within(profile.entropy, AR1.entropy)
    assert profile.entropy.value == pytest.approx(AR1.entropy, rel=0.01)
    excess = profile.nats - AR1.nll(samples(AR1, 20_000)).numpy()
    assert abs(excess.mean()) < 3 * excess.std() / math.sqrt(len(excess))
    pulls = []
    for first in range(0, 20_000, 100):
        rows = slice(first, first + 100)
        parts = {name: getattr(profile, name)[rows] for name in ("errors", "dimensions", "tokens")}
        small = replace(profile, **parts).entropy
        pulls.append((small.value - AR1.entropy) / small.error)
    assert np.std(pulls) == pytest.approx(1, abs=0.2)


def test_a_trained_denoiser_lies_little_above_the_entropy(tools):
    source = GaussianAR1()
    tokens = samples(source, 4000, seed=999)
    profile = gaussian_profile(tools.trained(source, Denoising()).predictor(), tokens, seed=5)
    truth = gaussian_profile(Oracle(source, Denoising()), tokens, seed=5)
    # Every e-fold of the signal-to-noise ratio counts an excess error alike: more than one loss that averages over t.
    assert -0.01 < (profile.nats - truth.nats).sum() / tokens.n_tokens < 0.05
    assert abs(profile.entropy.value - source.entropy) < 0.06


def brute_force_gap(source: MarkovChain, steps: int) -> float:
    """Mean over ordered partitions of the KL divergence of parallel draws, by enumeration of all sequences."""
    n = source.length
    ids = torch.tensor(list(itertools.product(range(len(source.transition)), repeat=n)))
    tokens = TokenBatch(length=torch.full((len(ids),), n), ids=ids)
    log_p = -source.nll(tokens)
    bounds = [n * step // steps for step in range(steps + 1)]
    divergences = {}
    for order in itertools.permutations(range(n)):
        parts = tuple(tuple(sorted(order[a:b])) for a, b in itertools.pairwise(bounds))
        if parts in divergences:  # as many permutations for each partition
            continue
        log_q, visible = torch.zeros_like(log_p), torch.zeros(len(ids), n, dtype=torch.bool)
        for part in parts:
            answers = source.parameters(tokens, visible)["ids"]
            for place in part:
                log_q = log_q + answers[:, place].gather(1, ids[:, place : place + 1])[:, 0]
            visible[:, list(part)] = True
        divergences[parts] = float((log_p.exp() * (log_p - log_q)).sum())
    return float(np.mean(list(divergences.values())))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_cost_of_parallel_unmasking_by_enumeration(steps):
    exact = brute_force_gap(CHAIN, steps)
    assert parallel_unmasking_gap(exact_profile(CHAIN), 6, steps) == pytest.approx(exact, abs=1e-6)
    assert parallel_unmasking_gap(profile_of(CHAIN), 6, steps) == pytest.approx(exact, abs=0.1)


@SOURCES
def test_one_step_costs_the_total_correlation_and_single_tokens_nothing(source):
    for profile in (exact_profile(source), profile_of(source)):
        one = parallel_unmasking_gap(profile, 6, 1)
        assert one == pytest.approx(profile.total_correlation.value, abs=1e-3)
        assert parallel_unmasking_gap(profile, 6, 6) == pytest.approx(0, abs=1e-9)
        assert steps_needed(profile, 6, one + 1e-3) == 1
        assert steps_needed(profile, 6, 0.0) == 6
        enough = steps_needed(profile, 6, 0.5)
        assert parallel_unmasking_gap(profile, 6, enough) <= 0.5
        assert parallel_unmasking_gap(profile, 6, enough - 1) > 0.5


def hypergeometric_curve(source: Source) -> np.ndarray:
    """Z_j: uncertainty with j random others known, by the law of the nearest known neighbours."""
    n = source.length
    uncertainty = cache(source.uncertainty)
    curve = np.zeros(n)
    for known, place in itertools.product(range(n), range(n)):
        left, right = place, n - 1 - place
        for a, b in itertools.product([*range(1, left + 1), None], [*range(1, right + 1), None]):
            found = (a is not None) + (b is not None)
            room = (left - a if a else 0) + (right - b if b else 0)
            if found <= known and known - found <= room:
                curve[known] += (
                    math.comb(room, known - found) / math.comb(n - 1, known) * uncertainty(a, b) / n
                )
    return curve


def test_the_cost_of_unmasking_a_longer_chain():
    """More tokens than rates: the curve between its knots is interpolated."""
    source = GaussianAR1(length=24)
    curve = hypergeometric_curve(source)
    assert curve.mean() == pytest.approx(source.entropy)
    for steps in (1, 2, 3, 6, 12):
        bounds = [24 * step // steps for step in range(steps + 1)]
        exact = sum((b - a) * curve[a] for a, b in itertools.pairwise(bounds)) - curve.sum()
        found = parallel_unmasking_gap(exact_profile(source, nodes=12), 24, steps)
        assert found == pytest.approx(exact, rel=0.02)


def test_a_single_token_needs_a_single_step():
    assert steps_needed(exact_profile(CHAIN), 1, 0.0) == 1
    assert parallel_unmasking_gap(exact_profile(CHAIN), 1, 1) == 0


def test_captured_dependence_has_no_unit():
    """The same samples in metres and in millimetres: log 1000 a token in both terms."""
    tokens = samples(AR1, 500)
    count = np.full(500, 6)
    model = AR1.nll(tokens).numpy()
    alone = GaussianAR1(length=1, mean=3.0, spread=2.0)
    single = replace(tokens, length=torch.ones(3000).long(), values=tokens.values.reshape(-1, 1, 1))
    marginal = alone.nll(replace(single, address=torch.zeros(3000, 1).long())).reshape(500, 6).sum(1).numpy()
    found = paired_captured_dependence(marginal, model, count)
    assert found.value == pytest.approx(captured_dependence(marginal.sum(), model.sum(), 3000))
    assert within(found, AR1.total_correlation / 6)
    shift = count * math.log(1000)
    other = paired_captured_dependence(marginal + shift, model + shift, count)
    assert other.value == pytest.approx(found.value)
    assert other.error == pytest.approx(found.error)
    assert found.error < (marginal / 6).std() / math.sqrt(500), "paired"


def test_which_models_qualify():
    assert profiled_by(Masked()) == profiled_by(MaskedDiffusion()) == "erasure"
    assert profiled_by(Denoising()) == "gaussian"
    assert profiled_by(Masked(rate=0.15)) is profiled_by(NextToken()) is None


def test_wrong_models_and_options_are_named():
    tokens = samples(AR1, 4)
    with pytest.raises(ConsilienceError, match="use gaussian_profile"):
        erasure_profile(Oracle(AR1, Denoising()), tokens)
    with pytest.raises(ConsilienceError, match="use erasure_profile"):
        gaussian_profile(Oracle(AR1, Masked()), tokens)
    with pytest.raises(ConsilienceError, match="at least 1, not 0"):
        erasure_profile(Oracle(AR1, Masked()), tokens, nodes=0)
    with pytest.raises(ConsilienceError, match="no grid of 1 points"):
        gaussian_profile(Oracle(AR1, Denoising()), tokens, nodes=1)
    with pytest.raises(ConsilienceError, match=r"steps must lie in 1\.\.6"):
        parallel_unmasking_gap(exact_profile(CHAIN), 6, 7)
    with pytest.raises(ConsilienceError, match="no steps for 6 tokens within -1"):
        steps_needed(exact_profile(CHAIN), 6, -1)
    with pytest.raises(ConsilienceError, match="has no values"):
        exact_gaussian(CHAIN, np.zeros(1))
