"""What reaches the terminal: results on stdout, notes of this package on stderr, nobody else's warnings."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

WIDTH_OF_FILES = 160


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message that says what is kept and how to go on."""


def loss_in_words(nats: float, kind: str) -> str:
    """A loss per token with what it is; a surrogate is never called a likelihood."""
    words = {
        "exact": "negative log-likelihood, exact",
        "bound": "upper bound of the negative log-likelihood",
        "surrogate": "surrogate loss, not a likelihood",
    }
    return (
        f"{nats:.4f} nats per token ({words[kind]})" if kind != "surrogate" else f"{nats:.4f} ({words[kind]})"
    )


def say(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")


def console() -> "Console":
    """A console on stdout for tables; wide where the output is no terminal, so that nothing is cut off."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)


def bar(unit: str, *, shown: bool) -> "Progress":
    """A bar that leaves the terminal when it is done; none where the output is a file."""
    from consilience.core.bar import progress_bar

    return progress_bar(unit, disable=not (shown and sys.stdout.isatty()), transient=True)


@contextmanager
def notes(*, debug: bool) -> Iterator[None]:
    """Show log records of `consilience` inside the block, from INFO (DEBUG with `debug`)."""
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(
        console=Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH_OF_FILES),
        show_time=False,
        show_path=debug,
    )
    logger = logging.getLogger("consilience")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
