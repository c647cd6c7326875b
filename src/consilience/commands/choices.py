"""What a person may write in several ways (one file or several, plain or by science), brought into one form."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from consilience.core.errors import ConsilienceError

Config = TypeVar("Config")
Options = Mapping[str, Any]
Files = str | Path | Mapping[str, str | Path]


def file_words(data: Any) -> list[str]:
    """Files as the command line would say them, from a config file that names one, several or {science: file}."""
    if isinstance(data, Mapping):
        return [f"{name}={path}" for name, path in data.items()]
    return (
        [] if data is None else [str(data)] if isinstance(data, str | Path) else [str(text) for text in data]
    )


def parse_files(texts: Sequence[str]) -> dict[str, str] | str | None:
    """Repeated `--data`: a file, or SCIENCE=FILE each; the last word on a science counts."""
    found: dict[str, str] | str | None = None
    for text in texts:
        name, equals, path = text.partition("=")
        if equals and "/" not in name:
            found = {**(found if isinstance(found, dict) else {}), name: path}
        else:
            found = text
    return found


def files_by_science(data: Files | None, sciences: Sequence[str]) -> dict[str, str | Path]:
    """The file of each science that has one."""
    if data is None:
        return {}
    if isinstance(data, Mapping):
        check_names(data, sciences, "data")
        return dict(data)
    if len(sciences) > 1:
        raise ConsilienceError(
            f"data {data}: with several sciences say whose it is, --data {sciences[0]}={data} "
            f"(in Python {{'{sciences[0]}': '{data}'}})"
        )
    return {sciences[0]: data}


def options_by_science(
    options: Options | None, sciences: Sequence[str], what: str
) -> dict[str, dict[str, Any]]:
    """Options of each science; those of a single one may be given plainly."""
    options = options or {}
    nested = {n: dict(v) for n, v in options.items() if n in sciences and isinstance(v, Mapping)}
    plain = {n: v for n, v in options.items() if n not in nested}
    if plain and len(sciences) > 1:
        raise ConsilienceError(
            f"{what} {plain}: with several sciences say whose they are, '{{{sciences[0]}: {{...}}}}'"
        )
    if plain:
        nested[sciences[0]] = nested.get(sciences[0], {}) | plain
    return nested


def build(cls: type[Config], given: Config | Options | None, defaults: Options, group: str) -> Config:
    """A config: as given, or the defaults with what stands in a dictionary."""
    if isinstance(given, cls):
        return given
    assert given is None or isinstance(given, Mapping)
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    check_names(given or {}, list(fields), group)
    try:
        return replace(cls(**defaults), **(given or {}))  # type: ignore[type-var]
    except TypeError as error:
        raise ConsilienceError(f"{group} cannot be {dict(given or {})}: {error}") from error


def check_names(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raise ConsilienceError for a name that is not known, with the nearest one that is."""
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConsilienceError(f"{what}: there is no {name!r}; {hint}known: {', '.join(known) or 'none'}")
