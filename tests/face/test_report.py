"""The report: from tables with known effects to sentences, figures, answers and one page that stands alone."""

import io
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.report import print_table, questions, verdicts, write_report
from consilience.report.effects import Effect, apart
from consilience.report.figures import crossover, dial, orders, profile, scatter
from consilience.report.figures.curves import loss_curves
from consilience.report.gallery import PLATES, gallery
from consilience.report.markdown import as_markdown
from consilience.report.tables import BEST_CLASSICAL, cell, columns_of, rows_of
from consilience.study.analysis import Tables
from consilience.study.plan import Crossover, Setting, StudyPreset, Variant
from consilience.study.results import Result

SURROGATES = ("masked", "masked .15", "masked .5", "two-phase")
TASKS = {"cells": ("cell type", "macro_f1"), "galaxies": ("redshift", "r2"), "molecules": ("logP", "r2"),
         "points": ("gap", "r2")}  # fmt: skip
VALUES = {"masked": 0.80, "masked .5": 0.79, "masked .15": 0.70, "next-token": 0.74, "two-phase": 0.81,
          "any-order": 0.72, "masked-diffusion": 0.78, "denoising": 0.66, "address-only": 0.3,
          "randomised": 0.78}  # fmt: skip
CAPTURED = {"next-token": 0.9, "block 1": 0.86, "block 4": 0.7, "block 16": 0.6, "masked-diffusion": 0.52,
            "any-order": 0.61, "reversed": 0.83, "randomised": 0.7, "address-only": 0.0,
            "genome order": 0.895}  # fmt: skip


def kind_of(setting: str, row: str, objective: str) -> str:
    if row in SURROGATES or (objective in ("denoising", "block") and setting in ("cells", "galaxies")
                             and ("flow" in row or objective == "denoising")):  # fmt: skip
        return "surrogate"
    return "exact" if objective in ("next-token", "any-order", "address-only") else "bound"


