"""The metrics of MOSES: its own unit test's values, hand-computed ones, laws, and (slowly) the published table."""

import gzip
import importlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from scipy.linalg import sqrtm

from consilience import datasets
from consilience.core.errors import ConsilienceError
from consilience.core.files import cache_folder
from consilience.domains.molecules import moses
from consilience.domains.molecules.moses import chemnet, facts, filters, measures
from consilience.domains.molecules.moses.chemnet import ChemNet, Moments, frechet_distance
from consilience.domains.molecules.moses.facts import fragments_of, look_at, scaffold_of

# The package exports a function of the same name.
reference_module = importlib.import_module("consilience.domains.molecules.moses.references")

# What MOSES' own unit test (molsets 0.3.1, tests/test_metrics.py, MIT) feeds in, and what it expects.
THEIR_TEST = ["Oc1ccccc1-c1cccc2cnccc12", "COc1cccc(NC(=O)Cc2coc3ccc(OC)cc23)c1"]
THEIR_SCAFFOLD_TEST = [
    "COCc1nnc(NC(=O)COc2ccc(C(C)(C)C)cc2)s1",
    "O=C(C1CC2C=CC1C2)N1CCOc2ccccc21",
    "Nc1c(Br)cccc1C(=O)Nc1ccncn1",
]
THEIR_STRINGS = [
    "CNC",
    "Oc1ccccc1-c1cccc2cnccc12",
    "INVALID",
    "CCCP",
    "Cc1noc(C)c1CN(C)C(=O)Nc1cc(F)cc(F)c1",
    "Cc1nc(NCc2ccccc2)no1-c1ccccc1",
]
THEIR_VALUES = {
    "FCD/Test": 52.58371754126664,
    "SNN/Test": 0.3152585653588176,
    "Frag/Test": 0.3,
    "Scaf/Test": 0.5,
    "IntDiv": 0.7189187309761661,
    "Filters": 0.75,
    "logP": 1.63229,
    "SA": 0.6280362203189407,  # what their own scorer gives with RDKit 2026.9; their test still says .5238
    "QED": 0.20370891752648637,
    "weight": 106.87,
}

TRAIN = ["CCO", "c1ccc(-c2ccccc2)cc1", "CC(=O)Nc1ccccc1", "C1CCNCC1", "CC(C)Cc1ccccc1"]
# As published: names first with a header, and SMARTS first, padded, without one.
MCF = 'names,smarts\nMCF1,[#6]1-[#8]-[#6]-1\nMCF2,"[H]C([H])([#6])[F,Cl,Br,I]"\n'
PAINS = '"c:1:c:c:c:c:c1-[#7]=[#7]"      ,"<regId=azo_A(324)>"\n'


def write_moses(folder: Path, test: list[str], scaffold_test: list[str], train: list[str] = TRAIN) -> Path:
    """A data set with the file names of MOSES."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, smiles in (("test", test), ("test_scaffolds", scaffold_test), ("train", train)):
        text = "\n".join(["SMILES", *smiles]) + "\n"
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "mcf.csv").write_text(MCF)
    (folder / "wehi_pains.csv").write_text(PAINS)
    return folder


@pytest.fixture(scope="module")
def net() -> ChemNet:
    return ChemNet()


@pytest.fixture(scope="module")
def small(tmp_path_factory, net) -> tuple[Path, Path, moses.References]:
    """MOSES' unit test as a data set, the folder of what was computed, and its references."""
    folder = write_moses(tmp_path_factory.mktemp("data") / "moses", THEIR_TEST, THEIR_SCAFFOLD_TEST)
    cache = tmp_path_factory.mktemp("cache")
    return folder, cache, moses.references(folder, cache, net=net)


def test_values_of_their_own_unit_test(small, net) -> None:
    found = moses.measure(THEIR_STRINGS, small[2], net=net)
    assert list(found) == [*moses.COLUMNS, *moses.PROPERTIES]
    assert found["valid"] == pytest.approx(4 / 6) and found["unique@1000"] == 1
    # Filters: their lists refuse a phosphorus, ours here too. The rest does not depend on the lists.
    for name, value in THEIR_VALUES.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_everything_is_perfect_for_the_test_set_itself(small, net) -> None:
    found = moses.measure(THEIR_TEST, small[2], net=net)
    for name in ("valid", "SNN/Test", "Frag/Test", "Scaf/Test", "Novelty", "Filters"):
        assert found[name] == pytest.approx(1), name
    assert found["FCD/Test"] == pytest.approx(0, abs=1e-4) and found["FCD/TestSF"] > 1
    assert all(found[name] == 0 for name in moses.PROPERTIES)


