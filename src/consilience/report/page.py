"""`report.html`: everything of a study on one page that needs no other file."""

import logging
from html import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.environment import (
    device_name,
    peak_memory_mib,
    peak_worker_memory_mib,
    usable_cpus,
    versions,
)
from consilience.report import html
from consilience.report.cost_section import budget_section, likelihood_section
from consilience.report.figures.common import styled
from consilience.report.figures.curves import loss_curves
from consilience.report.gallery import gallery
from consilience.report.markdown import as_markdown
from consilience.report.questions import questions
from consilience.report.score_section import score_section
from consilience.report.style import STYLE
from consilience.report.tables import shown_variants
from consilience.report.verdicts import verdicts
from consilience.study.analysis import Tables, analyse
from consilience.study.plan import Setting, StudyPreset

if TYPE_CHECKING:
    from consilience.study.runner import Study

logger = logging.getLogger(__name__)

MOST_MODELS = 6
"""Models in the figure of a science; more columns than the page holds."""


def write_report(study: "Study", tables: Tables | None = None) -> Path:
    """Write `report.html`, `figures/` (PNG and PDF) and `tables/` (CSV, parquet, Markdown) into the study's folder.

    Args:
        study: finished or not; what is missing is said.
        tables: of the study; None = `analyse` makes them.
    """
    tables = analyse(study) if tables is None else tables
    folder = study.folder / "figures"
    tables.write(study.folder / "tables")
    asked = questions(tables)
    asked.to_csv(study.folder / "tables" / "questions.csv", index=False)
    (study.folder / "tables" / "scores.md").write_text(as_markdown(tables), encoding="utf-8")
    sections = [
        _heading(study.preset),
        _unfinished(study),
        _verdicts(tables),
        score_section(tables, study.preset),
        budget_section(tables),
        likelihood_section(tables),
        gallery(tables, study.preset, folder),
        _questions(asked),
        _curves(study, folder),
        *_sciences(study, folder),
        _failures(tables.failures),
        _what_was_run(study),
    ]
    path = study.folder / "report.html"
    title = f"consilience study: {study.preset.name}"
    path.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>",
        encoding="utf-8",
    )
    return path


def _heading(preset: StudyPreset) -> str:
    settings = ", ".join(setting.name for setting in preset.settings)
    count = len({variant.name for setting in preset.settings for variant in setting.variants})
    rates = f"{len(preset.learning_rates)} learning rates tried for each, " if preset.learning_rates else ""
    seeds = f"{preset.seeds} seed{'s' if preset.seeds > 1 else ''}"
    return (
        "<h1>What is next-token prediction in each science?</h1>"
        f"<p class='lead'>One transformer core ({preset.core.depth} layers, width {preset.core.width}) is trained from "
        f"scratch with each of {count} objectives and orders on {escape(settings)}: {preset.training.steps:,} steps of "
        f"{preset.training.tokens_per_batch:,} tokens for the first row and the same floating-point operations for "
        f"every other, {rates}{seeds}. Then the core is frozen. Two questions are asked of it, since "
        "the answers may differ: how much of the data does its likelihood capture, and what do its embeddings "
        "know, beside classical baselines that get the same probes, on groups that training never saw.</p>"
        f"<p class='note'>This is the preset <b>{escape(preset.name)}</b>: {escape(preset.note)}</p>"
    )


def _unfinished(study: "Study") -> str:
    """What a report before the end does not hold."""
    if not study.unfinished:
        return ""
    return (
        f"<p class='lose'>This study is not finished: {study.unfinished} of {len(study.jobs)} jobs have no result yet. "
        "Rows may stand on fewer seeds than the preset's; the table of scores says on how many.</p>"
    )


def _verdicts(tables: Tables) -> str:
    found = verdicts(tables)
    if not found:
        return ""
    parts = []
    for setting in dict.fromkeys(verdict.setting for verdict in found):
        items = "".join(f"<li>{escape(v.text)}</li>" for v in found if v.setting == setting)
        parts.append(f"<h3>{escape(setting or 'Across settings')}</h3><ul class='verdicts'>{items}</ul>")
    note = (
        "Intervals are 95%. A difference counts when its interval excludes 0 and, where a test is named, its "
        "corrected "
        "p-value is below 0.05. Detectable: what a t-test with this many seeds would find four times out of five."
    )
    return f"<h2>What this study says</h2>{''.join(parts)}{html.paragraph(note, 'caption')}"


def _questions(asked: pd.DataFrame) -> str:
    body = [
        html.row(line["question"], [html.cell(line[name]) for name in ("expected", "found", "verdict")])
        for line in asked.to_dict("records")
    ]
    note = (
        "Expectations written down before the study, from what others report at other scales; each may fail. "
        "Verdicts "
        "are computed from the tables. Differences of two rows are taken as if the rows were independent, which errs "
        "to undecided; they are not corrected for the number of questions."
    )
    table = html.table(["", "expected", "found", "verdict"], body, style="prose dense", caption=note)
    return f"<h2>What others found, asked again</h2>{table}"