def planted(preset: StudyPreset, *, half: float = 0.02, seeds: int = 3, classical: float = 0.77) -> Tables:
    """Tables of a study in which masked beats next-token, the classical row lies between, and so on."""
    rng = np.random.default_rng(0)
    scores, losses, order_lines, dial_lines = [], [], [], []
    for setting in preset.settings:
        task, metric = TASKS[setting.domain]
        base = {"setting": setting.name, "domain": setting.domain, "task": task, "metric": metric, "seeds": seeds,
                "test_records": 400, "detectable": 0.03}  # fmt: skip
        rows = [("majority / mean", "trivial", 0.1), ("PCA of tokens", "classical", 0.6),
                (f"classical of {setting.domain}", "classical", classical), ("random-init core", "random-init", 0.5),
                ("supervised core", "supervised", 0.9)]  # fmt: skip
        rows += [(v.name, "pre-trained", VALUES.get(v.name, 0.73)) for v in setting.variants]
        for row, role, value in rows:
            line: dict[str, Any] = {
                    **base, "row": row, "role": role, "score": value, "low": value - half,
                    "high": value + half, "knn": value - 0.05, "labels_10": value - 0.1, "labels_1": value - 0.2,
                    "normalised": (value - 0.1) / 0.8, "normalised_low": (value - half - 0.1) / 0.8,
                    "normalised_high": (value + half - 0.1) / 0.8, "classical": f"classical of {setting.domain}",
                    "readout": ""}  # fmt: skip
            if role == "pre-trained":
                for name, other in (("classical", classical), ("random", 0.5)):
                    gap = value - other
                    line |= {f"over_{name}": gap, f"over_{name}_low": gap - half, f"over_{name}_high": gap + half,
                             f"over_{name}_p": 0.002 if abs(gap) > half else 0.4}  # fmt: skip
                line["readout"] = (
                    "layer 2, mean, t = 0.9" if row == "denoising" else "layer 3, mean | final, last"
                )
            scores.append(line)
        for variant in setting.variants:
            kind = kind_of(setting.name, variant.name, variant.objective)
            captured = CAPTURED.get(variant.name, 0.65)
            line = {"setting": setting.name, "domain": setting.domain, "row": variant.name,
                    "objective": variant.objective, "kind": kind, "seeds": seeds, "loss": 2.0 - captured,
                    "flops": 1.2e13, "steps": 400, "samples": 30_000, "tokens": 800_000, "scored": 800_000,
                    "learning_rate": 4e-3, "parameters": 500_000 + 20_000 * (variant.name == "two-phase"),
                    "trunk": 450_000, "seconds": 61.0, "tokens_per_record": 32.0}  # fmt: skip
            if kind != "surrogate":
                line |= {"low": line["loss"] - half, "high": line["loss"] + half, "marginal": 2.0,
                         "captured": captured, "captured_low": captured - half,
                         "captured_high": captured + half}  # fmt: skip
                if "orders" in variant.figures and len(setting.variants) > 5:
                    gap = 0.9 - captured
                    order_lines.append({"setting": setting.name, "order": variant.name, "best": gap == 0,
                                        "excess": gap, "low": gap - (half if gap else 0),
                                        "high": gap + (half if gap else 0), "floor": 0.9})  # fmt: skip
            losses.append(line)
            if "dial" in variant.figures or variant.objective == "denoising":
                noise = (
                    "gaussian" if "flow" in variant.name or variant.objective == "denoising" else "erasure"
                )
                size = 1 if variant.objective == "next-token" else variant.options.get("size", 32)
                dial_lines.append({k: line.get(k, np.nan) for k in ("captured", "captured_low", "captured_high")} | {
                    "setting": setting.name, "row": variant.name, "size": float(size), "noise": noise, "kind": kind,
                    "task": task, "metric": metric, "score": VALUES.get(variant.name, 0.73),
                    "low": VALUES.get(variant.name, 0.73) - half,
                    "high": VALUES.get(variant.name, 0.73) + half})  # fmt: skip
    first = list(dict.fromkeys(s.domain for s in preset.settings))
    names = [v.name for v in preset.settings[0].variants if "table" in v.figures]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    trained = list(dict.fromkeys(line["row"] for line in scores if line["role"] == "pre-trained"))
    return Tables(
        scores=pd.DataFrame(scores),
        pairs=pd.DataFrame(),
        losses=pd.DataFrame(losses),
        summary=pd.DataFrame([{"row": row, "tasks": 4, "iqm": VALUES.get(row, 0.7), "low": 0.6, "high": 0.9,
                               "p_best": 1 / len(trained)} for row in ("random-init core", *trained)]),
        orders=pd.DataFrame(order_lines),
        dial=pd.DataFrame(dial_lines),
        **profiles(first, seeds),
        sharing=pd.DataFrame([
            {"setting": s, "row": row, "seeds": seeds, "task": "t", "alone": 0.7, "shared": 0.7 + gain, "gain": gain,
             "gain_low": gain - half, "gain_high": gain + half, "nats_saved": -0.1 if row == "next-token" else np.nan,
             "nats_low": -0.12, "nats_high": -0.08}
            for s, gain in zip(first, (0.05, -0.06, 0.0, 0.01)) for row in ("next-token", "masked")]),
        transfer=pd.DataFrame([
            {"target": t, "source": s, "seeds": seeds, "task": TASKS[t][0], "score": 0.6, "loss": 1.0,
             "kind": "surrogate", "gain": 0.1 * (s == t) + 0.001 * i, "gain_low": 0.1 * (s == t) - half,
             "gain_high": 0.1 * (s == t) + half, "loss_saved": 0.2, "loss_saved_low": 0.1, "loss_saved_high": 0.3}
            for t in first for i, s in enumerate(("random trunk", *first))]),
        alignment=pd.DataFrame([
            {"setting": s, "first": a, "second": b, "raw": 0.3, "calibrated": c, "low": c - 0.05, "high": c + 0.05,
             "p": 0.001 if c > 0.05 else 0.7, "significant": c > 0.05, "p_holm": 0.002 if c > 0.05 else 1.0}
            for s in first for a, b in pairs for c in [float(rng.uniform(0, 0.7))]]),
        crossover=pd.DataFrame([
            {"setting": "molecules", "row": row, "seed": seed, "kind": kind, "records": records, "epochs": epochs,
             "loss": 1 + start / epochs**0.5 + 0.01 * seed + over * (epochs / 30) ** 2 * 1000 / records}
            for row, kind, start, over in (("next-token", "exact", 1.0, 0.3), ("masked-diffusion", "bound", 1.6, 0.0),
                                           ("masked", "surrogate", 0.3, 0.0))
            for records in (1000, 10_000) for seed in range(seeds)
            for epochs in np.geomspace(1, 100, 20) * 1000 / records]),
        correlation=pd.DataFrame([{"setting": s, "rows": 8, "spearman": 0.1, "low": -0.5, "high": 0.6, "p": 0.7}
                                  for s in ("all", *first)]),
        failures=pd.DataFrame([{"work": "pre-trained", "setting": "cells", "row": "a < b & c", "seed": 0,
                                "reason": "<script>alert(1)</script>"}]),
    )  # fmt: skip