def test_the_order_matters_for_uniqueness_alone(small) -> None:
    strings = [*THEIR_STRINGS, *TRAIN, "CCO"]
    one = moses.measure(strings, small[2])
    other = moses.measure(strings[::-1], small[2])
    assert all(other[name] == pytest.approx(one[name], nan_ok=True) for name in one)
    assert np.isnan(one["FCD/Test"])


def test_uniqueness_is_that_of_the_first_valid_ones(small, monkeypatch) -> None:
    monkeypatch.setattr(measures, "UNIQUE", (2, 4))
    found = moses.measure(["C(C", "CCO", "OCC", "CCN", "CCC"], small[2])
    assert found["unique@2"] == 1 / 2 and found["unique@4"] == 3 / 4 and found["valid"] == 4 / 5
    assert moses.measure(["CCO", "OCC", "C"], small[2])["unique@4"] == 2 / 3, "of the three there are"


def test_novelty_counts_different_molecules(small) -> None:
    assert moses.measure(TRAIN, small[2])["Novelty"] == 0
    assert moses.measure(["OCC", "CCO", "CCN", "CCCN", "CCCN", "C(C"], small[2])["Novelty"] == pytest.approx(
        2 / 3
    )


def test_nothing_valid(small, net) -> None:
    found = moses.measure(["((", ""], small[2], net=net)
    assert found["valid"] == 0 and all(np.isnan(value) for name, value in found.items() if name != "valid")
    assert np.isnan(moses.measure(["CCO"], small[2], net=net)["FCD/Test"]), "one molecule has no covariance"
    with pytest.raises(ConsilienceError, match="no generated molecules to measure"):
        moses.measure([], small[2])


def test_several_processes_see_the_same(monkeypatch) -> None:
    monkeypatch.setattr(facts, "CHUNK", 3)
    one, two = (look_at(THEIR_STRINGS, processes=n) for n in (1, 2))
    assert one.smiles == two.smiles and one.fragments == two.fragments and one.scaffolds == two.scaffolds
    assert np.array_equal(one.fingerprints, two.fingerprints)
    assert all(np.array_equal(one.properties[name], two.properties[name]) for name in moses.PROPERTIES)


def test_fragments() -> None:
    """An amide is cut on both sides of its nitrogen's carbonyl: C(=O)-N is a BRICS bond, C-C(=O) is not."""
    assert fragments_of(Chem.MolFromSmiles("CC(=O)NC")) == ["[1*]C(C)=O", "[5*]NC"]
    assert fragments_of(Chem.MolFromSmiles("CCCC")) == ["CCCC"]
    found = look_at(["CC(=O)NC", "CC(=O)NC", "CCCC", "nonsense"])
    assert found.fragments == {"[1*]C(C)=O": 2, "[5*]NC": 2, "CCCC": 1}


@pytest.mark.parametrize(
    ("smiles", "scaffold"),
    [
        ("CCc1ccc(-c2ccccc2O)cc1", "c1ccc(-c2ccccc2)cc1"),
        ("Cc1ccc2[nH]ccc2c1", "c1ccc2[nH]ccc2c1"),
        ("Cc1ccccc1", None),
        ("CCO", None),
    ],
)
def test_scaffolds_have_two_rings(smiles: str, scaffold: str | None) -> None:
    assert scaffold_of(Chem.MolFromSmiles(smiles)) == scaffold


def test_cosine_by_hand() -> None:
    assert measures.cosine(Counter(a=3, b=4), Counter(a=3, c=4)) == pytest.approx(9 / 25)
    assert measures.cosine(Counter(a=1), Counter(b=1)) == 0
    assert np.isnan(measures.cosine(Counter(), Counter(a=1)))