def _curves(study: "Study", folder: Path) -> str:
    with styled():
        figure = loss_curves(study.results, shown_variants(study.preset))
    title = "Loss curves"
    if figure is None:
        return f"<h2>{title}</h2>{html.paragraph('Not shown: no run has a curve.', 'absent')}"
    caption = (
        "Held-out loss during training, a line a seed. White panels: exact likelihoods and bounds. Shaded panels: "
        "surrogates, which say how training went, not how much of the data is captured; compare them with "
        "nothing but "
        "themselves."
    )
    return f"<h2>{title}</h2>{html.picture(figure, folder, 'loss-curves', caption, title)}"


def _sciences(study: "Study", folder: Path) -> list[str]:
    """A figure of each setting that its own scientists would look at, from the models of the first seed."""
    sections = []
    for setting in study.preset.settings:
        part = study.prepared[setting.name]
        title = f"{setting.name[:1].upper()}{setting.name[1:]}: {part.collection.source} ({part.collection.origin})"
        try:
            models = _models(study, setting)
            figure = part.domain.figure(models, part.collection, part.split.test) if models else None
        except (ConsilienceError, RuntimeError, ValueError) as error:
            logger.error("the figure of %s failed: %s", setting.name, error)
            text = html.paragraph(f"The figure failed: {error}", "lose")
            sections.append(f"<h2>{escape(title)}</h2>{text}")
            continue
        if figure is not None:
            caption = str(figure.get_label() or "Models of seed 0, records held out of training.")
            name = "science-" + "".join(c if c.isalnum() else "-" for c in setting.name.lower())
            sections.append(f"<h2>{escape(title)}</h2>{html.picture(figure, folder, name, caption, title)}")
    return sections


def _models(study: "Study", setting: Setting) -> dict[str, FoundationModel]:
    """Models of the first seed of the main variants that read the records as the setting does."""
    names = [v.name for v in setting.variants if "table" in v.figures and not v.tokenizer]
    found: dict[str, FoundationModel] = {}
    for result in study.results:
        if result.role != "pre-trained" or result.setting != setting.name or result.seed != 0 or result.error:
            continue
        if result.row in names and len(found) < MOST_MODELS:
            found[result.row] = FoundationModel.load(study.run_folder(setting.name, result.row, 0))
    return found


def _failures(failures: pd.DataFrame) -> str:
    if failures.empty:
        return ""
    items = []
    for line in failures.to_dict("records"):
        seed = "" if pd.isna(line["seed"]) else f", seed {line['seed']:.0f}"
        text = f"{line['setting']}, {line['row']} ({line['work']}{seed}): {line['reason']}"
        items.append(f"<li>{escape(text)}</li>")
    return f"<h2>Runs that failed</h2><ul class='lose'>{''.join(items)}</ul>"


def _what_was_run(study: "Study") -> str:
    preset = study.preset
    head = ["", "data", "origin", "records", "train / validation / test", "set aside", "fingerprint"]
    body = []
    for name, part in study.prepared.items():
        collection, split = part.collection, part.split
        sizes = " / ".join(f"{len(rows):,}" for rows in (split.train, split.validation, split.test))
        cells = [html.cell(text) for text in (collection.source, collection.origin, f"{len(collection):,}", sizes,
                                              str(len(part.failures)))]  # fmt: skip
        body.append(html.row(name, [*cells, f"<td><code>{escape(collection.fingerprint)}</code></td>"]))
    variants = chain.from_iterable((f"{s.name}, {v.name}: {v.objective} {dict(v.options) or ''} "
                                    f"{dict(v.tokenizer) or ''}".strip() for v in s.variants)
                                   for s in preset.settings)  # fmt: skip
    listed = "".join(f"<li>{escape(text)}</li>" for text in variants)
    found = ", ".join(f"{name} {version}" for name, version in versions(science=True).items())
    origins = (
        "Origin: real = measured, computed = labels or structures from a calculation, simulated and model = no "
        "measurement stands behind the records; what holds for those need not hold for real ones."
    )
    return (
        f"<h2>What was run</h2>{html.table(head, body, style='dense', caption=origins)}"
        f"<details><summary>All variants and their options</summary><ul>{listed}</ul></details>"
        f"<p class='caption'>Settings: {escape(str(preset.core))}; {escape(str(preset.training))}; seeds 0 to "
        f"{preset.seeds - 1}; learning rates {escape(str(preset.learning_rates or 'as above'))}; losses on "
        f"{preset.evaluation_records:,} held-out records with {preset.evaluation_draws} draws.<br>This sitting: "
        f"{study.seconds:.0f} s on {escape(device_name())}, {usable_cpus()} CPU cores; peak memory "
        f"{peak_memory_mib():,.0f} MiB, of the largest worker process {peak_worker_memory_mib():,.0f} MiB.<br>"
        f"{escape(found)}</p>"
    )