def profiles(settings: list[str], seeds: int) -> dict[str, pd.DataFrame]:
    rates = np.concatenate([[0], (np.polynomial.legendre.leggauss(8)[0] + 1) / 2, [1]])
    grid = np.linspace(-7, 9, 24)
    erasure, gaussian, information = [], [], []
    for place, setting in enumerate(settings):
        for seed in range(seeds):
            for row in ("masked", "masked-diffusion"):
                names = {"setting": setting, "row": row, "seed": seed}
                curve = 0.8 + 0.4 * rates ** (1 + 2 * place) + 0.02 * seed + 0.03 * (row == "masked")
                erasure += [
                    {**names, "rates": r, "nats": n, "nats_error": 0.01} for r, n in zip(rates, curve)
                ]
                information.append({**names, "kind": "surrogate" if setting == "galaxies" else "bound"})
            names = {"setting": setting, "row": "denoising", "seed": seed}
            gaussian += [{**names, "log_snr": g, "mmse": (0.6 + 0.01 * seed) / (1 + np.exp(g)), "mmse_error": 0.01}
                         for g in grid]  # fmt: skip
            information.append({**names, "kind": "surrogate"})
    return {name: pd.DataFrame(lines) for name, lines in
            (("erasure", erasure), ("gaussian", gaussian), ("information", information))}  # fmt: skip


NOTHING = Tables(**{field.name: pd.DataFrame() for field in fields(Tables)})


def fake_study(preset: StudyPreset, folder: Path, *, figure: Figure | None = None) -> Any:
    collection = type("Collection", (), {"source": "data <file>", "origin": "simulated", "fingerprint": "f00",
                                         "__len__": lambda self: 9})()  # fmt: skip
    part = SimpleNamespace(
        collection=collection, failures=(), domain=SimpleNamespace(figure=lambda *_: figure),
        split=SimpleNamespace(train=[1] * 5, validation=[1], test=[1]),
    )  # fmt: skip
    curve = ((1, 2.0), (2, 1.0))
    results = tuple(
        Result(key="", setting=s.name, row=v.name, role="pre-trained", seed=0, curve=curve,
               curve_kind=kind_of(s.name, v.name, v.objective))  # type: ignore[arg-type]
        for s in preset.settings for v in s.variants
    )  # fmt: skip
    return SimpleNamespace(
        unfinished=0, jobs=(),
        preset=preset, folder=folder, seconds=1.0, results=results, prepared={s.name: part for s in preset.settings},
        run_folder=lambda *_: folder,
    )  # fmt: skip


