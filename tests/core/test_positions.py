"""Rotary attention sees differences of places alone; Fourier features see places; time starts neutral."""

import math

import pytest
import torch

from consilience.core.attention import Layout, Pattern
from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.embedding import TokenEmbedder
from consilience.core.errors import ConsilienceError
from consilience.core.kernels import rotation, turn
from consilience.core.positions import fourier_features, frequencies, rotary_angles
from consilience.core.transformer import CoreConfig, CoreInput, TimeModulation, Transformer
from consilience.core.view import View

PERIODS = (2.0, 200.0)


def scores(positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(B, N, N) products of turned queries and keys of one head."""
    planes = rotation(rotary_angles(positions, PERIODS, q.shape[-1]))
    q, k = turn(q[..., None, :], planes)[..., 0, :], turn(k[..., None, :], planes)[..., 0, :]
    return q @ k.transpose(-1, -2)


@pytest.mark.parametrize("coordinates", [1, 2, 3])
@pytest.mark.parametrize("head_width", [16, 14, 8])
def test_scores_depend_on_differences_alone(coordinates, head_width):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 5, head_width, generator=generator) for _ in range(2))
    positions = 30 * torch.rand(2, 5, coordinates, generator=generator)
    shift = torch.tensor([17.3, -4.2, 60.0])[:coordinates]
    here, there = scores(positions, q, k), scores(positions + shift, q, k)
    assert torch.allclose(here, there, atol=3e-4)  # an angle of 250 rad is good to 3e-5 in float32
    for axis in range(coordinates):
        moved = positions.clone()
        moved[:, 0, axis] += 1.0
        assert not torch.allclose(here, scores(moved, q, k), atol=1e-2), f"coordinate {axis} is not seen"


def test_turning_keeps_lengths_and_zero_turns_nothing():
    x = torch.randn(3, 4, 8)
    angles = rotary_angles(torch.rand(3, 4, 1), PERIODS, 8)
    x = x[..., None, :]
    assert torch.allclose(turn(x, rotation(angles)).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(turn(x, rotation(torch.zeros_like(angles))), x)


def test_planes_are_shared_by_coordinates_and_the_rest_do_not_turn():
    angles = rotary_angles(torch.ones(1, 1, 3), PERIODS, 16)  # 8 planes: 2 per coordinate, 2 left over
    assert angles.shape == (1, 1, 8)
    assert (angles[..., :6] != 0).all()
    assert not angles[..., 6:].any()


def test_frequencies_span_the_periods():
    turn = frequencies(PERIODS, 5)
    assert torch.allclose(2 * math.pi / turn[[0, -1]], torch.tensor(PERIODS))
    assert torch.allclose(turn[1:] / turn[:-1], (turn[1] / turn[0]).expand(4))


def test_fourier_features_are_periodic_sines_and_cosines():
    values = torch.rand(2, 3, 2)
    found = fourier_features(values, PERIODS, 4)
    assert found.shape == (2, 3, 16)
    assert torch.allclose(found[..., :8] ** 2 + found[..., 8:] ** 2, torch.ones(2, 3, 8), atol=1e-5)
    once = fourier_features(values[..., :1], (2.0, 4.0), 1)
    assert torch.allclose(once, fourier_features(values[..., :1] + 2.0, (2.0, 4.0), 1), atol=1e-5)


@pytest.mark.parametrize("coordinates", [1, 2, 3])
def test_a_rotary_core_is_blind_to_a_common_shift(coordinates):
    """Float coordinates through the whole core: states do not change when all places move together."""
    spec = TokenSpec(name="t", vocabulary=3, coordinates=coordinates, periods=PERIODS)
    config = CoreConfig(width=32, depth=2, heads=2)
    torch.manual_seed(0)
    embed, core = TokenEmbedder(spec, config), Transformer(config).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, (2, 6), generator=generator)
    positions = 20 * torch.rand(2, 6, coordinates, generator=generator)

    def states(positions: torch.Tensor) -> torch.Tensor:
        tokens = TokenBatch(length=torch.tensor([6, 6]), ids=ids, positions=positions)
        view = View(tokens=tokens, hidden=torch.zeros(2, 6, dtype=torch.bool), time=torch.ones(1))
        layout = Layout(tokens.real, Pattern())
        rows = embed(view)
        return core(CoreInput(rows=rows, layout=layout, time=view.time, angles=embed.angles(view)[0])).final

    with torch.no_grad():
        here = states(positions)
        assert torch.allclose(here, states(positions + 11.0), atol=1e-4)
        stretched = states(positions * 1.5)
    assert not torch.allclose(here, stretched, atol=1e-2)


def test_time_is_neutral_at_the_start():
    """A fresh core gives the same states at every time, and a trained modulation does not."""
    torch.manual_seed(0)
    core = Transformer(CoreConfig(width=16, depth=2, heads=2)).eval()
    assert not TimeModulation(16).forward(torch.tensor([0.3])).isnan().any()
    assert not core.time(torch.tensor([0.0, 0.5, 1.0])).any()
    layout = Layout(torch.ones(2, 4, dtype=torch.bool))
    rows = torch.randn(2, 4, 16)

    def states(time: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            return core(CoreInput(rows=rows, layout=layout, time=time, time_index=index)).final

    assert torch.equal(states(torch.tensor([0.0])), states(torch.tensor([1.0])))
    torch.nn.init.normal_(core.time.outer.weight, std=0.5)
    early, late = states(torch.tensor([0.0])), states(torch.tensor([1.0]))
    assert not torch.allclose(early, late, atol=1e-2)
    # Per-token times: all rows at level 1 of (0, 1) is the same as time 1 for all.
    levels = torch.ones(2, 4, dtype=torch.long)
    assert torch.allclose(states(torch.tensor([0.0, 1.0]), levels), late, atol=1e-6)
    levels[1] = 0
    mixed = states(torch.tensor([0.0, 1.0]), levels)
    assert torch.allclose(mixed[0], late[0], atol=1e-6)
    assert torch.allclose(mixed[1], early[1], atol=1e-6)


def test_bad_sizes_are_named():
    with pytest.raises(ConsilienceError, match="width 30 must be an even multiple of heads 4"):
        CoreConfig(width=30, heads=4)
    with pytest.raises(ConsilienceError, match="unknown mlp 'gelu'; known: squared-relu, swiglu"):
        CoreConfig(mlp="gelu")
    with pytest.raises(ConsilienceError, match="unknown residual_scale"):
        CoreConfig(residual_scale="half")
    with pytest.raises(ConsilienceError, match="dropout must lie"):
        CoreConfig(dropout=1.0)
    with pytest.raises(ConsilienceError, match="unknown attention kernel"):
        CoreConfig(kernel="fast")
    with pytest.raises(ConsilienceError, match="at least 1"):
        CoreConfig(depth=0)