@pytest.mark.parametrize(
    ("smiles", "passed"),
    [
        ("CCO", True),
        ("C1CCCCCC1", True),
        ("C1CCCCCCC1", False),  # a ring of 8
        ("C[N+](C)(C)C", False),  # a charge
        ("CC[Si](C)C", False),  # another element
        ("CC1CO1", False),  # an epoxide
        ("CCCF", False),  # named with its hydrogens
        ("CC(C)(C)F", True),
        ("c1ccccc1N=Nc1ccccc1", False),
        ("OC(=O)[C@H](C)N", True),
    ],
)
def test_filters(tmp_path, smiles: str, passed: bool) -> None:
    patterns = filters.read_patterns(write_moses(tmp_path, [], []))
    assert len(patterns) == 3 and patterns[2] == "c:1:c:c:c:c:c1-[#7]=[#7]"
    assert filters.passes(Chem.MolFromSmiles(smiles), patterns) is passed


def test_filters_that_cannot_be_read(tmp_path) -> None:
    write_moses(tmp_path, [], [])
    (tmp_path / "wehi_pains.csv").write_text('"C((","x"\n')
    with pytest.raises(ConsilienceError, match=r"wehi_pains\.csv: row 1: 'C\(\(' is no SMARTS"):
        filters.read_patterns(tmp_path)
    (tmp_path / "mcf.csv").unlink()
    with pytest.raises(ConsilienceError, match=r"mcf\.csv: no such file; the filters come with"):
        filters.read_patterns(tmp_path)


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(n=9, mean=mean, covariance=covariance)


def test_frechet_distance_by_hand_and_by_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = (gaussian(rng.normal(size=3), np.diag(rng.uniform(1, 4, 3))) for _ in range(2))
    spreads = [np.sqrt(np.diag(side.covariance)) for side in (one, other)]
    by_hand = ((one.mean - other.mean) ** 2).sum() + ((spreads[0] - spreads[1]) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(by_hand)
    one, other = (gaussian(rng.normal(size=6), np.cov(rng.normal(size=(6, 20)))) for _ in range(2))
    root = np.trace(sqrtm(one.covariance @ other.covariance).real)
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance + other.covariance) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_singular_covariances() -> None:
    """As many molecules as MOSES' unit test has: the product of the covariances has no full rank."""
    rng = np.random.default_rng(1)
    one, other = (gaussian(np.zeros(50), np.cov(rng.normal(size=(50, 3)))) for _ in range(2))
    assert frechet_distance(one, other) > 0 and frechet_distance(one, one) == pytest.approx(0, abs=1e-4)


def test_moments_in_batches_are_those_of_numpy(net, monkeypatch) -> None:
    smiles = [Chem.CanonSmiles(text) for text in (*TRAIN, *THEIR_TEST)]
    whole = net.activations(smiles)
    monkeypatch.setattr(chemnet, "BATCH", 3)
    found = net.moments(smiles)
    assert np.allclose(net.activations(smiles), whole, atol=1e-6) and whole.shape == (7, 512)
    assert np.allclose(found.mean, whole.mean(0), atol=1e-6)
    assert np.allclose(found.covariance, np.cov(whole.T), atol=1e-6)
    with pytest.raises(ConsilienceError, match="2 molecules at least, not 1"):
        net.moments(smiles[:1])


def test_references_are_computed_once(small, net, monkeypatch, caplog) -> None:
    folder, cache, before = small
    with monkeypatch.context() as patch:
        patch.setattr(reference_module, "look_at", lambda *a, **k: pytest.fail("looked again"))
        patch.setattr(net, "moments", lambda *a, **k: pytest.fail("computed again"))
        again = moses.references(folder, cache, net=net)
    for name in ("Test", "TestSF"):
        one, other = before.sets[name].facts, again.sets[name].facts
        assert (one.smiles, one.fragments, one.scaffolds) == (other.smiles, other.fragments, other.scaffolds)
        assert np.array_equal(one.fingerprints, other.fingerprints)
        assert one.properties.keys() == other.properties.keys()
        assert all(np.array_equal(one.properties[key], other.properties[key]) for key in one.properties)
        assert np.array_equal(before.sets[name].moments.covariance, again.sets[name].moments.covariance)
    assert set(again.sets["Test"].facts.properties) == set(moses.PROPERTIES)
    assert not again.sets["TestSF"].facts.properties, "MOSES compares properties with the test set alone"


