"""Point clouds <-> tokens: orders and patches against slow references, invariances, round trips, bad input."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.tokenizers import point_frames
from consilience.tokenizers.point_records import PointCloud, PointTable
from consilience.tokenizers.points import PointTokenizer

ORDERS = ("morton", "hilbert", "radial", "random")


def molecule(n: int, seed: int = 0, unit: str = "angstrom") -> PointCloud:
    rng = np.random.default_rng(seed)
    return PointCloud(
        rng.normal(size=(n, 3)) * [2.0, 1.5, 1.0] + 5, rng.choice(["C", "N", "O"], n), unit=unit
    )


def molecules(n: int, seed: int = 0) -> list[PointCloud]:
    sizes = np.random.default_rng(seed).integers(2, 14, n)
    return [molecule(int(size), seed + i) for i, size in enumerate(sizes)]


def shapes(n: int, points: int, seed: int = 0) -> PointTable:
    positions = np.random.default_rng(seed).normal(size=(n * points, 3)).astype(np.float32)
    return PointTable(positions, np.arange(n + 1) * points)


def equal(a: TokenBatch, b: TokenBatch) -> bool:
    pairs = [
        (getattr(a, name), getattr(b, name)) for name in ("length", "ids", "values", "address", "positions")
    ]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def rotation(seed: int) -> np.ndarray:
    return point_frames.random_rotations(1, torch.Generator().manual_seed(seed))[0]


def permuted(cloud: PointCloud, seed: int) -> PointCloud:
    order = np.random.default_rng(seed).permutation(len(cloud))
    return PointCloud(
        cloud.positions[order], None if cloud.types is None else cloud.types[order], None, cloud.unit
    )


# --- invariances ---


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("align", ["none", "principal"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 30))
def test_tokens_do_not_depend_on_the_order_of_the_rows(order, align, seed, n):
    cloud = molecule(n, seed)
    tokenizer = PointTokenizer.fit([molecule(30, 1)], order=order, align=align)
    assert equal(tokenizer.encode([cloud]), tokenizer.encode([permuted(cloud, seed)]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_row_order_does_not_matter_on_a_grid_with_many_ties(seed):
    cells = np.random.default_rng(seed).integers(0, 3, (40, 3)).astype(float)
    cloud = PointCloud(cells)
    for options in ({"order": "radial"}, {"tokens": "patches", "n_patches": 6, "patch_size": 5}):
        tokenizer = PointTokenizer.fit([cloud], **options)
        assert equal(tokenizer.encode([cloud]), tokenizer.encode([permuted(cloud, seed)]))


@pytest.mark.parametrize("tokens", ["points", "patches"])
def test_translation_changes_nothing(tokens):
    clouds = shapes(3, 64)
    moved = PointTable(clouds.positions + np.array([10.0, -20.0, 30.0]), clouds.starts)
    tokenizer = PointTokenizer.fit(clouds, tokens=tokens, n_patches=8, patch_size=8)
    here, there = tokenizer.encode(clouds), tokenizer.encode(moved)
    torch.testing.assert_close(here.values, there.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(here.positions, there.positions, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_principal_axes_make_tokens_stable_under_rotation_but_not_under_reflection(seed):
    cloud = molecule(12, seed)
    tokenizer = PointTokenizer.fit([cloud], align="principal", order="radial")
    turned = PointCloud(cloud.positions @ rotation(seed), cloud.types, unit="angstrom")
    mirrored = PointCloud(cloud.positions * [1, 1, -1], cloud.types, unit="angstrom")
    here, there, other = (tokenizer.encode([c]).values for c in (cloud, turned, mirrored))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)
    assert (here - other).abs().max() > 1e-3


def test_tokens_do_not_depend_on_the_neighbours_in_the_batch():
    clouds = molecules(20)
    tokenizer = PointTokenizer.fit(clouds, align="principal")
    together = tokenizer.encode(clouds)
    for i in (0, 7, 19):
        alone = tokenizer.encode([clouds[i]])
        torch.testing.assert_close(together.take([i]).trim().values, alone.values, atol=1e-6, rtol=0)
        assert torch.equal(together.take([i]).trim().address, alone.address)


def test_lists_and_tables_give_the_same_tokens():
    clouds = molecules(20)
    tokenizer = PointTokenizer.fit(clouds)
    table = PointTable.of(clouds)
    assert equal(tokenizer.encode(clouds), tokenizer.encode(table))
    picks = [3, 3, 11]
    assert equal(tokenizer.encode([clouds[i] for i in picks]), tokenizer.encode(table.take(picks)))


# --- training-time randomness ---


def test_rotation_in_training_is_a_proper_rotation_and_the_seed_decides_it():
    cloud = molecule(15)
    tokenizer = PointTokenizer.fit([cloud], order="given")
    plain = tokenizer.encode([cloud]).values[0].numpy()
    turned = tokenizer.encode([cloud], generator=torch.Generator().manual_seed(3)).values[0].numpy()
    matrix = np.linalg.lstsq(plain, turned, rcond=None)[0]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-5)
    assert np.abs(plain - turned).max() > 0.1
    again = tokenizer.encode([cloud], generator=torch.Generator().manual_seed(3)).values[0].numpy()
    np.testing.assert_array_equal(turned, again)


def test_half_turns_under_alignment_keep_the_axes():
    cloud = molecule(15)
    tokenizer = PointTokenizer.fit([cloud], align="principal", order="given")
    plain = tokenizer.encode([cloud]).values.abs()
    signs = set()
    for seed in range(20):
        turned = tokenizer.encode([cloud], generator=torch.Generator().manual_seed(seed)).values
        torch.testing.assert_close(turned.abs(), plain)
        signs.add(tuple(torch.sign(turned[0, 0]).tolist()))
    assert len(signs) == 4


# --- round trips ---


@pytest.mark.parametrize("types", ["address", "content"])
@pytest.mark.parametrize("order", [*ORDERS, "given"])
def test_decode_gives_distances_and_types_back(types, order):
    clouds = molecules(15)
    tokenizer = PointTokenizer.fit(clouds, types=types, order=order)
    for cloud, back in zip(clouds, tokenizer.decode(tokenizer.encode(clouds))):
        assert back.unit == "angstrom" and sorted(back.types) == sorted(cloud.types)
        # The sequence is the token order: match points by their place, then compare all distances.
        wanted = cloud.positions - cloud.positions.mean(0)
        match = np.linalg.norm(wanted[:, None] - back.positions[None], axis=2).argmin(1)
        assert sorted(match.tolist()) == list(range(len(cloud)))
        assert (back.types[match] == cloud.types).all()
        np.testing.assert_allclose(
            squareform(pdist(back.positions[match])), squareform(pdist(cloud.positions)), atol=1e-5
        )


def test_features_are_standardised_content_and_come_back():
    rng = np.random.default_rng(0)
    clouds = [
        PointCloud(rng.normal(size=(9, 3)), None, rng.normal(size=(9, 2)) * [1, 100] + [0, 50])
        for _ in range(8)
    ]
    tokenizer = PointTokenizer.fit(clouds, features="content", order="given")
    tokens = tokenizer.encode(clouds)
    standard = tokenizer.spec.standardise(tokens.values)
    assert tokenizer.spec.channels == 5
    torch.testing.assert_close(standard[..., 3:].std((0, 1)), torch.ones(2), atol=0.02, rtol=0)
    for cloud, back in zip(clouds, tokenizer.decode(tokens)):
        np.testing.assert_allclose(back.features, cloud.features, rtol=1e-5, atol=1e-4)


def test_state_goes_through_json():
    for options in (
        {},
        {"types": "content"},
        {"types": "ignore", "tokens": "patches", "n_patches": 4, "patch_size": 2},
    ):
        clouds = molecules(20)
        tokenizer = PointTokenizer.fit(clouds, **options)
        again = PointTokenizer.from_state(json.loads(json.dumps(tokenizer.state())))
        assert again.spec == tokenizer.spec and again.state() == tokenizer.state()
        assert equal(again.encode(clouds), tokenizer.encode(clouds))
        draws = [t.template(5, generator=torch.Generator().manual_seed(0)) for t in (again, tokenizer)]
        assert equal(*draws)


# --- spec, template, description ---


@pytest.mark.parametrize("position", ["fourier", "rotary", "both", "none"])
def test_position_decides_how_places_enter_the_core(position):
    spec = PointTokenizer.fit(molecules(5), position=position).spec
    assert spec.rotary_from_values == (position in ("rotary", "both"))
    assert (spec.value_encoding == "fourier") == (position in ("fourier", "both"))
    assert spec.coordinates == (3 if spec.rotary_from_values else 1)
    if position == "none":
        with pytest.raises(ConsilienceError, match="patches need their places"):
            PointTokenizer.fit(shapes(2, 40), tokens="patches", position=position)
    else:
        patches = PointTokenizer.fit(shapes(2, 40), tokens="patches", position=position).spec
        assert patches.coordinates == 3 and patches.position_encoding == position


def test_scale_and_types_come_from_the_training_clouds_alone():
    small, large = (
        molecules(10),
        [PointCloud(c.positions * 50, np.full(len(c), "S"), unit=c.unit) for c in molecules(5)],
    )
    tokenizer = PointTokenizer.fit(small)
    before = tokenizer.state()
    assert len(tokenizer.check(large)) == 5
    assert tokenizer.state() == before and "S" not in tokenizer.learned.types
    centred = [c.positions - c.positions.mean(0) for c in small]
    assert tokenizer.spec.value_scale == pytest.approx(np.concatenate(centred).std(), rel=1e-6)


def test_template_draws_compositions_of_training_clouds():
    clouds = molecules(30)
    tokenizer = PointTokenizer.fit(clouds)
    template = tokenizer.template(50, generator=torch.Generator().manual_seed(0))
    known = {tuple(sorted(cloud.types)) for cloud in clouds}
    drawn = {tuple(sorted(cloud.types)) for cloud in tokenizer.decode(template)}
    assert drawn <= known and len(drawn) > 5
    assert (template.values == 0).all()
    patches = PointTokenizer.fit(shapes(6, 40), tokens="patches", n_patches=5, patch_size=8)
    places = patches.template(9, generator=torch.Generator().manual_seed(0)).positions
    real = patches.encode(shapes(6, 40)).positions
    assert all((torch.cdist(place, r).min(1).values.max() < 1e-3 for r in real) for place in places)
    assert {round(float(p.sum()), 2) for p in places} <= {round(float(r.sum()), 2) for r in real}


def test_description_shows_address_and_content():
    water = PointCloud(
        np.array([[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]), [8, 1, 1], unit="angstrom"
    )
    text = PointTokenizer.fit([water]).describe(water)
    assert "3 tokens" in text and "H2 O1" in text
    assert "address O slot" in text and "0.76" in text


def test_atomic_numbers_ase_atoms_and_arrays_are_records_too():
    from ase import Atoms

    cloud = PointCloud(np.eye(3), np.array([6, 8, 1]), unit="angstrom")
    assert cloud.types.tolist() == ["C", "O", "H"]
    tokenizer = PointTokenizer.fit([cloud])
    assert equal(tokenizer.encode([cloud]), tokenizer.encode([Atoms("COH", positions=np.eye(3))]))
    assert PointTokenizer.fit([np.eye(3)]).encode([np.eye(3)]).address is None


# --- bad input ---


def cloud_with(row: int, value: float) -> PointCloud:
    cloud = molecule(5)
    positions = cloud.positions.copy()
    positions[row] = value
    return PointCloud(positions, cloud.types, unit="angstrom")


def two_at_one_place(n: int) -> PointCloud:
    cloud = molecule(n)
    positions = cloud.positions.copy()
    positions[n - 2] = positions[1] + 1e-5
    return PointCloud(positions, cloud.types, unit="angstrom")


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (PointCloud(np.zeros((1, 3)), ["C"], unit="angstrom"), "one point alone"),
        (PointCloud(np.zeros((0, 3)), np.zeros(0, dtype=str), unit="angstrom"), "no points"),
        (two_at_one_place(5), "points 1 and 3 stand at one place"),
        (two_at_one_place(200), "points 1 and 198 stand at one place"),
        (cloud_with(2, np.nan), "point 2 are NaN"),
        (PointCloud(np.eye(3), ["C", "Xx", "N"], unit="angstrom"), "unknown type 'Xx'; known: C, N, O"),
        (
            PointCloud(np.eye(3), ["C", "H", "N"], unit="angstrom"),
            "trained without hydrogens: leave them out with --read-",
        ),
        (PointCloud(np.eye(3) * 1e30, ["C", "O", "N"], unit="angstrom"), "coordinates of point 0 hold 1e"),
        (PointCloud(np.eye(3), ["C", "C", "N"]), "unit is none, the tokenizer knows angstrom"),
        (molecule(600), "600 points, more than max_points=500; choose tokens='patches'"),
    ],
)
def test_bad_clouds_are_named_by_check_and_refused_by_encode(cloud, message):
    tokenizer = PointTokenizer.fit(molecules(20), max_points=500)
    with pytest.raises(UnreadableRecordError, match=message) as caught:
        tokenizer.encode([cloud])
    assert "\n" not in str(caught.value)
    if cloud.unit:
        failures = tokenizer.check([molecule(4), cloud, molecule(6)])
        assert [failure.index for failure in failures] == [1] and message in failures[0].reason


def test_records_of_another_kind_are_named():
    tokenizer = PointTokenizer.fit(molecules(20))
    failures = tokenizer.check([molecule(4), "CCO", np.zeros((4, 2)), PointCloud(np.eye(3)), molecule(5)])
    assert [failure.index for failure in failures] == [1, 2, 3]
    assert "no point cloud" in failures[0].reason and "(n, 3)" in failures[1].reason
    assert "without types" in failures[2].reason
    with pytest.raises(UnreadableRecordError, match="record 1"):
        tokenizer.encode([molecule(4), "CCO"])
    with pytest.raises(UnreadableRecordError, match="has no types"):
        tokenizer.encode([PointCloud(np.eye(3), unit="angstrom")])


def test_untyped_scans_may_repeat_a_point():
    cloud = PointCloud(np.array([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]))
    tokenizer = PointTokenizer.fit([cloud])
    assert tokenizer.check([cloud]) == [] and tokenizer.encode([cloud]).n_tokens == 3


def test_patches_refuse_clouds_smaller_than_a_patch_and_types():
    tokenizer = PointTokenizer.fit(shapes(2, 40), tokens="patches", patch_size=16)
    with pytest.raises(UnreadableRecordError, match=r"10 points, fewer than patch_size=16"):
        tokenizer.encode(shapes(1, 10))
    with pytest.raises(ConsilienceError, match="types='ignore'"):
        PointTokenizer.fit(molecules(5), tokens="patches")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ordre": "morton"}, "unknown tokenizer option 'ordre'; known: tokens, types"),
        ({"order": "peano"}, "order must be one of morton, hilbert"),
        ({"patch_size": 1}, "patch_size must be 2 or more"),
        ({"periods": (2.0, 1.0)}, "ascending"),
        ({"slots": True, "position": "rotary"}, "slots=False"),
        ({"slots": True, "tokens": "patches", "types": "ignore"}, "leave slots out"),
        ({"features": "content"}, "have no features"),
    ],
)
def test_bad_options_are_told(options, message):
    with pytest.raises(ConsilienceError, match=message):
        PointTokenizer.fit(molecules(5), **options)


def test_fit_passes_over_bad_clouds_and_needs_a_good_one():
    good, bad = molecules(5), [PointCloud(np.zeros((1, 3)), ["C"], unit="angstrom")]
    assert PointTokenizer.fit([*good, *bad]).state() == PointTokenizer.fit(good).state()
    with pytest.raises(
        ConsilienceError, match="no usable cloud among the 1 to fit on; the first is refused: one point"
    ):
        PointTokenizer.fit(bad)
    with pytest.raises(ConsilienceError, match="there are none"):
        PointTokenizer.fit([])
    with pytest.raises(ConsilienceError, match="no records"):
        PointTokenizer.fit(good).encode([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 2)),), r"\(n, 3\)"),
        ((np.zeros((4, 3)), ["C"]), "types has shape"),
        ((np.zeros((4, 3)), None, np.zeros((3, 1))), "features has shape"),
        ((np.zeros((2, 3)), [6, 200], None, "angstrom"), "200 is no atomic number"),
        ((np.zeros((2, 3)), None, None, "nm"), "unit must be"),
    ],
)
def test_arrays_that_do_not_fit_are_told(arguments, message):
    with pytest.raises(ConsilienceError, match=message):
        PointCloud(*arguments)


# --- real data ---

REAL = Path(os.environ.get("CONSILIENCE_TEST_DATA", ""))


@pytest.mark.skipif(
    not (REAL / "points/modelnet10_vox24_packed.npz").is_file(), reason="no optional test data"
)
def test_real_shapes_as_patches():
    with np.load(REAL / "points/modelnet10_vox24_packed.npz") as held:
        grids = np.unpackbits(held["vox_test"][:60], axis=1).reshape(-1, 24, 24, 24)
    clouds = [PointCloud(np.argwhere(grid).astype(float)) for grid in grids if grid.sum() >= 32]
    tokenizer = PointTokenizer.fit(clouds[:30], tokens="patches")
    assert tokenizer.check(clouds) == []
    tokens = tokenizer.encode(clouds)
    assert equal(tokens, tokenizer.encode([permuted(cloud, 0) for cloud in clouds]))
    for cloud, back in zip(clouds[:5], tokenizer.decode(tokens.take(range(5)))):
        wanted = cloud.positions - cloud.positions.mean(0)
        assert np.linalg.norm(back.positions[:, None] - wanted[None], axis=2).min(1).max() < 1e-4
