"""The split of QM9, reference energies, and rows of a comparison that differ in their start alone."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.points import finetune
from consilience.domains.points.finetune import compare
from consilience.domains.points.properties import PROPERTIES, fine_tune, pretrain_on, with_target
from consilience.domains.points.qm9_split import HASHES, WHOLE, draw, draw_hash, split_of, write_indices
from consilience.domains.points.references import References, composition
from consilience.tokenizers.point_records import PointCloud, PointTable

CORE = CoreConfig(width=16, depth=1, heads=2)
SHORT = TrainingConfig(steps=8, tokens_per_batch=256, learning_rate=4e-3)
ENERGIES = {"C": -1030.0, "H": -16.0, "O": -2042.0}


@pytest.fixture(scope="module")
def molecules() -> Collection:
    """300 random clouds: energies are additive in the atoms plus a little size, HOMO is a mean distance."""
    rng = np.random.default_rng(0)
    clouds, energy, homo = [], [], []
    for _ in range(300):
        n = int(rng.integers(4, 10))
        places = rng.normal(size=(n, 3)) * 1.5
        types = rng.choice(["C", "H", "O"], n)
        clouds.append(PointCloud(places, types, unit="angstrom"))
        distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
        energy.append(sum(ENERGIES[name] for name in types) + 0.1 * distance.sum() / n)
        homo.append(-6 + distance.mean())
    return Collection(
        records=PointTable.of(clouds),
        ids=np.arange(300).astype(str),
        source="toy",
        origin="computed",
        fingerprint="toy",
        labels={"u0_ev": np.array(energy), "homo_ev": np.array(homo)},
        groups=np.zeros(300).astype(str),
    )


# The split.


def test_the_split_of_the_whole_set_is_the_committed_one():
    order = draw(WHOLE)
    assert draw_hash(order) == HASHES[0] == "77989252ff8c8309"
    split = split_of(order)
    assert [len(part) for part in split.parts().values()] == [110_000, 10_000, 10_831]
    assert np.array_equal(np.sort(np.concatenate(list(split.parts().values()))), np.arange(WHOLE))


def test_fewer_labels_are_a_part_of_more_and_the_test_part_stays(tmp_path):
    order = draw(1000, train=800, validation=100)
    sizes = {"train": 800, "validation": 100}
    few = split_of(order, **sizes, labels=50, choose_on=20)
    more = split_of(order, **sizes, labels=200)
    assert set(few.train) < set(more.train) and set(few.validation) < set(more.validation)
    assert np.array_equal(few.test, more.test) and len(few.test) == 100
    write_indices(few, tmp_path / "a" / "indices.npz")
    with np.load(tmp_path / "a" / "indices.npz", allow_pickle=False) as held:
        assert all(np.array_equal(held[name], index) for name, index in few.parts().items())


def test_sizes_that_do_not_fit(monkeypatch):
    with pytest.raises(ConsilienceError, match="cannot give 800 to train on, 200 to choose with"):
        draw(1000, train=800, validation=200)
    order = draw(1000, train=800, validation=100)
    with pytest.raises(ConsilienceError, match="labels must lie in 2 to 800, not 801"):
        split_of(order, train=800, validation=100, labels=801)
    with pytest.raises(ConsilienceError, match="choose_on must lie in 1 to 100, not 0"):
        split_of(order, train=800, validation=100, choose_on=0)
    monkeypatch.setitem(HASHES, 0, "another")
    with pytest.raises(ConsilienceError, match="this numpy shuffles otherwise"):
        draw(WHOLE)


# Reference energies.


def test_additive_energies_give_their_references_back(molecules):
    elements, counts = composition(molecules.records)
    assert elements == ("C", "H", "O")
    assert counts.sum() == len(molecules.records.positions)
    additive = counts @ [ENERGIES[name] for name in elements]
    found = References.fit(molecules.records, additive)
    assert dict(zip(found.elements, found.energies)) == pytest.approx(ENERGIES, rel=1e-9)
    assert found.residual < 1e-6
    assert found.of(molecules.records.take(np.arange(5))) == pytest.approx(additive[:5])


def test_references_see_training_rows_alone_and_know_what_they_have_not_seen(molecules):
    train = np.arange(200)
    changed = dict(molecules.labels) | {"u0_ev": molecules.labels["u0_ev"].copy()}
    changed["u0_ev"][200:] += 1e6
    first, references = with_target(molecules, train, PROPERTIES["u0"])
    _, other = with_target(replace(molecules, labels=changed), train, PROPERTIES["u0"])
    assert np.array_equal(references.energies, other.energies)
    assert first.labels["target"].std() < 0.01 * molecules.labels["u0_ev"].std()
    assert first.groups is None
    rare = PointTable.of([PointCloud(np.eye(3), np.array(["H", "N", "O"]), unit="angstrom")])
    with pytest.raises(
        ConsilienceError, match="no reference energy for N: the training molecules hold C, H, O"
    ):
        references.of(rare)
    with pytest.raises(ConsilienceError, match="have no types"):
        References.fit(PointTable.of([PointCloud(np.eye(3))]), np.zeros(1))
    with pytest.raises(ConsilienceError, match="1 molecules cannot fix"):
        References.fit(rare, np.zeros(1))


# Fine-tuning.


def test_a_sum_grows_with_the_molecule_and_a_mean_does_not(molecules):
    order = draw(300, train=200, validation=50)
    split = split_of(order, train=200, validation=50)
    energy = fine_tune(molecules, split, PROPERTIES["u0"], core=CORE, training=SHORT)
    homo = fine_tune(molecules, split, PROPERTIES["homo"], core=CORE, training=SHORT)
    assert energy.references is not None and homo.references is None
    sizes = molecules.records.sizes[split.train]
    assert energy.supervised.rows == pytest.approx(sizes.mean()) and homo.supervised.rows is None
    assert energy.unit == "meV" and energy.mae < 1e3 * molecules.labels["u0_ev"].std()
    assert len(energy.supervised.result.truth) == 50


def test_it_learns(molecules):
    split = split_of(draw(300, train=200, validation=50), train=200, validation=50)
    long = TrainingConfig(steps=150, tokens_per_batch=512, learning_rate=8e-3)
    found = fine_tune(
        molecules, split, PROPERTIES["homo"], core=CoreConfig(width=32, depth=2, heads=4), training=long
    )
    assert found.mae < 0.5 * found.trivial


def test_rates_are_chosen_on_validation(molecules):
    split = split_of(draw(300, train=200, validation=50), train=200, validation=50)
    found = fine_tune(
        molecules, split, PROPERTIES["homo"], core=CORE, training=SHORT, learning_rates=(1e-5, 4e-3, 1e-5)
    )
    assert set(found.validation) == {1e-5, 4e-3}
    assert found.learning_rate == min(found.validation, key=found.validation.get)


def test_a_comparison_writes_its_rows_indices_and_references(molecules, tmp_path):
    split = split_of(draw(300, train=200, validation=50), train=200, validation=50)
    model = pretrain_on(
        molecules, split, noise=0.1, core=CORE, training=SHORT, folder=tmp_path / "pre", progress=False
    )
    assert model.objective.noise == 0.1 and model.tokenizers["points"].spec.invariant
    out = tmp_path / "out"
    out.mkdir()
    rows = list(
        compare(
            molecules,
            properties=("homo", "u0"),
            labels=(50,),
            choose_on=30,
            init=tmp_path / "pre",
            methods=("full", "frozen"),
            core=CORE,
            training=SHORT,
            out=out,
            sizes=(200, 50),
        )
    )
    assert [row["start"] for row in rows] == 2 * ["scratch", "pre-trained, full", "pre-trained, frozen"]
    with (out / "results.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["mae"]) for row in written] == [row["mae"] for row in rows]
    assert len({row["mae"] for row in rows[:3]}) == 3, "control: the start must matter"
    energies = json.loads((out / "references_50.json").read_text())["energies"]
    assert energies == pytest.approx(ENERGIES, abs=0.5), "0.1 mean distances an atom are on top"
    with np.load(out / "indices_0_50.npz", allow_pickle=False) as held:
        assert [len(held[name]) for name in ("train", "validation", "test")] == [50, 30, 50]


def test_seeds_share_the_rate_that_the_first_chose(molecules, tmp_path, monkeypatch):
    ask: dict = {
        "properties": ("homo",),
        "labels": (50,),
        "choose_on": 30,
        "init": None,
        "core": CORE,
        "training": SHORT,
        "learning_rates": (1e-5, 4e-3),
        "sizes": (200, 50),
    }
    tried = []
    plain = finetune.fine_tune
    monkeypatch.setattr(
        finetune, "fine_tune", lambda *a, **k: tried.append(tuple(k["learning_rates"])) or plain(*a, **k)
    )
    rows = list(compare(molecules, seeds=(3, 4, 5), out=tmp_path / "whole", **ask))
    assert [row["seed"] for row in rows] == [3, 4, 5]
    assert len({row["mae"] for row in rows}) == 3
    first = rows[0]["learning_rate"]
    assert {row["learning_rate"] for row in rows} == {first}
    assert tried == [(1e-5, 4e-3), (first,), (first,)]
    # Stopped after the first seed, the others find its rate in the table.
    list(compare(molecules, seeds=(3,), out=tmp_path / "cut", **ask))
    again = list(compare(molecules, seeds=(3, 4, 5), out=tmp_path / "cut", **ask))
    assert [float(row["mae"]) for row in again] == [row["mae"] for row in rows]
    assert not list((tmp_path / "cut").glob("*.part"))


def test_an_interrupted_comparison_goes_on(molecules, tmp_path, monkeypatch):
    """The rows that are there stay; the others are what an uninterrupted comparison finds."""
    ask: dict = {
        "labels": (50,),
        "choose_on": 30,
        "init": None,
        "core": CORE,
        "training": SHORT,
        "sizes": (200, 50),
    }
    whole = list(compare(molecules, properties=("homo", "u0"), out=tmp_path / "whole", **ask))
    list(compare(molecules, properties=("homo",), out=tmp_path / "cut", **ask))
    seen = []
    plain = finetune.fine_tune
    monkeypatch.setattr(finetune, "fine_tune", lambda *a, **k: seen.append(a[2].label) or plain(*a, **k))
    rows = list(compare(molecules, properties=("homo", "u0"), out=tmp_path / "cut", **ask))
    assert seen == ["u0_ev"]
    assert [str(row["mae"]) for row in rows] == [str(row["mae"]) for row in whole]
    assert (tmp_path / "cut" / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()


def test_rows_of_another_split_are_not_taken(molecules, tmp_path):
    ask = {
        "init": None,
        "labels": (20,),
        "choose_on": 20,
        "core": CORE,
        "training": SHORT,
        "sizes": (200, 50),
    }
    list(compare(molecules, out=tmp_path / "a", **ask))
    with pytest.raises(ConsilienceError, match=r"results\.csv holds rows of split 0:\w+, this is 1:\w+"):
        list(compare(molecules, out=tmp_path / "a", split_seed=1, **ask))


def test_pre_training_goes_on_with_the_same_split_and_training_only(molecules, tmp_path):
    split = split_of(draw(300, train=200, validation=50), train=200, validation=50)
    ask = {"noise": 0.1, "core": CORE, "folder": tmp_path / "a", "progress": False}
    pretrain_on(molecules, split, training=SHORT, **ask)
    other = split_of(draw(300, seed=1, train=200, validation=50), train=200, validation=50)
    with pytest.raises(ConsilienceError, match="was trained on another split of points"):
        pretrain_on(molecules, other, training=SHORT, resume=True, **ask)
    with pytest.raises(ConsilienceError, match=r"was trained with training\.seed 0, this asks for 7"):
        pretrain_on(molecules, split, training=replace(SHORT, seed=7), resume=True, **ask)
    longer = replace(SHORT, steps=SHORT.steps + 2)
    assert (
        pretrain_on(molecules, split, training=longer, resume=True, **ask).provenance["outcome"]["steps"]
        == longer.steps
    )


def test_a_start_from_another_split_is_told(molecules, tmp_path, caplog):
    split, other = (
        split_of(draw(300, seed=seed, train=200, validation=50), train=200, validation=50) for seed in (0, 1)
    )
    pretrain_on(molecules, split, noise=0.1, core=CORE, training=SHORT, folder=tmp_path / "a", progress=False)
    finetune._warn_of_another_split(tmp_path / "a", [split])
    assert not caplog.text
    finetune._warn_of_another_split(tmp_path / "a", [other])
    assert "may have seen geometries of test molecules" in caplog.text


def test_the_command_line_fills_nested_settings(molecules, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(finetune.data, "read", lambda path: molecules)
    monkeypatch.setattr(finetune, "draw", lambda n, **k: np.arange(n))
    monkeypatch.setattr(finetune, "read_config", lambda path: {"core": {"width": 16}})
    monkeypatch.setattr(finetune, "compare", lambda *a, **k: asked.update(k) or iter(()))
    words = "--core.width 16 --core.depth 1 --core.heads 2 --training.steps 3 --labels [50,60] --methods [full,frozen]"
    out = tmp_path / "a"
    assert finetune.main(["--data_file", "none.npz", "--out", str(out), *words.split(), "--init", "pre"]) == 0
    assert asked["core"] == CORE
    assert isinstance(asked["training"], TrainingConfig) and asked["training"].steps == 3
    assert (
        asked["labels"] == [50, 60]
        and asked["methods"] == ["full", "frozen"]
        and asked["init"] == Path("pre")
    )
    settings = json.loads((out / "settings.json").read_text())
    assert settings["core"]["width"] == 16 and settings["init"] == "pre"


def test_bad_requests_end_in_one_line(molecules, tmp_path, capsys, monkeypatch):
    split = split_of(draw(300, train=200, validation=50), train=200, validation=50)
    with pytest.raises(ConsilienceError, match="unknown method 'some'; known: full, lora, frozen"):
        fine_tune(molecules, split, PROPERTIES["homo"], core=CORE, training=SHORT, method="some")
    with pytest.raises(ConsilienceError, match="'frozen' needs a pre-trained model"):
        fine_tune(molecules, split, PROPERTIES["homo"], core=CORE, training=SHORT, method="frozen")
    with pytest.raises(ConsilienceError, match="no label 'gap_ev'; is this QM9"):
        fine_tune(molecules, split, PROPERTIES["gap"], core=CORE, training=SHORT)
    other = {"data_file": "none.npz", "core": CORE, "training": SHORT}
    monkeypatch.setattr(finetune.data, "read", lambda path: molecules)
    monkeypatch.setattr(finetune, "draw", lambda n, **k: np.arange(n))
    monkeypatch.setattr(finetune, "compare", lambda *a, **k: iter(()))
    finetune.run(out=str(tmp_path / "b"), noise=0.1, **other)
    finetune.run(out=str(tmp_path / "b"), noise=0.1, resume=True, **other)
    with pytest.raises(ConsilienceError, match=r"settings\.json: what lies there was made with noise"):
        finetune.run(out=str(tmp_path / "b"), noise=0.2, resume=True, **other)
    with pytest.raises(ConsilienceError, match="made with split_seed 0, this asks for 1"):
        finetune.run(out=str(tmp_path / "b"), noise=0.1, split_seed=1, resume=True, **other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert finetune.main(["--data_file", "none.npz", "--out", str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (
        finetune.main(["--data-file", "none.npz", "--out", str(tmp_path / "a"), "--properties", "[zpve]"])
        == 2
    )
    assert "unknown property 'zpve'; known: homo, lumo, gap, u0, mu" in capsys.readouterr().err
    assert finetune.main(["--data_file", "none.npz", "--out", str(tmp_path / "a"), "--seeds", "[]"]) == 2
    assert "at least one property, one number of labels, one seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--labels [0]", "labels must lie in 2 to 110000, not 0"),
        ("--labels [999999]", "labels must lie in 2 to 110000, not 999999"),
        ("--labels 10", "--labels: expected a list, such as '[a, b]', not '10'"),
        ("--labels [ten]", "--labels: expected a whole number, not 'ten'"),
        ("--choose-on 0", "choose_on must lie in 1 to 10000, not 0"),
        ("--seeds [-1]", "must not be negative, not -1 and 0"),
        ("--pretrain_steps -3", "must not be negative, not 0 and -3"),
        ("--learning_rates [0.1,-2]", "learning_rates must be positive, not -2.0"),
        ("--methods [lora]", "methods lora are of a pre-trained core: give init or pretrain_steps"),
        ("--methods [foo]", "--methods: expected one of [full, lora, frozen], not 'foo'"),
        ("--pretrain_steps 2 --noise -1", "noise must be a positive number"),
        ("--init nowhere", "no model at nowhere"),
        ("--init nowhere --pretrain_steps 2", "not both"),
        ("--labelz [3]", "unknown option --labelz; did you mean --labels?"),
        ("--core.width x", "--core"),
    ],
)
def test_requests_are_checked_before_the_data_are_read(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finetune.data, "read", lambda path: pytest.fail("read for nothing"))
    out = tmp_path / "a"
    assert finetune.main(["--data_file", "none.npz", "--out", str(out), *words.split()]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert not out.exists() and not shown.out


def test_too_few_molecules_leave_nothing_behind(molecules, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finetune.data, "read", lambda path: molecules)
    assert finetune.main(["--data_file", "none.npz", "--out", str(tmp_path / "a")]) == 2
    assert "toy: 300 molecules cannot give 110000 to train on" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_pre_training_that_was_stopped_is_not_fine_tuned(molecules, tmp_path, capsys, monkeypatch):
    """Ctrl-C ends a training in good order, with a model that is half trained."""
    from consilience.domains.points import properties

    def stopped(*args, folder, **kwargs):
        done = plain(*args, folder=folder, **kwargs)
        return replace(done, outcome=replace(done.outcome, interrupted=True, steps=1))

    plain = properties.pretrain
    monkeypatch.setattr(properties, "pretrain", stopped)
    monkeypatch.setattr(finetune.data, "read", lambda path: molecules)
    monkeypatch.setattr(finetune, "draw", lambda n, **k: np.arange(n))
    monkeypatch.setattr(
        finetune, "split_of", lambda order, **k: split_of(np.arange(300), train=200, validation=50)
    )
    monkeypatch.setattr(finetune, "fine_tune", lambda *a, **k: pytest.fail("went on"))
    words = "--pretrain_steps 3 --core.width 16 --core.depth 1 --core.heads 2"
    assert finetune.main(["--data_file", "q.npz", "--out", str(tmp_path / "a"), *words.split()]) == 130
    assert (
        "interrupted at step 1 of 3 of the training; asked for again, with --resume true"
        in capsys.readouterr().err
    )


def test_a_molecule_without_a_label_is_named(molecules):
    labels = molecules.labels["homo_ev"].copy()
    labels[7] = np.nan
    holed = replace(molecules, labels={**molecules.labels, "homo_ev": labels})
    with pytest.raises(ConsilienceError, match=r"toy: 'homo_ev' of 7 is nan \(so in 1 molecules\)"):
        with_target(holed, np.arange(5), PROPERTIES["homo"])


@pytest.mark.skipif("CONSILIENCE_TEST_DATA" not in os.environ, reason="needs QM9 (CONSILIENCE_TEST_DATA)")
def test_the_command_on_qm9(tmp_path):
    file = Path(os.environ["CONSILIENCE_TEST_DATA"]) / "molecules" / "qm9_3d_130831.npz"
    training = TrainingConfig(steps=3, tokens_per_batch=256)
    rows = finetune.run(
        str(file), str(tmp_path / "out"), properties=("u0",), labels=(60,), choose_on=20, pretrain_steps=2,
        core=CORE, training=training,
    )  # fmt: skip
    assert [row["start"] for row in rows] == ["scratch", "pre-trained, full"]
    assert rows[0]["test"] == 10_831 and rows[0]["split"] == "0:77989252ff8c8309"
    held = json.loads((tmp_path / "out" / "references_60.json").read_text())
    assert held["energies"]["C"] == pytest.approx(-1036, abs=15), "total energies of atoms, in eV"
