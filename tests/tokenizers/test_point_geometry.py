"""Orders of points and patches of clouds against slow references."""

import numpy as np
import pytest
import torch

from consilience.core.batch import TokenBatch
from consilience.tokenizers import point_orders, point_patches
from consilience.tokenizers.point_frames import centred
from consilience.tokenizers.point_patches import make_patches
from consilience.tokenizers.point_records import PointTable
from consilience.tokenizers.points import PointTokenizer


def shapes(n: int, points: int, seed: int = 0) -> PointTable:
    positions = np.random.default_rng(seed).normal(size=(n * points, 3)).astype(np.float32)
    return PointTable(positions, np.arange(n + 1) * points)


def equal(a: TokenBatch, b: TokenBatch) -> bool:
    pairs = [
        (getattr(a, name), getattr(b, name)) for name in ("length", "ids", "values", "address", "positions")
    ]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


# --- orders ---


def grid(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)


def test_morton_codes_equal_interleaved_bits():
    cells = np.random.default_rng(0).integers(0, 2**16, (200, 3))
    slow = [int("".join("".join(bits) for bits in zip(*(f"{c:016b}" for c in cell))), 2) for cell in cells]
    assert point_orders.morton_codes(cells).tolist() == slow


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_hilbert_curve_visits_every_cell_once_and_steps_to_a_neighbour(bits):
    cells = grid(2**bits)
    codes = point_orders.hilbert_codes(cells, bits)
    assert sorted(codes.tolist()) == list(range(8**bits))
    assert (np.abs(np.diff(cells[np.argsort(codes)], axis=0)).sum(1) == 1).all()


def test_hilbert_curve_is_self_similar():
    """The first eighth of a fine curve stays in one octant, which is what keeps near cells near in the order."""
    codes = point_orders.hilbert_codes(grid(8), 3)
    octants = (grid(8) // 4) @ [4, 2, 1]
    assert all(len(set(octants[codes // 64 == part])) == 1 for part in range(8))


def test_radial_order_goes_outwards_and_the_random_one_is_a_shuffle():
    tokenizer = PointTokenizer.fit(shapes(4, 50), order="radial")
    radius = tokenizer.encode(shapes(4, 50)).values.norm(dim=-1)
    assert (radius.diff(dim=1) >= 0).all()
    shuffled = PointTokenizer.fit(shapes(4, 50), order="random").encode(shapes(4, 50)).values.norm(dim=-1)
    assert not (shuffled.diff(dim=1) >= 0).all(1).any()


def test_random_order_is_drawn_anew_with_a_generator_only():
    clouds = shapes(3, 20)
    tokenizer = PointTokenizer.fit(clouds, order="random", augment="none")
    assert equal(tokenizer.encode(clouds), tokenizer.encode(clouds))
    first, second = (
        tokenizer.encode(clouds, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert not equal(first, second)
    assert equal(first, tokenizer.encode(clouds, generator=torch.Generator().manual_seed(0)))


# --- patches ---


def slow_patches(x: np.ndarray, n_patches: int, size: int) -> tuple[list[int], list[list[int]]]:
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    centres = [int(np.linalg.norm(x, axis=1).argmax())]
    while len(centres) < n_patches:
        centres.append(int(distance[:, centres].min(1).argmax()))
    return centres, [np.argsort(distance[c], kind="stable")[:size].tolist() for c in centres]


@pytest.mark.parametrize("chunk", [100, 300, 2**15])
def test_patches_equal_a_slow_reference_for_clouds_of_any_size(monkeypatch, chunk):
    monkeypatch.setattr(point_patches, "CHUNK_POINTS", chunk)
    rng = np.random.default_rng(0)
    clouds = [rng.normal(size=(n, 3)) for n in (40, 100, 64, 33)]
    width = max(map(len, clouds))
    padded, real = np.zeros((4, width, 3)), np.zeros((4, width), dtype=bool)
    for i, x in enumerate(clouds):
        padded[i, : len(x)], real[i, : len(x)] = x, True
    centres, members = make_patches(padded, real, 16, 8)
    for i, x in enumerate(clouds):
        slow_centres, slow_members = slow_patches(x, 16, 8)
        assert centres[i].tolist() == slow_centres
        assert members[i].tolist() == slow_members


def test_a_patch_holds_offsets_from_its_centre_nearest_first():
    clouds = shapes(5, 100)
    tokenizer = PointTokenizer.fit(clouds, tokens="patches", n_patches=10, patch_size=12)
    tokens = tokenizer.encode(clouds)
    assert tokens.values.shape == (5, 10, 36) and tokens.positions.shape == (5, 10, 3)
    offsets = tokens.values.reshape(5, 10, 12, 3)
    assert (offsets[:, :, 0] == 0).all()
    assert (offsets.norm(dim=-1).diff(dim=2) >= 0).all()
    assert tokenizer.spec.value_scale == pytest.approx(float(offsets.square().mean().sqrt()), rel=1e-6)


def test_patches_give_the_points_back_once_each():
    clouds = shapes(3, 60)
    tokenizer = PointTokenizer.fit(clouds, tokens="patches", n_patches=60, patch_size=4)
    for cloud, back in zip(clouds, tokenizer.decode(tokenizer.encode(clouds))):
        assert len(back) == 60
        wanted = cloud.positions - cloud.positions.mean(0)
        distance = np.linalg.norm(wanted[:, None] - back.positions[None], axis=2)
        assert distance.min(1).max() < 1e-5 and distance.min(0).max() < 1e-5


def test_a_cloud_with_fewer_points_than_patches_gets_one_patch_a_point():
    tokenizer = PointTokenizer.fit(shapes(2, 50), tokens="patches", n_patches=20, patch_size=5)
    mixed = [shapes(1, 8)[0], shapes(1, 50)[0]]
    tokens = tokenizer.encode(mixed)
    assert tokens.length.tolist() == [8, 20] == tokenizer.lengths(mixed).tolist()
    assert len({tuple(place) for place in tokens.positions[0, :8].tolist()}) == 8
    assert (tokens.values[0, 8:] == 0).all() and (tokens.positions[0, 8:] == 0).all()


def test_grids_and_centring_do_not_depend_on_padding() -> None:
    rng = np.random.default_rng(0)
    full, real = rng.normal(size=(4, 20, 3)), np.ones((4, 20), dtype=bool)
    padded = np.concatenate([full, np.zeros((4, 5, 3))], axis=1)
    some = np.concatenate([real, np.zeros((4, 5), dtype=bool)], axis=1)
    np.testing.assert_array_equal(
        point_orders.grid_cells(full, real), point_orders.grid_cells(padded, some)[:, :20]
    )
    np.testing.assert_array_equal(centred(full, real), centred(padded, some)[:, :20])
    assert not centred(padded, some)[:, 20:].any()


@pytest.mark.parametrize("order_shape", [(3, 4), (3, 2, 5)])
def test_gathering_equals_an_index_into_both_axes(order_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    order = rng.integers(0, 7, order_shape)
    rows = np.arange(3).reshape(3, *[1] * (len(order_shape) - 1))
    for array in (rng.normal(size=(3, 7)), rng.normal(size=(3, 7, 9))[..., :3], rng.normal(size=(3, 7, 0))):
        np.testing.assert_array_equal(point_orders.gather_rows(array, order), array[rows, order])
