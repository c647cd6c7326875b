"""geometry='invariant': embeddings of molecules do not turn, move, mirror or follow the order of their atoms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.transformer import CoreConfig
from consilience.tokenizers.point_frames import random_rotations
from consilience.tokenizers.point_records import PointCloud, PointTable
from consilience.tokenizers.points import PointTokenizer

ELEMENTS = np.array(["H", "C", "N", "O", "F"])


def molecule(seed: int, atoms: int) -> PointCloud:
    """Atoms at least 0.8 Å apart, in float64 as readers of exact files give them."""
    rng = np.random.default_rng(seed)
    places: list[np.ndarray] = []
    while len(places) < atoms:
        place = rng.normal(size=3) * atoms ** (1 / 3)
        if all(np.linalg.norm(place - other) > 0.8 for other in places):
            places.append(place)
    return PointCloud(np.array(places), rng.choice(ELEMENTS, atoms), unit="angstrom")


@pytest.fixture(scope="module")
def models() -> dict[str, FoundationModel]:
    """An invariant and an absolute model with weights away from their start."""
    clouds = PointTable.of([molecule(seed, 4 + seed % 9) for seed in range(40)])
    found = {}
    for geometry in ("invariant", "absolute"):
        torch.manual_seed(0)
        tokenizer = PointTokenizer.fit(clouds, geometry=geometry)
        model = FoundationModel(CoreConfig(width=32, depth=2, heads=4), {"points": tokenizer}, Denoising())
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (
                    0.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
                )
        found[geometry] = model.eval()
    return found


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    atoms=st.integers(2, 20),
    shift=st.tuples(*[st.floats(-100, 100)] * 3),
    mirror=st.booleans(),
    neighbour=st.integers(2, 30),
)
def test_embeddings_stay(models, seed, atoms, shift, mirror, neighbour):
    """Turned, mirrored, moved, reordered, and padded beside a molecule of another size."""
    cloud, other = molecule(seed, atoms), molecule(seed + 1, neighbour)
    turn = random_rotations(1, torch.Generator().manual_seed(seed))[0] * (-1 if mirror else 1)
    order = np.random.default_rng(seed).permutation(atoms)
    moved = PointCloud((cloud.positions @ turn + shift)[order], cloud.types[order], unit="angstrom")
    wanted = models["invariant"].embed([cloud]).vectors[0]
    found = models["invariant"].embed([moved, other]).vectors[0]
    assert distance(found, wanted) < 1e-5


def test_distances_types_and_the_absolute_model_do_change_embeddings(models):
    """Controls: a constant embedding would pass the test above."""
    cloud = molecule(3, 8)
    wanted = models["invariant"].embed([cloud]).vectors[0]
    stretched = PointCloud(1.05 * cloud.positions, cloud.types, unit="angstrom")
    swapped = PointCloud(cloud.positions, np.roll(cloud.types, 1), unit="angstrom")
    for changed in (stretched, swapped):
        assert distance(models["invariant"].embed([changed]).vectors[0], wanted) > 1e-3
    turn = random_rotations(1, torch.Generator().manual_seed(0))[0]
    turned = PointCloud(cloud.positions @ turn, cloud.types, unit="angstrom")
    before, after = (models["absolute"].embed([one]).vectors[0] for one in (cloud, turned))
    assert distance(after, before) > 1e-2


def test_a_saved_model_keeps_its_geometry(models, tmp_path):
    clouds = [molecule(seed, 6) for seed in range(3)]
    loaded = FoundationModel.load(models["invariant"].save(tmp_path / "model"))
    assert loaded.tokenizers["points"].spec.invariant
    assert np.array_equal(loaded.embed(clouds).vectors, models["invariant"].embed(clouds).vectors)


def test_a_state_from_before_the_option_is_absolute(models):
    state = models["absolute"].tokenizers["points"].state()
    assert "geometry" not in state["options"], "written where it says something only"
    tokenizer = PointTokenizer.from_state(state)
    assert not tokenizer.spec.invariant
    assert tokenizer.spec == models["absolute"].tokenizers["points"].spec


def test_types_as_content_and_generation(models):
    clouds = PointTable.of([molecule(seed, 5) for seed in range(10)])
    tokenizer = PointTokenizer.fit(clouds, geometry="invariant", types="content")
    model = FoundationModel(CoreConfig(width=16, depth=1, heads=2), {"points": tokenizer}, Denoising())
    made = model.generate(3, steps=4)
    assert [len(cloud) for cloud in made] == [5, 5, 5]
    assert max(np.abs(cloud.positions.mean(0)).max() for cloud in made) < 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": "patches", "types": "ignore"},
        {"slots": True},
        {"pairwise_bias": True},
        {"position": "rotary"},
    ],
)
def test_options_that_give_the_frame_away_are_refused(wrong):
    with pytest.raises(ConsilienceError, match="geometry='invariant'"):
        PointTokenizer.fit([molecule(0, 5)], geometry="invariant", **wrong)