def test_kept_references_that_are_damaged_or_of_another_file(tmp_path, caplog) -> None:
    folder, cache = write_moses(tmp_path / "moses", THEIR_TEST, THEIR_SCAFFOLD_TEST), tmp_path / "cache"
    moses.references(folder, cache)
    (kept,) = cache.glob("Test-*.npz")
    kept.write_bytes(kept.read_bytes()[:200])
    assert moses.references(folder, cache).sets["Test"].facts.smiles
    assert "is damaged" in caplog.text
    write_moses(folder, [*THEIR_TEST, "CCO"], THEIR_SCAFFOLD_TEST)
    assert len(moses.references(folder, cache).sets["Test"].facts.smiles) == 3
    assert len(list(cache.glob("Test-*.npz"))) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, caplog) -> None:
    folder = write_moses(tmp_path / "moses", THEIR_TEST, THEIR_SCAFFOLD_TEST)
    (tmp_path / "cache").write_text("a file stands here")
    assert moses.references(folder, tmp_path / "cache").sets["Test"].facts.smiles
    assert "cannot be written" in caplog.text


def test_no_pickle_is_ever_opened(tmp_path, caplog) -> None:
    """A kept file with an object in it, as the statistics that MOSES ships, is not read."""
    folder, cache = write_moses(tmp_path / "moses", THEIR_TEST, THEIR_SCAFFOLD_TEST), tmp_path / "cache"
    moses.references(folder, cache)
    (kept,) = cache.glob("Test-*.npz")
    with np.load(kept) as held:
        arrays = dict(held)
    np.savez(kept, **(arrays | {"generated": np.array({"an": "object"}, dtype=object)}))
    assert moses.references(folder, cache).sets["Test"].facts.generated == 2
    assert "is damaged (Object arrays cannot be loaded" in caplog.text


@pytest.mark.parametrize("name", ["test.csv.gz", "test_scaffolds.csv.gz", "train.csv.gz"])
def test_missing_and_wrong_files_are_named(tmp_path, name: str) -> None:
    folder = write_moses(tmp_path / "moses", THEIR_TEST, THEIR_SCAFFOLD_TEST)
    (folder / name).write_bytes(gzip.compress(b"formula\nC2H6O\n"))
    with pytest.raises(ConsilienceError, match=f"{name}: needs the column SMILES"):
        moses.measure(["CCO"], moses.references(folder, tmp_path / "cache"))
    (folder / name).unlink()
    with pytest.raises(ConsilienceError, match=f"{name}: no such file; `consilience data fetch moses`"):
        moses.references(folder, tmp_path / "cache")


def test_references_without_moments_are_no_ground_for_a_distance(small, net) -> None:
    bare = moses.references(*small[:2])
    with pytest.raises(ConsilienceError, match="made without ChemNet"):
        moses.measure(THEIR_TEST, bare, net=net)


def test_without_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fcd_torch", None)
    with pytest.raises(
        ConsilienceError, match=r"pip install 'consilience\[moses\]', or leave it out with --fcd"
    ):
        ChemNet()


def test_files_of_strings_hide_nothing(tmp_path) -> None:
    path = tmp_path / "made.smi"
    path.write_text("SMILES\nCCO\n\n#CC\nC(C\nCCN\n\n\n")
    assert sorted(moses.generated_strings(path)) == sorted(["CCO", "", "", "C(C", "CCN"])
    path = tmp_path / "made.csv.gz"
    path.write_bytes(gzip.compress(b'smiles,score\nCCO,1\n"",2\n\nCCN,3\n\n'))
    assert sorted(moses.generated_strings(path)) == ["", "", "CCN", "CCO"]
    path = tmp_path / "made.csv"
    path.write_text("structure,molecule\nCCO,CCN\n")
    assert moses.generated_strings(path, column="molecule") == ["CCN"]


def test_published_rows() -> None:
    rows = {row.model: row for row in moses.published()}
    assert list(rows) == [
        "Train",
        "HMM",
        "NGram",
        "Combinatorial",
        "CharRNN",
        "AAE",
        "VAE",
        "JTN-VAE",
        "LatentGAN",
    ]
    assert all(tuple(row.mean) == moses.COLUMNS for row in rows.values())
    assert rows["Train"].deviation is None and rows["Train"].mean["FCD/TestSF"] == 0.4755
    jtn = rows["JTN-VAE"]
    assert (jtn.mean["FCD/Test"], jtn.deviation["FCD/Test"]) == (0.3954, 0.0234)
    assert (jtn.mean["Scaf/TestSF"], jtn.mean["Novelty"]) == (0.1009, 0.9143)
    assert "molecularsets/moses" in moses.source()


