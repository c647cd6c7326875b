"""Sentences that say what a score table shows, wins and losses alike."""

import pandas as pd

from consilience.report.tables import METRIC_NAME, columns_of


def verdicts(table: pd.DataFrame) -> list[str]:
    """One sentence a science: best objective, classical baseline, random-init core, in that order of honesty."""
    sentences = []
    for domain, task, metric in columns_of(table):
        here = table[(table["domain"] == domain) & (table["task"] == task)]
        trained = here[here["role"] == "pre-trained"].sort_values("mean", ascending=False)
        if trained.empty:
            continue
        best = trained.iloc[0]
        name = METRIC_NAME.get(metric, metric)
        text = f"{domain}, {task}: {best['row']} is the best objective ({name} {best['mean']:.3f})"
        for role, label in (("classical", "the classical baseline"), ("random-init", "the random-init core")):
            found = here[here["role"] == role]
            if found.empty:
                continue
            other = found.iloc[0]
            if best["mean"] > other["mean"]:
                overlap = best["low"] <= other["high"]
                word = "above" if not overlap else "above (intervals overlap)"
            else:
                word = "not above"
            method = f", {other['method']}" if role == "classical" else ""
            text += f"; {word} {label}{method} ({other['mean']:.3f})"
        sentences.append(text + ".")
    return sentences
