"""Points domain: bundled conformers, readers with good and bad files, labels, baseline, writers, figure."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from rdkit.Chem import Descriptors3D

from consilience.core.errors import ConsilienceError
from consilience.core.model import Embedding, FoundationModel
from consilience.core.objectives.denoising import Denoising
from consilience.core.objectives.next_token import NextToken
from consilience.core.transformer import CoreConfig
from consilience.domains.points import conformers, data, denoise, evaluate, figure, shapes
from consilience.domains.points.domain import DOMAIN
from consilience.tokenizers.point_records import PointCloud, PointTable


@pytest.fixture
def small_bundle(monkeypatch, tmp_path):
    monkeypatch.setenv("CONSILIENCE_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "EMBEDDED", 25)
    data.bundled.cache_clear()
    yield data.bundled()
    data.bundled.cache_clear()


# --- bundled ---


def test_bundled_conformers_are_computed_labelled_and_in_three_dimensions(small_bundle):
    assert small_bundle.origin == "computed" and len(small_bundle) >= 436 + 20
    assert not small_bundle.failures and len(set(small_bundle.ids)) == len(small_bundle)
    assert "H" not in small_bundle.records.names and small_bundle.records.unit == "angstrom"
    thickness = [np.linalg.svd(c.positions - c.positions.mean(0))[1][2] for c in small_bundle.records]
    assert np.median(thickness) > 0.5
    radius = small_bundle.labels["radius_of_gyration"]
    assert np.isfinite(radius).all() and radius.min() > 1 and radius.max() < 10
    assert len(set(small_bundle.groups)) > 400


def test_bundled_is_the_same_from_the_cache_and_from_scratch(small_bundle, tmp_path):
    (file,) = tmp_path.glob("nci-etkdg-*.npz")
    data.bundled.cache_clear()
    cached = data.bundled()
    file.write_bytes(b"not a file of numpy")
    data.bundled.cache_clear()
    again = data.bundled()
    assert small_bundle.fingerprint == cached.fingerprint == again.fingerprint
    assert (small_bundle.ids == again.ids).all()


def test_a_conformer_does_not_depend_on_the_others(molecules):
    named = [(f"m{i}", smiles) for i, smiles in enumerate(molecules)]
    every, two = conformers.embed(named), conformers.embed(named[4:6])
    for i, name in enumerate(two.ids):
        assert (two.clouds[i].positions == every.clouds[every.ids.index(name)].positions).all()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONSILIENCE_CACHE", str(tmp_path / "file"))
    assert len(conformers.embedded(3).ids) == 3


# --- labels ---


def test_shapes_equal_rdkits_descriptors(molecules, clouds):
    mols = list(molecules.values())
    labels = shapes.shape_labels(PointTable.of(clouds))
    for name, function in (
        ("radius_of_gyration", Descriptors3D.RadiusOfGyration),
        ("asphericity", Descriptors3D.Asphericity),
        ("npr1", Descriptors3D.NPR1),
    ):
        np.testing.assert_allclose(labels[name], [function(mol) for mol in mols], rtol=2e-3, err_msg=name)


def test_shape_of_a_rod_and_of_a_ball():
    rod, octahedron = np.outer(np.arange(5), [1, 2, 2]), np.vstack([np.eye(3), -np.eye(3)])
    labels = shapes.shape_labels(PointTable.of([PointCloud(rod), PointCloud(octahedron)]))
    np.testing.assert_allclose(labels["radius_of_gyration"], [3 * np.sqrt(2), 1])
    np.testing.assert_allclose(labels["asphericity"], [1, 0], atol=1e-9)
    np.testing.assert_allclose(labels["npr1"], [0, 1], atol=1e-9)


def test_tasks_put_known_labels_first_and_tell_numbers_from_classes(clouds):
    table = PointTable.of(clouds)
    labels = shapes.shape_labels(table) | {
        "gap_ev": np.ones(8),
        "activity": np.arange(8.0),
        "family": np.array(["a", "b"] * 4),
        "constant": np.ones(8),
        "comment": np.array([f"line {i}" for i in range(8)]),
    }
    source = data.Source(clouds=table, ids=[str(i) for i in range(8)], places=range(8), labels=labels)
    tasks = evaluate.tasks(data.collect(source, name="test", origin="user"))
    assert [task.label for task in tasks] == [
        "gap_ev",
        "activity",
        "family",
        "radius_of_gyration",
        "asphericity",
        "npr1",
    ]
    assert [task.name for task in tasks][3] == "radius of gyration (Å)"
    assert {task.label for task in tasks if task.kind == "classification"} == {"family"}


def test_the_quick_tasks_exist_on_the_bundled_set(small_bundle):
    assert set(DOMAIN.quick.tasks) <= {task.name for task in DOMAIN.tasks(small_bundle)}


# --- baseline ---


def test_baseline_is_invariant_and_fitted_on_training_rows(small_bundle):
    train = np.arange(0, 300)
    name, features = DOMAIN.baseline(small_bundle, train)
    assert name == "sorted distances + composition" and np.isfinite(features).all()
    rng = np.random.default_rng(0)
    turned = [
        PointCloud(
            (c.positions @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + 3)[order], c.types[order], None, c.unit
        )
        for c in small_bundle.records
        for order in [rng.permutation(len(c))]
    ]
    source = data.Source(clouds=turned, ids=list(small_bundle.ids), places=range(len(turned)))
    _, again = DOMAIN.baseline(data.collect(source, name="turned", origin="user"), train)
    np.testing.assert_allclose(features, again, atol=0.15)  # a distance on a bin's edge may change its bin
    assert np.abs(features - again).mean() < 1e-4
    _, without = DOMAIN.baseline(small_bundle.take(train), train)
    np.testing.assert_allclose(features[train], without)


def test_baseline_holds_the_distances(small_bundle):
    _, features = evaluate.baseline(small_bundle, np.arange(len(small_bundle)))
    cloud = small_bundle.records[3].positions.astype(float)
    distances = np.linalg.norm(cloud[:, None] - cloud[None], axis=2)[np.triu_indices(len(cloud), 1)]
    wanted = np.quantile(distances, np.linspace(0, 1, evaluate.QUANTILES))
    np.testing.assert_allclose(features[3, : evaluate.QUANTILES], wanted, rtol=1e-5)


def test_occupancy_counts_points_in_voxels(small_bundle):
    generator = np.random.default_rng(0)
    corners = [generator.choice([-1.0, 1.0], (50, 3)) * [1, 1, scale] for scale in (1.0, 0.2, 3.0)]
    clouds = [cloud + generator.normal(size=3) * 100 for cloud in corners]  # where a cloud stands is not seen
    table = PointTable(np.concatenate(clouds).astype(np.float32), np.arange(0, 151, 50))
    source = data.Source(clouds=table, ids=["a", "b", "c"], places=[0, 1, 2])
    collection = data.collect(source, name="x", origin="user")
    name, features = evaluate.occupancy(collection, np.array([0, 1]))
    assert "16³" in name and features.dtype == np.float32
    # The training clouds lose no point, the third has some in voxels that no training cloud fills.
    np.testing.assert_allclose((features[:2] ** 2).sum(1), 1, atol=1e-6)
    assert (features[:2] > 0).any(0).all() and (features[2] ** 2).sum() <= 1 + 1e-6
    assert not np.allclose(features[0], features[1])
    train = np.arange(len(small_bundle))
    rows = DOMAIN.baselines(small_bundle, train)
    assert len(rows) == DOMAIN.classical and rows[0].name == DOMAIN.baseline(small_bundle, train)[0]


def test_baseline_of_large_clouds_without_types():
    rng = np.random.default_rng(0)
    table = PointTable.of([PointCloud(rng.normal(size=(n, 3))) for n in (20, 500, 500)])
    source = data.Source(clouds=table, ids=list("abc"), places=range(3))
    name, features = evaluate.baseline(data.collect(source, name="x", origin="user"), np.arange(3))
    assert name == "sorted distances" and features.shape == (3, evaluate.QUANTILES + evaluate.BINS + 1)


# --- embeddings ---


def test_embedding_as_parquet(tmp_path, small_bundle):
    index = np.array([2, 0, 5])
    embedding = Embedding(vectors=np.arange(6.0).reshape(3, 2), ids=small_bundle.ids[index], index=index)
    DOMAIN.write_embedding(small_bundle, embedding, tmp_path / "e.parquet")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert frame["id"].tolist() == small_bundle.ids[index].tolist() and frame["embedding_1"].tolist() == [
        1,
        3,
        5,
    ]
    assert frame["radius_of_gyration"].tolist() == small_bundle.labels["radius_of_gyration"][index].tolist()
    with pytest.raises(ConsilienceError, match="parquet"):
        DOMAIN.write_embedding(small_bundle, embedding, tmp_path / "e.csv")


# --- figure ---


def test_bonds_of_a_conformer_are_those_of_the_molecule(molecules, clouds):
    for smiles, cloud in zip(molecules, clouds):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        truth = {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in mol.GetBonds()}
        assert {tuple(pair) for pair in figure.bonds(cloud).tolist()} == truth


def test_a_perfect_denoiser_recovers_the_clouds(clouds):
    """The exact velocity field of one known cloud carries its noised version back to it."""
    tokenizer = DOMAIN.tokenizer.fit(clouds)
    tokens = tokenizer.encode(clouds)
    clean = tokenizer.spec.standardise(tokens.values)

    class Perfect:
        spec = tokenizer.spec

        def __call__(self, view):
            t = view.time[0]
            return {"values": (clean - view.tokens.values) / (1 - t).clamp_min(1e-9)}

    states, shrunk = denoise.denoise(Perfect(), tokens, start=0.5, steps=10)
    assert len(states) == 4 and states[0][0] == 0.5 and states[-1][0] == 1.0
    assert denoise.root_mean_square(shrunk, tokens).min() > 0.3
    assert denoise.root_mean_square(states[-1][1].values, tokens).max() < 1e-3


def test_nearest_distances():
    x = np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    assert denoise.nearest_distances([x, 2 * x]).tolist() == [1, 1, 2, 2, 2, 4]


def test_figure_draws_held_out_clouds_of_any_set_of_models(small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(figure, "GENERATED", 4)
    some = small_bundle.take(np.arange(440, 456))
    tokenizer = DOMAIN.tokenizer.fit(some.records, **DOMAIN.quick.tokenizer)
    core = CoreConfig(width=16, depth=1, heads=2)
    models = {o.name: FoundationModel(core, {"points": tokenizer}, o) for o in (Denoising(), NextToken())}
    for chosen, axes in ((models, 7), ({"next-token": models["next-token"]}, 1)):
        drawn = DOMAIN.figure(chosen, some, np.arange(4))
        assert len(drawn.get_axes()) == axes
        drawn.savefig(tmp_path / "figure.png", dpi=40)


# --- real data ---

REAL = Path(os.environ.get("CONSILIENCE_TEST_DATA", ""))


@pytest.mark.skipif(not (REAL / "molecules/qm9_3d_130831.npz").is_file(), reason="no optional test data")
def test_real_qm9():
    found = DOMAIN.read(REAL / "molecules/qm9_3d_130831.npz")
    assert len(found) == 130_831 and not found.failures
    assert found.labels["gap_ev"].mean() == pytest.approx(6.86, abs=0.05)
    some = found.take(np.arange(0, 130_831, 500))
    tokenizer = DOMAIN.tokenizer.fit(some.records)
    assert tokenizer.check(some.records) == [] and tokenizer.learned.types == ("C", "F", "H", "N", "O")
    back = tokenizer.decode(tokenizer.encode(some.records))
    assert sum(map(len, back)) == len(some.records.positions)
    bonded = np.mean([np.isin(np.arange(len(c)), figure.bonds(c)).all() for c in back])
    assert bonded > 0.99
