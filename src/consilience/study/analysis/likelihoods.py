"""Tables of likelihoods: captured dependence, orders, the dial, information profiles, few data; rank with probes."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from consilience.study.analysis.intervals import nats_draws
from consilience.study.evidence import Evidence, floor_of, nats_of
from consilience.study.relations import rank_correlation
from consilience.study.statistics import interval

if TYPE_CHECKING:
    from consilience.study.runner import Study


def losses_table(evidence: Evidence) -> tuple[pd.DataFrame, dict[tuple[str, str], np.ndarray]]:
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
                draws = nats_draws(nats, tokens, setting.name)
                line["low"], line["high"] = interval(draws)
                if floor is not None and floor.name in rows and rows[floor.name][0].kind != "surrogate":
                    marginal, counted = nats_of(rows[floor.name])
                    base = nats_draws(marginal, counted, setting.name)
                    gain = base - draws
                    captured[setting.name, row] = gain
                    line["marginal"] = float((marginal.sum(1) / counted.sum(1)).mean())
                    line["captured"] = line["marginal"] - line["loss"]
                    line["captured_low"], line["captured_high"] = interval(gain)
            lines.append(line)
    columns = ["setting", "row", "kind", "loss", "captured", "captured_low", "captured_high"]
    return pd.DataFrame(lines, columns=None if lines else columns), captured


def orders_table(evidence: Evidence, captured: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
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


def dial_table(evidence: Evidence, scores: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Captured dependence and the first task's score against the size of a block."""
    lines = []
    for setting in evidence.study.preset.settings:
        for variant in setting.variants:
            flows = any(v.options.get("noise") == "gaussian" for v in setting.variants)
            if "dial" not in variant.figures and not (variant.objective == "denoising" and flows):
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


def profile_tables(study: "Study") -> dict[str, pd.DataFrame]:
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


def crossover_table(study: "Study") -> pd.DataFrame:
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


def correlation_table(scores: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Do rows that capture more of the data also embed better? Spearman inside settings, pooled."""
    if scores.empty or losses.empty or "captured" not in losses:
        return pd.DataFrame()
    first = scores.drop_duplicates(["setting", "row"])[["setting", "row", "score"]]
    known = losses[losses["objective"] != "address-only"] if "objective" in losses else losses
    both = known[["setting", "row", "captured"]].dropna().merge(first, on=["setting", "row"])
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
