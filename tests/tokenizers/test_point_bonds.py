"""Bonds of clouds: lists, kinds of pairs, and what a model with and without them sees."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.transformer import CoreConfig
from consilience.tokenizers.point_bonds import KINDS, BondTable, bonds_of_pairs, checked
from consilience.tokenizers.point_records import PointCloud, PointTable
from consilience.tokenizers.points import PointTokenizer

BONDED = {"geometry": "invariant", "bonds": True, "order": "given"}
CHAIN = [(0, 1, 1), (2, 1, 2), (2, 3, 3), (3, 4, 4)]


def chain(points: int = 6, seed: int = 0) -> PointCloud:
    """Five points in a row and others that are bound to nobody."""
    places = np.random.default_rng(seed).normal(size=(points, 3)) * 2
    return PointCloud(places, np.array(["C"] * points), unit="angstrom", bonds=np.array(CHAIN))


def ring(points: int = 4) -> PointCloud:
    bonds = [(i, (i + 1) % points, 1) for i in range(points)]
    places = np.random.default_rng(points).normal(size=(points, 3))
    return PointCloud(places, np.array(["C"] * points), unit="angstrom", bonds=np.array(bonds))


def test_kinds_are_orders_then_distances_along_bonds():
    kinds = BondTable.joined([chain().bonds, ring().bonds]).pairs(6)
    first = [
        [0, 1, 5, 6, 0, 0],
        [1, 0, 2, 5, 6, 0],
        [5, 2, 0, 3, 5, 0],
        [6, 5, 3, 0, 4, 0],
        [0, 6, 5, 4, 0, 0],
        [0] * 6,
    ]
    assert kinds[0].tolist() == first
    # Around a ring of four the far corner is two bonds away; the fourth bond is no way of three.
    assert kinds[1, :4, :4].tolist() == [[0, 1, 5, 1], [1, 0, 1, 5], [5, 1, 0, 1], [1, 5, 1, 0]]
    assert not kinds[1, 4:].any() and kinds.max() < KINDS
    assert np.array_equal(bonds_of_pairs(kinds[0]), chain().bonds)


def test_bonds_travel_with_their_clouds():
    clouds = [
        chain(),
        ring(),
        chain(7, seed=2),
        PointCloud(np.eye(3), np.array(["C"] * 3), unit="angstrom", bonds=[]),
    ]
    table = PointTable.of(clouds)
    for picked in (table, table.take([2, 0, 1, 3]).take([1, 2, 0, 3])):
        for found, wanted in zip(picked, clouds):
            assert np.array_equal(found.bonds, wanted.bonds)
    assert table[1:][1].bonds.tolist() == chain().bonds.tolist()
    kept = np.concatenate([np.arange(len(cloud)) != 1 for cloud in clouds])
    among = table.bonds.among(kept, table.starts)
    assert among[0].tolist() == [[1, 2, 3], [2, 3, 4]]
    assert among[1].tolist() == [[0, 2, 1], [1, 2, 1]] and len(among[3]) == 0


@pytest.mark.parametrize(
    ("bonds", "message"),
    [
        ([(0, 1)], r"must be an \(E, 3\) array"),
        ([(0.5, 1.0, 1.0)], "of whole numbers"),
        ([(0, 6, 1)], "does not join two of 6 points"),
        ([(2, 2, 1)], "does not join two of 6 points"),
        ([(0, -1, 1)], "does not join two of 6 points"),
        ([(0, 1, 5)], "has order 5; known: 1 single, 2 double, 3 triple, 4 aromatic"),
        ([(0, 1, 1), (1, 0, 2)], r"bond \[0, 1, [12]\] is given twice"),
    ],
)
def test_what_is_no_bond(bonds, message):
    with pytest.raises(ConsilienceError, match=message):
        checked(bonds, 6)


def fitted() -> PointTokenizer:
    return PointTokenizer.fit([chain(5 + i % 3, seed=i) for i in range(12)] + [ring(4)] * 4, **BONDED)


def test_tokens_hold_the_bonds_and_give_them_back():
    tokenizer = fitted()
    again = PointTokenizer.from_state(json.loads(json.dumps(tokenizer.state())))
    clouds = [chain(7), ring(4)]
    tokens = again.encode(clouds)
    assert tokens.pairs.shape == (2, 7, 7) and tokenizer.spec.pairs == again.spec.pairs == KINDS
    for found, wanted in zip(again.decode(tokens), clouds):
        assert np.array_equal(found.bonds, wanted.bonds)
    alone = again.encode(clouds[1:])
    assert torch.equal(tokens.take([1]).trim().pairs, alone.pairs), "padding goes in both directions"
    assert torch.equal(alone.pad(7).pairs, tokens.take([1]).pairs)
    template = again.template(40, generator=torch.Generator().manual_seed(0))
    seen = {tuple(map(tuple, cloud.bonds.tolist())) for cloud in again.decode(template)}
    assert seen == {tuple(map(tuple, cloud.bonds.tolist())) for cloud in (chain(), ring(4))}


def test_a_permutation_takes_the_pairs_along():
    tokens = fitted().encode([chain(6), ring(4)])
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    moved = tokens.permute(order).pairs
    for b in range(2):
        assert torch.equal(moved[b], tokens.pairs[b][order[b]][:, order[b]])


def model_of(tokenizer: PointTokenizer) -> FoundationModel:
    torch.manual_seed(0)
    model = FoundationModel(
        CoreConfig(width=32, depth=2, heads=4), {"points": tokenizer}, Denoising(align=True)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return model.eval()


def test_bonds_change_states_and_velocities_and_atoms_may_be_renumbered():
    model, cloud = model_of(fitted()), chain(6)
    other = replace(
        cloud, bonds=np.array([(0, 1, 1), (1, 2, 1), (2, 3, 3), (3, 4, 4)])
    )  # one order, nothing else
    vectors = model.embed([cloud, other]).vectors
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    order = np.array([3, 5, 0, 2, 4, 1])
    place = np.argsort(order)
    bonds = cloud.bonds.copy()
    bonds[:, :2] = place[bonds[:, :2]]
    renumbered = PointCloud(cloud.positions[order], cloud.types[order], None, "angstrom", bonds)
    assert model.embed([renumbered]).vectors == pytest.approx(vectors[:1], abs=1e-5)
    tokens, moved = (model.tokenizers["points"].encode([c]) for c in (cloud, renumbered))
    predict, objective = model.predictor(), model.objective
    with torch.no_grad():
        here, there = (predict(objective.observe(t, predict.spec))["values"][0] for t in (tokens, moved))
        changed = predict(objective.observe(model.tokenizers["points"].encode([other]), predict.spec))[
            "values"
        ][0]
    assert torch.allclose(there, here[torch.from_numpy(order)], atol=1e-5)
    assert (changed - here).abs().max() > 1e-3


def test_a_model_with_bonds_comes_back_from_its_folder(tmp_path):
    model = model_of(fitted())
    loaded = FoundationModel.load(model.save(tmp_path / "m"))
    assert np.array_equal(loaded.embed([chain(6)]).vectors, model.embed([chain(6)]).vectors)
    assert loaded.objective == Denoising(align=True)
    made = loaded.generate(3, seed=1, steps=4)
    assert all(cloud.bonds is not None for cloud in made)


def test_what_does_not_fit_is_told_in_one_line():
    for wrong in ({"order": "morton"}, {"geometry": "absolute"}):
        with pytest.raises(ConsilienceError, match="bonds=True tells kinds of pairs beside distances"):
            PointTokenizer.fit([chain()], **(BONDED | wrong))
    bare = PointCloud(chain().positions, chain().types, unit="angstrom")
    with pytest.raises(ConsilienceError, match="has no bonds, and the tokenizer has bonds=True"):
        PointTokenizer.fit([bare], **BONDED)
    with pytest.raises(ConsilienceError, match="has no bonds"):
        fitted().encode([bare])
    with pytest.raises(ConsilienceError, match=r"with bonds.*keep them in two sets"):
        PointTable.of([bare, chain()])
