"""Commands of a science: `consilience train` for one of them, and functions whose arguments are options."""

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing


def train_script(domain: str, argv: Sequence[str] | None = None) -> int:
    """`consilience train <domain> ...` with these words after it (default: those of the process); the exit code."""
    from consilience.cli import main

    return main(["train", domain, *(sys.argv[1:] if argv is None else argv)])


def function_script(run: Callable[..., Any], module: str, argv: Sequence[str] | None = None) -> int:
    """Call a function with its arguments as options of `python -m module`; the exit code.

    Args:
        run: documented and annotated; says itself what it found.
        module: that is run.
        argv: words of the command; default: those of the process.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"python -m {module}")
    parser.add_function_arguments(run)
    options = parser.instantiate_classes(parser.parse_args(None if argv is None else list(argv)))
    try:
        run(**vars(options))
    except ConsilienceError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


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
