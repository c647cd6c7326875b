"""Files of point clouds: written and read back, good frames kept, bad ones named."""

import numpy as np
import pytest
from plyfile import PlyData, PlyElement
from rdkit import Chem
from rdkit.Chem import rdDepictor

from consilience.core.errors import ConsilienceError
from consilience.domains.points.domain import DOMAIN
from consilience.tokenizers.point_records import PointCloud, PointTable


def same(a: PointCloud, b: PointCloud, atol: float = 1e-6) -> bool:
    return (
        bool((a.types == b.types).all())
        and np.allclose(a.positions, b.positions, atol=atol)
        and a.unit == b.unit
    )


# --- reading and writing ---


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".npz"])
def test_written_clouds_are_read_back_with_their_columns(molecules, clouds, tmp_path, suffix):
    path = tmp_path / f"some{suffix}"
    DOMAIN.write_records(clouds, path, {"energy_ev": np.arange(8) / 7, "family": np.array(["a", "bb"] * 4)})
    back = DOMAIN.read(path)
    assert all(same(a, b) for a, b in zip(clouds, back.records)) and len(back) == 8
    np.testing.assert_allclose(back.labels["energy_ev"], np.arange(8) / 7)
    assert back.labels["family"].tolist() == ["a", "bb"] * 4 and back.origin == "user"
    grouped = DOMAIN.read(path, group_by="family")
    assert set(grouped.group_of) == {"a", "bb"}
    heavy = DOMAIN.read(path, hydrogens=False)
    assert [len(c) for c in heavy.records] == [Chem.MolFromSmiles(s).GetNumAtoms() for s in molecules]
    with pytest.raises(ConsilienceError, match="no label 'nothing' to group by; it has: energy_ev, family"):
        DOMAIN.read(path, group_by="nothing")


def test_xyz_keeps_the_good_frames_and_names_the_bad_ones(tmp_path):
    path = tmp_path / "mixed.xyz"
    path.write_text(
        "3\nwater of an old program\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
        "1\nalone\nC 0 0 0\n"
        "2\ncoinciding\nC 0 0 0\nN 0 0 0.00001\n"
        "2\nnot a number\nC 0 0 zero\nN 0 0 1\n"
        "2\nunknown element\nC 0 0 0\nQq 0 0 1\n"
        "2\nnan\nC 0 0 nan\nN 0 0 1\n"
        "2\nfine=yes\nC 0 0 0\nO 0 0 1.1\n"
    )
    found = DOMAIN.read(path)
    assert [len(c) for c in found.records] == [3, 2]
    assert found.ids.tolist() == ["mixed-0", "mixed-6"]
    reasons = {failure.index: failure.reason for failure in found.failures}
    assert sorted(reasons) == [1, 2, 3, 4, 5]
    assert "one point alone" in reasons[1] and "points 0 and 1 stand at one place" in reasons[2]
    assert "frame 4 (line 13)" in reasons[3] and "NaN" in reasons[5]
    assert all("mixed" in reason and "\n" not in reason for reason in reasons.values())


def test_truncated_and_foreign_xyz(tmp_path):
    path = tmp_path / "cut.xyz"
    path.write_text("2\nfirst\nC 0 0 0\nO 0 0 1.1\n3\nsecond\nC 0 0 0\n")
    found = DOMAIN.read(path)
    assert len(found) == 1 and "frame 2 (line 5)" in found.failures[0].reason
    path.write_text("# a table\n1 2 3\n")
    with pytest.raises(
        ConsilienceError, match=r"cut\.xyz: line 1 should hold a number of atoms, not '# a table'"
    ):
        DOMAIN.read(path)


