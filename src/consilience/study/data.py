"""The data of the study's `standard` preset: named sets, with what each is, where it comes from and how it is split.

A set is bundled (it ships inside a dependency), fetched (`consilience data fetch NAME`) or lies in a folder of data,
which is an argument or $CONSILIENCE_DATA. Sizes and tokenizer options were chosen for two CPU cores and a core of
width 96 and depth 4: some thousand records, at most about 256 tokens each. They follow from the records alone (their
lengths, the width of a spectral line), never from a score.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from consilience import datasets
from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection
from consilience.domains.splits import Split
from consilience.study.sets import common

FOLDER_VARIABLE = "CONSILIENCE_DATA"
"""Environment variable with the folder of data."""

SORTED_FILE = "cells/zheng2017_sorted_pbmc_2140x8863_counts_facslabels.h5ad"
PBMC3K_FILE = "cells/pbmc3k_2638x13714_counts_celltypes.h5ad"

CELL_TOKENS: Mapping[str, Any] = {"max_vocabulary": 256, "max_genes": 256}
"""A blood cell expresses 155 of the 256 most variable genes on average, so that no cell is cut."""


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """A set of the study.

    Args:
        name: of the set.
        domain: the science.
        reader: "module:function" below `consilience.study.sets`, called with the paths of the files.
        tasks: names of the tasks that are read out, the first one first.
        tokenizer: options of the science's tokenizer.
        records: at most so many records are loaded, drawn with a fixed seed; None = all of them.
        needs: where the data come from, see the module's docstring.
        note: what it is, its groups, what leaks, why this size.
        files: paths below the folder of data, all needed; for a fetched set each is a stand-in for the fetch.
        get: for a person, how to get the files.
        fetch: name in the catalogue of `consilience data`.
        split: (collection, seed) -> the fixed split; None = a split by group with the study's seed.
        licence: of the data, as far as it is stated.
    """

    name: str
    domain: str
    reader: str
    tasks: tuple[str, ...]
    tokenizer: Mapping[str, Any]
    records: int | None
    needs: Literal["bundled", "fetched", "folder"]
    note: str
    files: tuple[str, ...] = ()
    get: str = ""
    fetch: str | None = None
    split: Callable[[Collection, int], Split] | None = field(default=None, compare=False)
    licence: str = ""

    def load(self, folder: Path | None = None) -> Collection:
        """Read the set.

        Args:
            folder: the folder of data; None = $CONSILIENCE_DATA.

        Raises:
            ConsilienceError: naming the file that is missing and how to get it.
        """
        module, function = self.reader.split(":")
        read = getattr(import_module(f"consilience.study.sets.{module}"), function)
        collection: Collection = read(*self.paths(folder))
        return replace(collection, source=f"{self.name} ({collection.source})")

    def paths(self, folder: Path | None = None) -> tuple[Path, ...]:
        """The files that `load` reads; errors as there."""
        if self.needs == "bundled":
            return ()
        given = data_folder(folder)
        held = [given / file for file in self.files] if given else []
        if self.fetch is not None:
            fetched = datasets.find(self.fetch)
            found = [path for path in held if path.is_file()]
            if fetched is None and not found:
                raise ConsilienceError(
                    f"study data {self.name!r}: not fetched yet; run `consilience data fetch {self.fetch}`"
                    f"{self._or_folder(given)}"
                )
            return (fetched if fetched is not None else found[0],)
        for path in held:
            if not path.is_file():
                raise ConsilienceError(f"study data {self.name!r}: {path} is missing; {self.get}")
        if not held:
            raise ConsilienceError(
                f"study data {self.name!r} needs {' and '.join(self.files)} below a folder of data: pass folder= or "
                f"set {FOLDER_VARIABLE}; {self.get}"
            )
        return tuple(held)

    def _or_folder(self, given: Path | None) -> str:
        place = f"{given}" if given else f"a folder of data (folder= or {FOLDER_VARIABLE})"
        return f", or put {' or '.join(self.files)} into {place}"

    def split_of(self, collection: Collection, seed: int = 0) -> Split | None:
        """The fixed split of the loaded collection, or None when it is split by group; `seed` draws validation."""
        return None if self.split is None else self.split(collection, seed)


def data_folder(folder: Path | None = None) -> Path | None:
    """The folder of data: the argument, else $CONSILIENCE_DATA, else None; ConsilienceError when it is no folder."""
    named = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    if named is None:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        raise ConsilienceError(f"{path}: the folder of data does not exist or is no folder")
    return path


def available(folder: Path | None = None) -> tuple[StudyData, ...]:
    """The sets that can be loaded here and now, without a download."""

    def here(data: StudyData) -> bool:
        try:
            data.paths(folder)
        except ConsilienceError:
            return False
        return True

    data_folder(folder)
    return tuple(data for data in SETS if here(data))


def get(name: str) -> StudyData:
    """The set with this name; ConsilienceError names the known ones."""
    known = {data.name: data for data in SETS}
    if name not in known:
        raise ConsilienceError(f"unknown study data {name!r}; known: {', '.join(known)}")
    return known[name]


_TRANSFER_NOTE = (
    "Genes that both measured (8,839), in genome order; the depth is the sum over these. FCGR3A+ monocytes, dendritic "
    "cells and platelets of PBMC3k have no sorted counterpart and are dropped. Labels of PBMC3k come from clustering "
    "its own counts, those of the sorted cells from antibodies. Vocabulary and validation come from the training "
    "study alone. Both are 10x Genomics blood of healthy donors, 3' chemistry: an easy transfer."
)
_GET_H5AD = "an .h5ad with counts in X and obs.cell_type, "

SETS: tuple[StudyData, ...] = (
    StudyData(
        name="pbmc-sorted",
        domain="cells",
        reader="cells:pbmc_sorted",
        tasks=("cell type", common.COARSE_CELL_TYPE),
        tokenizer=CELL_TOKENS,
        records=None,
        needs="folder",
        files=(SORTED_FILE,),
        get=_GET_H5AD + "made of referenceCounts.rda and referenceAnnot.rda of github.com/JEFworks/MUDAN",
        licence="GPL-3 (the repository; it states none for the data)",
        note=(
            "2,140 human blood cells sorted by surface proteins, then sequenced (Zheng et al. 2017). The label is the "
            "sort, not a clustering: the only cell labels here that do not come from the counts. No groups are known; "
            "every population was a library of its own (its name is the barcode's prefix), so that depth and other "
            "effects of the library tell the label, and cells of a library stand on both sides of the split: the "
            "scores are too high, equally for all rows. Genes stand in genome order: order='vocabulary' is genome "
            "position. All cells, at most 257 tokens."
        ),
    ),
    StudyData(
        name="pbmc3k-to-sorted",
        domain="cells",
        reader="cells:blood_pair",
        tasks=(common.COARSE_CELL_TYPE,),
        tokenizer=CELL_TOKENS,
        records=None,
        needs="folder",
        files=(SORTED_FILE, PBMC3K_FILE),
        get=_GET_H5AD + "made of referenceCounts.rda of github.com/JEFworks/MUDAN and of pbmc_matrix.rda of "
        "github.com/rnabioco/clustifyrdata",
        split=partial(common.study_split, test="sorted"),
        licence="GPL-3 and MIT (the repositories)",
        note="Transfer: training and validation on PBMC3k, test on all sorted cells. " + _TRANSFER_NOTE,
    ),
    StudyData(
        name="sorted-to-pbmc3k",
        domain="cells",
        reader="cells:blood_pair",
        tasks=(common.COARSE_CELL_TYPE,),
        tokenizer=CELL_TOKENS,
        records=None,
        needs="folder",
        files=(SORTED_FILE, PBMC3K_FILE),
        get=_GET_H5AD + "made of referenceCounts.rda of github.com/JEFworks/MUDAN and of pbmc_matrix.rda of "
        "github.com/rnabioco/clustifyrdata",
        split=partial(common.study_split, test="pbmc3k"),
        licence="GPL-3 and MIT (the repositories)",
        note="Transfer: training and validation on sorted cells, test on all of PBMC3k. " + _TRANSFER_NOTE,
    ),
    StudyData(
        name="cite-cbmc",
        domain="cells",
        reader="cells:cite_cbmc",
        tasks=("cell type", "CD4 protein", "CD8 protein", "CD19 protein"),
        tokenizer=CELL_TOKENS,
        records=None,
        needs="folder",
        files=("cells/cite_cbmc_8617x2000_counts_adt10_labels_nogenenames.h5ad",),
        get=_GET_H5AD + "obsm.protein and uns.protein_names_inferred, made of CITE_CBMC_counts_top2000.h5 of "
        "github.com/ttgump/scDCC",
        licence="Apache-2.0 (the repository; it states none for the data)",
        note=(
            "7,713 cells of human cord blood with ten surface proteins measured beside the RNA (Stoeckius et al. "
            "2017): the proteins (z-scores of antibody counts) are labels that the counts did not make. Mouse cells, "
            "doublets and multiplets are dropped. 2,000 variable genes without names, chosen by others on all cells; "
            "the depth is the sum over these. Names of cell types and proteins are inferred, and the cell types come "
            "from clustering. One donor pool, no groups: cells of a library stand on both sides of the split."
        ),
    ),
    StudyData(
        name="tabula-muris",
        domain="cells",
        reader="cells:tabula_muris",
        tasks=("cell type",),
        tokenizer=CELL_TOKENS,
        records=None,
        needs="folder",
        files=("cells/tabula_muris_facs_deepchem_5000x2000_counts_celltypes.h5ad",),
        get=_GET_H5AD
        + "obs.split, made of examples/tutorials/assets/scRNAseq of github.com/deepchem/deepchem",
        split=common.official_split,
        licence="MIT (the repository; it states none for the data)",
        note=(
            "5,000 mouse cells of twelve kinds, Smart-seq2 read counts of 2,000 genes (in no order), with the "
            "published split of 4,000 and 1,000 cells. Cells with equal counts are kept once (there are none). "
            "Mouse, organ and plate are not in the file: cells of one mouse stand on both sides."
        ),
    ),
    StudyData(
        name="galaxies-simulated",
        domain="galaxies",
        reader="galaxies:galaxies_simulated",
        tasks=("redshift", "log stellar mass (solar masses)", "log ssfr"),
        tokenizer={"patch_size": 32},
        records=8000,
        needs="folder",
        files=("galaxies/galaxy_sim_bagpipes_20k.npz",),
        get="it is simulated with bagpipes 1.3.6 (arrays wave_A, flux, ivar, is_test, label_z ...)",
        split=common.official_split,
        licence="simulated; cite bagpipes (Carnall et al. 2018) and Bruzual & Charlot 2003",
        note=(
            "SIMULATED galaxy spectra with the noise of a survey, 3,600 to 9,792 Å: 6,400 of the 16,000 training and "
            "1,600 of the 4,000 fixed test spectra. Labels are the simulation's inputs. Every spectrum is an object of "
            "its own. Patches of 32 pixels (102 Å) make 61 tokens and the scale."
        ),
    ),
    StudyData(
        name="supernovae",
        domain="galaxies",
        reader="galaxies:supernovae",
        tasks=("broad type", "type"),
        tokenizer={"patch_size": 32},
        records=None,
        needs="folder",
        files=("galaxies/sn_spectra_snid_astrodash.npz",),
        get="it is made of templates/**/*.lnw of github.com/daniel-muthukrishna/astrodash",
        licence="MIT (the repository)",
        note=(
            "5,341 real spectra of 404 supernovae in the rest frame (2,500 to 10,000 Å), the continuum removed by "
            "their authors; the group is the supernova. Zeros outside the observed range and longer runs inside are "
            "not measured, fluxes beyond 50 are cut and not measured. There are no errors: each spectrum has one, from "
            "the scatter of neighbouring pixels, a lower limit. Types are Ia, Ib, Ic, II and 18 subtypes (some with "
            "one supernova). Patches of 32 pixels (13,000 km/s, a broad line) make 32 tokens and the scale."
        ),
    ),
    StudyData(
        name="photometry",
        domain="galaxies",
        reader="galaxies:photometry_spectra",
        tasks=("redshift",),
        tokenizer={"patch_size": 1},
        records=None,
        needs="bundled",
        licence="BSD-3 (kcorrect); SDSS and 2MASS public data",
        note=(
            "10,000 real galaxies (SDSS u g r i z, 2MASS J H Ks) with spectroscopic redshifts, as spectra of eight "
            "pixels at the effective wavelengths: a token is a band, nine with the scale. Corrected for Galactic dust, "
            "inverse variances of the file with kcorrect's error floor (3 % in J H Ks). The GALEX columns are left "
            "out: 8 % of the galaxies have them. Galaxies were chosen to have 2MASS detections; every one is a group."
        ),
    ),
    StudyData(
        name="moses-slice",
        domain="molecules",
        reader="molecules:moses_slice",
        tasks=("logP", "TPSA", "QED"),
        tokenizer={"max_length": 64},
        records=6000,
        needs="fetched",
        files=("molecules/moses/train.csv.gz",),
        fetch="moses",
        licence="MIT",
        note=(
            "6,000 molecules of MOSES' training set (ZINC Clean Leads), groups are Murcko scaffolds; labels are "
            "computed by RDKit. 37 tokens on average, 50 at most."
        ),
    ),
    StudyData(
        name="moleculenet-lipo",
        domain="molecules",
        reader="molecules:lipophilicity",
        tasks=("logD",),
        tokenizer={"max_length": 128},
        records=None,
        needs="folder",
        files=("molecules/moleculenet/lipo.csv.gz",),
        get="MoleculeNet's lipophilicity, columns smiles and lipo (exampledata/finetune of "
        "github.com/tencent-ailab/grover)",
        licence="MIT (the repository)",
        note=(
            "4,200 molecules with MEASURED logD at pH 7.4, groups are Murcko scaffolds. 47 tokens on average; 3 "
            "molecules above 128 tokens are set aside."
        ),
    ),
    StudyData(
        name="moleculenet-bace",
        domain="molecules",
        reader="molecules:bace",
        tasks=("BACE-1 inhibitor",),
        tokenizer={"max_length": 128},
        records=None,
        needs="folder",
        files=("molecules/moleculenet/bace.csv.gz",),
        get="MoleculeNet's BACE, columns mol and Class (exampledata/finetune of github.com/tencent-ailab/grover)",
        licence="MIT (the repository)",
        note=(
            "1,513 molecules MEASURED as inhibitors of beta-secretase 1 or not, groups are Murcko scaffolds. 61 tokens "
            "on average; 5 molecules above 128 tokens are set aside. Small: expect a wide spread between seeds."
        ),
    ),
    StudyData(
        name="qm9",
        domain="points",
        reader="points:qm9",
        tasks=("HOMO-LUMO gap (eV)", "HOMO (eV)", "LUMO (eV)", "dipole moment (D)"),
        tokenizer={"align": "principal"},
        records=6000,
        needs="fetched",
        files=("points/qm9_3d_130831.npz", "molecules/qm9_3d_130831.npz"),
        fetch="qm9",
        licence="MIT (the package; it states none for the data)",
        note=(
            "6,000 molecules with COMPUTED geometries and properties, hydrogens included, 18 atoms on average, 29 at "
            "most. Groups are Murcko scaffolds as for molecules, so that one ring system is on one side; composition "
            "would keep isomers together and part homologues. Molecules without a ring are groups of their own."
        ),
    ),
    StudyData(
        name="modelnet10",
        domain="points",
        reader="points:modelnet10",
        tasks=("class",),
        tokenizer={"tokens": "patches", "n_patches": 32, "patch_size": 16, "augment": "none"},
        records=None,
        needs="folder",
        files=("points/modelnet10_vox24_packed.npz",),
        get="it is data/modelnet10.npz of github.com/amitregmi/VoxNet-Google-Colab, cut to 24^3 and packed to bits",
        split=common.official_split,
        licence="academic use only (ModelNet)",
        note=(
            "CAD models of furniture (drawn, not scanned; origin 'model') on 24^3 voxels, ten classes, official split. "
            "Surface voxels, 512 drawn where there are more. Empty shapes are dropped, equal ones kept once, test "
            "shapes that equal a training shape dropped: 3,799 and 829 are left, and 4 with fewer than 16 points are "
            "set aside. Shapes stand upright and aligned, so nothing is rotated. 32 patches of 16 points."
        ),
    ),
)
