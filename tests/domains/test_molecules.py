"""The domain of molecules: reading, labels, groups, baseline, writing, generation metrics, figure."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem, RDConfig
from rdkit.Chem import Crippen, Descriptors

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.molecules import data
from consilience.domains.molecules.domain import DOMAIN
from consilience.domains.molecules.evaluate import descriptors, morgan_fingerprints
from consilience.domains.molecules.figure import draw
from consilience.domains.molecules.generation import assess
from consilience.domains.molecules.scaffolds import scaffold_group
from consilience.tokenizers.molecules import MoleculeTokenizer

GOOD = ["CCO", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O", "CCCCN"]


@pytest.fixture(scope="module")
def bundled() -> Collection:
    return DOMAIN.bundled()


def test_bundled_is_complete_and_accounts_for_every_line(bundled: Collection) -> None:
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    lines = path.read_text().splitlines()
    assert len(bundled) + len(bundled.failures) == len([line for line in lines if line.strip()])
    assert len(bundled) > 4800
    assert len(set(bundled.records)) == len(bundled)
    assert len(set(bundled.ids)) == len(bundled)
    assert all(not np.isnan(column).any() for column in bundled.labels.values())
    duplicate = next(failure for failure in bundled.failures if "same molecule" in failure.reason)
    assert duplicate.reason.startswith(f"line {duplicate.index + 1}: ")
    unreadable = [failure for failure in bundled.failures if "cannot read" in failure.reason]
    assert len(unreadable) == 8
    assert bundled.origin == "real" and "computed" in bundled.source


def test_tpsa_agrees_with_the_values_that_ship_beside_the_set(bundled: Collection) -> None:
    table = pd.read_csv(
        Path(RDConfig.RDDataDir) / "NCI" / "first_5k.tpsa.csv", comment="#", names=["smiles", "tpsa"]
    )
    published = {}
    for smiles, tpsa in zip(table.smiles[:400], table.tpsa[:400]):
        mol = Chem.MolFromSmiles(smiles)
        if mol is not None:
            published[Chem.MolToSmiles(mol)] = tpsa
    pairs = [
        (bundled.labels["TPSA"][i], published[s]) for i, s in enumerate(bundled.records) if s in published
    ]
    assert len(pairs) > 300
    # Daylight's program perceives aromaticity in another way for a few molecules.
    assert np.mean([abs(mine - theirs) < 0.02 for mine, theirs in pairs]) > 0.9


def test_labels_are_rdkits_descriptors(bundled: Collection) -> None:
    for row in (0, 17, 4000):
        mol = Chem.MolFromSmiles(bundled.records[row])
        assert bundled.labels["logP"][row] == pytest.approx(Crippen.MolLogP(mol))
        assert bundled.labels["molecular weight"][row] == pytest.approx(Descriptors.MolWt(mol))


def test_descriptors_are_finite_whatever_the_molecule(bundled: Collection) -> None:
    strange = ["CCO", "[Xe]", "O=C([O-])CCN.[Na+]", "C" * 300, "[H][H]"]
    found = descriptors(strange)
    assert found.dtype == np.float32 and len(found) == len(strange) and np.isfinite(found).all()
    names = [name for name, _ in Descriptors.descList]
    assert found.shape[1] == len(names)
    assert found[0, names.index("MolWt")] == pytest.approx(46.069, abs=1e-3)
    same = bundled.take([0, 1])
    assert np.array_equal(
        DOMAIN.descriptors(same), descriptors([Chem.MolFromSmiles(s) for s in same.records])
    )


def test_groups_keep_scaffolds_together_and_split_acyclic_molecules(bundled: Collection) -> None:
    benzene, phenol = Chem.MolFromSmiles("Cc1ccccc1"), Chem.MolFromSmiles("c1ccccc1O")
    assert scaffold_group(benzene) == scaffold_group(phenol) == "c1ccccc1"
    left, right = Chem.MolFromSmiles("C[C@H](N)C(=O)O"), Chem.MolFromSmiles("C[C@@H](N)C(=O)O")
    assert scaffold_group(left) == scaffold_group(right) == "acyclic:CC(N)C(=O)O"
    assert scaffold_group(Chem.MolFromSmiles("CCO")) != scaffold_group(Chem.MolFromSmiles("CCC"))
    _, sizes = np.unique(bundled.groups, return_counts=True)
    assert sizes.max() < 0.25 * len(bundled)


def test_the_tokenizer_reads_the_bundled_molecules(bundled: Collection) -> None:
    tokenizer = MoleculeTokenizer.fit(bundled.records[:500], form="as-given", max_length=96)
    failures = tokenizer.check(bundled.records)
    assert len(failures) < 0.02 * len(bundled), "rare metals and the longest molecules only"
    bad = {failure.index for failure in failures}
    kept = [text for place, text in enumerate(bundled.records) if place not in bad]
    assert tokenizer.decode(tokenizer.encode(kept)) == kept


def test_tasks_and_baseline(bundled: Collection) -> None:
    tasks = DOMAIN.tasks(bundled)
    assert [task.name for task in tasks][:2] == ["logP", "TPSA"]
    assert {task.kind for task in tasks} == {"regression"}
    some = bundled.take(np.arange(50))
    name, features = DOMAIN.baseline(some, np.arange(10))
    assert name == "ECFP4 counts (2048)"
    assert features.shape == (50, 2048) and features.dtype == np.float32
    assert features.max() > 1
    assert np.array_equal(features, DOMAIN.baseline(some, np.arange(40))[1])
    bits = morgan_fingerprints(some.records)
    assert set(np.unique(bits)) == {0.0, 1.0}
    assert np.array_equal(bits > 0, features > 0)


@pytest.mark.parametrize(
    "ending", [".smi", ".smi.gz", ".txt", ".csv", ".csv.gz", ".tsv", ".parquet", ".sdf", ".sdf.gz"]
)
def test_every_format_gives_the_same_molecules(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine{ending}"
    names, activity = [f"m{i}" for i in range(4)], [0.5, 1.5, np.nan, 3.0]
    frame = pd.DataFrame({"name": names, "SMILES": GOOD, "activity": activity, "comment": list("abcd")})
    if ending.startswith((".smi", ".txt")):
        text = "# a comment\n" + "".join(f"{s} {n}\n\n" for s, n in zip(GOOD, names))
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    elif ending == ".parquet":
        frame.to_parquet(path)
    elif ending.startswith(".sdf"):
        _write_sdf(path, names, activity)
    else:
        frame.to_csv(path, sep="\t" if ending == ".tsv" else ",", index=False)
    read = DOMAIN.read(path)
    assert [Chem.CanonSmiles(s) for s in read.records] == [Chem.CanonSmiles(s) for s in GOOD]
    assert read.ids.tolist() == names
    assert read.failures == () and read.origin == "user"
    if ending.startswith((".smi", ".txt")):
        assert set(read.labels) == {"logP", "TPSA"}, "computed where the file has no numbers"
    else:
        assert list(read.labels) == ["activity"]
        assert np.array_equal(read.labels["activity"], activity, equal_nan=True)


def _write_sdf(path: Path, names: list[str], activity: list[float]) -> None:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    with Chem.SDWriter(str(plain)) as writer:
        for smiles, name, value in zip(GOOD, names, activity):
            mol = Chem.MolFromSmiles(smiles)
            mol.SetProp("_Name", name)
            if not np.isnan(value):
                mol.SetDoubleProp("activity", value)
            writer.write(mol)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))


@pytest.mark.parametrize("ending", [".csv", ".smi", ".parquet"])
def test_names_are_kept_where_some_are_missing_or_stand_twice(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    frame = pd.DataFrame({"smiles": ["CCO", "CCN", "CCC", "C(", "CCCC"], "id": ["a", "b", "a", "c", ""]})
    if ending == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if ending == ".csv" else "\t")
    wanted = ["a#2", "b", "a#4", "line-6"] if ending == ".smi" else ["a#1", "b", "a#3", "row-5"]
    read = DOMAIN.read(path)
    assert read.ids.tolist() == wanted and read.failures[0].id == "c"
    pieces = list(DOMAIN.stream(path, 2))
    assert [name for piece in pieces for name in piece.collection.ids.tolist()] == wanted


def test_what_rdkit_must_not_see(tmp_path: Path) -> None:
    """It ends the process on the first, and reads the second as water."""
    path = tmp_path / "a.smi"
    path.write_text(f"{'C' * 20_000} long\n\u0421\u0421O cyrillic\nCC\x00O nul\nCCO good\n", encoding="utf-8")
    read = DOMAIN.read(path)
    assert read.records == ["CCO"] and read.ids.tolist() == ["good"]
    reasons = [failure.reason for failure in read.failures]
    assert "has 20,000 characters; molecules of at most 5,000" in reasons[0] and len(reasons[0]) < 200
    assert "U+0421 (CYRILLIC CAPITAL LETTER ES)" in reasons[1] and "U+0000" in reasons[2]
    assert DOMAIN.tokenizer.fit(["CCO"]).check(["\u0421\u0421O", "CCO"])[0].index == 0


def test_smi_without_names_and_with_header(tmp_path: Path) -> None:
    path = tmp_path / "a.smi"
    path.write_text("CCO\nCCC\n")
    assert DOMAIN.read(path).ids.tolist() == ["line-1", "line-2"]
    path.write_text("SMILES\tName\tpIC50\nCCO\tethyl alcohol\t5.5\nCCC\tpropane\t6\n")
    read = DOMAIN.read(path)
    assert read.ids.tolist() == ["ethyl alcohol", "propane"]
    assert read.labels["pIC50"].tolist() == [5.5, 6.0]
    path.write_text("# triple bonds are no comments\nsmiles name\nCC#N methyl cyanide\n\n((( wrong\nC#C\n")
    read = DOMAIN.read(path)
    assert (read.records, read.ids.tolist()) == (["CC#N", "C#C"], ["methyl cyanide", "line-6"])
    assert read.failures[0].reason.startswith("line 5: ")
    path.write_text("CC(Cl)CCl 1,2-dichloropropane\nCCC\tpropane\n")
    assert DOMAIN.read(path).ids.tolist() == ["1,2-dichloropropane", "propane"]
    path.write_text("smiles,dose\nCCO,1\n")
    assert DOMAIN.read(path).labels["dose"].tolist() == [1.0]
    path.write_text("CCO ethyl alcohol\nCCC propane\n")
    assert DOMAIN.read(path).ids.tolist() == ["ethyl alcohol", "propane"]


def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strings = [
        *DOMAIN.bundled().records[:200],
        "C1CC",
        "",
        "not a molecule",
        *DOMAIN.bundled().records[200:300],
    ]
    path = tmp_path / "many.csv"
    path.write_text("smiles,value\n" + "".join(f"{text},{i}\n" for i, text in enumerate(strings)))
    monkeypatch.setattr(data, "SCANNED", 64)
    alone = data.read(path, properties=True)
    together = data.read(path, properties=True, processes=2)
    assert alone.fingerprint == together.fingerprint and len(alone) == 300
    assert list(alone.records) == list(together.records) and (alone.groups == together.groups).all()
    assert alone.failures == together.failures and len(alone.failures) == 3
    with pytest.raises(ConsilienceError, match=r"many\.csv: processes must be at least 1, not 0"):
        data.read(path, processes=0)


def test_unparsable_smiles_among_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "mixed.smi"
    path.write_text("CCO a\nC(C b\n\nC(C)(C)(C)(C)C c\nc1ccccc1 d\n")
    read = DOMAIN.read(path)
    assert read.records == ["CCO", "c1ccccc1"]
    assert [(failure.index, failure.id) for failure in read.failures] == [(1, "b"), (2, "c")]
    assert read.failures[0].reason.startswith("line 2: RDKit cannot read 'C(C'")
    assert read.failures[1].reason.startswith("line 4: ") and "valence" in read.failures[1].reason


def test_bad_rows_of_a_table_and_an_sd_file(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text("smiles,y\nCCO,1\n,2\nxyz,3\nCC,4\n")
    read = DOMAIN.read(path)
    assert read.labels["y"].tolist() == [1.0, 4.0]
    assert [failure.reason.split(":")[0] for failure in read.failures] == ["row 2", "row 3"]
    path = tmp_path / "mixed.sdf"
    _write_sdf(path, list("abcd"), [1.0] * 4)
    broken = path.read_text().replace(" C  ", " Q9 ", 1).replace("  3  2", "  9  9", 1)
    path.write_text(broken)
    read = DOMAIN.read(path)
    assert len(read) == 3
    assert read.failures[0].reason == "entry 1: RDKit cannot read this structure; correct it or leave it out"


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.smi", b"", {}, "the file is empty"),
        ("a.smi", b"\n\n# nothing\n", {}, "the file is empty"),
        ("a.csv", b"", {}, "the file is empty"),
        ("a.csv", b"smiles,y\n", {}, "the file is empty"),
        ("a.sdf", b"", {}, "the file is empty"),
        ("a.smi", b"xx\nyy\n", {}, "none of its 2 molecules can be read; first, line 1: .*'xx'"),
        ("a.csv", b"formula,y\nC2H6,1\n", {}, "no SMILES column among formula, y; name it with column="),
        (
            "a.csv",
            b"smiles,y\nCC,1\n",
            {"column": "SMILE"},
            "no SMILES column 'SMILE'; column= must be one of smiles, y",
        ),
        ("a.csv", b"smiles,y\nCC,1\n", {"id_column": "nr"}, "no id column 'nr'; id_column= must be one of"),
        ("a.smi", b"CC\n", {"column": "smiles"}, "no header line with a column 'smiles'"),
        ("a.csv.gz", b"not gzip", {}, "cannot be read"),
        ("a.smi.gz", gzip.compress(b"CCO\n" * 5000, mtime=0)[:40], {}, "cannot be read"),
        ("a.parquet", b"not parquet", {}, "cannot be read"),
        ("a.smi", b"\xff\xfe\x00", {}, "is not UTF-8 text"),
        ("a.mol3", b"CC", {}, "molecules are read from .smi"),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConsilienceError, match=words) as caught:
        DOMAIN.read(path, **options)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_numeric_smiles_column(tmp_path: Path) -> None:
    with pytest.raises(ConsilienceError, match="no such file"):
        DOMAIN.read(tmp_path / "none.smi")
    path = tmp_path / "numbers.parquet"
    pd.DataFrame({"smiles": [1, 2]}).to_parquet(path)
    with pytest.raises(ConsilienceError, match=r"row 1 of column 'smiles' is .*1.*, not a string"):
        DOMAIN.read(path)


def test_classification_labels_and_properties_on_request(tmp_path: Path) -> None:
    path = tmp_path / "toxic.csv"
    path.write_text("mol,Class,dose,same\nCCO,1,0.5,2\nCCC,0,0.7,2\nCCN,,0.9,2\n")
    read = DOMAIN.read(path)
    assert [(task.name, task.kind) for task in DOMAIN.tasks(read)] == [
        ("Class", "classification"),
        ("dose", "regression"),
    ]
    assert list(DOMAIN.read(path, properties=True).labels)[-1] == "ring count"
    bare = DOMAIN.read(path, column="mol", properties=False, scaffolds=False)
    assert list(bare.labels) == ["Class", "dose", "same"]
    assert np.array_equal(bare.group_of, bare.ids)


def test_written_molecules_keep_invalid_strings_and_duplicates(tmp_path: Path) -> None:
    made = ["OCC", "C(C", "", "OCC", "c1ccccc1"]
    for ending in (".csv", ".parquet"):
        path = tmp_path / "deep" / f"new{ending}"
        DOMAIN.write_records(made, path, {"score": np.arange(5)})
        frame = pd.read_csv(path, keep_default_na=False) if ending == ".csv" else pd.read_parquet(path)
        assert frame["smiles"].tolist() == made
        assert frame["valid"].tolist() == [True, False, False, True, True]
        assert frame["canonical_smiles"].tolist() == ["CCO", "", "", "CCO", "c1ccccc1"]
        assert frame["score"].tolist() == [0, 1, 2, 3, 4]
    path = tmp_path / "new.smi"
    DOMAIN.write_records(made, path)
    assert path.read_text().splitlines()[1] == "C(C\tgenerated-2\tinvalid"
    read = DOMAIN.read(path)
    assert read.records == ["OCC", "OCC", "c1ccccc1"]
    assert [failure.index for failure in read.failures] == [1, 2]
    assert DOMAIN.read(tmp_path / "deep" / "new.csv").records == read.records
    with pytest.raises(ConsilienceError, match=r"written as \.smi"):
        DOMAIN.write_records(made, tmp_path / "new.xyz")
    with pytest.raises(ConsilienceError, match="'score' has 2 entries for 5 molecules"):
        DOMAIN.write_records(made, path, {"score": [1, 2]})


@dataclass
class _Embedding:
    vectors: np.ndarray
    ids: np.ndarray
    index: np.ndarray
    failures: tuple[Any, ...] = ()


def test_written_embedding_has_ids_and_molecules(tmp_path: Path, bundled: Collection) -> None:
    some = bundled.take(np.array([5, 6, 7]))
    embedding: Any = _Embedding(
        np.arange(6, dtype=np.float32).reshape(2, 3), some.ids[[0, 2]], np.array([0, 2])
    )
    path = tmp_path / "e.parquet"
    DOMAIN.write_embedding(some, embedding, path)
    frame = pd.read_parquet(path)
    numbers = ["embedding_0", "embedding_1", "embedding_2"]
    assert frame.columns.tolist() == ["id", "smiles", *some.labels, *numbers]
    assert frame["logP"].tolist() == some.labels["logP"][[0, 2]].tolist()
    assert frame["smiles"].tolist() == [some.records[0], some.records[2]]
    assert frame["id"].tolist() == some.ids[[0, 2]].tolist()
    assert frame["embedding_1"].dtype == np.float32 and frame["embedding_1"].tolist() == [1.0, 4.0]
    with pytest.raises(ConsilienceError, match=r"written as \.parquet"):
        DOMAIN.write_embedding(some, embedding, tmp_path / "e.csv")


def test_generation_metrics_have_their_own_denominators() -> None:
    made = ["CCO", "OCC", "C(C", "", "CCN", "CCCC", "c1ccccc1", "nonsense"]
    report = assess(made, training=["OCC", "CCCl"], reference=["CCO", "CCN"])
    assert report.generated == 8
    assert report.valid == pytest.approx(5 / 8)
    assert report.unique == pytest.approx(4 / 5)
    assert report.novel == pytest.approx(3 / 4)
    assert report.line() == "8 generated, 62% valid, 80% of them unique, 75% of those novel"
    assert 0 < report.internal_diversity < 1 and 0 < report.nearest_similarity < 1


def test_generation_metrics_of_the_reference_itself() -> None:
    report = assess(GOOD, training=GOOD)
    assert (report.valid, report.unique, report.novel) == (1, 1, 0)
    assert report.nearest_similarity == 1
    assert all(distance == 0 for distance in report.distances.values())
    assert assess(["CCO"] * 5, GOOD).internal_diversity == pytest.approx(0)


def test_generation_metrics_when_nothing_is_valid() -> None:
    report = assess(["(((", ""], training=GOOD)
    assert report.valid == 0 and np.isnan(report.unique) and np.isnan(report.internal_diversity)
    assert report.line() == "2 generated, 0% valid"
    with pytest.raises(ConsilienceError, match="no generated molecules"):
        assess([], training=GOOD)
    with pytest.raises(ConsilienceError, match="no readable molecule to compare"):
        assess(GOOD, training=["(("])


class _Parrot:
    """Stands in for a model: `generate` repeats given strings."""

    def __init__(self, strings: list[str]) -> None:
        self.strings, self.asked = strings, 0

    def generate(self, n: int, *, domain: str, seed: int) -> list[str]:
        assert domain == "molecules"
        self.asked = n
        return (self.strings * n)[:n]


def test_figure_counts_invalid_samples_and_tells_novelty_from_training_rows(bundled: Collection) -> None:
    some = bundled.take(np.arange(40))
    seen, held_out = some.records[3], some.records[35]
    models: Any = {
        "next-token": _Parrot([seen, held_out, "C(C", "(("]),
        "masked-diffusion": _Parrot(["C(C"]),
        "masked": _Parrot(["CCO"]),
    }
    figure = DOMAIN.figure(models, some, np.arange(30, 40))
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles[0].startswith("next-token: 200 generated, 50% valid, 2% of them unique, 50% of those novel")
    assert titles[1].startswith("masked-diffusion: 200 generated, 0% valid")
    assert models["masked"].asked == 0, "a masked model's samples are not drawn from the data's distribution"
    texts = [text.get_text() for axes in figure.subfigs[1].axes for text in axes.texts]
    assert "none is a valid molecule" in texts[0] and "'C(C'" in texts[0]


def test_figure_can_be_saved(tmp_path: Path) -> None:
    figure = draw({"next-token": GOOD * 3}, training=GOOD, held_out=GOOD)
    figure.savefig(tmp_path / "f.png", dpi=40)
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_bundled_is_the_same_object_in_a_process() -> None:
    assert data.bundled() is data.bundled()


@pytest.mark.parametrize("limit", [None, 12])
def test_what_is_set_aside_carries_its_place_in_the_file(tmp_path: Path, limit: int | None) -> None:
    """Records that the reader refuses and those that the tokenizer refuses are counted in one way."""
    from consilience.domains.preparation import prepare

    lines = ["C1CC bad", *("C" * n + f"O m{n}" for n in range(1, 13)), "not-one worse", "C" * 60 + " long"]
    (tmp_path / "a.smi").write_text("\n".join(lines) + "\n")
    collection = DOMAIN.read(tmp_path / "a.smi")
    prepared = prepare(DOMAIN, collection, tokenizer={"max_length": 40}, limit=limit)
    found = {failure.id: failure.index for failure in prepared.failures}
    whole = {"bad": 0, "worse": 13, "long": 14}
    assert found == (whole if limit is None else {"long": 14})
    with pytest.raises(ConsilienceError, match=r"a\.smi: the parts 0 0\.5 0\.5 leave no record to train on"):
        prepare(DOMAIN, collection, fractions=(0, 0.5, 0.5))


def test_text_of_an_sdf_that_is_no_utf8_loses_no_molecule(tmp_path: Path) -> None:
    path = tmp_path / "a.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for text, name in (("CCO", "007"), ("CCN", "Muller"), ("CCC", "plain")):
            mol = Chem.MolFromSmiles(text)
            mol.SetProp("_Name", name)
            mol.SetProp("maker", "Muller" if text == "CCC" else "x")
            mol.SetDoubleProp("activity", 0.5)
            writer.write(mol)
    path.write_bytes(path.read_bytes().replace(b"Muller", "Müller".encode("latin-1")))
    read = DOMAIN.read(path)
    assert (read.records, read.ids.tolist()) == (["CCO", "CCN", "CCC"], ["007", "entry-2", "plain"])
    assert read.labels["activity"].tolist() == [0.5] * 3 and not read.failures