def frame(name: str, *atoms: str, count: int | str | None = None) -> str:
    """Text of an .xyz frame that may lie about its number of atoms."""
    held = atoms or ("C 0 0 0", "O 0 0 1.1")
    return "\n".join([str(len(held) if count is None else count), name, *held, ""])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (frame("few", count=5), "frame 3 (line 9): says 5 atoms, but has 2"),
        (
            frame("many", count=1),
            "says 1 atoms, but more follow at line 12; all up to line 12 is left out with it",
        ),
        (
            frame("none", count="x"),
            "should hold a number of atoms, not 'x'; all up to line 12 is left out with it",
        ),
        (frame("gap", "C 0 0 0", "", "O 0 0 1.1"), "says 3 atoms, but has 1; all up to line 13 is left out"),
        (frame("5", count="x"), "should hold a number of atoms, not 'x'"),
        (frame("what?", "C 0 0 0", "Qq 0 0 1"), "unknown element 'Qq'"),
        (frame("numbers", "6 0 0 0", "8 0 0 1"), "unknown element '6'; write symbols of elements"),
        (frame("far", "C 1e300 0 0", "O 0 0 1"), "coordinates of point 0 hold 1e+300; beyond 1e+06"),
        (frame("far", "C 0 0 0", "O 0 -1e30 1"), "coordinates of point 1 hold -1e+30"),
    ],
)
def test_a_broken_frame_loses_no_other(tmp_path, broken, reason):
    path = tmp_path / "mixed.xyz"
    path.write_text(frame("a") + frame("b") + broken + frame("c") + frame("7", "N 0 0 0", "N 0 0 1"))
    found = DOMAIN.read(path)
    assert found.ids.tolist() == ["mixed-0", "mixed-1", "mixed-3", "mixed-4"]
    assert found.records[3].types.tolist() == ["N", "N"]
    (failure,) = found.failures
    assert failure.index == 2 and reason in failure.reason and "mixed" in failure.reason
    (piece,) = DOMAIN.stream(path, 100)
    assert piece.places.tolist() == [0, 1, 3, 4] and piece.collection.failures == found.failures


@pytest.mark.parametrize("count", [5, 10**7])
def test_a_last_frame_that_is_cut_short(tmp_path, count):
    path = tmp_path / "cut.xyz"
    path.write_text(frame("a") + frame("b") + frame("c", count=count))
    found = DOMAIN.read(path)
    (failure,) = found.failures
    assert len(found) == 2 and failure.index == 2
    assert failure.reason.endswith(f"frame 3 (line 9): says {count} atoms, but the file is cut short after 2")


def test_what_follows_the_last_frame_is_one_failure(tmp_path):
    path = tmp_path / "notes.xyz"
    path.write_text(frame("a") + "frequencies\n1.5 2.5\nCO\n")
    (failure,) = DOMAIN.read(path).failures
    assert "frame 2 (line 5): should hold" in failure.reason and "up to line 7 is left out" in failure.reason


def test_an_xyz_of_blank_lines(tmp_path):
    path = tmp_path / "blank.xyz"
    path.write_text("\n\n\n")
    for read in (lambda: DOMAIN.read(path), lambda: list(DOMAIN.stream(path, 8))):
        with pytest.raises(ConsilienceError, match=r"blank\.xyz: the file is empty; it holds no point cloud"):
            read()


def test_features_that_are_too_large(tmp_path):
    features = np.zeros((2, 5, 1))
    features[1, 2] = -1e300
    np.savez(tmp_path / "a.npz", positions=np.random.default_rng(0).normal(size=(2, 5, 3)), features=features)
    found = DOMAIN.read(tmp_path / "a.npz")
    assert len(found) == 1 and "features of point 2 hold -1e+300" in found.failures[0].reason


def test_sdf_reads_three_dimensions_only(conformer, tmp_path):
    path = tmp_path / "mols.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for i, smiles in enumerate(("CCO", "CCO", "c1ccccc1")):
            mol = conformer(smiles, seed=i + 1)
            mol.SetProp("_Name", f"mol{i}")
            mol.SetDoubleProp("activity", i + 0.5)
            writer.write(mol)
        flat = Chem.MolFromSmiles("CCC")
        rdDepictor.Compute2DCoords(flat)
        writer.write(flat)
    found = DOMAIN.read(path)
    assert found.ids.tolist() == ["mol0", "mol1", "mol2"]
    assert found.groups.tolist() == ["CCO", "CCO", "c1ccccc1"] and found.labels["activity"].tolist() == [
        0.5,
        1.5,
        2.5,
    ]
    assert "no 3D coordinates" in found.failures[0].reason and found.failures[0].index == 3


