"""Compare objectives across sciences at one budget, beside baselines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.commands.console import Interrupted, console, say
from consilience.commands.parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace


def study(
    preset: str = "quick",
    out: str | Path = "runs/study",
    *,
    data: str | Path | None = None,
    seeds: int | None = None,
    settings: list[str] | None = None,
    objectives: list[str] | None = None,
    steps: int | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    report_only: bool = False,
    progress: bool = True,
) -> Path:
    """Run the grid of sciences x objectives x seeds with its baselines, and write the report.

    Args:
        preset: what is compared at which size; known: quick, standard, full.
        out: the folder of the study; one that was stopped goes on where it stopped.
        data: the folder of the optional data sets of standard and full; settings that need it are left out without.
        seeds: other than the preset's number.
        settings: only these settings or sciences.
        objectives: only these objectives or variants.
        steps: other than the preset's.
        jobs: how many runs at a time; default: one for each CPU core, or one on a GPU.
        dry_run: print the grid with its cost and run nothing.
        report_only: run nothing; report what is finished so far.
        progress: show a bar with the rate and the time left.

    Returns:
        The path of report.html (of the folder, for a dry run).
    """
    from consilience.study import run_study
    from consilience.study.runner import check_asked

    folder = Path(out).expanduser()
    place = None if data is None else Path(data).expanduser()
    if dry_run:
        check_asked(place, jobs)
        _show_grid(preset, folder, place, seeds, settings, objectives, steps, jobs)
        return folder
    return run_study(
        preset,
        folder,
        data=place,
        seeds=seeds,
        settings=settings,
        objectives=objectives,
        steps=steps,
        jobs=jobs,
        report_only=report_only,
        progress=progress,
    )


def new_parser() -> CommandParser:
    """The options of `consilience study`."""
    parser = CommandParser("study", study, "--preset NAME --out FOLDER [options]")
    parser.option("--preset", type=str, metavar="NAME")
    parser.option("--out", type=str, metavar="FOLDER")
    parser.option("--data", type=str | None, metavar="FOLDER")
    parser.option("--seeds", type=int | None, metavar="N")
    parser.option("--settings", nargs="+", type=str)
    parser.option("--objectives", nargs="+", type=str)
    parser.option("--steps", type=int | None, metavar="N")
    parser.option("--jobs", type=int | None, metavar="N")
    parser.option("--dry-run", action="store_true")
    parser.option("--report-only", action="store_true")
    return parser


def run(options: "Namespace") -> None:
    """`consilience study`."""
    try:
        path = study(**options.as_dict())
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: what is finished is kept in {options.out}; the same command goes on from there"
        ) from None
    if not options.dry_run:
        say(f"report: {path}")


def _show_grid(
    preset: str,
    folder: Path,
    data: Path | None,
    seeds: int | None,
    settings: list[str] | None,
    objectives: list[str] | None,
    steps: int | None,
    jobs: int | None,
) -> None:
    """The grid with its cost as a table."""
    from rich.table import Table

    from consilience.study.runner import chosen_preset, default_processes, estimate

    chosen = chosen_preset(preset, seeds=seeds, settings=settings, objectives=objectives, steps=steps)
    lines = estimate(chosen, folder, data=data)
    table = Table(title=f"study {preset}: what would be run")
    for name in ("work", "setting", "row", "runs", "finished", "steps", "TFLOP", "minutes"):
        table.add_column(name, justify="left" if name in ("work", "setting", "row") else "right")
    for line in lines:
        table.add_row(*_words(line))
    console().print(table)
    processes = jobs or default_processes()
    total = sum(line["seconds"] * (1 - line["finished"] / line["runs"]) for line in lines)
    say(
        f"{sum(line['runs'] for line in lines)} jobs; training alone about {total / processes / 3600:.1f} h "
        f"with {processes} at a time (read-outs add about a third)"
    )


def _words(line: dict[str, Any]) -> list[str]:
    return [
        line["work"],
        line["setting"],
        line["row"],
        str(line["runs"]),
        str(line["finished"]),
        f"{line['steps']:,}",
        f"{line['flops'] / 1e12:.2f}",
        f"{line['seconds'] / 60:.1f}",
    ]
