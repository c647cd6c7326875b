"""From the results of a study to its tables: tidy frames that the report draws and that stand beside it as CSV.

Every interval resamples test groups and seeds (`study.statistics`), paired over rows. Losses of surrogate kind enter
no table of likelihoods.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from consilience.domains.base import Task
from consilience.study.alignment import alignment_matrix
from consilience.study.evidence import ROWS, Evidence, floor_of, nats_of
from consilience.study.plan import Setting
from consilience.study.results import Result, Score, read_arrays
from consilience.study.statistics import (
    bootstrap_scores,
    compare,
    interquartile_mean,
    interval,
    minimal_detectable,
    normalised,
    probability_best,
    rank_correlation,
    seed_scores,
)

if TYPE_CHECKING:
    from consilience.study.runner import Study

DRAWS = 2000
ALIGNED = 500


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All tables of a study.

    Args:
        scores: a line a (setting, task, row): probes with intervals, normalised, compared with the baselines.
        losses: a line a (setting, row) with a likelihood: nats and captured dependence per token, budgets.
        summary: a line a row over all settings: interquartile mean of normalised scores, chance to be best.
        orders: excess nats of every order over the best of its setting.
        dial: captured dependence and scores against the size of a block.
        erasure: masked cross-entropy against the mask rate.
        gaussian: denoising error against the signal-to-noise ratio.
        information: entropy, total and dual total correlation from the areas.
        sharing: one core on all sciences beside one core each, at the same total cost.
        transfer: frozen trunks carried from science to science.
        alignment: agreement of neighbours between the objectives of a science.
        crossover: held-out loss against epochs on few records.
        correlation: rank correlation of captured dependence and probe score.
        failures: jobs that failed, with the reason.
    """

    scores: pd.DataFrame
    losses: pd.DataFrame
    summary: pd.DataFrame
    orders: pd.DataFrame
    dial: pd.DataFrame
    erasure: pd.DataFrame
    gaussian: pd.DataFrame
    information: pd.DataFrame
    sharing: pd.DataFrame
    transfer: pd.DataFrame
    alignment: pd.DataFrame
    crossover: pd.DataFrame
    correlation: pd.DataFrame
    failures: pd.DataFrame

    def write(self, folder: Path) -> None:
        """Every table that has lines, as CSV and as parquet."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            table: pd.DataFrame = getattr(self, field.name)
            for suffix in ("csv", "parquet"):
                (folder / f"{field.name}.{suffix}").unlink(missing_ok=True)
            if len(table):
                table.to_csv(folder / f"{field.name}.csv", index=False)
                table.to_parquet(folder / f"{field.name}.parquet", index=False)


def analyse(study: "Study") -> Tables:
    """All tables of a study, finished or not."""
    evidence = Evidence(study)
    scores, draws = _scores(evidence)
    losses, captured = _losses(evidence)
    return Tables(
        scores=scores,
        losses=losses,
        summary=_summary(scores, draws),
        orders=_orders(evidence, captured),
        dial=_dial(evidence, scores, losses),
        **_profiles(study),
        sharing=_sharing(evidence),
        transfer=_transfer(study),
        alignment=_alignment(evidence),
        crossover=_crossover(study),
        correlation=_correlation(scores, losses),
        failures=pd.DataFrame(
            [
                {"work": r.role, "setting": r.setting, "row": r.row, "seed": r.seed, "reason": r.error}
                for r in study.results
                if r.error
            ]
        ),
    )


Draws = dict[tuple[str, str], dict[str, np.ndarray]]
"""(setting, task) -> row -> draws of its score."""


def stable_seed(name: str) -> int:
    """A seed from the name of a setting: tasks with the same test groups share their draws, settings do not."""
    return zlib.crc32(name.encode())


def _scores(evidence: Evidence) -> tuple[pd.DataFrame, Draws]:
    lines: list[dict[str, Any]] = []
    normal: Draws = {}
    for setting in evidence.study.preset.settings:
        for task in evidence.study.bench.tasks(setting):
            rows = evidence.predictions(setting, task)
            if not rows:
                continue
            draws = bootstrap_scores(rows, draws=DRAWS, seed=stable_seed(setting.name))
            found, own = _scores_of(evidence, setting, task, rows, draws)
            lines += found
            normal[setting.name, task.name] = own
    return pd.DataFrame(lines), normal


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
    against = _against(rows, role, best_classical, setting, task)
    lines, normal = [], {}
    for row, found in rows.items():
        scores = [score for r in results[row] for score in r.scores if score.task == task.name]
        low, high = interval(draws[row])
        line: dict[str, Any] = {
            "setting": setting.name, "domain": setting.domain, "task": task.name, "metric": found.metric,
            "row": row, "role": role[row], "seeds": len(points[row]), "score": float(points[row].mean()),
            "spread": float(points[row].std(ddof=1)) if len(points[row]) > 1 else np.nan,
            "low": low, "high": high, "knn": _mean(s.knn for s in scores),
            "labels_10": _mean(s.fractions.get("0.1") for s in scores),
            "labels_1": _mean(s.fractions.get("0.01") for s in scores),
            "readout": " | ".join(dict.fromkeys(s.readout for s in scores if s.readout)),
            "test_records": len(found.truth),
        }  # fmt: skip
        for name in ("accuracy", "mae", "nmad"):
            line[name] = _mean(s.metrics.get(name) for s in scores)
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
    rows: dict[str, Any], role: dict[str, Any], classical: str | None, setting: Setting, task: Task
) -> dict[str, dict[str, Any]]:
    """Paired differences of the pre-trained rows with the best classical row and with the random-init core."""
    found: dict[str, dict[str, Any]] = {}
    random = next((row for row in rows if role[row] == "random-init"), None)
    for name, reference in (("classical", classical), ("random", random)):
        if reference is None:
            continue
        part = {row: p for row, p in rows.items() if role[row] == "pre-trained" or row == reference}
        if len(part) < 2:
            continue
        table = compare(part, reference, draws=DRAWS, seed=stable_seed(setting.name))
        for line in table.to_dict("records"):
            found.setdefault(str(line["row"]), {}).update(
                {f"over_{name}": line["difference"], f"over_{name}_low": line["difference_low"],
                 f"over_{name}_high": line["difference_high"], f"over_{name}_p": line["p_holm"]}
            )  # fmt: skip
    return found


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _losses(evidence: Evidence) -> tuple[pd.DataFrame, dict[tuple[str, str], np.ndarray]]:
    """Likelihoods and budgets of the pre-trained rows, and draws of captured dependence."""
    lines, captured = [], {}
    for setting in evidence.study.preset.settings:
        rows = {
            row: results
            for row, results in evidence.rows[setting.name].items()
            if results[0].role == "pre-trained"
        }
        for row, results in rows.items():
            first = results[0]
            variant = evidence.variant(setting, row)
            assert variant is not None
            nats, tokens = nats_of(results)
            line: dict[str, Any] = {
                "setting": setting.name, "domain": setting.domain, "row": row, "objective": variant.objective,
                "kind": first.kind, "seeds": len(results), "loss": float((nats.sum(1) / tokens.sum(1)).mean()),
                "flops": first.flops, "steps": first.steps, "samples": first.samples, "tokens": first.tokens,
                "scored": first.scored, "learning_rate": first.learning_rate, "parameters": first.parameters,
                "trunk": first.trunk, "seconds": float(np.mean([r.seconds for r in results])),
                "tokens_per_record": first.tokens / max(first.samples, 1),
            }  # fmt: skip
            floor = floor_of(setting, variant)
            if first.kind != "surrogate":
                draws = _nats_draws(nats, tokens, setting.name)
                line["low"], line["high"] = interval(draws)
                if floor is not None and floor.name in rows and rows[floor.name][0].kind != "surrogate":
                    marginal, counted = nats_of(rows[floor.name])
                    base = _nats_draws(marginal, counted, setting.name)
                    gain = base - draws
                    captured[setting.name, row] = gain
                    line["marginal"] = float((marginal.sum(1) / counted.sum(1)).mean())
                    line["captured"] = line["marginal"] - line["loss"]
                    line["captured_low"], line["captured_high"] = interval(gain)
            lines.append(line)
    columns = ["setting", "row", "kind", "loss", "captured", "captured_low", "captured_high"]
    return pd.DataFrame(lines, columns=None if lines else columns), captured


def _nats_draws(nats: np.ndarray, tokens: np.ndarray, name: str) -> np.ndarray:
    """(D,) nats per token under new groups of records (the same for all rows of a setting) and new seeds."""
    generator = np.random.default_rng(stable_seed(name))
    seeds, groups = nats.shape
    times = generator.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)
    per_seed = (times @ nats.T) / (times @ tokens.T)
    if seeds == 1:
        return per_seed[:, 0]
    own = np.random.default_rng([stable_seed(name), seeds])
    shares = own.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=DRAWS) / (seeds - 1)
    return (per_seed * shares).sum(1)


def _summary(scores: pd.DataFrame, draws: Draws) -> pd.DataFrame:
    """Interquartile mean over (setting, task) of the normalised scores, and the chance to be the best row."""
    if scores.empty or "normalised" not in scores:
        return pd.DataFrame()
    usable = {
        place: rows for place, rows in draws.items() if any(np.isfinite(d).all() for d in rows.values())
    }
    names = scores[scores["role"].isin(["pre-trained", "random-init", "classical"])]
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


def _orders(evidence: Evidence, captured: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """Excess nats per token of every order over the best one of its setting, and of knowing nothing but addresses."""
    lines = []
    for setting in evidence.study.preset.settings:
        shown = {v.name for v in setting.variants if "orders" in v.figures}
        there = {
            row: draws for (name, row), draws in captured.items() if name == setting.name and row in shown
        }
        if len(there) < 2:
            continue
        best = max(there, key=lambda row: there[row].mean())
        for row, draws in there.items():
            excess = there[best] - draws
            low, high = interval(excess)
            lines.append(
                {"setting": setting.name, "order": row, "best": row == best, "excess": float(excess.mean()),
                 "low": low, "high": high, "floor": float(there[best].mean())}
            )  # fmt: skip
    return pd.DataFrame(lines)


def _dial(evidence: Evidence, scores: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Captured dependence and the first task's score against the size of a block."""
    lines = []
    for setting in evidence.study.preset.settings:
        for variant in setting.variants:
            if "dial" not in variant.figures and variant.objective != "denoising":
                continue
            own = losses[(losses["setting"] == setting.name) & (losses["row"] == variant.name)]
            if own.empty:
                continue
            line = own.iloc[0]
            size = variant.options.get("size")
            if variant.objective == "next-token":
                size = 1
            size = float(line["tokens_per_record"]) if size is None else float(size)
            noise = variant.options.get(
                "noise", "gaussian" if variant.objective == "denoising" else "erasure"
            )
            found = {"setting": setting.name, "row": variant.name, "size": size, "noise": noise,
                     "kind": line["kind"]}  # fmt: skip
            for name in ("captured", "captured_low", "captured_high"):
                found[name] = line.get(name, np.nan)
            probes = scores[(scores["setting"] == setting.name) & (scores["row"] == variant.name)]
            if len(probes):
                first = probes.iloc[0]
                found.update(task=first["task"], metric=first["metric"], score=first["score"],
                             low=first["low"], high=first["high"])  # fmt: skip
            lines.append(found)
    return pd.DataFrame(lines)


