"""MOSES: the benchmark of distribution learning for molecules, measured as its authors define it."""

from consilience.domains.molecules.moses.chemnet import ChemNet
from consilience.domains.molecules.moses.measures import COLUMNS, PROPERTIES, measure
from consilience.domains.molecules.moses.published import Row, published, source
from consilience.domains.molecules.moses.references import References, references
from consilience.domains.molecules.moses.results import Results, Run
from consilience.domains.molecules.moses.strings import generated_strings

__all__ = [
    "COLUMNS",
    "PROPERTIES",
    "ChemNet",
    "References",
    "Results",
    "Row",
    "Run",
    "generated_strings",
    "measure",
    "published",
    "references",
    "source",
]