def test_ply_files_and_folders_of_them(tmp_path):
    table = PointTable.of([PointCloud(np.random.default_rng(i).normal(size=(30, 3))) for i in range(3)])
    DOMAIN.write_records(table, tmp_path / "shape.ply")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shape-0.ply", "shape-1.ply", "shape-2.ply"]
    (tmp_path / "broken.ply").write_bytes((tmp_path / "shape-1.ply").read_bytes()[:200])
    found = DOMAIN.read(tmp_path)
    assert found.ids.tolist() == ["shape-0", "shape-1", "shape-2"] and found.records.codes is None
    np.testing.assert_allclose(found.records.positions, table.positions, atol=1e-6)
    assert len(found.failures) == 1 and "broken.ply" in found.failures[0].reason
    rows = np.zeros(3, dtype=[("x", "f4"), ("y", "f4")])
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "flat.ply"))
    with pytest.raises(ConsilienceError, match=r"flat\.ply: cannot be read as PLY with x, y, z"):
        DOMAIN.read(tmp_path / "flat.ply")


def test_npz_in_its_layouts(tmp_path):
    rng = np.random.default_rng(0)
    equal = rng.normal(size=(4, 6, 3))
    np.savez(
        tmp_path / "a.npz",
        xyz=equal,
        Z=np.array([6, 6, 7, 8, 1, 1]),
        y=np.arange(4),
        ids=np.array(list("pqrs")),
    )
    found = DOMAIN.read(tmp_path / "a.npz")
    assert found.ids.tolist() == list("pqrs") and found.records[0].types.tolist() == [
        "C",
        "C",
        "N",
        "O",
        "H",
        "H",
    ]
    assert found.labels["y"].tolist() == [0, 1, 2, 3] and found.records.unit == "angstrom"
    np.savez(
        tmp_path / "b.npz",
        positions=equal.reshape(-1, 3),
        n_points=[10, 14],
        features=rng.normal(size=(24, 2)),
    )
    found = DOMAIN.read(tmp_path / "b.npz")
    assert [len(c) for c in found.records] == [10, 14] and found.records.features.shape == (24, 2)
    assert found.records.unit == "" and found.records.codes is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"values": np.zeros(3)}, "no array `positions` among values"),
        ({"positions": np.zeros((4, 2))}, r"shape \(n, m, 3\) or \(T, 3\)"),
        ({"positions": np.zeros((4, 3)), "n_points": [3, 3]}, "`positions` has 4 entries, expected 6"),
        ({"positions": np.eye(3), "types": np.array(["C"])}, "`types` has 1 entries, expected 3"),
        ({"positions": np.eye(3), "unit": np.array("nm")}, "unit must be"),
        (
            {"positions": np.eye(3), "types": np.array([6, 6, 300])},
            r"bad\.npz: `types`: 300 is no atomic number",
        ),
        ({"positions": np.eye(3), "types": np.array([6.0, 6, 8])}, "`types` must be names or atomic numbers"),
        ({"positions": np.eye(3), "n_points": [4, -1]}, "n_points must be"),
        ({"positions": np.eye(3), "n_points": [1.5, 1.5]}, "n_points must be"),
        (
            {"positions": np.eye(3), "features": np.array(["a", "b", "c"])},
            "`features` must be numbers of shape",
        ),
        ({"positions": np.eye(3), "ids": np.array("one")}, "`ids` must"),
    ],
)
def test_npz_that_does_not_fit_is_told(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ConsilienceError, match=message):
        DOMAIN.read(tmp_path / "bad.npz")


@pytest.mark.parametrize("suffix", DOMAIN.suffixes)
def test_empty_files_are_told(tmp_path, suffix):
    path = tmp_path / f"empty{suffix}"
    path.write_bytes(b"")
    with pytest.raises(ConsilienceError, match=rf"empty\{suffix}: the file is empty"):
        DOMAIN.read(path)


