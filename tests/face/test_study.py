"""The study: complete, matched in cost, resumable, honest about failures."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from consilience.core.errors import ConsilienceError
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.report import write_report
from consilience.study import Setting, StudyPreset, cell, run_study, runner, workers
from consilience.study import data as sets
from consilience.study.analysis import analyse
from consilience.study.evidence import Evidence, floor_of
from consilience.study.grid import chosen_rates
from consilience.study.plan import Crossover, Variant
from consilience.study.presets import PRESETS
from consilience.study.results import Result
from consilience.study.runner import Study, all_jobs, chosen_preset, compute, estimate
from consilience.study.variants import VARIANTS, variants

GALAXIES = Setting(
    name="galaxies",
    domain="galaxies",
    variants=variants("masked", "next-token", "denoising", "reversed", "block 4", "address-only"),
    tokenizer={"patch_size": 64},
    records=300,
)
TINY = StudyPreset(
    name="tiny",
    core=CoreConfig(width=16, depth=1, heads=2),
    training=TrainingConfig(steps=4, tokens_per_batch=512, validations=2, save_every=0),
    settings=(GALAXIES,),
    seeds=2,
    learning_rates=(1e-3, 3e-3),
    trial=0.5,
    evaluation_records=40,
    profile=("masked", "denoising"),
)


def tiny(**changes: object) -> StudyPreset:
    return replace(TINY, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return compute(TINY, folder, processes=1, progress=False)


def test_every_row_stands_beside_its_baselines(study: Study) -> None:
    assert [r for r in study.results if r.error] == []
    rows = [(r.role, r.row) for r in study.results if r.seed in (0, None)]
    assert rows[:6] == [
        ("trivial", "majority / mean"),
        ("classical", "PCA of tokens"),
        ("classical", "PCA(50) of flux"),
        ("classical", "PCA(50) of flux, boosted trees"),
        ("random-init", "random-init core"),
        ("supervised", "supervised core"),
    ]
    trained = [row for role, row in rows if role == "pre-trained"]
    assert trained == [v.name for v in GALAXIES.variants]
    kinds = {r.row: r.kind for r in study.results if r.role == "pre-trained"}
    assert kinds == {
        "masked": "surrogate", "next-token": "exact", "denoising": "surrogate", "reversed": "exact",
        "block 4": "bound", "address-only": "exact",
    }  # fmt: skip


def test_one_core_and_one_budget(study: Study) -> None:
    runs = [r for r in study.results if r.role == "pre-trained"]
    assert len({r.trunk for r in runs}) == 1, "one core for all rows"
    budget = study.bench.budget(study.preset.settings[0])
    for run in runs:
        own = study.bench.costs["galaxies", run.row].flops
        assert abs(run.flops - budget) <= own / 2, "as many steps as the budget pays for"
    block = next(r for r in runs if r.row == "block 4")
    assert block.steps < next(r for r in runs if r.row == "masked").steps, "two streams cost more"


def test_learning_rates_are_chosen_on_validation_with_the_same_trials(study: Study) -> None:
    trials = [r for r in study.results if r.role == "tuning"]
    assert {(r.row, r.learning_rate) for r in trials} == {
        (v.name, rate) for v in GALAXIES.variants for rate in TINY.learning_rates
    }
    assert not any(r.scores for r in trials), "no test score was looked at"
    rates = chosen_rates(study.bench, trials)
    for run in (r for r in study.results if r.role == "pre-trained"):
        own = {r.learning_rate: r.curve[-1][1] for r in trials if r.row == run.row}
        assert run.learning_rate == rates["galaxies", run.row] == min(own, key=own.__getitem__)


def test_every_row_is_read_out_by_the_same_search(study: Study) -> None:
    for result in study.results:
        if result.role not in ("pre-trained", "random-init"):
            continue
        (score,) = result.scores
        assert score.readout
        assert set(score.fractions) == {"0.1", "0.01"}
        assert score.knn is not None


def test_predictions_are_paired(study: Study) -> None:
    evidence, setting = Evidence(study), study.preset.settings[0]
    rows = evidence.predictions(setting, study.bench.tasks(setting)[0])
    first = rows["masked"]
    assert first.predicted.shape == (2, len(first.truth))
    assert rows["majority / mean"].predicted.shape == (1, len(first.truth))
    for row in rows.values():
        np.testing.assert_array_equal(row.truth, first.truth)
    test = study.bench.of(setting).split.test
    labels = study.bench.of(setting).collection.labels["redshift"]
    np.testing.assert_allclose(np.sort(first.truth), np.sort(labels[test]))


def test_tables_hold_every_family_of_outcome(study: Study, tmp_path: Path) -> None:
    tables = analyse(study)
    scores = tables.scores.set_index("row")
    assert scores.loc["supervised core", "role"] == "supervised"
    assert (tables.scores["low"] <= tables.scores["high"]).all()
    losses = tables.losses.set_index("row")
    assert losses.loc[["masked", "denoising"], "captured"].isna().all(), "a surrogate is no likelihood"
    assert losses.loc["address-only", "captured"] == pytest.approx(0)
    gain = losses.loc["address-only", "loss"] - losses.loc["next-token", "loss"]
    assert losses.loc["next-token", "captured"] == pytest.approx(gain)
    assert set(tables.orders["order"]) == {"next-token", "reversed"}
    assert tables.orders["excess"].min() == pytest.approx(0)
    assert set(tables.dial["row"]) == {"next-token", "block 4"}
    pairs = tables.pairs.set_index(["first", "second"])
    assert pairs.loc[("masked", "next-token"), "low"] <= pairs.loc[("masked", "next-token"), "difference"]
    assert "address-only" not in set(tables.pairs["first"]) | set(tables.pairs["second"])
    assert len(tables.erasure) and len(tables.gaussian)
    assert len(tables.alignment)
    tables.write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {
        "scores.csv",
        "scores.parquet",
        "losses.csv",
        "erasure.csv",
    }
    assert not (tmp_path / "crossover.csv").exists(), "what was not asked for leaves no file"


def test_a_finished_study_is_not_computed_again(
    study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> Result:
        raise AssertionError("computed again")

    monkeypatch.setattr(workers, "run_job", refuse)
    again = compute(TINY, folder, processes=1, progress=False)
    assert [r.key for r in again.results] == [r.key for r in study.results]


def test_a_report_before_the_end_says_so(tmp_path: Path) -> None:
    small = tiny(
        seeds=1, learning_rates=(), profile=(), settings=(replace(GALAXIES, variants=variants("masked")),)
    )
    nothing = compute(small, tmp_path, processes=0, progress=False)
    assert nothing.results == () and nothing.unfinished == len(nothing.jobs) == 7
    page = write_report(nothing).read_text()
    assert "not finished: 7 of 7 jobs" in page


def test_a_study_goes_on_where_it_was_killed(
    study: Study, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sitting computes what is missing alone, and both sittings together give the same numbers."""
    done: list[str] = []
    real = cell.run

    def mortal(job, bench, on_step):  # type: ignore[no-untyped-def]
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(job.key)
        return real(job, bench, on_step)

    monkeypatch.setattr(cell, "run", mortal)
    with pytest.raises(KeyboardInterrupt):
        compute(tiny(seeds=1), tmp_path, processes=1, progress=False)
    monkeypatch.setattr(cell, "run", real)
    again = compute(tiny(seeds=1), tmp_path, processes=1, progress=False)
    whole = {r.key: r for r in study.results}
    for result in again.results:
        assert result.nats == whole[result.key].nats
        assert [s.value for s in result.scores] == [s.value for s in whole[result.key].scores]


