"""Tables of a study: scores by row and science, held-out losses by kind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from consilience.study.results import Result, Role

ROLE_ORDER: tuple[Role, ...] = ("trivial", "classical", "random-init", "pre-trained")
ROLE_NAME = {
    "trivial": "majority / mean",
    "classical": "classical baseline",
    "random-init": "random-init core",
}


def row_name(result: Result) -> str:
    """The row of the table that a result belongs to."""
    return ROLE_NAME.get(result.role, result.row)


def score_table(results: Sequence[Result]) -> pd.DataFrame:
    """One line per (row, science, task): mean and standard deviation over seeds, and the interval over test groups.

    Columns: role, row, method, domain, task, metric, seeds, mean, spread, low, high, knn.
    """
    lines = []
    for result in results:
        for score in result.scores:
            lines.append(
                {
                    "role": result.role,
                    "row": row_name(result),
                    "method": result.row,
                    "domain": result.domain,
                    "task": score.task,
                    "metric": score.metric,
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "knn": np.nan if score.knn is None else score.knn,
                }
            )
    if not lines:
        return pd.DataFrame(
            columns=["role", "row", "method", "domain", "task", "metric", "seeds", "mean", "spread"]
        )
    frame = pd.DataFrame(lines)
    keys = ["role", "row", "method", "domain", "task", "metric"]
    grouped = frame.groupby(keys, sort=False, as_index=False).agg(
        seeds=("value", "size"),
        mean=("value", "mean"),
        spread=("value", lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else np.nan),
        low=("low", "mean"),
        high=("high", "mean"),
        knn=("knn", "mean"),
    )
    rank = grouped["role"].map({role: i for i, role in enumerate(ROLE_ORDER)})
    return grouped.iloc[np.argsort(rank.to_numpy(), kind="stable")].reset_index(drop=True)


def loss_table(results: Sequence[Result]) -> pd.DataFrame:
    """Held-out loss per token by science and objective, with its kind. Surrogates are not likelihoods."""
    trained = [r for r in results if r.role == "pre-trained" and r.loss is not None]
    frame = pd.DataFrame(
        [
            {"domain": r.domain, "objective": r.row, "kind": r.kind, "loss": r.loss, "seconds": r.seconds,
             "tokens": r.tokens, "parameters": r.parameters, "trunk": r.trunk}
            for r in trained
        ]
    )  # fmt: skip
    if frame.empty:
        return frame
    return frame.groupby(["domain", "objective", "kind"], sort=False, as_index=False).agg(
        seeds=("loss", "size"),
        mean=("loss", "mean"),
        spread=("loss", lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else np.nan),
        seconds=("seconds", "mean"),
        tokens=("tokens", "mean"),
        parameters=("parameters", "first"),
        trunk=("trunk", "first"),
    )


def columns_of(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(science, task, metric) in the order of first appearance."""
    return list(dict.fromkeys(zip(table["domain"], table["task"], table["metric"])))


def rows_of(table: pd.DataFrame) -> list[str]:
    """Row names, baselines first."""
    return list(dict.fromkeys(table["row"]))


def cell_text(mean: float, spread: float) -> str:
    """ "0.812 ± 0.004", or the mean alone."""
    return f"{mean:.3f}" if np.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"


def print_table(results: Sequence[Result], console: Console | None = None) -> None:
    """The score table in the terminal."""
    table = score_table(results)
    shown = Table(
        title="Frozen embeddings, linear probe, held-out groups (mean ± sd over seeds)",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    shown.add_column("", no_wrap=True)
    columns = columns_of(table)
    for domain, task, metric in columns:
        shown.add_column(
            f"{domain}\n{task}\n{METRIC_NAME.get(metric, metric)}", justify="right", min_width=11
        )
    for row in rows_of(table):
        cells = [_lookup(table, row, column) for column in columns]
        shown.add_row(row, *cells, end_section=row == ROLE_NAME["random-init"])
    console = console or Console()
    console.print(shown, width=max(console.width, 110), crop=False, no_wrap=True)


METRIC_NAME = {"macro_f1": "macro F1", "r2": "R²", "accuracy": "accuracy", "mae": "mean abs. error"}


def _lookup(table: pd.DataFrame, row: str, column: tuple[str, str, str]) -> str:
    found = table[(table["row"] == row) & (table["domain"] == column[0]) & (table["task"] == column[1])]
    return (
        "–" if found.empty else cell_text(found["mean"].iloc[0], found["spread"].iloc[0]).replace(" ± ", "±")
    )