def _profiles(study: "Study") -> dict[str, pd.DataFrame]:
    """Curves of the information profile and what their areas say."""
    erasure: list[dict[str, Any]] = []
    gaussian: list[dict[str, Any]] = []
    information: list[dict[str, Any]] = []
    for result in study.results:
        if result.role != "profile" or result.error:
            continue
        found = dict(result.extra)
        names = {"setting": result.setting, "row": result.row, "seed": result.seed}
        curves = {name: value for name, value in found.items() if isinstance(value, list)}
        numbers = {name: value for name, value in found.items() if isinstance(value, (int, float, str))}
        target = gaussian if "log_snr" in curves else erasure
        width = len(curves["log_snr" if "log_snr" in curves else "rates"])
        for i in range(width):
            target.append({**names, **{n: v[i] for n, v in curves.items() if len(v) == width}})
        information.append({**names, **numbers})
    return {
        "erasure": pd.DataFrame(erasure),
        "gaussian": pd.DataFrame(gaussian),
        "information": pd.DataFrame(information),
    }


def _sharing(evidence: Evidence) -> pd.DataFrame:
    """Per science: what one core on all sciences reaches beside one core each, seed by seed."""
    found: dict[tuple[str, str], list[tuple[Result, dict[str, Any]]]] = {}
    for result in evidence.study.results:
        if result.role == "shared" and not result.error:
            for setting, part in result.extra["parts"].items():
                found.setdefault((setting, result.row), []).append((result, part))
    lines = []
    for (setting, row), parts in found.items():
        own = {r.seed: r for r in evidence.rows[setting].get(row, [])}
        pairs = [(own[r.seed], part) for r, part in parts if r.seed in own]
        if not pairs:
            continue
        gains = [_score_gain(alone, part) for alone, part in pairs]
        line: dict[str, Any] = {
            "setting": setting, "row": row, "seeds": len(pairs), "task": pairs[0][0].scores[0].task,
            "alone": _mean(alone.scores[0].value for alone, _ in pairs),
            "shared": _mean(Score(**part["scores"][0]).value for _, part in pairs),
            "gain": float(np.mean(gains)),
        }  # fmt: skip
        line["gain_low"], line["gain_high"] = _t_interval(gains)
        if pairs[0][0].kind != "surrogate":
            alone_nats, tokens = nats_of([alone for alone, _ in pairs])
            shared_nats = np.array([part["nats"] for _, part in pairs], dtype=np.float64)[..., 0]
            draws = _nats_draws(alone_nats - shared_nats, tokens, setting)
            line["nats_saved"] = float(((alone_nats - shared_nats).sum(1) / tokens.sum(1)).mean())
            line["nats_low"], line["nats_high"] = interval(draws)
        lines.append(line)
    return pd.DataFrame(lines)