def test_without_one_valid_string_no_references_are_computed(tmp_path) -> None:
    bench = moses.Moses(fcd=False)
    (found,) = bench.measure([["((", "no molecule", ""]], tmp_path / "no data", tmp_path / "no cache")
    assert (
        found["valid"] == 0
        and np.isnan(found["SNN/Test"])
        and set(found) == {*moses.COLUMNS, *moses.PROPERTIES}
    )


def test_results_of_several_seeds(tmp_path) -> None:
    names = (*moses.COLUMNS, *moses.PROPERTIES)
    files, made = [Path("0.smi"), Path("1.smi")], [["C"] * 10] * 2
    values = [dict.fromkeys(names, value) for value in (0.5, 0.7)]
    bench = moses.Moses(fcd=False)
    one, both = bench.results(files[:1], made[:1], values[:1]), bench.results(files, made, values)
    assert one.deviation is None and one.mean["valid"] == 0.5
    assert both.mean["SA"] == pytest.approx(0.6) and both.deviation["SA"] == pytest.approx(0.1 * np.sqrt(2))
    both.write(tmp_path / "r.json")
    held = json.loads((tmp_path / "r.json").read_text())
    assert held["mean"]["valid"] == pytest.approx(0.6) and held["runs"][1]["file"] == "1.smi"
    assert held["published"][7]["mean"]["Novelty"] == 0.9143
    both.write(tmp_path / "r.csv")
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert lines[0].startswith("row,kind,valid,unique@1000") and len(lines) == 1 + 2 + 2 + 9 + 8
    assert lines[3].startswith("all runs,mean,0.6,") and lines[5].startswith("Train,published mean,1.0,")
    with pytest.raises(ConsilienceError, match=r"results are written as \.json or \.csv"):
        both.write(tmp_path / "r.txt")
    bench.results(files[:1], made[:1], [dict.fromkeys(names, float("nan"))]).write(tmp_path / "n.json")
    assert json.loads((tmp_path / "n.json").read_text())["mean"]["valid"] is None


REAL = Path(os.environ.get("CONSILIENCE_TEST_DATA", "/nonexistent")) / "molecules" / "moses"
SAMPLE = REAL / "jtnvae_sample.txt.gz"


@pytest.mark.skipif(not SAMPLE.is_file(), reason="CONSILIENCE_TEST_DATA has no MOSES")
def test_the_published_sample_of_jtn_vae_in_part() -> None:
    """What takes seconds: the first 1,500 molecules that the authors of JTN-VAE published."""
    strings = moses.generated_strings(SAMPLE)
    found = look_at(strings[:1500], properties=False)
    assert len(strings) == 30_000 and len(found.smiles) == 1500
    assert facts_diversity(found) == pytest.approx(0.8551, abs=1.5 * 0.0034)
    against = moses.References(sets={}, patterns=(), train=REAL / "train.csv.gz")
    seen = against.seen_in_training(set(found.smiles))
    assert 1 - len(seen) / len(set(found.smiles)) == pytest.approx(0.9143, abs=0.02)


def facts_diversity(found: facts.Facts) -> float:
    return measures.internal_diversity(found.fingerprints)


@pytest.mark.skipif(
    not SAMPLE.is_file() or "CONSILIENCE_TEST_SLOW" not in os.environ,
    reason="minutes to half an hour: set CONSILIENCE_TEST_SLOW, CONSILIENCE_TEST_DATA, and fetch moses",
)
def test_the_published_sample_of_jtn_vae_lands_on_its_published_row(net) -> None:
    """Every column within 1.5 standard deviations of the published mean, rounding of the table included."""
    folder = datasets.find("moses")
    assert folder is not None, "consilience data fetch moses"
    cache = cache_folder() / "benchmarks" / "moses"
    against = moses.references(folder, cache, net=net)
    found = moses.measure(moses.generated_strings(SAMPLE), against, net=net)
    (row,) = (row for row in moses.published() if row.model == "JTN-VAE")
    far = {
        name: (found[name], row.mean[name])
        for name in moses.COLUMNS
        if abs(found[name] - row.mean[name]) > 1.5 * row.deviation[name] + 0.5e-4
    }
    assert not far