def variant(name: str) -> Variant:
    figures = {"next-token": ("table", "orders", "dial", "heads"), "any-order": ("table", "orders"),
               "masked": ("table", "rates"), "masked .15": ("table", "rates"), "masked .5": ("rates",),
               "masked-diffusion": ("table", "dial"), "next-token, flow": ("heads",)}  # fmt: skip
    kinds = {"block": ("dial",), "address-only": ("floor",), "next-token": ("orders",)}
    objective = {"genome order": "next-token", "reversed": "next-token", "randomised": "next-token",
                 "ranks": "next-token"}.get(name) or re.split(r"(?<=block) | \.|, ", name)[0]  # fmt: skip
    options: dict[str, Any] = {"masked .15": {"rate": 0.15}, "masked .5": {"rate": 0.5}}.get(name, {})
    if objective == "block":
        options = {"size": int(name.split()[-1])}
    tokenizer = {"view": "ranks"} if name == "ranks" else {}
    chosen: Any = figures.get(name, kinds.get(objective, ("table",)))
    return Variant(name=name, objective=objective, options=options, tokenizer=tokenizer, figures=chosen)


def standard() -> StudyPreset:
    """A preset with all that can be asked, and eleven settings."""
    many = ("masked", "next-token", "any-order", "masked .15", "masked .5", "masked-diffusion", "two-phase",
            "reversed", "block 4", "block 16", "address-only")  # fmt: skip
    more = {"cells": ("denoising", "ranks", "genome order"), "galaxies": ("denoising", "next-token, flow"),
            "molecules": ("block 1", "randomised"),
            "points": ("denoising", "block flow 4", "next-token, flow")}  # fmt: skip
    settings = [
        Setting(name=name, domain=name, variants=tuple(map(variant, (*many, *own))))
        for name, own in more.items()
    ]
    few = tuple(map(variant, ("masked", "next-token", "masked-diffusion")))
    settings += [
        Setting(name=f"more {i} {name}", domain=name, variants=few) for i in (1, 2) for name in more
    ][:7]
    return StudyPreset(
        name="standard", core=CoreConfig(width=96, depth=4, heads=4), training=TrainingConfig(steps=400),
        settings=tuple(settings), seeds=3, learning_rates=(2e-3, 4e-3), profile=("masked",), sharing=("masked",),
        transfer="masked", note="two CPU cores",
        crossover=Crossover(setting="molecules", variants=("next-token",), records=(1000,), epochs=100),
    )  # fmt: skip


@pytest.fixture(scope="module")
def preset() -> StudyPreset:
    return standard()


@pytest.fixture(scope="module")
def tables(preset: StudyPreset) -> Tables:
    return planted(preset)


@pytest.fixture(scope="module")
def page(preset: StudyPreset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consilience.report.page._models", lambda *_: {})
        small = main(preset, "cells", "galaxies", "molecules", "points")
        return write_report(fake_study(small, tmp_path_factory.mktemp("study")), planted(small))


def main(preset: StudyPreset, *names: str) -> StudyPreset:
    return replace(preset, settings=tuple(s for s in preset.settings if s.name in names))


def sentences(tables: Tables, setting: str = "cells") -> str:
    return " ".join(v.text for v in verdicts(tables) if v.setting == setting)


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    assert "http" not in re.sub(r"base64,[^']*", "", text) and "<script" not in text
    assert not re.search(r"(src|href)='(?!data:)", text)
    assert "&lt;script&gt;alert(1)" in text and "a &lt; b &amp; c" in text and "data &lt;file&gt;" in text
    for words in ("majority / mean", BEST_CLASSICAL, "PCA of tokens", "random-init core", "supervised core",
                  "simulated", "f00", "P(best)", "Q12 two phases", "two-phase (+4.0%)",
                  "Runs that failed"):  # fmt: skip
        assert words in text, words
    assert text.count("<img") == len(PLATES) + 1
    folder = page.parent
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".png", ".pdf"}
    assert (folder / "tables" / "scores.csv").is_file() and (folder / "tables" / "questions.csv").is_file()