def _score_gain(alone: Result, part: dict[str, Any]) -> float:
    return Score(**part["scores"][0]).value - alone.scores[0].value


def _t_interval(values: list[float]) -> tuple[float, float]:
    """Student's 95% interval of a mean over seeds; NaN with one."""
    from scipy import stats

    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _transfer(study: "Study") -> pd.DataFrame:
    """Scores and losses with a trunk from each science, and their gain over a random trunk, seed by seed."""
    runs = [r for r in study.results if r.role == "transfer" and not r.error]
    lines = []
    for target in dict.fromkeys(r.setting for r in runs):
        here = [r for r in runs if r.setting == target]
        random = {r.seed: r for r in here if r.extra["source"] == "random trunk"}
        for source in dict.fromkeys(r.extra["source"] for r in here):
            own = [r for r in here if r.extra["source"] == source]
            pairs = [(r, random[r.seed]) for r in own if r.seed in random]
            gains = [r.scores[0].value - base.scores[0].value for r, base in pairs]
            losses = [(base.loss or 0) - (r.loss or 0) for r, base in pairs]
            line = {
                "target": target, "source": source, "seeds": len(own), "task": own[0].scores[0].task,
                "score": _mean(r.scores[0].value for r in own), "loss": _mean(r.loss for r in own),
                "kind": own[0].kind, "gain": _mean(gains), "loss_saved": _mean(losses),
            }  # fmt: skip
            line["gain_low"], line["gain_high"] = _t_interval(gains)
            line["loss_saved_low"], line["loss_saved_high"] = _t_interval(losses)
            lines.append(line)
    return pd.DataFrame(lines)


