"""`report.html`: everything of a study on one page that needs no other file."""

import base64
import io
import logging
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.environment import (
    device_name,
    peak_memory_mib,
    peak_worker_memory_mib,
    usable_cpus,
    versions,
)
from consilience.report.curves import loss_curves
from consilience.report.style import STYLE
from consilience.report.tables import METRIC_NAME, cell_text, columns_of, loss_table, rows_of, score_table
from consilience.report.verdicts import verdicts

if TYPE_CHECKING:
    from pathlib import Path

    from consilience.study.runner import Study

logger = logging.getLogger(__name__)


def write_report(study: "Study") -> "Path":
    """Write `report.html`, the figures as PNG and the tables as CSV into the folder of the study."""
    table, losses = score_table(study.results), loss_table(study.results)
    table.to_csv(study.folder / "scores.csv", index=False)
    losses.to_csv(study.folder / "losses.csv", index=False)
    sections = [
        _heading(study),
        _score_section(table, study),
        _loss_section(losses),
        _figure_section("Loss curves", "loss-curves", loss_curves(study.results), study,
                        "Held-out loss during training. Exact likelihoods and bounds stand above, surrogates below: "
                        "a surrogate says how training went, not how much of the data is captured."),
        *_science_sections(study),
        _failures(study),
        _what_was_run(study),
    ]  # fmt: skip
    path = study.folder / "report.html"
    title = f"consilience study: {study.preset.name}"
    path.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>"
    )
    return path


def _heading(study: "Study") -> str:
    preset = study.preset
    return (
        "<h1>What is next-token prediction in each science?</h1>"
        f"<p class='lead'>One transformer core ({preset.core.depth} layers, width {preset.core.width}), "
        f"{preset.training.steps} steps of {preset.training.tokens_per_batch:,} tokens, {preset.seeds} seeds, "
        f"{len(study.prepared)} sciences. Each objective trains the same core from scratch at the same budget; "
        "then the core is frozen and read out by the same probes as the baselines, on groups that training never "
        f"saw.</p><p class='note'>This is the preset <b>{escape(preset.name)}</b>: {escape(preset.note)}</p>"
    )


def _score_section(table: pd.DataFrame, study: "Study") -> str:
    columns = columns_of(table)
    head = "".join(
        f"<th>{escape(domain)}<small>{escape(task)}<br>{escape(METRIC_NAME.get(metric, metric))}</small></th>"
        for domain, task, metric in columns
    )
    body = []
    for row in rows_of(table):
        cells = "".join(_score_cell(table, row, column) for column in columns)
        role = table[table["row"] == row]["role"].iloc[0]
        body.append(f"<tr class='{escape(role)}'><th>{escape(row)}</th>{cells}</tr>")
    classical = table[table["role"] == "classical"]
    names = "; ".join(f"{d}: {m}" for d, m in dict(zip(classical["domain"], classical["method"])).items())
    points = "".join(f"<li>{escape(text)}</li>" for text in verdicts(table))
    return (
        "<h2>What the frozen embeddings know</h2>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "<p class='caption'>Linear probe on the test groups: mean ± standard deviation over seeds; small print: 95% "
        "bootstrap interval over test groups, then the 10-nearest-neighbour probe. "
        "<b class='win'>Green</b>: above the classical baseline. <span class='lose'>Red</span>: not above the core "
        f"with random weights. Classical baselines: {escape(names)}.</p><ul>{points}</ul>"
    )


def _score_cell(table: pd.DataFrame, row: str, column: tuple[str, str, str]) -> str:
    here = table[(table["domain"] == column[0]) & (table["task"] == column[1])]
    found = here[here["row"] == row]
    if found.empty:
        return "<td class='none'>–</td>"
    line = found.iloc[0]
    style = ""
    if line["role"] == "pre-trained":
        classical = here[here["role"] == "classical"]["mean"]
        random = here[here["role"] == "random-init"]["mean"]
        if len(classical) and line["mean"] > classical.iloc[0]:
            style = "win"
        elif len(random) and line["mean"] <= random.iloc[0]:
            style = "lose"
    neighbours = "" if np.isnan(line["knn"]) else f" · kNN {line['knn']:.3f}"
    return (
        f"<td class='{style}'>{cell_text(line['mean'], line['spread'])}"
        f"<small>{line['low']:.2f} to {line['high']:.2f}{neighbours}</small></td>"
    )


