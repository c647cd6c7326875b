"""The command line: finds the command, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 2 input, option or file that cannot be used, 130 interrupted. `--debug` anywhere shows the
traceback and the notes of level DEBUG.
"""

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from types import ModuleType

from consilience import __version__
from consilience.commands.console import notes, say
from consilience.core.errors import ConsilienceError

COMMANDS = (
    "tokenize", "train", "embed", "generate", "evaluate", "finetune", "predict", "benchmark", "study", "data", "tokens"
)  # fmt: skip
BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        argv: the words after `consilience`; default: those of the process.
    """
    return guarded(_dispatch, sys.argv[1:] if argv is None else argv)


def guarded(work: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Do the work of these words; what goes wrong becomes one line and an exit code.

    Args:
        work: takes the words without `--debug` and returns the exit code.
        argv: the words of a command.
    """
    debug = "--debug" in argv
    words = [word for word in argv if word != "--debug"]
    try:
        with warnings.catch_warnings() if not debug else nullcontext(), notes(debug=debug):
            if not debug:
                warnings.simplefilter("ignore")  # of other libraries; this one logs
            return work(words)
    except ConsilienceError as error:
        return _fail(str(error), debug)
    except BrokenPipeError:  # the reader of our output has left, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", debug)
    except KeyboardInterrupt as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"{str(error) or 'interrupted; nothing was written'}\n")
        return INTERRUPTED
    except SystemExit as error:  # how the parser leaves after --help
        return int(error.code or 0)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(overview())
        return 0
    if words[0] == "--version":
        say(f"consilience {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConsilienceError(f"unknown command {name!r}; {hint}known: {', '.join(COMMANDS)}")
    command = _module(name)
    parser = command.new_parser()
    expand = getattr(command, "expand", list)
    command.run(parser.read(expand(words[1:])))
    return 0


def overview() -> str:
    """What `consilience --help` shows."""
    lines = [f"  {name:<10}{(_module(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: consilience COMMAND ...",
            "",
            "One transformer core, many sciences: train, embed, generate and evaluate on your own files.",
            "",
            *lines,
            "",
            "consilience COMMAND --help lists the options of a command; --version, --debug (shows tracebacks).",
            "",
            "  consilience train molecules --objective next-token --data my.smi --out runs/a",
            "  consilience embed runs/a my.smi --out my.parquet",
        ]
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"consilience.commands.{name}")


def _fail(message: str, debug: bool) -> int:
    """One line on stderr; exit code 2."""
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return BAD_INPUT


if __name__ == "__main__":
    raise SystemExit(main())