def _alignment(evidence: Evidence) -> pd.DataFrame:
    """Agreement of neighbours between the objectives (first seed) of one science, on the same test records."""
    if not evidence.study.preset.alignment:
        return pd.DataFrame()
    parts = []
    for setting in evidence.study.preset.main:
        shown = [v.name for v in setting.variants if "table" in v.figures]
        vectors: dict[str, np.ndarray] = {}
        common: np.ndarray | None = None
        for row in shown:
            results = evidence.rows[setting.name].get(row)
            arrays = read_arrays(evidence.paths[results[0].key]) if results else {}
            if "aligned/vectors" not in arrays:
                continue
            ids = evidence.ids(setting, row, arrays["aligned/index"])
            if common is None:
                common = ids
            if np.array_equal(ids, common):
                vectors[row] = arrays["aligned/vectors"][:ALIGNED]
        if len(vectors) > 1 and len(next(iter(vectors.values()))) > 30:
            table = alignment_matrix(vectors, seed=stable_seed(setting.name))
            table.insert(0, "setting", setting.name)
            parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _crossover(study: "Study") -> pd.DataFrame:
    """Held-out loss against epochs."""
    lines = []
    for result in study.results:
        if result.role != "crossover" or result.error:
            continue
        epochs = float(result.extra["epochs"])
        for step, loss in result.curve:
            lines.append(
                {"setting": result.setting, "row": result.row, "seed": result.seed, "kind": result.curve_kind,
                 "records": result.extra["records"], "epochs": epochs * step / result.steps, "loss": loss}
            )  # fmt: skip
    return pd.DataFrame(lines)


def _correlation(scores: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Do rows that capture more of the data also embed better? Spearman inside settings, pooled."""
    if scores.empty or losses.empty or "captured" not in losses:
        return pd.DataFrame()
    first = scores.drop_duplicates(["setting", "row"])[["setting", "row", "score"]]
    both = losses[["setting", "row", "captured"]].dropna().merge(first, on=["setting", "row"])
    lines = []
    for name, part in [("all", both), *both.groupby("setting")]:
        if len(part) < 4:
            continue
        groups = part["setting"].to_numpy() if name == "all" else None
        found = rank_correlation(part["captured"].to_numpy(), part["score"].to_numpy(), groups=groups)
        lines.append(
            {"setting": name, "rows": len(part), "spearman": found.value, "low": found.low, "high": found.high,
             "p": found.p_value}
        )  # fmt: skip
    return pd.DataFrame(lines)


__all__ = ["ROWS", "Tables", "analyse"]