def test_verdicts_say_who_wins(preset: StudyPreset) -> None:
    small = main(preset, "cells")
    won = sentences(planted(small, classical=0.7))
    assert (
        "two-phase scores highest" in won
        and "beats the best classical baseline, classical of cells (0.700)" in won
    )
    assert "Holm-corrected p = 0.002" in won and "above the random-init core (+0.310 [+0.290, +0.330])" in won
    lost = sentences(planted(small, classical=0.95))
    assert "The classical baseline classical of cells (0.950) beats it: -0.140" in lost
    even = sentences(planted(small, classical=0.80))
    assert "no difference that this study could see (+0.010 [-0.010, +0.030]; detectable: 0.030)" in even
    assert "next-token costs the fewest nats" in won and "any-order +0.290" in won
    assert "not told apart from it: genome order +0.005" in won
    assert "address-only" not in won
    assert "ignificant" not in won + lost + even


def test_a_test_overrules_an_interval() -> None:
    assert Effect(value=0.1, low=0.01, high=0.2, p=0.2).side == "unclear"
    assert Effect(value=0.1, low=0.01, high=0.2).side == "above"
    assert Effect(value=0.1).side == "unknown"
    gap = apart((1.0, 0.7, 1.4), (0.5, 0.1, 0.9))
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.5, 0.0, 0.5 + np.hypot(0.4, 0.4)))


def test_carried_trunks_and_shared_cores(tables: Tables) -> None:
    assert "gains +0.050 [+0.030, +0.070]" in sentences(tables, "cells")
    assert "loses -0.060" in sentences(tables, "galaxies")
    assert "no difference that this study could see (+0.000" in sentences(tables, "molecules")
    assert "held-out nats per token: it costs, saving -0.100" in sentences(tables, "cells")
    assert "frozen trunks against a random trunk: cells +0.101" in sentences(tables, "cells")
    assert "interquartile mean of normalised scores, 0.81" in sentences(tables, "")
    assert "beats the best classical baseline in 11 of 11 tasks" in sentences(tables, "")
    assert "no agreement of likelihood rank and probe rank that this study could see" in sentences(tables, "")


def test_main_table_marks_wins_and_losses(tables: Tables, preset: StudyPreset) -> None:
    column = next(c for c in columns_of(tables.scores) if c[0] == "cells")
    styles = {
        row: found.style for _, row in rows_of(tables.scores) if (found := cell(tables.scores, row, column))
    }
    assert styles["masked"] == "win" and styles["masked .15"] == "behind" and styles["masked-diffusion"] == ""
    assert styles["address-only"] == "behind" or styles["address-only"] == "lose"
    best = cell(tables.scores, BEST_CLASSICAL, column)
    assert best is not None and best.method == "classical of cells"
    roles = [role for role, _ in rows_of(tables.scores, ["masked"])]
    assert roles == ["trivial", "classical", "classical", "random-init", "pre-trained", "supervised"]
    stream = io.StringIO()
    print_table(tables, Console(file=stream, width=200))
    assert "cell type" in stream.getvalue() and "0.800 [0.780 0.820]" in stream.getvalue()


def test_markdown_has_both_families_of_outcome(page: Path, preset: StudyPreset) -> None:
    text = (page.parent / "tables" / "scores.md").read_text()
    assert text == as_markdown(planted(main(preset, "cells", "galaxies", "molecules", "points")))
    cells = text.split("### cells")[1].split("###")[0].splitlines()
    lines = {line.split(" | ")[0].strip("| "): line for line in cells if line.startswith("|")}
    assert "captured" in lines[""] and "macro F1" in lines[""]
    assert "**" in lines["masked"] and "**" not in lines["masked .15"]
    assert "(classical of cells)" in lines[BEST_CLASSICAL] and "0.770 [0.750, 0.790]" in lines[BEST_CLASSICAL]
    captured = {row: line.split(" | ")[1] for row, line in lines.items()}
    assert captured["masked"] == "-" and captured["masked-diffusion"].startswith("≥ ")  # surrogate, bound
    assert captured["next-token"][0] in "-0123456789" and captured["next-token"] != "-"
    assert len({line.count("|") for line in lines.values()}) == 1


