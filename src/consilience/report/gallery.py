"""The figures of the page: what is drawn, how it is to be read, what it does not say, and why one may be missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from consilience.report import html
from consilience.report.figures import alignment, carried, crossover, dial, orders, profile, scatter
from consilience.report.figures.common import styled
from consilience.study.analysis import Tables
from consilience.study.plan import StudyPreset

Draw = Callable[[Tables, StudyPreset | None], Figure | None]
Notes = Callable[[Tables, StudyPreset | None], str]


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A figure of the report.

    Args:
        name: of its file.
        title: of its section.
        draw: the figure, or None where the tables have nothing for it.
        caption: how to read it, and what it does not say.
        asked: whether a preset asks for it.
        work: the kind of job that it needs, to tell what failed from what was never asked.
        notes: what else belongs under it, from the tables.
    """

    name: str
    title: str
    draw: Draw
    caption: str
    asked: Callable[[StudyPreset], bool]
    work: str = "pre-trained"
    notes: Notes | None = None


def _shows(figure: str, least: int = 2) -> Callable[[StudyPreset], bool]:
    return lambda preset: any(sum(figure in v.figures for v in s.variants) >= least for s in preset.settings)


PLATES: Sequence[Plate] = (
    Plate(
        name="information-profile",
        title="Information profile: how much a token is known as more is seen",
        draw=profile.draw,
        notes=profile.notes,
        work="profile",
        asked=lambda preset: bool(preset.profile),
        caption=(
            "Erasure panels: the cross-entropy of a hidden token when a share r of the others is hidden too. The "
            "area "
            "below a curve is the entropy per token, the grey area above it the total correlation, the blue area "
            "down to the value at r = 0 the dual total correlation, all per token. A curve that stays low until r is "
            "near 1 belongs to redundant data, of which a few tokens tell most; one that drops only near 0 to data "
            "whose tokens must be seen together. Thin lines are seeds, the thick one is their mean; shaded for the "
            "row with the smallest area. Symbols and counts are divided by the value at r = 1; real values, whose "
            "nats depend on the unit, are shown as the difference from it. Gaussian panels: squared error of the "
            "denoiser per channel against the signal-to-noise ratio g; the gap to the dotted line, 1 / (1 + g) of "
            "independent unit Gaussians, is what the others tell, and half its area over g is an entropy gap in "
            "nats. "
            "Known sources are exact. What they do not say: a model's curve lies above that of the data, by as much "
            "as the model lacks, so an undertrained model looks less redundant than its science."
        ),
    ),
    Plate(
        name="dial",
        title="The dial between next-token and denoising",
        draw=dial.draw,
        asked=_shows("dial", 3),
        caption=(
            "Blocks of b tokens, each predicted from the blocks before it: b = 1 is next-token, b = N (dotted) "
            "masked diffusion or denoising. Left: captured dependence, likelihoods and bounds only. Right: the first "
            "task's probe. Solid with circles: tokens of a block are erased; dashed with diamonds: Gaussian noise; "
            "square: next-token in its own single stream, which costs half as much per token, so that it sees more "
            "tokens at the same operations. Bands are 95% intervals. A left panel that falls with b says that the "
            "sequence is the right idea for this science; a flat one that it is a set. Bounds lie above the "
            "likelihood by an unknown amount that may itself grow with b."
        ),
    ),
    Plate(
        name="orders",
        title="Which order is natural",
        draw=orders.draw,
        notes=orders.notes,
        asked=_shows("orders"),
        caption=(
            "Every order of the same tokens has the same entropy, so what one costs over the best (the dot at 0) at "
            "the same budget is how much harder it is for this core to learn. Whiskers: paired 95% intervals; one "
            "that reaches 0 is not told apart from the best. Dashed: what knowing nothing but addresses costs. "
            "Light bars: a random order. It does not say which order gives better embeddings, and the gaps shrink "
            "with longer training. For orders computed from the content (ranks, other spellings of a molecule, "
            "Hilbert curves) the order itself carries information that is not charged."
        ),
    ),
    Plate(
        name="sharing",
        title="One core for all sciences",
        draw=carried.sharing,
        work="shared",
        asked=lambda preset: bool(preset.sharing),
        caption=(
            "Hollow: the core trained on this science alone. Filled: one core trained on all sciences for the sum of "
            "their budgets, each science with as many steps as before. Whiskers: 95% Student interval of the gain "
            "over seeds, paired by seed. Right: held-out nats saved per token (positive: sharing helps). It does not "
            "say what sharing does when a science has less data, or the core is larger."
        ),
    ),
    Plate(
        name="transfer",
        title="Trunks carried from science to science",
        draw=carried.transfer,
        work="transfer",
        asked=lambda preset: preset.transfer is not None,
        caption=(
            "Rows: the science read out. Columns: the science that the frozen trunk was trained on; only tokenizer "
            "embedding and heads were trained anew. Numbers: gain over a trunk with random weights, 95% Student "
            "interval over seeds; coloured (orange up, violet down) only where it excludes 0, uncorrected for the "
            "number of cells. The diagonal is the science's own trunk: what could be gained at most. Losses of "
            "different targets have different units: compare inside a row."
        ),
    ),
    Plate(
        name="alignment",
        title="Do objectives see a science alike",
        draw=alignment.draw,
        asked=lambda preset: preset.alignment and _shows("table")(preset),
        caption=(
            "Agreement of the ten nearest neighbours of the same test records in two representations (first seed), "
            "calibrated: 0 is that of shuffled records, 1 identical neighbours. Filled where it is above the null, "
            "p < 0.05 by permutation after Holm's correction over the pairs of a science; hollow otherwise. "
            "Sciences share no records, so there is no such number between them. It does not say that what is shared "
            "is useful: any two representations that keep the size of a record agree in part."
        ),
    ),
    Plate(
        name="crossover",
        title="Few records, many epochs",
        draw=crossover.draw,
        notes=crossover.notes,
        work="crossover",
        asked=lambda preset: preset.crossover is not None,
        caption=(
            "Held-out nats per token while training on few records, a panel for each number of them, one vertical "
            "axis; thin lines are seeds. A dotted line marks where next-token and masked diffusion change places. A "
            "bound lies above its likelihood, so masked diffusion is better than it looks by an unknown amount. No "
            "learning-rate decay, so that every point is a run that could stop there; rates come from the main grid."
        ),
    ),
    Plate(
        name="captured-and-probe",
        title="Does a better likelihood embed better",
        draw=scatter.draw,
        asked=lambda preset: _shows("floor", 1)(preset),
        caption=(
            "Every row with a likelihood: probe score of the first task against captured dependence, both with 95% "
            "intervals. Spearman's rank correlation of each setting stands beside its name. Rows with surrogates "
            "(fixed-rate masking among them) have no place on this axis, so this says nothing of them. Rows "
            "differ in orders "
            "and heads as well as objectives; a correlation over a handful of rows has a wide interval."
        ),
    ),
    Plate(
        name="rates",
        title="How much to mask",
        draw=scatter.rates,
        asked=_shows("rates"),
        caption=(
            "Probe score against the share of masked tokens; the diamond draws the rate anew for every sample. "
            "Whiskers: 95% intervals; rows share test groups, so their differences are known better than the "
            "whiskers suggest. "
            "Losses at different rates are different quantities and are not shown."
        ),
    ),
    Plate(
        name="heads",
        title="Heads for real values",
        draw=scatter.heads,
        asked=_shows("heads"),
        caption=(
            "Next-token with a Gaussian, a mixture and a flow as the likelihood of a value: probe score of the first "
            "task against exact nats per token (left is better), 95% intervals. A head that fits densities better "
            "need not leave better embeddings."
        ),
    ),
)  # fmt: skip


