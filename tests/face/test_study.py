"""The study: complete, resumable, honest about failures; its report stands alone."""

from pathlib import Path

import pytest

from consilience.core.errors import ConsilienceError
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.report import score_table, write_report
from consilience.report.curves import loss_curves
from consilience.report.verdicts import verdicts
from consilience.study import StudyPreset, run_study, workers
from consilience.study.results import Result, Score
from consilience.study.runner import compute

TINY = StudyPreset(
    name="tiny",
    core=CoreConfig(width=16, depth=1, heads=2),
    training=TrainingConfig(steps=3, tokens_per_batch=512, validations=1, save_every=0),
    domains=("galaxies",),
    seeds=1,
    evaluation_records=8,
)
OBJECTIVES = ["next-token", "denoising"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    write_report(compute(TINY, path, objectives=OBJECTIVES, processes=1, progress=False))
    return path


def test_every_row_stands_beside_its_baselines(folder: Path) -> None:
    study = compute(TINY, folder, objectives=OBJECTIVES, processes=1, progress=False)
    assert [(r.role, r.row) for r in study.results] == [
        ("trivial", "majority / mean"),
        ("classical", "PCA(50) of flux"),
        ("random-init", "random-init core"),
        ("pre-trained", "next-token"),
        ("pre-trained", "denoising"),
    ]
    assert not any(r.error for r in study.results)
    kinds = {r.row: r.kind for r in study.results if r.role == "pre-trained"}
    assert kinds == {"next-token": "exact", "denoising": "surrogate"}
    trunks = {r.trunk for r in study.results if r.role in ("pre-trained", "random-init")}
    assert len(trunks) == 1, "one core for all rows"


def test_a_finished_study_is_not_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> Result:
        raise AssertionError("computed again")

    monkeypatch.setattr(workers, "run_job", refuse)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}
    compute(TINY, folder, objectives=OBJECTIVES, processes=1, progress=False)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}


def test_other_settings_are_another_question(folder: Path) -> None:
    path = next(folder.rglob("denoising/seed-0/result.json"))
    result = Result.read(path, key="something else")
    assert result is None


def test_the_report_stands_alone(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "src='data:image/png;base64," in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    for words in (
        "majority / mean",
        "classical baseline",
        "random-init core",
        "model spectra",
        "fingerprint",
    ):
        assert words in page
    assert "<tr class='surrogate'><th>galaxies</th><td>denoising</td>" in page
    assert {p.name for p in (folder / "figures").iterdir()} >= {"loss-curves.png", "galaxies.png"}
    assert (folder / "scores.csv").is_file() and (folder / "losses.csv").is_file()


def test_several_processes_give_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    alone = compute(TINY, folder, objectives=OBJECTIVES, processes=1, progress=False)
    together = compute(TINY, tmp_path, objectives=OBJECTIVES, processes=2, progress=False)
    for one, two in zip(alone.results, together.results, strict=True):
        assert (one.row, one.key) == (two.row, two.key)
        for a, b in zip(one.scores, two.scores, strict=True):
            assert a.value == pytest.approx(b.value, abs=1e-4)


def test_a_failed_cell_is_reported_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> Result:
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as broken:
        broken.setattr(workers, "run_cell", fail)
        study = compute(TINY, tmp_path, objectives=["denoising"], processes=1, progress=False)
    failed = [r for r in study.results if r.error]
    assert [r.row for r in failed] == ["denoising"]
    assert "the disk is on fire" in write_report(study).read_text()
    again = compute(TINY, tmp_path, objectives=["denoising"], processes=1, progress=False)
    assert not any(r.error for r in again.results)


def test_bad_questions(tmp_path: Path) -> None:
    with pytest.raises(ConsilienceError, match="unknown preset 'slow'; known: quick"):
        run_study("slow", tmp_path)
    with pytest.raises(ConsilienceError, match="at least one seed"):
        run_study("quick", tmp_path, seeds=0)
    with pytest.raises(ConsilienceError, match="unknown objective 'guess'"):
        run_study("quick", tmp_path, objectives=["guess"])


def result(row: str, role: str, value: float, **extra: object) -> Result:
    score = Score(task="t", metric="r2", value=value, low=value - 0.1, high=value + 0.1, metrics={}, knn=None)
    return Result(key="", domain="d", row=row, role=role, scores=(score,), **extra)  # type: ignore[arg-type]


def test_surrogates_never_share_an_axis_with_likelihoods() -> None:
    curve = ((1, 2.0), (2, 1.0))
    figure = loss_curves(
        [
            result("next-token", "pre-trained", 0.5, curve=curve, curve_kind="exact"),
            result("masked-diffusion", "pre-trained", 0.5, curve=curve, curve_kind="bound"),
            result("masked", "pre-trained", 0.5, curve=curve, curve_kind="surrogate"),
        ]
    )
    likelihoods, surrogates = figure.axes
    assert [line.get_label() for line in likelihoods.lines] == ["next-token", "masked-diffusion"]
    assert [line.get_label() for line in surrogates.lines] == ["masked"]


def test_verdicts_say_when_the_baseline_wins() -> None:
    table = score_table(
        [
            result("ECFP4", "classical", 0.9),
            result("random-init core", "random-init", 0.3),
            result("masked", "pre-trained", 0.4),
            result("masked", "pre-trained", 0.6),
        ]
    )
    assert table[table["row"] == "masked"]["mean"].item() == pytest.approx(0.5)
    assert table[table["row"] == "masked"]["spread"].item() == pytest.approx(0.1414, abs=1e-3)
    (sentence,) = verdicts(table)
    assert "not above the classical baseline, ECFP4 (0.900)" in sentence
    assert "above (intervals overlap) the random-init core (0.300)" in sentence
