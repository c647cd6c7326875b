"""Parsing of one command's options: defaults and help come from a function, errors are one line."""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from consilience.core.errors import ConsilienceError


class ShortHelp(DefaultHelpFormatter):
    """Help without types (the words say them) and without defaults that are nothing."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(
            r"\((required, )?type: .*?(, default: [^()]*(?:\([^()]*\))?[^()]*)?\)$", _without_type, text
        )
        return re.sub(r" ?\((?:default: (?:null|\[\]|\{\}|False))?\)$", "", text)


class CommandParser(ArgumentParser):
    """A parser whose options mirror the arguments of a function.

    Args:
        name: of the command, or all of a command line up to the options (`python -m ...`).
        function: its defaults and the `Args:` of its docstring become those of the options.
        usage: what stands after the name in the first line of the help.
        inner: of the parser of a nested dataclass, which jsonargparse makes of the class of the outer one.
    """

    def __init__(
        self, name: str = "", function: Callable[..., Any] | None = None, usage: str = "", **inner: Any
    ) -> None:
        if function is None:
            super().__init__(**inner)
            return
        # Values are data: a dictionary with a `class_path` in it must not build a class.
        set_parsing_settings(instantiate_subclass_spec_in_any=False)
        prog = name if " " in name else f"consilience {name}"
        parsed = docstring_parser.parse(inspect.getdoc(function) or "")
        self.defaults = {
            key: None if parameter.default is parameter.empty else parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
        }
        self.helps = {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}
        super().__init__(
            prog=prog,
            description=parsed.short_description,
            usage=f"{prog} {usage}",
            exit_on_error=False,
            default_env=False,
            formatter_class=ShortHelp,
        )

    def adopt(self, function: Callable[..., Any]) -> None:
        """Take defaults and help of the arguments of another function too, where the first has none of the name."""
        parsed = docstring_parser.parse(inspect.getdoc(function) or "")
        for key, parameter in inspect.signature(function).parameters.items():
            self.defaults.setdefault(key, None if parameter.default is parameter.empty else parameter.default)
        for entry in parsed.params:
            self.helps.setdefault(entry.arg_name, " ".join((entry.description or "").split()))

    def option(self, flag: str, **how: Any) -> None:
        """Add `--flag` or a positional, with default and help of the argument of the same name."""
        key = flag.lstrip("-").replace("-", "_")
        how.setdefault("help", self.helps[key])
        if not how.get("required") and (flag.startswith("-") or how.get("nargs") == "?"):
            how.setdefault("default", self.defaults[key])
        self.add_argument(flag, **how)

    def read(self, argv: Sequence[str]) -> Namespace:
        """The options, with dataclasses built; ConsilienceError in one line for what cannot be understood."""
        try:
            return self.instantiate(self.parse_args([self._spelled(text) for text in argv]))
        except argparse.ArgumentError as error:
            raise ConsilienceError(self._explain(str(error))) from error
        except (
            ValueError
        ) as error:  # of an optional dataclass jsonargparse wraps what its values were refused with
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, ConsilienceError):
                cause = cause.__cause__ or cause.__context__
            raise (cause or ConsilienceError(self._explain(str(error)))) from error

    @property
    def _flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def _spelled(self, text: str) -> str:
        """`--init_core` and `--training.batch-size` as the parser spells them, with - or with _."""
        flag, equals, value = text.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return text
        for known in self._flags:
            if known.replace("-", "_") == flag.replace("-", "_"):
                return known + equals + value
        group, dot, key = flag.partition(".")
        if dot and group in self._option_string_actions:
            return f"{group}.{key.replace('-', '_')}{equals}{value}"
        return text

    def _explain(self, message: str) -> str:
        """What jsonargparse says, in one line that a person would write."""
        message = " ".join(message.split())
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            return self._unknown(found[1])
        if found := re.search(r"arguments are required: (.+)$", message):
            named = [
                flag if (flag := f"--{name}") in self._flags else name.upper()
                for name in found[1].split(", ")
            ]
            message = f"{', '.join(named)} must be given"
        # A field of a dataclass that may be left out: the field is what a person should hear of.
        nested = re.match(
            r'Parser key "([^"]+)": Does not validate .*? Problem with given class_path \S+: (.*?) - Expected a '
            r"<class 'NoneType'> Given value type:",
            message,
        )
        if nested:
            outer, inner = nested.groups()
            if found := re.match(r"Option '(\S+)' is not accepted", inner):
                return f"unknown option --{outer}.{found[1]}; {self.prog} --{outer}.help lists those of --{outer}"
            message = re.sub(r'^Parser key "', f'Parser key "{outer}.', inner)
        # Of several types that an option may have, "nothing" is no news: the first one is what a person should give.
        message = re.sub(
            r"Does not validate against any of the Union subtypes Subtypes: \[(.+?), <class 'NoneType'>\] .*"
            r"Given value: (.*?)$",
            r"Expected a \1. Got value: \2",
            message,
        )
        message = re.sub(
            r'Parser key "([^"]+)"(?: element (\d+))?: ?',
            lambda m: f"--{m[1].replace('_', '-')}{f', value {m[2]}' if m[2] else ''}: ",
            message,
        )
        expected = re.search(
            r"Expected an? (?:<class ')?(?:typing\.)?(.+?)(?:'>)?\. Got value: (.*)$", message
        )
        if expected:
            choices = re.findall("'([^']+)'", expected[1])
            told = f"expected {_kind(expected[1])}, not {expected[2]!r}{_hint(expected[2], choices)}"
            message = message[: expected.start()] + told
        return f"{message} (see {self.prog} --help)"

    def _unknown(self, text: str) -> str:
        if not text.startswith("-"):
            return f"unexpected argument {text!r}; what has no -- in front stands before the options ({self.usage})"
        text = text.partition("=")[0]
        ends = {flag.rpartition(".")[2].lstrip("-"): flag for flag in reversed(self._flags)}
        near = get_close_matches(text, self._flags, n=1, cutoff=0.7)
        near = near or [ends[end] for end in get_close_matches(text.lstrip("-"), ends, n=1, cutoff=0.6)]
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown option {text}; {hint}{self.prog} --help lists all"


def _without_type(found: re.Match[str]) -> str:
    kept = (found[1] or "").rstrip(", "), (found[2] or "").lstrip(", ")
    return f"({', '.join(part for part in kept if part)})"


def _kind(name: str) -> str:
    """The name of a type, for people."""
    plain = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text (in quotes)"}
    name = re.sub(r"<class '(.+)'>", r"\1", name)
    if name.startswith(("list", "collections.abc.Sequence")):
        return "a list, such as '[a, b]'"
    if name.startswith(("dict", "collections.abc.Mapping")):
        return "options, such as '{name: value}'"
    return plain.get(name, name.replace("Literal[", "one of [").replace("'", ""))


def _hint(value: str, known: Sequence[str]) -> str:
    near = get_close_matches(value, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
