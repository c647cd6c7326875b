"""Bonds from geometry and files, and conformers of given molecules: order of atoms, scores, the command."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains.points import conformer_benchmark, data, generate_conformers
from consilience.domains.points.bonds import agreed_mol, mol_of, perceived_mol
from consilience.domains.points.classical import etkdg, relaxed
from consilience.domains.points.conformer_benchmark import scores
from consilience.domains.points.generate_conformers import TOKENIZER, cloud_of, generate
from consilience.domains.points.stereo import as_asked, has_stereo, with_stereo
from consilience.tokenizers.point_records import PointCloud
from consilience.tokenizers.points import PointTokenizer

SMILES = ["CCO", "CC(C)=O", "c1ccccc1C#N", "OCC(F)CN", "C1CC1C(=O)N", "CC=N", "CC#N", "CO"]


def embedded(smiles: str) -> tuple[Chem.Mol, PointCloud]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=7) == 0
    return mol, replace(cloud_of(mol), positions=mol.GetConformer().GetPositions())


@pytest.mark.parametrize("smiles", SMILES)
def test_geometry_and_smiles_agree_on_bonds(smiles):
    _, cloud = embedded(smiles)
    found = agreed_mol(replace(cloud, bonds=None), smiles)
    assert found is not None
    assert {tuple(row) for row in cloud_of(found).bonds.tolist()} == {
        tuple(row) for row in cloud.bonds.tolist()
    }
    assert agreed_mol(replace(cloud, bonds=None), "CCCC") is None, "control: another molecule"


def test_scattered_atoms_are_no_molecule():
    _, cloud = embedded("CCO")
    far = replace(
        cloud, positions=20 * np.random.default_rng(0).normal(size=cloud.positions.shape), bonds=None
    )
    found = perceived_mol(far)
    assert found is None or found.GetNumBonds() == 0
    assert agreed_mol(far, "CCO") is None


def test_bonds_of_a_file_are_kept_when_asked_for(tmp_path):
    mols = [embedded(smiles)[0] for smiles in SMILES[:4]]
    with Chem.SDWriter(str(tmp_path / "a.sdf")) as writer:
        for mol in mols:
            writer.write(mol)
    plain, bonded = data.read(tmp_path / "a.sdf"), data.read(tmp_path / "a.sdf", bonds=True)
    assert plain.records.bonds is None and plain.fingerprint != bonded.fingerprint
    for cloud, mol in zip(bonded.records, mols):
        back = mol_of(cloud)
        Chem.SanitizeMol(back)
        assert Chem.MolToSmiles(back) == Chem.MolToSmiles(mol)
    heavy = data.read(tmp_path / "a.sdf", bonds=True, hydrogens=False)
    assert heavy.records[0].bonds.tolist() == [[0, 1, 1], [1, 2, 1]]
    (tmp_path / "b.xyz").write_text("2\n\nC 0 0 0\nO 0 0 1.2\n")
    with pytest.raises(ConsilienceError, match=r"no bonds in this file; give an \.sdf file"):
        data.read(tmp_path / "b.xyz", bonds=True)


@pytest.fixture(scope="module")
def model() -> FoundationModel:
    """Trained a little, so that heads are away from their start."""
    clouds = [embedded(smiles)[1] for smiles in SMILES]
    torch.manual_seed(0)
    tokenizer = PointTokenizer.fit(clouds, **TOKENIZER)
    made = FoundationModel(
        CoreConfig(width=32, depth=2, heads=4), {"points": tokenizer}, Denoising(align=True)
    ).train()
    optimiser = torch.optim.Adam(made.parameters(), lr=4e-3)
    tokens, generator = tokenizer.encode(clouds * 4), torch.Generator().manual_seed(0)
    for _ in range(150):
        loss = made.loss({"points": tokens}, generator)["points"].value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return made.eval()


def test_conformers_stand_in_the_order_of_the_atoms_of_their_molecule(model):
    mols = [embedded(smiles)[0] for smiles in SMILES]
    made = generate(model, mols, 3, seed=1, steps=20)
    assert [len(places) for places in made] == 8 * [3]
    heavy, light = [], []
    for mol, places in zip(mols, made):
        for array in places:
            assert array.shape == (mol.GetNumAtoms(), 3)
            for bond in mol.GetBonds():
                length = np.linalg.norm(array[bond.GetBeginAtomIdx()] - array[bond.GetEndAtomIdx()])
                numbers = {bond.GetBeginAtom().GetAtomicNum(), bond.GetEndAtom().GetAtomicNum()}
                (light if 1 in numbers else heavy).append(length)
    apart = [np.linalg.norm(array[0] - array[-1]) for places in made[2:6] for array in places]
    assert np.mean(light) < np.mean(heavy) < np.mean(apart), "bonds to hydrogen are the shortest"
    assert abs(np.mean(light) - 1.08) < 0.25 and abs(np.mean(heavy) - 1.45) < 0.3
    again = generate(model, mols, 3, seed=1, steps=20)
    assert all(np.array_equal(a, b) for one, other in zip(made, again) for a, b in zip(one, other))
    assert np.abs(made[0][0] - made[0][1]).max() > 1e-2, "each has noise of its own"


def test_scores_tell_good_from_bad():
    pairs = [embedded(smiles) for smiles in SMILES[:5]]
    mols, references = [mol for mol, _ in pairs], [cloud.positions for _, cloud in pairs]
    best = scores(mols, references, [[x] for x in references]).means
    assert (
        best["cov"] == best["bond_lengths"] == best["all_bonds"] == best["graph"] == 1 and best["mat"] < 1e-5
    )
    rng = np.random.default_rng(0)
    worst = scores(mols, references, [[4 * rng.normal(size=x.shape)] for x in references]).means
    assert worst["cov"] == worst["all_bonds"] == worst["graph"] == 0 and worst["mat"] > 1
    half = scores(mols, references, [[x] if i else [] for i, x in enumerate(references)]).means
    assert half["without"] == 1 and half["cov"] == 0.8
    rdkit = scores(mols, references, [etkdg(mol, 5, seed=1) for mol in mols]).means
    assert rdkit["cov"] >= 0.8 and rdkit["graph"] == 1 and rdkit["all_bonds"] > 0.5
    with pytest.raises(ConsilienceError, match="not one conformer"):
        scores(mols, references, [[] for _ in mols])


def mirrored(places: np.ndarray) -> np.ndarray:
    return places * [-1, 1, 1]


@pytest.mark.parametrize(
    "smiles",
    ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "C[C@H](O)[C@@H](C)N", "F/C=C/[C@H](C)O", "O[C@H]1C[C@@H]1F"],
)
def test_stereochemistry_is_read_from_places(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    for places in etkdg(mol, 3, seed=2, stereo=True):
        assert np.array_equal(as_asked(mol, places), places)
        assert np.array_equal(as_asked(mol, mirrored(places)), places), "turned back"


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ("C[C@H](O)[C@@H](C)N", "C[C@H](O)[C@H](C)N"),
        ("C/C=C/C", "C/C=C\\C"),
        ("O[C@H]1C[C@@H]1F", "O[C@H]1C[C@H]1F"),
    ],
)
def test_a_diastereomer_is_refused_and_an_unspecified_one_is_not(asked, other):
    mol, wrong = (Chem.AddHs(Chem.MolFromSmiles(text)) for text in (asked, other))
    plain = Chem.Mol(mol)
    Chem.RemoveStereochemistry(plain)
    assert has_stereo(mol) and not has_stereo(plain)
    for places in etkdg(wrong, 3, seed=2, stereo=True):
        assert as_asked(mol, places) is None and as_asked(wrong, places) is not None
        assert np.array_equal(as_asked(plain, places), places)


def test_a_molecule_takes_the_stereochemistry_of_places():
    for smiles in ("C[C@H](O)[C@@H](C)N", "F/C=C/[C@H](C)O", "CCO"):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        plain = Chem.Mol(mol)
        Chem.RemoveStereochemistry(plain)
        (places,) = etkdg(mol, 1, stereo=True)
        assert Chem.MolToSmiles(with_stereo(plain, places)) == Chem.MolToSmiles(mol)
        assert not has_stereo(plain), "a copy"


def test_conformers_keep_the_stereochemistry_of_the_smiles(tmp_path, capsys):
    asked = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "C[C@H](O)[C@@H](C)N", "C/C=C/CO"]
    out = tmp_path / "a.sdf"
    words = [
        "--model",
        "conformers-small",
        "--smiles",
        *asked,
        "--out",
        str(out),
        "--n",
        "3",
        "--steps",
        "10",
    ]
    assert generate_conformers.main(words) == 0
    capsys.readouterr()

    def read() -> list[str]:
        mols = [Chem.Mol(mol) for mol in Chem.SDMolSupplier(str(out), removeHs=False)]
        for mol in mols:
            Chem.RemoveStereochemistry(mol)
            Chem.AssignStereochemistryFrom3D(mol)
        return [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in mols]

    canonical = [Chem.CanonSmiles(smiles) for smiles in asked for _ in range(3)]
    assert read() == canonical
    assert generate_conformers.main([*words, "--stereo", "false"]) == 0
    assert read() != canonical, "control: the model itself does not know"


def test_a_nitrogen_that_may_turn_over_is_no_centre():
    mol = Chem.AddHs(Chem.MolFromSmiles("C[N@]1C[C@@H]1C"))
    assert mol.GetAtomWithIdx(1).GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED
    assert all(as_asked(mol, places) is not None for places in etkdg(mol, 5, stereo=True))
    alone = Chem.AddHs(Chem.MolFromSmiles("C[N@]1CC1(F)F"))
    assert not has_stereo(alone)


def test_relaxing_keeps_the_stereochemistry(tmp_path, capsys):
    """MMFF94 flattens a centre of this cage so far that RDKit reads the other one."""
    out, smiles = tmp_path / "a.sdf", "C[C@@]1(C#N)[C@H]2OC[C@]21O"
    words = [
        "--model",
        "conformers-small",
        "--smiles",
        smiles,
        "--out",
        str(out),
        "--n",
        "4",
        "--steps",
        "10",
    ]
    assert generate_conformers.main([*words, "--relax", "true"]) == 0
    assert "4 conformers" in capsys.readouterr().out
    for mol in Chem.SDMolSupplier(str(out), removeHs=False):
        wanted = Chem.AddHs(Chem.MolFromSmiles(smiles))
        order = mol.GetSubstructMatch(wanted, useChirality=False)
        assert np.array_equal(as_asked(wanted, p := mol.GetConformer().GetPositions()[list(order)]), p)


def test_relaxing_is_taken_where_it_keeps_the_stereochemistry(monkeypatch):
    mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](O)[C@@H](C)N"))
    drawn = etkdg(mol, 3, seed=2, stereo=True, force_field=False)
    other = etkdg(Chem.AddHs(Chem.MolFromSmiles("C[C@H](O)[C@H](C)N")), 3, seed=2, stereo=True)
    after = [relaxed(mol, drawn)[0], other[1], relaxed(mol, drawn)[2]]
    monkeypatch.setattr(generate_conformers, "relaxed", lambda mol, conformers: after)
    kept = generate_conformers._relaxed(mol, drawn, stereo=True)
    assert kept[0] is after[0] and kept[1] is drawn[1] and kept[2] is after[2]
    assert generate_conformers._relaxed(mol, drawn, stereo=False) == after


def test_a_molecule_beyond_those_of_training_is_told(tmp_path, capsys):
    words = ["--model", "conformers-small", "--out", str(tmp_path / "a.sdf"), "--steps", "2", "--smiles"]
    assert generate_conformers.main([*words, "CCO", "CCCCCCCCCC"]) == 0
    shown = capsys.readouterr().out
    assert "CCCCCCCCCC: 32 atoms, the largest training molecule has 27: look at what is drawn" in shown
    assert "CCO:" not in shown


def test_nothing_is_written_without_one_conformer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate_conformers, "as_asked", lambda mol, places: None)
    monkeypatch.setattr(generate_conformers, "ROUNDS", 2)
    words = [
        "--model",
        "conformers-small",
        "--smiles",
        "C[C@H](F)O",
        "--out",
        str(tmp_path / "a.sdf"),
        "--steps",
        "2",
    ]
    assert generate_conformers.main(words) == 2
    assert "not one conformer of C[C@@H](O)F in 2 rounds has its stereochemistry" in capsys.readouterr().err
    assert not (tmp_path / "a.sdf").exists()


def test_conformers_that_never_fit_are_counted(model, monkeypatch):
    mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](F)O"))
    monkeypatch.setattr(generate_conformers, "as_asked", lambda mol, places: None)
    monkeypatch.setattr(generate_conformers, "ROUNDS", 2)
    made = generate(model, [embedded("CCO")[0], mol], 2, steps=2, stereo=True)
    assert [len(places) for places in made] == [2, 0]


def test_relaxing_mends_bonds():
    mol, cloud = embedded("OCC(F)CN")
    rough = cloud.positions + np.random.default_rng(0).normal(size=cloud.positions.shape) * 0.08
    (smooth,) = relaxed(mol, [rough])
    before, after = (scores([mol], [etkdg(mol, 1)[0]], [[places]]).means for places in (rough, smooth))
    assert after["bond_lengths"] == 1 > before["bond_lengths"]
    assert relaxed(mol, []) == []
    unknown = Chem.AddHs(Chem.MolFromSmiles("C[B-](C)(C)C"))
    (same,) = relaxed(unknown, [places := etkdg(unknown, 1, force_field=False)[0]])
    assert np.array_equal(same, places), "MMFF94 has no parameters for boron"


def test_the_command_writes_an_sdf(model, tmp_path, capsys):
    folder = model.save(tmp_path / "m")
    out = tmp_path / "new" / "a.sdf"
    words = ["--model", str(folder), "--smiles", "CCO", "CC#N", "--out", str(out), "--n", "2", "--steps", "5"]
    assert generate_conformers.main(words) == 0
    assert "4 conformers" in capsys.readouterr().out
    read = list(Chem.SDMolSupplier(str(out), removeHs=False))
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in read] == 2 * ["CCO"] + 2 * ["CC#N"]
    assert all(mol.GetConformer().Is3D() for mol in read)
    words[3:5] = ["CC(", "C*", "CO CC", "[Na]C", ""]
    assert generate_conformers.main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: none of 5 molecules can be taken; RDKit cannot read 'CC(': ")
    words[3:8] = ["CC(", "CCO", "C*", "[Na]C"]  # the good one is not lost for the sake of the others
    assert generate_conformers.main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"2 conformers in {out}" and shown[1].startswith("left out: RDKit cannot read 'CC('")
    assert "atom *" in shown[2] and "unknown type 'Na'" in shown[3] and len(shown) == 4


def test_what_is_asked_wrongly_is_one_line(model, tmp_path, capsys):
    folder, out = str(model.save(tmp_path / "m")), tmp_path / "new.sdf"
    good = {"--model": folder, "--smiles": "CCO", "--out": str(out)}
    (tmp_path / "file").write_text("")
    for changed, said in [
        ({"--out": str(tmp_path / "a.mol")}, "conformers are written as .sdf"),
        ({"--out": str(tmp_path / "file" / "a.sdf")}, f"{tmp_path / 'file'} is no folder"),
        ({"--n": "0"}, "not 1 and 0"),
        ({"--n": "many"}, "--n: expected a whole number, not 'many'"),
        ({"--seed": "-1"}, "seed must not be negative"),
        ({"--stepz": "3"}, "unknown option --stepz; did you mean --steps?"),
        ({"--model": str(tmp_path)}, "holds no config.json"),
    ]:
        words = [word for pair in (good | changed).items() for word in pair]
        assert generate_conformers.main(words) == 2, words
        shown = capsys.readouterr()
        assert said in shown.err and shown.err.count("\n") == 1 and not shown.out, shown
        assert not out.exists()


def test_what_cannot_be_generated_is_told(model):
    mol, cloud = embedded("CCO")
    with pytest.raises(ConsilienceError, match="unknown type 'Br'"):
        generate(model, [Chem.AddHs(Chem.MolFromSmiles("CBr"))], 1)
    plain = PointTokenizer.fit([cloud], geometry="invariant")
    blind = FoundationModel(CoreConfig(width=16, depth=1, heads=2), {"points": plain}, Denoising())
    with pytest.raises(ConsilienceError, match="trained without bonds"):
        generate(blind, [mol], 1)
    with pytest.raises(ConsilienceError, match="not 1 and 0"):
        generate(model, [mol], 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps must be at least 1, not 0"),
        (["--core.width", "7"], "width 7 must be an even multiple of heads 8"),
        (["--core.width", "x"], "--core.width: expected a whole number, not 'x'"),
        (["--core.widht", "8"], "unknown option --core.widht; "),
        (
            ["--training.precision", "5"],
            "--training.precision: expected one of [auto, 32-true, bf16-mixed], not '5'",
        ),
        ([], "none.npz: no such file"),
    ],
)
def test_what_the_benchmark_is_asked_wrongly_is_one_line(words, message, tmp_path, capsys):
    given = ["--data_file", str(tmp_path / "none.npz"), "--out", str(tmp_path / "out")]
    assert conformer_benchmark.main([*given, *words]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


@pytest.mark.skipif("CONSILIENCE_TEST_DATA" not in os.environ, reason="needs QM9 (CONSILIENCE_TEST_DATA)")
def test_the_benchmark_on_qm9(tmp_path):
    file = Path(os.environ["CONSILIENCE_TEST_DATA"]) / "molecules" / "qm9_3d_130831.npz"
    rows = conformer_benchmark.run(
        str(file), str(tmp_path / "out"), molecules=100, validation=10, test=10, n=1, steps=4,
        core=CoreConfig(width=16, depth=1, heads=2), progress=False,
        training=TrainingConfig(steps=4, tokens_per_batch=512, learning_rate=1e-3),
    )  # fmt: skip
    assert [row["method"] for row in rows] == ["denoising", "denoising + MMFF94", "ETKDG", "ETKDG + MMFF94"]
    assert rows[3]["mat"] < rows[0]["mat"] and rows[3]["graph"] > 0.9
    with (tmp_path / "out" / "results.csv").open() as held:
        assert [float(row["mat"]) for row in csv.DictReader(held)] == [row["mat"] for row in rows]
