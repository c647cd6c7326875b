"""Commands of a science: `consilience train` for one of them, and functions whose arguments are options."""

import csv
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from consilience.core.files import replacing


def train_script(domain: str, argv: Sequence[str] | None = None) -> int:
    """`consilience train <domain> ...` with these words after it (default: those of the process); the exit code."""
    from consilience.cli import main

    return main(["train", domain, *(sys.argv[1:] if argv is None else argv)])


def function_script(
    run: Callable[..., Any],
    module: str,
    argv: Sequence[str] | None = None,
    *,
    words: Sequence[str] = (),
    kept: str = "nothing was written",
) -> int:
    """Call a function with its arguments as options of `python -m module`; the exit code, as of `consilience`.

    Args:
        run: documented and annotated; says itself what it found.
        module: that is run.
        argv: words of the command; default: those of the process.
        words: arguments that are given as several words, `--smiles CCO CCN`, instead of a list.
        kept: what is said after Ctrl-C of what was done, and how to go on.
    """
    from consilience.cli import guarded
    from consilience.commands.parser import CommandParser

    def work(given: list[str]) -> int:
        needed = " ".join(f"--{name} {name.upper()}" for name in _required(run))
        parser = CommandParser(f"python -m {module}", run, f"{needed} [options]")
        for name in words:
            parser.option(f"--{name}", nargs="+", type=str, required=True, metavar=name.upper())
        parser.add_function_arguments(run, skip=set(words))
        options = parser.read(given)
        try:
            run(**vars(options))
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(str(error) or f"interrupted; {kept}") from None
        return 0

    return guarded(work, sys.argv[1:] if argv is None else argv)


def _required(run: Callable[..., Any]) -> list[str]:
    """Arguments without a default."""
    parameters = inspect.signature(run).parameters
    return [name for name, parameter in parameters.items() if parameter.default is parameter.empty]


def tell_row(row: Mapping[str, Any]) -> None:
    """One row of a table on one line of the terminal."""
    sys.stdout.write(", ".join(f"{key} {value}" for key, value in row.items()) + "\n")
    sys.stdout.flush()


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table as CSV, in one step."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
