"""List and fetch benchmark data sets."""

from pathlib import Path
from typing import TYPE_CHECKING

from consilience.commands.console import console, say
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from jsonargparse import Namespace


def data(
    action: str = "list",
    name: str | None = None,
    *,
    cache: str | Path | None = None,
    data_dir: str | Path | None = None,
    progress: bool = False,
) -> Path | list[dict[str, str]]:
    """List the data sets that can be fetched, or fetch one. Every science also has bundled data.

    Args:
        action: list or fetch.
        name: of the data set to fetch.
        cache: where fetched data lies; default: $CONSILIENCE_CACHE, else ~/.cache/consilience.
        data_dir: a folder that may hold the data already; nothing found there is downloaded.
        progress: show how far the download is.

    Returns:
        For list, one row a data set; for fetch, where the data lies.
    """
    from consilience import datasets

    if action not in ("list", "fetch"):
        raise ConsilienceError(f"unknown action {action!r}; known: list, fetch NAME")
    if action == "list":
        return datasets.table(cache_dir=cache, data_dir=data_dir)
    if name is None:
        raise ConsilienceError(f"fetch what? {', '.join(entry.name for entry in datasets.DATASETS)}")
    return datasets.fetch(name, cache_dir=cache, data_dir=data_dir, progress=progress)


def new_parser() -> CommandParser:
    """The options of `consilience data`."""
    parser = CommandParser("data", data, "list | fetch NAME [options]")
    parser.option("action", nargs="?", type=str, metavar="ACTION")
    parser.option("name", nargs="?", type=str, metavar="NAME")
    parser.option("--cache", type=str | None, metavar="FOLDER")
    parser.option("--data-dir", type=str | None, metavar="FOLDER")
    return parser


def run(options: "Namespace") -> None:
    """`consilience data`."""
    found = data(**options.as_dict(), progress=True)
    if isinstance(found, Path):
        say(str(found))
        return
    from rich.table import Table

    table = Table(title="data sets that `consilience data fetch NAME` brings", show_lines=True)
    for column in found[0]:
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*row.values())
    console().print(table)
    say("Every science also has bundled data, which is used where --data is left out.")
