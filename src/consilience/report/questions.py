"""Twelve expectations from the literature, each answered from the tables of the study where it can be.

Two rows of a study are compared on the same draws of test groups and seeds where the tables hold the pair, else by
`effects.apart`, which ignores what they share and errs to "undecided". These intervals are not corrected for the number
of questions.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd

from consilience.core.errors import ConsilienceError
from consilience.report.effects import Effect, apart, sides
from consilience.report.figures.common import group
from consilience.report.figures.crossover import crossing_epochs, likelihoods
from consilience.report.tables import over
from consilience.study.analysis import Tables
from consilience.study.relations import rank_correlation

YES, NO = "as expected", "not as expected"
OPEN, MIXED = "undecided: interval includes 0", "as expected in some settings, not in others"
SILENT = "not asked here"

Answer = tuple[str, str]
"""(what was found, verdict)."""
Named = Mapping[str, Effect]


def questions(tables: Tables) -> pd.DataFrame:
    """A line a question: question, expected, found, verdict. Everything is computed from the tables."""
    lines = []
    for name, expected, answer in QUESTIONS:
        found, verdict = answer(tables)
        lines.append({"question": name, "expected": expected, "found": found, "verdict": verdict})
    return pd.DataFrame(lines, columns=["question", "expected", "found", "verdict"])


def _same_entropy(tables: Tables) -> Answer:
    return (
        "known only for synthetic sources: see tests/core/test_entropy.py and the exact panels above",
        SILENT,
    )


def _early_loss(tables: Tables) -> Answer:
    return _judge(_loss_gaps(tables, "masked-diffusion", "next-token"))


def _few_records(tables: Tables) -> Answer:
    table = likelihoods(tables)
    if table.empty or not {"next-token", "masked-diffusion"} <= set(table["row"]):
        return "", SILENT
    found, crossed, ahead = [], False, False
    fewest = table["records"].min()
    for size, part in table.groupby("records"):
        best = {row: float(p.groupby("epochs")["loss"].mean().min()) for row, p in part.groupby("row")}
        if len({"next-token", "masked-diffusion"} & set(best)) < 2:
            continue
        where = crossing_epochs(part)
        gap = best["next-token"] - best["masked-diffusion"]
        words = f"they cross at {where:.2g} epochs" if where is not None else "they do not cross"
        found.append(f"{size:,} records: {words}, best next-token minus best masked diffusion {gap:+.3f}")
        if size == fewest:
            crossed, ahead = where is not None, gap > 0
    if not found:
        return "", SILENT
    return "; ".join(found) + " (few seeds, no interval)", YES if crossed and ahead else NO


def _block_size(tables: Tables) -> Answer:
    dial = tables.dial
    if dial.empty or "captured" not in dial:
        return "", SILENT
    effects = {}
    for setting, part in group(dial):
        proper = part[(part["kind"] != "surrogate") & (part["noise"] == "erasure") & part["captured"].notna()]
        if proper["size"].nunique() > 1:
            few, many = proper.loc[proper["size"].idxmin()], proper.loc[proper["size"].idxmax()]
            ends = (
                tuple(float(x[n]) for n in ("captured", "captured_low", "captured_high")) for x in (few, many)
            )
            effects[setting] = apart(*ends)  # type: ignore[arg-type]
    strings = {name: effect for name, effect in effects.items() if _domain(tables, name) == "molecules"}
    text, verdict = _judge(strings)
    others = [f"{name} {effect}" for name, effect in effects.items() if name not in strings]
    return "; ".join(
        part for part in (text, f"elsewhere: {', '.join(others)}" if others else "") if part
    ), verdict


def _high_rate(domain: str) -> Callable[[Tables], Answer]:
    return lambda tables: _judge(_score_gaps(tables, "masked .5", "masked .15", domain=domain))


def _baselines(tables: Tables) -> Answer:
    scores = tables.scores
    trained = scores[scores["role"] == "pre-trained"] if len(scores) else scores
    if trained.empty or "over_classical" not in trained:
        return "", SILENT
    beaten: list[str] = []
    unbeaten: list[str] = []
    unknown = 0
    for (setting, task), part in trained.groupby(["setting", "task"], sort=False):
        effects = [over(line, "classical") for _, line in part.iterrows()]
        count = sides(effects)
        if count["unknown"] == len(effects):
            unknown += 1
        else:
            (beaten if count["above"] else unbeaten).append(f"{setting}, {task}")
    total = len(beaten) + len(unbeaten)
    if not total:
        return "no paired interval", SILENT if not unknown else OPEN
    text = f"some row beats the best classical baseline in {len(beaten)} of {total} tasks (paired, Holm-corrected)"
    return text + (f": {'; '.join(beaten)}" if beaten else ""), YES if 2 * len(beaten) < total else NO


def _readouts(tables: Tables) -> Answer:
    scores = tables.scores
    if scores.empty or "readout" not in scores:
        return "", SILENT
    chosen = scores[(scores["role"] == "pre-trained") & (scores["readout"].fillna("").astype(str) != "")]
    parts, verdicts = [], []
    for row, text in (("denoising", "denoising"), ("next-token", "next-token")):
        picked = [one for cell in chosen[chosen["row"] == row]["readout"] for one in str(cell).split(" | ")]
        if not picked:
            continue
        early = sum(not one.startswith("final") for one in picked)
        part = f"{text}: {early} of {len(picked)} choices before the last layer"
        right = early > len(picked) / 2
        if row == "denoising":
            noisy = sum(", t = " in one for one in picked)
            part += f", {noisy} of them at some noise" if noisy == early else f", {noisy} at some noise"
            right = right and noisy > len(picked) / 2
        parts.append(part)
        verdicts.append(right)
    if not verdicts:
        return "", SILENT
    verdict = YES if all(verdicts) else NO if not any(verdicts) else "in part"
    return "; ".join(parts) + " (chosen on validation)", verdict


def _dissociation(tables: Tables) -> Answer:
    table = tables.correlation
    found = table[table["setting"] == "all"] if len(table) else table
    if found.empty:
        return "", SILENT
    line = found.iloc[0]
    effect = Effect(value=line["spearman"], low=line["low"], high=line["high"])
    text = f"Spearman of captured dependence and probe score {effect} over {line['rows']} rows"
    return text, {"above": NO, "below": YES}.get(effect.side, OPEN)


def _aligned(tables: Tables) -> Answer:
    table = tables.alignment
    if table.empty:
        return "", SILENT
    p = table["p_holm" if "p_holm" in table else "p"]
    clear = int(((p <= 0.05) & (table["calibrated"] > 0)).sum())
    text = f"{clear} of {len(table)} pairs above shuffled records (permutation, Holm-corrected)"
    return text, YES if clear == len(table) else NO if not clear else "in part"


def _aligned_with_quality(tables: Tables) -> Answer:
    table, scores = tables.alignment, tables.scores
    if table.empty or scores.empty:
        return "", SILENT
    first = scores[scores["role"] == "pre-trained"].drop_duplicates(["setting", "row"])
    score = {(s, r): float(v) for s, r, v in first[["setting", "row", "score"]].to_numpy()}
    pairs = []
    for line in table.to_dict("records"):
        ends = [score.get((line["setting"], line[side])) for side in ("first", "second")]
        if ends[0] is not None and ends[1] is not None:
            pairs.append((float(line["calibrated"]), (ends[0] + ends[1]) / 2, line["setting"]))
    if len(pairs) < 4:
        return "too few pairs", SILENT
    x, y, names = (np.array(column) for column in zip(*pairs))
    try:
        found = rank_correlation(x.astype(float), y.astype(float), groups=names)
    except ConsilienceError as error:
        return str(error), SILENT
    effect = Effect(value=found.value, low=found.low, high=found.high)
    text = f"Spearman of a pair's agreement and its mean score, inside settings: {effect} over {len(pairs)} pairs"
    return text, {"above": YES, "below": NO}.get(effect.side, OPEN)


def _random_rate(tables: Tables) -> Answer:
    effects = {}
    for place in _places(tables):
        fixed = [row for row in ("masked .15", "masked .5") if (*place, row) in _scores(tables)]
        if not fixed or (*place, "masked") not in _scores(tables):
            continue
        best = max(fixed, key=lambda row: _scores(tables)[(*place, row)][0])
        effects[f"{', '.join(place)} (over {best})"] = _paired(tables, place, "masked", best) or apart(
            _scores(tables)[(*place, "masked")], _scores(tables)[(*place, best)]
        )
    return _judge(effects)


def _randomised(tables: Tables) -> Answer:
    return _judge(_score_gaps(tables, "randomised", "next-token", domain="molecules"))


def _two_phase(tables: Tables) -> Answer:
    return _judge(_score_gaps(tables, "two-phase", "masked"))


QUESTIONS: tuple[tuple[str, str, Callable[[Tables], Answer]], ...] = (
    ("Q1 one entropy", "all likelihood objectives reach the entropy of a synthetic source, fixed-rate masking does not",
     _same_entropy),
    ("Q2a loss at a small budget", "next-token has a lower loss than masked diffusion (Prabhudesai et al. 2025)",
     _early_loss),
    ("Q2b loss after many epochs", "masked diffusion overtakes next-token on few records (Prabhudesai et al. 2025)",
     _few_records),
    ("Q3 block size", "strings: captured dependence grows as blocks shrink to one token (Arriola et al. 2025)",
     _block_size),
    ("Q4 mask rate, cells", "masking half embeds better than 15% (De Waele et al. 2025; no contrastive row here)",
     _high_rate("cells")),
    ("Q5 mask rate, molecules", "masking half embeds better than 15% (MolEncoder 2025)", _high_rate("molecules")),
    ("Q6 baselines", "classical rows are not beaten in most tasks (Praski et al. 2025; Kedzierska et al. 2023)",
     _baselines),
    ("Q7 read-outs", "denoisers are best inside and at a little noise, next-token before the last layer "
     "(Xiang et al. 2023; Skean et al. 2025)", _readouts),
    ("Q8 likelihood and probe", "they do not rank rows alike (Galaxy's Guide 2026; BMFM-RNA 2025)", _dissociation),
    ("Q9a alignment", "objectives agree on neighbours beyond chance (Gröger et al. 2026)", _aligned),
    ("Q9b alignment and quality", "pairs that embed better agree more (Edamadaka et al. 2025)", _aligned_with_quality),
    ("Q10 random mask rate", "it embeds at least as well as the best fixed rate (R2MAE 2025)", _random_rate),
    ("Q11 randomised strings", "other spellings of a molecule embed better than one (Arús-Pous et al. 2019)",
     _randomised),
    ("Q12 two phases", "next-token, then masked, embeds better than masked throughout (Gisserot-Boukhlef et al. 2025)",
     _two_phase),
)  # fmt: skip


def _judge(effects: Named) -> Answer:
    """A verdict on effects that are expected to be above zero."""
    if not effects:
        return "", SILENT
    text = "; ".join(f"{name} {effect}" for name, effect in effects.items())
    count = sides(effects.values())
    if count["above"] and count["below"]:
        return text, MIXED
    if count["above"] or count["below"]:
        decided = count["above"] + count["below"]
        verdict = YES if count["above"] else NO
        few = "" if decided == len(effects) else f" in {decided} of {len(effects)}, undecided in the others"
        return text, verdict + few
    return text, OPEN if count["unclear"] else "undecided: no interval"


def _scores(tables: Tables) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """(setting, task, row) -> score and the ends of its interval."""
    if tables.scores.empty:
        return {}
    wanted = tables.scores[["setting", "task", "row", "score", "low", "high"]]
    return {(s, t, r): (float(v), float(low), float(high)) for s, t, r, v, low, high in wanted.to_numpy()}


def _places(tables: Tables) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((setting, task) for setting, task, _ in _scores(tables))


def _score_gaps(tables: Tables, first: str, second: str, *, domain: str | None = None) -> dict[str, Effect]:
    """Score of one row minus that of another, a line a (setting, task) that has both."""
    scores = _scores(tables)
    return {
        ", ".join(place): _paired(tables, place, first, second)
        or apart(scores[(*place, first)], scores[(*place, second)])
        for place in _places(tables)
        if (*place, first) in scores and (*place, second) in scores
        if domain is None or _domain(tables, place[0]) == domain
    }


def _paired(tables: Tables, place: tuple[str, str], first: str, second: str) -> Effect | None:
    """The paired difference of two rows, whichever way round the table holds it."""
    table = tables.pairs
    if table.empty:
        return None
    here = table[(table["setting"] == place[0]) & (table["task"] == place[1])]
    for one, other, sign in ((first, second, 1.0), (second, first, -1.0)):
        found = here[(here["first"] == one) & (here["second"] == other)]
        if len(found):
            line = found.iloc[0]
            ends = sorted((sign * float(line["low"]), sign * float(line["high"])))
            return Effect(value=sign * float(line["difference"]), low=ends[0], high=ends[1])
    return None


def _loss_gaps(tables: Tables, first: str, second: str) -> dict[str, Effect]:
    """Nats of one row minus those of another, where both are likelihoods."""
    losses = tables.losses
    if losses.empty or "low" not in losses:
        return {}
    found = {}
    for setting, part in group(losses[losses["kind"] != "surrogate"]):
        rows = {
            line["row"]: (float(line["loss"]), float(line["low"]), float(line["high"]))
            for line in part.to_dict("records")
        }
        if first in rows and second in rows:
            found[setting] = apart(rows[first], rows[second])
    return found


def _domain(tables: Tables, setting: str) -> str:
    for table in (tables.scores, tables.losses):
        if len(table) and "domain" in table:
            found = table[table["setting"] == setting]["domain"]
            if len(found):
                return str(found.iloc[0])
    return setting


__all__ = ["questions"]
