"""Options of a run, kept beside what it made: `settings.yaml` of `train`, `settings.json` of scripts and benchmarks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from consilience.core.errors import ConsilienceError
from consilience.core.files import replace_text

SETTINGS = "settings.yaml"

FREE = (
    "training.steps",
    "training.workers",
    "training.save_every",
    "training.validations",
    "training.compile",
    "training.devices",
    "training.nodes",
)
"""What may differ when a run is resumed."""


def save_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run, in one step."""
    replace_text(folder / SETTINGS, yaml.safe_dump(dict(settings), sort_keys=False))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder; empty when it has none."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConsilienceError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConsilienceError(f"{path} holds no settings; write `name: value` lines")
    return found


def check_same(folder: Path, settings: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> None:
    """Raise ConsilienceError when the run in a folder was started with other settings than these.

    Args:
        folder: of the run.
        settings: what is asked for now.
        saved: what the run was started with; None reads `settings.yaml`.
    """
    saved = read_settings(folder) if saved is None else saved
    before, now = _flat(saved), _flat(settings)
    for name in dict.fromkeys([*before, *now]):
        if before and name not in FREE and before.get(name) != now.get(name):
            raise ConsilienceError(
                f"{folder} was trained with {name} {before.get(name)}, this asks for {now.get(name)}: "
                "resume with the same, or leave it out"
            )


def same_or_new(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a script that goes on with what it finds; ConsilienceError where others stand there.

    Args:
        path: of the JSON file.
        settings: of JSON types, all that results depend on.
    """
    if path.is_file():
        try:
            before = _flat(json.loads(path.read_text()))
        except (ValueError, AttributeError) as error:
            raise ConsilienceError(f"{path} is no JSON of settings: remove it with its folder") from error
        now = _flat(json.loads(json.dumps(settings)))
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                raise ConsilienceError(
                    f"{path}: what lies there was made with {name} {before.get(name)}, this asks for {now.get(name)}: "
                    "go on with the same, or choose another folder"
                )
    else:
        replace_text(path, json.dumps(settings, indent=1))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names; empty groups vanish."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