def test_other_files_are_told(clouds, tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z\n1,2,3\n")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "only.xyz").write_text("1\nalone\nC 0 0 0\n")
    for name, message in (
        ("missing.xyz", "no such file"),
        ("a.csv", "only the parts of qm9pack"),
        ("cut.npz", "is it whole"),
        ("only.xyz", "no point cloud can be used; the first: .*one point alone"),
    ):
        with pytest.raises(ConsilienceError, match=message) as caught:
            DOMAIN.read(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConsilienceError, match="are written as"):
        DOMAIN.write_records(clouds, tmp_path / "out.pdb")
    (tmp_path / "sub").mkdir()
    with pytest.raises(ConsilienceError, match="no file that ends in"):
        DOMAIN.read(tmp_path / "sub")


def qm9_arrays() -> dict[str, np.ndarray]:
    """Two molecules in the .npz layout of QM9."""
    return {
        "index": np.array([3, 5]),
        "n_atoms": np.array([3, 3], np.uint8),
        "z": np.array([8, 1, 1, 6, 7, 1], np.uint8),
        "xyz_1e4A": np.arange(18, dtype=np.int32).reshape(6, 3) ** 3,
        "props": np.array([[0.3615, -0.2928]] * 2),
        "prop_names": np.array(["HOMO_LUMO_gap_au", "HOMO_au"]),
        "smiles": np.array([b"O", b"C#N"]),
    }


@pytest.mark.parametrize("name", [name for name in qm9_arrays() if name != "xyz_1e4A"])
def test_qm9_without_an_array(tmp_path, name):
    held = {key: array for key, array in qm9_arrays().items() if key != name}
    np.savez(tmp_path / "a.npz", **held)
    with pytest.raises(ConsilienceError, match=rf"a\.npz: QM9 with `xyz_1e4A` has no array {name}; it needs"):
        DOMAIN.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("xyz_1e4A", lambda a: a[:-1], r"`xyz_1e4A` is \(5, 3\) of int32, expected \(6, 3\) of numbers"),
        ("xyz_1e4A", lambda a: a[:, :2], r"`xyz_1e4A` is \(6, 2\)"),
        ("z", lambda a: a.astype(str), r"`z` is \(6,\) of <U3, expected \(6,\) of whole numbers"),
        ("z", lambda a: a * 0, "atom 1 has atomic number 0 in `z`; they are 1 to 118"),
        ("z", lambda a: a + 111, "atom 1 has atomic number 119"),
        ("n_atoms", lambda a: a[:1], r"`n_atoms` is \(1,\)"),
        ("n_atoms", lambda a: np.array([6, 0]), "molecule 2 has 0 atoms in `n_atoms`"),
        ("props", lambda a: a[:, :1], r"`props` is \(2, 1\) of float64, expected \(2, 2\) of numbers"),
        ("smiles", lambda a: a.astype(object), "array of Python objects, which are never read"),
    ],
)
def test_qm9_with_a_bad_array(tmp_path, name, change, said):
    held = qm9_arrays()
    np.savez(tmp_path / "a.npz", **(held | {name: change(held[name])}))
    with pytest.raises(ConsilienceError, match=said) as caught:
        DOMAIN.read(tmp_path / "a.npz")
    assert str(caught.value).startswith(f"{tmp_path / 'a.npz'}: ") and "\n" not in str(caught.value)


def test_text_that_is_no_utf8_loses_no_structure(conformer, tmp_path):
    path = tmp_path / "old.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for smiles in ("CCO", "CCN"):
            mol = conformer(smiles)
            mol.SetProp("_Name", f"of {smiles}")
            mol.SetProp("maker", "Muller")
            mol.SetDoubleProp("activity", 0.5)
            writer.write(mol)
    before = DOMAIN.read(path)
    path.write_bytes(path.read_bytes().replace(b"Muller", "Müller".encode("latin-1"), 1))
    found = DOMAIN.read(path)
    assert found.ids.tolist() == before.ids.tolist() == ["of CCO", "of CCN"] and not found.failures
    assert found.labels["maker"].tolist() == ["", "Muller"]
    path.write_bytes(path.read_bytes().replace(b"maker", "mäker".encode("latin-1"), 1))
    found = DOMAIN.read(path)
    assert found.ids.tolist() == ["of CCO", "of CCN"] and not found.failures
    assert found.labels["maker"].tolist() == ["", "Muller"]
    np.testing.assert_array_equal(found.labels["activity"], [0.5, 0.5])