def gallery(tables: Tables, preset: StudyPreset | None, folder: Path) -> str:
    """All figures with their captions; where one is missing, a line that says why."""
    parts = []
    for plate in PLATES:
        with styled():
            figure = plate.draw(tables, preset)
        notes = plate.notes(tables, preset) if plate.notes else ""
        parts.append(f"<h2>{escape(plate.title)}</h2>")
        if figure is None:
            parts.append(
                html.paragraph(f"{absent(plate, tables.failures, preset)} {notes}".strip(), "absent")
            )
            for suffix in ("png", "pdf"):
                (folder / f"{plate.name}.{suffix}").unlink(missing_ok=True)
        else:
            caption = f"{plate.caption} {notes}".strip()
            parts.append(html.picture(figure, folder, plate.name, caption, plate.title))
    return "".join(parts)


def absent(plate: Plate, failures: pd.DataFrame, preset: StudyPreset | None) -> str:
    """Why there is no such figure."""
    if preset is not None and not plate.asked(preset):
        return f"Not shown: the preset {preset.name} does not ask for it."
    failed = int((failures["work"] == plate.work).sum()) if len(failures) else 0
    if failed:
        return f"Not shown: {failed} of the runs it needs failed; see below."
    return "Not shown: the runs it needs have not finished, or gave nothing that may be drawn."
