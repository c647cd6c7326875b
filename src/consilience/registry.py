"""Names of sciences, objectives and benchmarks -> the objects, imported only when asked for.

A name is looked up in this order:

1. a dotted path, `my_package.my_module:NAME`: nothing to register, works from a notebook or a config;
2. the table below: one line for each part of this package;
3. entry points of installed packages, groups `consilience.domains`, `consilience.objectives`, `consilience.benchmarks`.

A name that stands in two places is an error, never a silent choice.
"""

import importlib
import importlib.metadata
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from consilience.core.objectives.base import Objective
    from consilience.domains.base import Domain
    from consilience.domains.benchmark import Benchmark

Kind = Literal["domain", "objective", "benchmark"]

DOMAINS = {
    "cells": "consilience.domains.cells.domain:DOMAIN",
    "galaxies": "consilience.domains.galaxies.domain:DOMAIN",
    "molecules": "consilience.domains.molecules.domain:DOMAIN",
    "points": "consilience.domains.points.domain:DOMAIN",
}
OBJECTIVES = {
    "next-token": "consilience.core.objectives.next_token:NextToken",
    "any-order": "consilience.core.objectives.any_order:AnyOrder",
    "masked": "consilience.core.objectives.masked:Masked",
    "masked-diffusion": "consilience.core.objectives.masked_diffusion:MaskedDiffusion",
    "denoising": "consilience.core.objectives.denoising:Denoising",
    "block": "consilience.core.objectives.block:Block",
    "two-phase": "consilience.core.objectives.two_phase:TwoPhase",
    "address-only": "consilience.core.objectives.address_only:AddressOnly",
}
BENCHMARKS = {"moses": "consilience.domains.molecules.moses.benchmark:Moses"}

_TABLES: dict[Kind, dict[str, str]] = {"domain": DOMAINS, "objective": OBJECTIVES, "benchmark": BENCHMARKS}


def domain(name: str) -> "Domain":
    """The science of this name; a dotted path may lead to an instance or to a class without arguments.

    Raises:
        ConsilienceError: an unknown name (with the known ones), a name that two packages claim, or a path
            that does not lead to a Domain.
    """
    from consilience.domains.base import Domain

    found = _load("domain", name)
    if isinstance(found, type) and issubclass(found, Domain):
        found = found()
    if not isinstance(found, Domain):
        raise ConsilienceError(f"domain {name!r} leads to {found!r}, which is not a Domain")
    return found


def objective(name: str) -> "type[Objective]":
    """The objective class of this name; errors as for `domain`."""
    from consilience.core.objectives.base import Objective

    found = _load("objective", name)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ConsilienceError(f"objective {name!r} leads to {found!r}, which is not a class of Objective")
    return found


def benchmark(name: str) -> "type[Benchmark]":
    """The benchmark class of this name; errors as for `domain`."""
    from consilience.domains.benchmark import Benchmark

    found = _load("benchmark", name)
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        raise ConsilienceError(f"benchmark {name!r} leads to {found!r}, which is not a class of Benchmark")
    return found


def names(kind: Kind) -> list[str]:
    """Known names: this package's in the order of the table, then those of installed plug-ins by name."""
    return list(dict.fromkeys([*_TABLES[kind], *sorted(plugin for plugin, _, _ in _plugins(kind))]))


def _plugins(kind: Kind) -> list[tuple[str, str, str]]:
    """(name, dotted path, package) of the entry points of installed packages, each once."""
    found = importlib.metadata.entry_points(group=f"consilience.{kind}s")
    rows = [(point.name, point.value, point.dist.name if point.dist else "unnamed") for point in found]
    return list(dict.fromkeys(rows))


def _load(kind: Kind, name: str) -> object:
    """The object that a name stands for."""
    if ":" in name:
        return _import(kind, name, name)
    claims = {path: package for plugin, path, package in _plugins(kind) if plugin == name}
    if name in _TABLES[kind]:
        claims = {_TABLES[kind][name]: "consilience"} | claims
    if len(claims) > 1:
        owners = " and by ".join(f"package {package!r} ({path})" for path, package in claims.items())
        raise ConsilienceError(
            f"{kind} {name!r} is claimed by {owners}; uninstall one, or give the path in brackets as the name"
        )
    if not claims:
        known = names(kind)
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConsilienceError(
            f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}, "
            "or a dotted path my_package.my_module:NAME"
        )
    return _import(kind, name, next(iter(claims)))


def _import(kind: Kind, name: str, path: str) -> object:
    """Import `module:attribute`; the error tells a missing plug-in from a library that the plug-in misses."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConsilienceError(
                f"{kind} {name!r}: there is no module {missing!r}; install its package, "
                "or put its folder on the path (PYTHONPATH=. for a file right here)"
            ) from error
        raise ConsilienceError(
            f"{kind} {name!r} ({path}) needs the module {missing!r}, which is not installed"
        ) from error
    except ValueError as error:
        if isinstance(error, ConsilienceError):
            raise
        raise ConsilienceError(
            f"{kind} {name!r}: {path!r} is no path of the form my_package.my_module:NAME"
        ) from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = get_close_matches(attribute, dir(module), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConsilienceError(f"{kind} {name!r}: {module_name} has no {attribute!r}{hint}")
        found = getattr(found, part)
    return found