def test_a_file_without_one_bond_is_told_when_bonds_are_asked_for(conformer, tmp_path):
    path = tmp_path / "loose.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for smiles in ("CCO", "CCN"):
            loose = Chem.RWMol(conformer(smiles))
            for bond in list(loose.GetBonds()):
                loose.RemoveBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
            for atom in loose.GetAtoms():
                atom.SetNoImplicit(True)
            writer.write(loose)
    assert len(DOMAIN.read(path)) == 2
    with pytest.raises(ConsilienceError, match=r"loose\.sdf: not one of its 2 molecules has a bond"):
        DOMAIN.read(path, bonds=True)


def test_qm9_in_both_layouts(tmp_path):
    header = (
        "XYZ_file,Index,SMILES,InChi,N_atoms,Elements,XYZ_Ang,Dipole_debye,Polarizability_bohr3,HOMO_au,LUMO_au,"
        "HOMO_LUMO_gap_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,InternalEnergy_298K_au,Enthalphy_298K_au,"
        "GibbsFreeEnergy_298K_au,Heatcapacity_Cv_cal_mol_K"
    )
    water = "\"['O','H','H']\",\"[[0.,0.,0.119],[0.,0.763,-0.477],[0.,-0.763,-0.477]]\""
    hydrogen_cyanide = "\"['C','N','H']\",\"[[0.,0.,0.],[0.,0.,1.1564],[0.,0.,-1.0642]]\""
    numbers = "1.85,6.31,-0.2928,0.0687,0.3615,19.,0.02,-76.4,-76.4,-76.4,-76.4,6."
    folder = tmp_path / "qm9"
    folder.mkdir()
    (folder / "qm9_part1.csv").write_text(f'{header}\n"a.xyz",3,"O","I",3,{water},{numbers}\n')
    (folder / "qm9_part2.csv").write_text(f'{header}\n"b.xyz",5,"C#N","I",3,{hydrogen_cyanide},{numbers}\n')
    (folder / "qm9_polarizability.csv").write_text("XYZ_file,alpha\n1,2\n")
    from_tables = DOMAIN.read(folder)
    np.savez(
        tmp_path / "qm9.npz",
        index=[3, 5],
        n_atoms=np.array([3, 3], np.uint8),
        z=np.array([8, 1, 1, 6, 7, 1], np.uint8),
        xyz_1e4A=np.rint(from_tables.records.positions * 1e4).astype(np.int32),
        props=np.array([[0.3615, -0.2928]] * 2),
        prop_names=np.array(["HOMO_LUMO_gap_au", "HOMO_au"]),
        smiles=np.array([b"O", b"C#N"]),
    )
    from_arrays = DOMAIN.read(tmp_path / "qm9.npz")
    for found in (from_tables, from_arrays):
        assert found.ids.tolist() == ["qm9-3", "qm9-5"] and found.origin == "computed"
        assert found.groups.tolist() == ["O", "C#N"]
        assert found.labels["gap_ev"] == pytest.approx([0.3615 * 27.211386] * 2, rel=1e-6)
        assert found.records[1].types.tolist() == ["C", "N", "H"]
        assert DOMAIN.tasks(found)[0].name == "HOMO-LUMO gap (eV)"
    np.testing.assert_allclose(from_tables.records.positions, from_arrays.records.positions, atol=1e-6)
    (folder / "qm9_part2.csv").write_text(f'{header}\n"b.xyz",5,"C#N","I",4,{hydrogen_cyanide},{numbers}\n')
    with pytest.raises(ConsilienceError, match="do not match N_atoms"):
        DOMAIN.read(folder)
