"""The figure a chemist looks at: drawn samples of generating models, their properties beside real ones."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D

from consilience.core.records import Collection
from consilience.domains.molecules.generation import assess, canonical_or_none, describe
from consilience.tokenizers.molecule_notation import parse

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel

OBJECTIVES = ("next-token", "masked-diffusion")
"""The objectives whose samplers draw from the distribution of the data."""

SAMPLES = 200
DRAWN = 12
PER_ROW = 6
FEWEST = 20
"""Valid samples that a histogram needs: fewer make spikes that hide the others."""
PROPERTIES = {"logP": "logP (Crippen)", "TPSA": "TPSA / Å²", "molecular weight": "molecular weight / g/mol"}
COLOURS = ("#0072b2", "#d55e00", "#009e73")


def figure(models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray) -> Figure:
    """Generated molecules: the first ones as they came, unselected, with validity, uniqueness and novelty.

    Novelty is against all records that are not in `test`; properties are compared with those in `test`.
    """
    held_out = [collection.records[int(place)] for place in test]
    training = [collection.records[int(place)] for place in np.setdiff1d(np.arange(len(collection)), test)]
    samples = {
        name: models[name].generate(SAMPLES, domain="molecules", seed=0)
        for name in OBJECTIVES
        if name in models
    }
    return draw(samples, training=training, held_out=held_out)


def draw(samples: Mapping[str, Sequence[str]], *, training: Sequence[str], held_out: Sequence[str]) -> Figure:
    """The figure for samples at hand: objective name -> generated strings."""
    shown = Figure(figsize=(12, 3.9 * len(samples) + 3.4), layout="constrained")
    rows = shown.subfigures(len(samples) + 1, 1, height_ratios=[3.9] * len(samples) + [3.4], squeeze=False)[
        :, 0
    ]
    for part, (name, strings) in zip(rows, samples.items()):
        report = assess(strings, training, held_out)
        title = f"{name}: {report.line()}; the first valid ones, unselected"
        part.suptitle(title, fontsize=12, fontweight="bold")
        _draw_samples(part.subplots(), strings)
    _draw_properties(rows[-1].subplots(1, len(PROPERTIES)), samples, held_out)
    rows[-1].suptitle(
        "properties of valid samples beside held-out real molecules (computed by RDKit)", fontsize=11
    )
    return shown


def _draw_samples(axes: Axes, strings: Sequence[str]) -> None:
    """The first valid molecules in the order they were generated; raw strings when there are none."""
    axes.axis("off")
    smiles = [text for text in canonical_or_none(strings) if text is not None][:DRAWN]
    if not smiles:
        raw = "\n".join(repr(text[:80]) for text in strings[:8])
        axes.text(
            0.5, 0.5, f"none is a valid molecule; the first strings:\n\n{raw}", ha="center", va="center"
        )
        return
    axes.imshow(_grid([parse(text) for text in smiles]), interpolation="lanczos")


def _grid(mols: Sequence[Chem.Mol]) -> np.ndarray:
    """An image of the molecules in rows of six, two rows. Returns (height, width, 4) floats."""
    width, height = 300, 260
    drawer = rdMolDraw2D.MolDraw2DCairo(PER_ROW * width, DRAWN // PER_ROW * height, width, height)
    # One long chain would shrink all others. (The stubs of RDKit take every option for an object.)
    drawer.drawOptions().drawMolsSameScale = False  # type: ignore[assignment]
    drawer.drawOptions().fixedBondLength = 34  # type: ignore[assignment]
    with rdBase.BlockLogs():
        drawer.DrawMolecules(list(mols))
    drawer.FinishDrawing()
    return np.asarray(matplotlib.image.imread(BytesIO(drawer.GetDrawingText()), format="png"))


def _draw_properties(
    axes: Sequence[Axes], samples: Mapping[str, Sequence[str]], held_out: Sequence[str]
) -> None:
    """One histogram per property: held-out molecules filled, samples as lines, on shared bins."""
    real = describe([parse(text) for text in canonical_or_none(held_out) if text])
    drawn = {
        name: describe([parse(text) for text in canonical_or_none(s) if text]) for name, s in samples.items()
    }
    for place, (axis, (name, label)) in enumerate(zip(axes, PROPERTIES.items())):
        low, high = np.percentile(real[name], [0.5, 99.5])
        bins = np.linspace(low, high, 31).tolist()
        axis.hist(np.clip(real[name], low, high), bins, density=True, color="0.82", label="held-out, real")
        for colour, (objective, values) in zip(COLOURS, drawn.items()):
            clipped = np.clip(values[name], low, high)
            if len(clipped) >= FEWEST:
                axis.hist(clipped, bins, density=True, histtype="step", lw=1.6, color=colour, label=objective)
        axis.set_xlabel(label)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
        if place == 0:
            axis.legend(frameon=False, fontsize=9)
