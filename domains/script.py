"""Runs `consilience train` for one science, for the training scripts `domains/<science>/train.py`."""

import sys
from collections.abc import Sequence


def train_script(domain: str, argv: Sequence[str] | None = None) -> int:
    """`consilience train <domain> ...` with these words after it (default: those of the process); the exit code."""
    from consilience.cli import main

    return main(["train", domain, *(sys.argv[1:] if argv is None else argv)])