def test_surrogates_have_no_place_among_likelihoods(page: Path, tables: Tables, preset: StudyPreset) -> None:
    section = page.read_text().split("How much of the data is captured")[1].split("<h2>")[0]
    rows = re.findall(r"<tr class='(\w+)'><th>([^<]*)</th>", section)
    assert (
        rows
        and not {kind for kind, _ in rows} & {"surrogate"}
        and not {row for _, row in rows} & set(SURROGATES)
    )
    assert "surrogates, no likelihood: masked" in section
    assert not set(scatter._both(tables, "captured")["row"]) & set(SURROGATES)
    assert set(crossover.likelihoods(tables)["kind"]) == {"exact", "bound"}
    assert "galaxies" not in set(profile.likelihoods(tables)["setting"])
    assert "galaxies, masked" in profile.notes(tables, preset)
    figure = dial.draw(tables, preset)
    assert figure is not None
    left = [axis for axis in figure.axes if "captured" in axis.get_ylabel()]
    assert not any("denoising" in text.get_text() for axis in left[:2] for text in axis.texts)


def test_loss_curves_keep_kinds_apart() -> None:
    def result(row: str, kind: Any) -> Result:
        return Result(
            key="", setting="d", row=row, role="pre-trained", curve=((1, 2.0), (2, 1.0)), curve_kind=kind
        )

    figure = loss_curves(
        [result("next-token", "exact"), result("masked-diffusion", "bound"), result("masked", "surrogate")]
    )
    assert figure is not None
    above, below = figure.axes
    assert [line.get_label() for line in above.lines] == ["next-token", "masked-diffusion"]
    assert [line.get_label() for line in below.lines] == ["masked"]
    assert loss_curves([]) is None


@pytest.mark.parametrize("plate", PLATES, ids=[plate.name for plate in PLATES])
def test_figures_bear_poor_tables(plate: Any, preset: StudyPreset) -> None:
    assert plate.draw(NOTHING, preset) is None and plate.draw(NOTHING, None) is None
    small = main(preset, "cells", "points")
    one = planted(small, seeds=1)
    holes = {}
    for field in fields(Tables):
        table = getattr(one, field.name).copy()
        ends = [name for name in table.columns if name.endswith(("low", "high", "_error", "detectable"))]
        table[ends] = np.nan
        holes[field.name] = table
    figure = plate.draw(Tables(**holes), small)
    assert figure is not None
    figure.savefig(io.BytesIO(), dpi=30)


def test_a_missing_figure_says_why(preset: StudyPreset, tables: Tables, tmp_path: Path) -> None:
    quiet = replace(preset, transfer=None, crossover=None)
    failed = replace(NOTHING, failures=tables.failures)
    text = gallery(failed, quiet, tmp_path)
    assert text.count("the preset standard does not ask for it") == 2 and "<img" not in text
    assert "1 of the runs it needs failed" in text and "have not finished" in text


def test_orders_that_cannot_be_measured_are_named(preset: StudyPreset, tables: Tables) -> None:
    small = main(preset, "cells", "points")
    losses = tables.losses.copy()
    losses.loc[losses["setting"] == "points", "kind"] = "surrogate"
    without = replace(tables, losses=losses, orders=tables.orders[tables.orders["setting"] == "cells"])
    assert orders.notes(without, small) == "Not shown: points is not measurable: its losses are surrogates."


