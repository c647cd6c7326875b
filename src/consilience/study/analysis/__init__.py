"""From the results of a study to its tables: tidy frames that the report draws and that stand beside it as CSV.

Every interval resamples test groups and seeds (`study.statistics`), paired over rows. Losses of surrogate kind enter
no table of likelihoods.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from consilience.study.analysis.carried import alignment_table, sharing_table, transfer_table
from consilience.study.analysis.likelihoods import (
    correlation_table,
    crossover_table,
    dial_table,
    losses_table,
    orders_table,
    profile_tables,
)
from consilience.study.analysis.scores import pairs_table, scores_table, summary_table
from consilience.study.evidence import Evidence

if TYPE_CHECKING:
    from consilience.study.runner import Study


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All tables of a study.

    Args:
        scores: a line a (setting, task, row): probes with intervals, normalised, compared with the baselines.
        pairs: paired differences between pre-trained rows of the main comparison, a line a (setting, task, pair).
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
    pairs: pd.DataFrame
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
    scores, draws, normal = scores_table(evidence)
    losses, captured = losses_table(evidence)
    return Tables(
        scores=scores,
        pairs=pairs_table(evidence, draws),
        losses=losses,
        summary=summary_table(scores, normal),
        orders=orders_table(evidence, captured),
        dial=dial_table(evidence, scores, losses),
        **profile_tables(study),
        sharing=sharing_table(evidence),
        transfer=transfer_table(study),
        alignment=alignment_table(evidence),
        crossover=crossover_table(study),
        correlation=correlation_table(scores, losses),
        failures=pd.DataFrame(
            [
                {"work": r.role, "setting": r.setting, "row": r.row, "seed": r.seed, "reason": r.error}
                for r in study.results
                if r.error
            ]
        ),
    )
