"""Names lead to objects through dotted paths, the table and entry points; clashes and slips are told."""

import importlib.metadata
import subprocess
import sys
import types

import pytest

from consilience import registry
from consilience.core.errors import ConsilienceError
from consilience.core.objectives.base import Objective
from consilience.domains.base import Domain


class FakeDistribution:
    def __init__(self, name: str) -> None:
        self.name = name


def entry_point(group: str, name: str, value: str, package: str) -> importlib.metadata.EntryPoint:
    point = importlib.metadata.EntryPoint(name, value, group)
    return point._for(FakeDistribution(package))


@pytest.fixture
def plugins(monkeypatch):
    """Installs fake entry points; each row is (group, name, value, package)."""
    rows: list[tuple[str, str, str, str]] = []
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: [entry_point(*row) for row in rows if row[0] == group],
    )
    return rows


def make_domain_class(name: str) -> type[Domain]:
    """A Domain with every abstract method filled in."""
    methods = {method: lambda self, *args, **kwargs: None for method in Domain.__abstractmethods__}
    return type("Weather", (Domain,), {**methods, "name": name})


@pytest.fixture
def weather(monkeypatch) -> types.ModuleType:
    """An importable module `weather_plugin` with a domain and an objective."""
    module = types.ModuleType("weather_plugin")
    module.Weather = make_domain_class("weather")
    module.DOMAIN = module.Weather()
    module.Shuffled = type("Shuffled", (Objective,), {"name": "shuffled"})
    monkeypatch.setitem(sys.modules, "weather_plugin", module)
    return module


def test_dotted_path_needs_no_registration(weather, plugins) -> None:
    assert registry.domain("weather_plugin:DOMAIN") is weather.DOMAIN
    assert isinstance(registry.domain("weather_plugin:Weather"), weather.Weather)
    assert registry.objective("weather_plugin:Shuffled") is weather.Shuffled


def test_in_tree_name(weather, plugins, monkeypatch) -> None:
    monkeypatch.setitem(registry.DOMAINS, "weather", "weather_plugin:DOMAIN")
    monkeypatch.setitem(registry.OBJECTIVES, "shuffled", "weather_plugin:Shuffled")
    assert registry.domain("weather") is weather.DOMAIN
    assert registry.objective("shuffled") is weather.Shuffled


def test_entry_point(weather, plugins) -> None:
    plugins += [
        ("consilience.domains", "weather", "weather_plugin:DOMAIN", "weather-science"),
        ("consilience.objectives", "shuffled", "weather_plugin:Shuffled", "weather-science"),
    ]
    assert registry.domain("weather") is weather.DOMAIN
    assert registry.objective("shuffled") is weather.Shuffled
    assert registry.names("domain") == ["cells", "galaxies", "molecules", "points", "weather"]
    assert registry.names("objective")[-1] == "shuffled"


def test_entry_point_seen_twice_is_one(weather, plugins) -> None:
    plugins += [("consilience.domains", "weather", "weather_plugin:DOMAIN", "weather-science")] * 2
    assert registry.domain("weather") is weather.DOMAIN
    assert registry.names("domain").count("weather") == 1


@pytest.mark.parametrize(
    ("rows", "name", "owners"),
    [
        ([("cells", "weather_plugin:DOMAIN", "other-cells")], "cells", ["consilience", "other-cells"]),
        (
            [("weather", "weather_plugin:DOMAIN", "one"), ("weather", "weather_plugin:Weather", "two")],
            "weather",
            ["one", "two"],
        ),
    ],
)
def test_clash_names_both_packages(weather, plugins, rows, name, owners) -> None:
    plugins += [("consilience.domains", *row) for row in rows]
    with pytest.raises(ConsilienceError, match=f"domain '{name}' is claimed by") as caught:
        registry.domain(name)
    for owner in owners:
        assert f"package '{owner}'" in str(caught.value)
    assert registry.names("domain").count(name) == 1


@pytest.mark.parametrize(
    ("find", "name", "near"),
    [
        (registry.domain, "galaxy", "galaxies"),
        (registry.domain, "Cells", "cells"),
        (registry.objective, "next_token", "next-token"),
        (registry.objective, "mask", "masked"),
    ],
)
def test_unknown_name_lists_the_known_ones_and_the_nearest(plugins, find, name, near) -> None:
    with pytest.raises(ConsilienceError) as caught:
        find(name)
    message = str(caught.value)
    assert f"{name!r}; did you mean {near!r}?" in message
    table = registry.DOMAINS if find is registry.domain else registry.OBJECTIVES
    assert all(known in message for known in table)
    assert "\n" not in message


def test_unknown_name_without_a_near_one(plugins) -> None:
    with pytest.raises(ConsilienceError, match=r"unknown domain 'zzz'; known: cells, galaxies"):
        registry.domain("zzz")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.part:X", "no module 'no_such_package'; install its package"),
        ("json:no_such_name", "json has no 'no_such_name'"),
        ("json:dump", "which is not a Domain"),
        (":X", "no path of the form"),
        ("json:", "json has no ''"),
    ],
)
def test_bad_path(path, message) -> None:
    with pytest.raises(ConsilienceError, match=message):
        registry.domain(path)


@pytest.mark.parametrize("path", ["weather_plugin:DOMAIN", "weather_plugin:Weather", "json:dump"])
def test_objective_must_be_a_class_of_objective(weather, path) -> None:
    with pytest.raises(ConsilienceError, match="which is not a class of Objective"):
        registry.objective(path)


def test_missing_dependency_is_told_from_a_missing_plugin(tmp_path, monkeypatch) -> None:
    (tmp_path / "needy_plugin.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConsilienceError, match="needs the module 'no_such_dependency', which is not installed"
    ):
        registry.domain("needy_plugin:DOMAIN")


def test_faults_inside_a_plugin_are_not_hidden(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        registry.domain("broken_plugin:DOMAIN")


def test_every_path_of_the_tables_has_module_and_name() -> None:
    for table in (registry.DOMAINS, registry.OBJECTIVES):
        for path in table.values():
            module, _, attribute = path.partition(":")
            assert module.startswith("consilience.") and attribute.isidentifier()


def test_listing_names_imports_no_science() -> None:
    code = (
        "import sys; from consilience import registry; registry.names('domain'); registry.names('objective');"
        "print([m for m in ('torch', 'scanpy', 'rdkit', 'astropy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