def _loss_section(losses: pd.DataFrame) -> str:
    if losses.empty:
        return ""
    body = []
    for _, line in losses.iterrows():
        kind = str(line["kind"])
        body.append(
            f"<tr class='{kind}'><th>{escape(line['domain'])}</th><td>{escape(line['objective'])}</td>"
            f"<td>{cell_text(line['mean'], line['spread'])}</td><td>{kind}</td>"
            f"<td>{line['tokens']:,.0f}</td><td>{line['seconds']:.0f}</td><td>{line['parameters']:,}</td></tr>"
        )
    return (
        "<h2>Held-out loss</h2><table><thead><tr><th></th><th>objective</th><th>loss per token</th><th>kind</th>"
        f"<th>tokens trained on</th><th>seconds</th><th>parameters</th></tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
        "<p class='caption'>Exact and bound are negative log-likelihoods in nats per token, given the addresses. "
        "Masked diffusion is also given the number of tokens, which next-token over strings has to predict. "
        "Compare them within a science. A surrogate (grey) may not be compared with anything but itself.</p>"
    )


def _figure_section(title: str, name: str, figure: Figure, study: "Study", caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    folder = study.folder / "figures"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.png").write_bytes(buffer.getvalue())
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<h2>{escape(title)}</h2><figure><img alt='{escape(title)}' src='data:image/png;base64,{encoded}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _science_sections(study: "Study") -> list[str]:
    sections = []
    for name, part in study.prepared.items():
        rows = [
            r
            for r in study.results
            if r.domain == name and r.role == "pre-trained" and r.seed == 0 and not r.error
        ]
        models = {r.row: FoundationModel.load(study.cell_folder(name, r.row, 0)) for r in rows}
        if not models:
            continue
        collection = part.collection
        title = f"{name.capitalize()}: {collection.source} ({collection.origin})"
        try:
            figure = part.domain.figure(models, collection, part.split.test)
        except (ConsilienceError, RuntimeError) as error:
            logger.error("the figure of %s failed: %s", name, error)
            sections.append(
                f"<h2>{escape(title)}</h2><p class='lose'>The figure failed: {escape(str(error))}</p>"
            )
            continue
        if figure is None:
            continue
        caption = figure.get_label() or "Models of seed 0, records held out of training."
        sections.append(_figure_section(title, name, figure, study, str(caption)))
    return sections


def _failures(study: "Study") -> str:
    failed = [r for r in study.results if r.error]
    if not failed:
        return ""
    rows = "".join(
        f"<li>{escape(r.domain)}, {escape(r.row)}, seed {r.seed}: {escape(r.error)}</li>" for r in failed
    )
    return f"<h2>Runs that failed</h2><ul class='lose'>{rows}</ul>"


def _what_was_run(study: "Study") -> str:
    data = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(part.collection.source)}</td><td>{escape(part.collection.origin)}</td>"
        f"<td>{len(part.collection):,}</td><td>{len(part.split.train):,} / {len(part.split.validation):,} / "
        f"{len(part.split.test):,}</td><td>{len(part.failures)}</td><td><code>{part.collection.fingerprint}</code></td></tr>"
        for name, part in study.prepared.items()
    )
    found = ", ".join(f"{name} {version}" for name, version in versions(science=True).items())
    return (
        "<h2>What was run</h2><table><thead><tr><th></th><th>data</th><th>origin</th><th>records</th>"
        "<th>train / validation / test</th><th>set aside</th><th>fingerprint</th></tr></thead>"
        f"<tbody>{data}</tbody></table>"
        f"<p class='caption'>Settings: {escape(str(study.preset.core))}; {escape(str(study.preset.training))}; seeds "
        f"0 to {study.preset.seeds - 1}.<br>This sitting: {study.seconds:.0f} s on {escape(device_name())}, "
        f"{usable_cpus()} CPU cores; peak memory {peak_memory_mib():,.0f} MiB, of the largest worker process "
        f"{peak_worker_memory_mib():,.0f} MiB.<br>{escape(found)}</p>"
    )
