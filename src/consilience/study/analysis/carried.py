"""Tables of what crosses from science to science: shared cores, carried trunks, and agreement inside a science."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from consilience.study.alignment import alignment_matrix
from consilience.study.analysis.intervals import mean_of, nats_draws, stable_seed
from consilience.study.evidence import Evidence, nats_of
from consilience.study.results import Result, Score, read_arrays
from consilience.study.statistics import interval

if TYPE_CHECKING:
    from consilience.study.runner import Study

ALIGNED = 500
"""Test records whose neighbours are compared."""


def sharing_table(evidence: Evidence) -> pd.DataFrame:
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
            "alone": mean_of(alone.scores[0].value for alone, _ in pairs),
            "shared": mean_of(Score(**part["scores"][0]).value for _, part in pairs),
            "gain": float(np.mean(gains)),
        }  # fmt: skip
        line["gain_low"], line["gain_high"] = _t_interval(gains)
        if pairs[0][0].kind != "surrogate":
            alone_nats, tokens = nats_of([alone for alone, _ in pairs])
            shared_nats = np.array([part["nats"] for _, part in pairs], dtype=np.float64)[..., 0]
            draws = nats_draws(alone_nats - shared_nats, tokens, setting)
            line["nats_saved"] = float(((alone_nats - shared_nats).sum(1) / tokens.sum(1)).mean())
            line["nats_low"], line["nats_high"] = interval(draws)
        lines.append(line)
    return pd.DataFrame(lines)


def _score_gain(alone: Result, part: dict[str, Any]) -> float:
    return Score(**part["scores"][0]).value - alone.scores[0].value


def _t_interval(values: list[float]) -> tuple[float, float]:
    """Student's 95% interval of a mean over seeds; NaN with one."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def transfer_table(study: "Study") -> pd.DataFrame:
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
            losses = [base.loss - r.loss for r, base in pairs if base.loss is not None and r.loss is not None]
            line = {
                "target": target, "source": source, "seeds": len(own), "task": own[0].scores[0].task,
                "score": mean_of(r.scores[0].value for r in own), "loss": mean_of(r.loss for r in own),
                "kind": own[0].kind, "gain": mean_of(gains), "loss_saved": mean_of(losses),
            }  # fmt: skip
            line["gain_low"], line["gain_high"] = _t_interval(gains)
            line["loss_saved_low"], line["loss_saved_high"] = _t_interval(losses)
            lines.append(line)
    return pd.DataFrame(lines)


def alignment_table(evidence: Evidence) -> pd.DataFrame:
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