def test_an_empty_study_has_a_page(
    preset: StudyPreset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consilience.report.page._models", lambda *_: {})
    study = fake_study(preset, tmp_path)
    study.results = ()
    text = write_report(study, NOTHING).read_text()
    assert "No probe has finished" in text and "<img" not in text
    assert set(questions(NOTHING)["verdict"]) == {"not asked here"}


def test_questions_answer_planted_effects(tables: Tables) -> None:
    found = questions(tables)
    verdict = {line["question"].split()[0]: line["verdict"] for line in found.to_dict("records")}
    assert list(verdict) == [
        "Q1",
        "Q2a",
        "Q2b",
        "Q3",
        "Q4",
        "Q5",
        "Q6",
        "Q7",
        "Q8",
        "Q9a",
        "Q9b",
        "Q10",
        "Q11",
        "Q12",
    ]
    expected = {
        "Q1": "not asked here", "Q2a": "as expected", "Q2b": "as expected", "Q3": "as expected", "Q4": "as expected",
        "Q5": "as expected", "Q6": "not as expected", "Q7": "in part", "Q8": "undecided: interval includes 0",
        "Q9a": "in part", "Q10": "undecided: interval includes 0", "Q11": "as expected",
        "Q12": "undecided: interval includes 0",
    }  # fmt: skip
    assert {name: verdict[name] for name in expected} == expected


def test_a_paired_difference_decides_whichever_way_round_it_stands(tables: Tables) -> None:
    """Two rows on the same test groups: a small difference that unpaired intervals leave open."""

    def verdict(**changes: object) -> str:
        found = questions(replace(tables, **changes)).set_index("question")  # type: ignore[arg-type]
        return str(found.loc["Q11 randomised strings", "verdict"])

    near = tables.scores.copy()
    molecules = near["setting"] == "molecules"
    near.loc[molecules & (near["row"] == "randomised"), ["score", "low", "high"]] = (0.702, 0.6, 0.8)
    near.loc[molecules & (near["row"] == "next-token"), ["score", "low", "high"]] = (0.700, 0.6, 0.8)
    assert verdict(scores=near).startswith("undecided")
    task = near[molecules]["task"].iloc[0]
    line = {"setting": "molecules", "task": task, "p": 0.01, "p_holm": 0.02}
    ahead = {
        **line,
        "first": "randomised",
        "second": "next-token",
        "difference": 0.002,
        "low": 0.001,
        "high": 0.003,
    }
    turned = {
        **line, "first": "next-token", "second": "randomised", "difference": -0.002, "low": -0.003, "high": -0.001
    }  # fmt: skip
    for pair in (ahead, turned):
        assert verdict(scores=near, pairs=pd.DataFrame([pair])) == "as expected"


def test_questions_change_with_the_tables(preset: StudyPreset, tables: Tables) -> None:
    def answer(changed: Tables, name: str) -> str:
        found = questions(changed)
        return str(found[found["question"].str.startswith(name)]["verdict"].item())

    scores = tables.scores.copy()
    lower = (scores["row"] == "masked .5") & (scores["setting"] == "cells")
    scores.loc[lower, ["score", "low", "high"]] -= 0.5
    worse = replace(tables, scores=scores)
    assert answer(worse, "Q4") == "not as expected" and answer(worse, "Q5") == "as expected"
    assert answer(planted(preset, classical=0.95), "Q6") == "as expected"
    assert answer(planted(preset, half=0.3), "Q4") == "undecided: interval includes 0"
    assert answer(planted(preset, half=np.nan), "Q4") == "undecided: no interval"
    flipped = tables.dial.assign(**{name: -tables.dial[name] for name in ("captured",)})
    flipped["captured_low"], flipped["captured_high"] = (
        -tables.dial["captured_high"],
        -tables.dial["captured_low"],
    )
    assert answer(replace(tables, dial=flipped), "Q3") == "not as expected"
    ranked = tables.correlation.assign(spearman=0.8, low=0.5, high=0.95)
    assert answer(replace(tables, correlation=ranked), "Q8") == "not as expected"
