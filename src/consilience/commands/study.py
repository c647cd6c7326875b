"""Compare objectives across sciences at one budget, beside baselines."""

from pathlib import Path
from typing import TYPE_CHECKING

from consilience.commands.console import Interrupted, say
from consilience.commands.parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace


def study(
    preset: str = "quick",
    out: str | Path = "runs/study",
    *,
    seeds: int | None = None,
    domains: list[str] | None = None,
    objectives: list[str] | None = None,
    steps: int | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Run the grid of sciences x objectives x seeds with its baselines, and write the report.

    Args:
        preset: what is compared at which size; known: quick.
        out: the folder of the study; one that was stopped goes on where it stopped.
        seeds: other than the preset's number.
        domains: only these sciences.
        objectives: only these objectives.
        steps: other than the preset's.
        processes: how many runs at a time; default: one for each CPU core, or one on a GPU.
        progress: show a bar with the rate and the time left.

    Returns:
        The path of report.html.
    """
    from consilience.study import run_study

    return run_study(
        preset,
        Path(out).expanduser(),
        seeds=seeds,
        domains=domains,
        objectives=objectives,
        steps=steps,
        processes=processes,
        progress=progress,
    )


def new_parser() -> CommandParser:
    """The options of `consilience study`."""
    parser = CommandParser("study", study, "--preset NAME --out FOLDER [options]")
    parser.option("--preset", type=str, metavar="NAME")
    parser.option("--out", type=str, metavar="FOLDER")
    parser.option("--seeds", type=int | None, metavar="N")
    parser.option("--domains", nargs="+", type=str)
    parser.option("--objectives", nargs="+", type=str)
    parser.option("--steps", type=int | None, metavar="N")
    parser.option("--processes", type=int | None, metavar="N")
    return parser


def run(options: "Namespace") -> None:
    """`consilience study`."""
    try:
        say(f"report: {study(**options.as_dict())}")
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: what is finished is kept in {options.out}; the same command goes on from there"
        ) from None
