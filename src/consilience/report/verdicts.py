"""Sentences that say what the tables show, wins and losses alike, each with the interval or test it rests on."""

import math
from dataclasses import dataclass

import pandas as pd

from consilience.report.effects import Effect, bracket, p_text, sides
from consilience.report.tables import columns_of, metric_name, over
from consilience.study.analysis import Tables


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one part of the study says; `setting` is "" for what spans several."""

    setting: str
    text: str


def verdicts(tables: Tables) -> list[Verdict]:
    """What spans the settings first; then per setting: best variant against both baselines, best order, and so on."""
    found = []
    for setting, task, metric in columns_of(tables.scores):
        here = tables.scores[(tables.scores["setting"] == setting) & (tables.scores["task"] == task)]
        here = here[~here["row"].isin(floors(tables.losses, setting))]
        text = _best(here, task, metric)
        if text:
            found.append(Verdict(setting=setting, text=text))
    found = _overall(tables) + found + _orders(tables.orders)
    found += _ranks(tables.correlation)
    found += _carried(tables.sharing, tables)
    found += _transferred(tables.transfer, tables)
    order = list(dict.fromkeys(v.setting for v in found))
    return sorted(found, key=lambda v: (v.setting != "", order.index(v.setting)))


def _overall(tables: Tables) -> list[Verdict]:
    """Counts over all tasks, the interquartile mean, and the best order of every setting."""
    found, against, random = [], [], []
    for setting, task, _ in columns_of(tables.scores):
        here = tables.scores[(tables.scores["setting"] == setting) & (tables.scores["task"] == task)]
        trained = here[(here["role"] == "pre-trained") & ~here["row"].isin(floors(tables.losses, setting))]
        if len(trained):
            best = trained.loc[trained["score"].idxmax()]
            against.append(over(best, "classical"))
            random.append(over(best, "random"))
    for name, effects in (("the best classical baseline", against), ("the random-init core", random)):
        count, known = sides(effects), [effect for effect in effects if effect.side != "unknown"]
        if known:
            text = (
                f"the pre-trained row with the highest score beats {name} in {count['above']} of {len(known)} tasks "
                f"and loses to it in {count['below']} (paired bootstrap, Holm-corrected over the rows of a task)."
            )
            found.append(Verdict(setting="", text=text))
    summary = tables.summary[tables.summary["p_best"].notna()] if len(tables.summary) else tables.summary
    if len(summary):
        best = summary.loc[summary["iqm"].idxmax()]
        text = f"over all tasks {best['row']} has the highest interquartile mean of normalised scores, "
        text += f"{best['iqm']:.2f}"
        text += f"{bracket(best['low'], best['high'])}; chance to be the best row: {best['p_best']:.2f}."
        found.append(Verdict(setting="", text=text))
    if len(tables.orders):
        best = tables.orders.loc[tables.orders.groupby("setting", sort=False)["excess"].idxmin()]
        names = ", ".join(f"{line['setting']}: {line['order']}" for line in best.to_dict("records"))
        found.append(Verdict(setting="", text=f"the order that costs the fewest nats, by setting: {names}."))
    return found


def floors(losses: pd.DataFrame, setting: str) -> list[str]:
    """Rows that learn from addresses alone: the floor of captured dependence, not a way to pre-train."""
    if losses.empty:
        return []
    found = losses[(losses["setting"] == setting) & (losses["objective"] == "address-only")]
    return [str(row) for row in found["row"]]


def unseen(effect: Effect, detectable: float = math.nan) -> str:
    """How to speak of a difference whose interval includes zero."""
    limit = f"; detectable: {detectable:.3f}" if math.isfinite(detectable) else ""
    return f"no difference that this study could see ({effect}{limit})"


def _best(here: pd.DataFrame, task: str, metric: str) -> str:
    trained = here[here["role"] == "pre-trained"]
    if trained.empty:
        return ""
    scaled = "normalised" in trained and trained["normalised"].notna().any()
    best = trained.loc[trained["normalised" if scaled else "score"].idxmax()]
    text = (
        f"{task}: {best['row']} scores highest of the {len(trained)} pre-trained rows, {metric_name(metric)} "
    )
    text += f"{best['score']:.3f}{bracket(best['low'], best['high'])}"
    if scaled:
        text += f", normalised {best['normalised']:.2f}"
        ends = best.get("normalised_low", math.nan), best.get("normalised_high", math.nan)
        text += bracket(*ends) + " (0 trivial, 1 supervised core)"
    detectable = float(best.get("detectable", math.nan))
    text += _against_classical(here, trained, best, detectable)
    random = over(best, "random")
    words = {
        "above": f"It is above the random-init core ({random})",
        "below": f"It is below the random-init core ({random})",
        "unclear": f"Against the random-init core: {unseen(random, detectable)}",
        "unknown": "Its difference from the random-init core has no interval here",
    }
    return f"{text} {words[random.side]}."


def _against_classical(here: pd.DataFrame, trained: pd.DataFrame, best: pd.Series, detectable: float) -> str:
    name = best.get("classical")
    if not isinstance(name, str):
        return ". There is no classical baseline here."
    effect = over(best, "classical")
    base = here[here["row"] == name]["score"]
    base_text = f"{name} ({base.iloc[0]:.3f})" if len(base) else name
    test = f", paired bootstrap, Holm-corrected {p_text(effect.p)}" if math.isfinite(effect.p) else ""
    if effect.side == "above":
        text = f". It beats the best classical baseline, {base_text}: {effect}{test}."
    elif effect.side == "below":
        text = f". The classical baseline {base_text} beats it: {effect}{test}."
    elif effect.side == "unclear":
        text = f". Against the best classical baseline, {base_text}: {unseen(effect, detectable)}{test}."
    elif math.isfinite(effect.value):
        word = "above" if effect.value > 0 else "not above"
        text = f". It is {word} the best classical baseline, {base_text}, by its mean ({effect}); no interval here."
    else:
        text = f". It was not compared with the best classical baseline, {base_text}."
    count = sides(over(line, "classical") for _, line in trained.iterrows())
    if len(trained) > 1:
        text += f" Of all {len(trained)} rows, {count['above']} beat that baseline and {count['below']} lose to it."
    return text


def _orders(orders: pd.DataFrame) -> list[Verdict]:
    found = []
    for setting, part in orders.groupby("setting", sort=False) if len(orders) else ():
        ranked = part.sort_values("excess")
        best, rest = ranked.iloc[0], ranked.iloc[1:]
        effects = {
            str(line["order"]): Effect(value=line["excess"], low=line["low"], high=line["high"])
            for _, line in rest.iterrows()
        }
        costly = [f"{name} {effect}" for name, effect in effects.items() if effect.side == "above"]
        tied = [f"{name} {effect}" for name, effect in effects.items() if effect.side != "above"]
        text = f"orders: {best['order']} costs the fewest nats per token"
        if costly:
            text += f"; excess of {', '.join(costly)}"
        if tied:
            text += f"; not told apart from it: {', '.join(tied)}"
        found.append(Verdict(setting=str(setting), text=text + "."))
    return found


def _ranks(correlation: pd.DataFrame) -> list[Verdict]:
    found = []
    for line in correlation.to_dict("records"):
        effect = Effect(value=line["spearman"], low=line["low"], high=line["high"])
        word = {
            "above": "likelihood and probe rank the rows alike",
            "below": "likelihood and probe rank the rows against each other",
        }.get(effect.side, "no agreement of likelihood rank and probe rank that this study could see")
        setting = "" if line["setting"] == "all" else str(line["setting"])
        test = f", permutation {p_text(line['p'])}" if math.isfinite(line["p"]) else ""
        text = f"{word}: Spearman {effect} over {line['rows']} rows{test}."
        found.append(Verdict(setting=setting, text=text if setting else f"All settings together: {text}"))
    return found


def _carried(sharing: pd.DataFrame, tables: Tables) -> list[Verdict]:
    found = []
    for line in sharing.to_dict("records"):
        gain = Effect(value=line["gain"], low=line["gain_low"], high=line["gain_high"])
        limit = detectable(tables, line["setting"], line["task"])
        parts = [f"{line['task']}: {_moved(gain, limit, 'gains', 'loses')}"]
        if math.isfinite(line.get("nats_saved", math.nan)):
            saved = Effect(value=line["nats_saved"], low=line["nats_low"], high=line["nats_high"])
            parts.append(
                f"held-out nats per token: {_moved(saved, math.nan, 'it saves', 'it costs, saving')}"
            )
        text = f"one core on all sciences instead of its own ({line['row']}): {'; '.join(parts)}."
        found.append(Verdict(setting=str(line["setting"]), text=text))
    return found


def _moved(effect: Effect, limit: float, up: str, down: str) -> str:
    return {"above": f"{up} {effect}", "below": f"{down} {effect}", "unknown": f"{effect}, no interval"}.get(
        effect.side, unseen(effect, limit)
    )


def _transferred(transfer: pd.DataFrame, tables: Tables) -> list[Verdict]:
    found = []
    lines = transfer[transfer["source"] != "random trunk"] if len(transfer) else transfer
    for target, part in lines.groupby("target", sort=False) if len(lines) else ():
        effects = {
            str(line["source"]): Effect(value=line["gain"], low=line["gain_low"], high=line["gain_high"])
            for line in part.to_dict("records")
        }
        moved = [f"{name} {e}" for name, e in effects.items() if e.side in ("above", "below")]
        others = [f"{name} {e}" for name, e in effects.items() if e.side not in ("above", "below")]
        limit = detectable(tables, str(target), str(part["task"].iloc[0]))
        text = "frozen trunks against a random trunk: " + (
            ", ".join(moved) if moved else "no difference that this study could see"
        )
        if others:
            also = f"; detectable: {limit:.3f}" if math.isfinite(limit) else ""
            text += f" (interval includes 0 or is missing: {', '.join(others)}{also})"
        found.append(Verdict(setting=str(target), text=text + "."))
    return found


def detectable(tables: Tables, setting: str, task: str) -> float:
    """The smallest difference between rows of this task that the study's seeds could find; NaN when unknown."""
    scores = tables.scores
    if scores.empty or "detectable" not in scores:
        return math.nan
    found = scores[(scores["setting"] == setting) & (scores["task"] == task)]["detectable"].dropna()
    return float(found.iloc[0]) if len(found) else math.nan
