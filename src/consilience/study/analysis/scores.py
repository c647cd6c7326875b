"""Tables of probe scores: with intervals, normalised, against the baselines, in pairs, and over all settings."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from consilience.domains.base import Task
from consilience.study.analysis.intervals import DRAWS, mean_of, stable_seed, two_sided
from consilience.study.evidence import Evidence
from consilience.study.plan import Setting
from consilience.study.statistics import (
    bootstrap_scores,
    holm,
    interquartile_mean,
    interval,
    minimal_detectable,
    normalised,
    probability_best,
    seed_scores,
)

Draws = dict[tuple[str, str], dict[str, np.ndarray]]
"""(setting, task) -> row -> draws of its score."""


def scores_table(evidence: Evidence) -> tuple[pd.DataFrame, Draws, Draws]:
    """Lines of the table of scores, draws of the scores, and draws of the normalised scores."""
    lines: list[dict[str, Any]] = []
    every: Draws = {}
    normal: Draws = {}
    for setting in evidence.study.preset.settings:
        for task in evidence.study.bench.tasks(setting):
            rows = evidence.predictions(setting, task)
            if not rows:
                continue
            draws = bootstrap_scores(rows, draws=DRAWS, seed=stable_seed(setting.name))
            found, own = _scores_of(evidence, setting, task, rows, draws)
            lines += found
            every[setting.name, task.name] = draws
            normal[setting.name, task.name] = own
    table = pd.DataFrame(lines)
    for name in ("over_classical", "over_random"):  # corrected over the whole matrix of the study
        if f"{name}_p" in table:
            table[f"{name}_p"] = holm(table[f"{name}_p"].to_numpy())
    return table, every, normal


def pairs_table(evidence: Evidence, draws: Draws) -> pd.DataFrame:
    """Every two pre-trained rows of the main comparison, on the same draws of test groups and seeds."""
    lines = []
    for (name, task), rows in draws.items():
        setting = evidence.study.preset.setting(name)
        shown = [
            v.name
            for v in setting.variants
            if set(v.figures) & {"table", "rates", "orders"} and v.name in rows
        ]
        for first, second in combinations(shown, 2):
            difference = rows[first] - rows[second]
            low, high = interval(difference)
            lines.append(
                {"setting": name, "task": task, "first": first, "second": second,
                 "difference": float(np.mean(difference)), "low": low, "high": high, "p": two_sided(difference)}
            )  # fmt: skip
    table = pd.DataFrame(lines)
    if len(table):
        table["p_holm"] = holm(table["p"].to_numpy())
    return table


def _scores_of(
    evidence: Evidence, setting: Setting, task: Task, rows: dict[str, Any], draws: dict[str, np.ndarray]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Lines of one task, and draws of the normalised scores."""
    results = evidence.rows[setting.name]
    points = {row: seed_scores(found) for row, found in rows.items()}
    role = {row: results[row][0].role for row in rows}
    trivial = next((row for row in rows if role[row] == "trivial"), None)
    supervised = next((row for row in rows if role[row] == "supervised"), None)
    classical = [row for row in rows if role[row] == "classical"]
    best_classical = max(classical, key=lambda row: points[row].mean(), default=None)
    against = _against(setting, points, draws, role, best_classical)
    lines, normal = [], {}
    for row, found in rows.items():
        scores = [score for r in results[row] for score in r.scores if score.task == task.name]
        low, high = interval(draws[row])
        line: dict[str, Any] = {
            "setting": setting.name, "domain": setting.domain, "task": task.name, "metric": found.metric,
            "row": row, "role": role[row], "seeds": len(points[row]), "score": float(points[row].mean()),
            "spread": float(points[row].std(ddof=1)) if len(points[row]) > 1 else np.nan,
            "low": low, "high": high, "knn": mean_of(s.knn for s in scores),
            "labels_10": mean_of(s.fractions.get("0.1") for s in scores),
            "labels_1": mean_of(s.fractions.get("0.01") for s in scores),
            "readout": " | ".join(dict.fromkeys(s.readout for s in scores if s.readout)),
            "test_records": len(found.truth),
        }  # fmt: skip
        for name in ("accuracy", "mae", "nmad"):
            line[name] = mean_of(s.metrics.get(name) for s in scores)
        if trivial is not None and supervised is not None:
            zero, one = points[trivial].mean(), points[supervised].mean()
            gap = draws[supervised] - draws[trivial]
            scaled = normalised(points[row].mean(), zero, one, gap_draws=gap)
            own = normalised(draws[row], zero, one, gap_draws=gap).values
            normal[row] = own
            line["normalised"] = float(scaled.values[0])
            line["normalised_low"], line["normalised_high"] = interval(own)
        if best_classical is not None:
            line["classical"] = best_classical
        line.update(against.get(row, {}))
        lines.append(line)
    trained = [p for row, p in points.items() if role[row] == "pre-trained"]
    seeds = max((len(p) for p in trained), default=0)
    whole = [p for p in trained if len(p) == seeds]
    detectable = minimal_detectable(np.stack(whole)) if seeds > 1 else np.nan
    for line in lines:
        line["detectable"] = detectable
    return lines, normal


def _against(
    setting: Setting,
    points: dict[str, np.ndarray],
    draws: dict[str, np.ndarray],
    role: dict[str, Any],
    classical: str | None,
) -> dict[str, dict[str, Any]]:
    """Paired differences of the pre-trained rows with the best classical row and with the random-init core."""
    found: dict[str, dict[str, Any]] = {}
    random = next((row for row in points if role[row] == "random-init"), None)
    floors = {v.name for v in setting.variants if v.objective == "address-only"}
    for name, reference in (("classical", classical), ("random", random)):
        for row in points if reference is not None else ():
            if role[row] != "pre-trained" or row in floors:
                continue
            assert reference is not None
            difference = draws[row] - draws[reference]
            low, high = interval(difference)
            found.setdefault(row, {}).update(
                {f"over_{name}": float(points[row].mean() - points[reference].mean()),
                 f"over_{name}_low": low, f"over_{name}_high": high, f"over_{name}_p": two_sided(difference)}
            )  # fmt: skip
    return found


def summary_table(scores: pd.DataFrame, draws: Draws) -> pd.DataFrame:
    """Interquartile mean over (setting, task) of the normalised scores, and the chance to be the best row."""
    if scores.empty or "normalised" not in scores:
        return pd.DataFrame()
    usable = {
        place: rows for place, rows in draws.items() if any(np.isfinite(d).all() for d in rows.values())
    }
    names = scores[scores["role"].isin(["pre-trained", "random-init", "classical"])]
    names = names[~names["row"].str.contains("address-only")]
    rows = [row for row in dict.fromkeys(names["row"]) if any(row in found for found in usable.values())]
    trained = set(scores[scores["role"] == "pre-trained"]["row"])
    everywhere = [row for row in rows if row in trained and all(row in found for found in usable.values())]
    best = (
        probability_best({row: np.stack([found[row] for found in usable.values()]) for row in everywhere})
        if everywhere and usable
        else {}
    )
    lines = []
    for row in rows:
        stacked = np.stack([found[row] for found in usable.values() if row in found])
        means = interquartile_mean(stacked)
        points = scores[(scores["row"] == row) & scores["normalised"].notna()]["normalised"].to_numpy()
        low, high = interval(means)
        lines.append(
            {"row": row, "tasks": len(stacked), "iqm": float(interquartile_mean(points[:, None])[0]), "low": low,
             "high": high, "p_best": best.get(row, np.nan)}
        )  # fmt: skip
    return pd.DataFrame(lines)