def test_other_settings_are_another_question(study: Study, folder: Path) -> None:
    path = next(folder.rglob("denoising/seed-0/result.json"))
    assert Result.read(path, key="something else") is None
    assert Result.read(path, key=json.loads(path.read_text())["key"]) is not None
    path.with_name("cut.json").write_text(path.read_text()[:100])
    assert Result.read(path.with_name("cut.json"), key="") is None


def test_several_processes_give_the_same_numbers(study: Study, tmp_path: Path) -> None:
    small = tiny(
        seeds=1, learning_rates=(), profile=(), settings=(replace(GALAXIES, variants=variants("masked")),)
    )
    alone = compute(small, tmp_path / "alone", processes=1, progress=False)
    together = compute(small, tmp_path / "together", processes=2, progress=False)
    for one, two in zip(alone.results, together.results, strict=True):
        assert (one.row, one.key) == (two.row, two.key)
        for a, b in zip(one.scores, two.scores, strict=True):
            assert a.value == pytest.approx(b.value, abs=1e-4)


def test_workers_share_out_the_cards(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    monkeypatch.setattr(workers, "_worker", {})
    monkeypatch.setattr(workers, "_leave_with_parent", lambda parent: None)
    monkeypatch.setattr(workers.torch, "set_num_threads", lambda _: None)
    started, seen = multiprocessing.Value("i", 0), []
    for _ in range(3):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        workers._start_worker(study.bench, None, 1, started, ["2", "5"])
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["2", "5", "2"]


def test_a_failed_job_is_reported_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny(
        seeds=1, learning_rates=(), settings=(replace(GALAXIES, variants=variants("masked", "denoising")),)
    )

    def fail(*args: object) -> Result:
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as broken:
        broken.setitem(cell.WORK, "pre-trained", fail)  # type: ignore[arg-type]
        found = compute(small, tmp_path, processes=1, progress=False)
    failed = {(r.role, r.row) for r in found.results if r.error}
    assert failed == {("pre-trained", "masked"), ("pre-trained", "denoising"),
                      ("profile", "masked"), ("profile", "denoising")}  # fmt: skip
    reasons = set(analyse(found).failures["reason"])
    assert "RuntimeError: the disk is on fire" in reasons
    assert any("needs the run" in reason for reason in reasons)
    again = compute(small, tmp_path, processes=1, progress=False)
    assert not any(r.error for r in again.results)


def test_sciences_share_a_core_and_lend_their_trunks(tmp_path: Path) -> None:
    molecules = Setting(
        name="molecules", domain="molecules", variants=variants("masked", "next-token"), records=200
    )
    galaxies = replace(GALAXIES, variants=variants("masked", "next-token"), records=120)
    preset = tiny(
        seeds=2, settings=(galaxies, molecules), learning_rates=(), profile=(), supervised=False, alignment=False,
        sharing=("next-token",), transfer="masked",
        crossover=Crossover(setting="molecules", variants=("next-token",), records=(50, 100, 10_000), epochs=8),
    )  # fmt: skip
    found = compute(preset, tmp_path, processes=1, progress=False)
    failed = [r for r in found.results if r.error]
    assert [r.role for r in failed] == ["crossover"], "there are not 10,000 records"
    assert "training records, not 10000" in failed[0].error
    shared = next(r for r in found.results if r.role == "shared")
    own = [r for r in found.results if r.role == "pre-trained" and r.row == "next-token" and r.seed == 0]
    assert shared.steps == sum(r.steps for r in own), "the same total cost"
    tables = analyse(found)
    assert set(tables.sharing["setting"]) == {"galaxies", "molecules"}
    assert tables.sharing["nats_saved"].notna().all()
    assert len(tables.transfer) == 2 * 3
    assert tables.transfer[tables.transfer["source"] == "random trunk"]["gain"].eq(0).all()
    sizes = tables.crossover.groupby("records")["epochs"].max()
    assert sizes[50] == pytest.approx(2 * sizes[100], rel=0.25), "as many tokens, fewer passes"


def test_the_grid_and_its_cost_without_running(tmp_path: Path) -> None:
    lines = estimate(tiny(seeds=3), tmp_path)
    assert {line["work"] for line in lines} >= {"tuning", "pre-trained", "supervised", "profile", "trivial"}
    run = next(line for line in lines if line["work"] == "pre-trained" and line["row"] == "masked")
    assert run["runs"] == 3 and run["finished"] == 0 and run["flops"] > 0 and run["seconds"] > 0
    assert not list(tmp_path.rglob("result.json"))


def test_the_seeds_come_one_after_another(study: Study, folder: Path) -> None:
    """Stopped at any time, a study has compared everything with fewer seeds."""
    jobs = all_jobs(study.bench, chosen_rates(study.bench, []), study.preset.main, folder)
    seeds = [job.seed for job in jobs if job.seed is not None and job.work != "tuning"]
    assert seeds == sorted(seeds)
    assert len({job.key for job in jobs}) == len(jobs) == len({job.path for job in jobs})


def test_presets_name_what_exists() -> None:
    for name in VARIANTS:
        (variant,) = variants(name)
        variant.build()
    floors = {}
    for preset in (make() for make in PRESETS.values()):
        for setting in preset.settings:
            floors[preset.name, setting.name] = any(v.objective == "address-only" for v in setting.variants)
            for variant in setting.variants:
                if variant.objective != "address-only" and set(variant.figures) & {"orders", "dial"}:
                    assert floor_of(setting, variant) or not floors[preset.name, setting.name]
    for name in ("cells", "galaxies", "molecules"):  # a likelihood is claimed, so its floor must be there
        assert all(floors[preset, name] for preset in PRESETS)
    with pytest.raises(ConsilienceError, match="names of their own"):
        Setting(name="s", domain="cells", variants=(Variant(name="a", objective="masked"),) * 2)


def test_bad_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConsilienceError, match="unknown preset 'slow'; known: quick, standard, full"):
        run_study("slow", tmp_path)
    with pytest.raises(ConsilienceError, match="at least one seed"):
        run_study("quick", tmp_path, seeds=0)
    with pytest.raises(ConsilienceError, match="unknown objective 'guess'"):
        run_study("quick", tmp_path, objectives=["guess"])
    with pytest.raises(ConsilienceError, match="no setting 'rocks' in preset quick; known: cells"):
        chosen_preset("quick", settings=["rocks"])
    monkeypatch.setenv(sets.FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ConsilienceError, match="nowhere: the folder of data does not exist"):
        estimate(chosen_preset("standard"), tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConsilienceError, match="holds no study to report on"):
        run_study("quick", tmp_path, report_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "costs.json").write_text("{}")  # of a dry run
    monkeypatch.setattr(runner, "compute", lambda *_, **__: SimpleNamespace(results=()))
    with pytest.raises(ConsilienceError, match="holds nothing finished of the study quick"):
        run_study("quick", tmp_path, report_only=True)
