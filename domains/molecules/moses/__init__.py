"""MOSES: the benchmark of distribution learning for molecules, measured as its authors define it."""

from consilience.domains.molecules.moses.benchmark import Moses
from consilience.domains.molecules.moses.chemnet import ChemNet
from consilience.domains.molecules.moses.measures import COLUMNS, PROPERTIES, measure
from consilience.domains.molecules.moses.published import published, source
from consilience.domains.molecules.moses.references import References, references
from consilience.domains.molecules.moses.strings import generated_strings

__all__ = [
    "COLUMNS",
    "PROPERTIES",
    "ChemNet",
    "Moses",
    "References",
    "generated_strings",
    "measure",
    "published",
    "references",
    "source",
]
