"""Several modalities of the same objects: data of each science, aligned by row, with one split.

One file may hold them all (QM9 and .sdf files have coordinates and molecules), or each science has a file of its own,
and records of one id are one object. An object that one tokenizer refuses is set aside in all. Objects of one group in
any science (a scaffold, a molecule of several conformers) stay in one part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from consilience.core.cache_plan import is_cache
from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, Failure
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Domain
from consilience.domains.preparation import Prepared, limited, load_collection, prepare
from consilience.domains.splits import FRACTIONS, Split, grouped_split

Wanted = Mapping[str, Any] | Tokenizer[Any]
"""Options to fit a tokenizer with, or one that is fitted already."""


def teller(domains: Sequence[Domain], path: Path | None) -> str:
    """The science that reads a file of all these modalities, or has bundled data of them."""
    names = {domain.name for domain in domains}
    for domain in domains:
        if names <= {domain.name, *domain.tells} and (path is None or path.suffix.lower() in domain.suffixes):
            return domain.name
    place = "bundled data" if path is None else str(path)
    example = " ".join(f"--data {domain.name}=FILE" for domain in domains)
    raise ConsilienceError(
        f"{place}: holds no pairs of {' and '.join(sorted(names))}; give one file for each with the same ids: {example}"
    )


def prepare_pairs(
    domains: Sequence[Domain],
    *,
    data: Mapping[str, Path] | None = None,
    read: Mapping[str, Mapping[str, Any]] | None = None,
    tokenizers: Mapping[str, Wanted] | None = None,
    limit: int | None = None,
    fractions: Sequence[float] | None = None,
    split_seed: int = 0,
    tell: bool = True,
) -> dict[str, Prepared]:
    """Science -> its data; record i of each is the same object, in the same part of one split.

    Args:
        domains: two sciences or more.
        data: science -> file: one that holds all modalities, or one for each; bundled data where there is none.
        read: science -> options of its reader.
        tokenizers: science -> options of its tokenizer, or a fitted one.
        limit: use at most this many objects, drawn with a fixed seed.
        fractions: of the objects for train, validation and test; default: 0.7, 0.1, 0.2.
        split_seed: of the split.
        tell: log how many objects are set aside.
    """
    if len(domains) < 2:
        raise ConsilienceError("pairs need two sciences: name both, such as molecules points")
    found = _load(domains, dict(data or {}), read or {}, limit)
    found = _aligned(found)
    if limit is not None:
        found = {name: limited_pair(part, limit) for name, part in found.items()}
    groups = _joint_groups([part.group_of for part in found.values()])
    split = grouped_split(groups, fractions=fractions or FRACTIONS, seed=split_seed)
    prepared = {
        domain.name: prepare(
            domain, found[domain.name], tokenizer=(tokenizers or {}).get(domain.name), split=split, tell=tell
        )
        for domain in domains
    }
    return _of_all(prepared)


def limited_pair(collection: Collection, limit: int) -> Collection:
    """At most this many records; of aligned collections the same ones. Failures stay."""
    return replace(limited(collection, limit), failures=collection.failures)


def _load(
    domains: Sequence[Domain], data: dict[str, Path], read: Mapping[str, Mapping[str, Any]], limit: int | None
) -> dict[str, Collection]:
    """Science -> the records that it can read."""
    for path in data.values():
        if is_cache(path):
            raise ConsilienceError(f"{path} is a token cache of one science; pairs are trained from records")
    if not data:
        data = {teller(domains, None): None}  # type: ignore[dict-item]
    elif len(data) > 1:
        for domain in domains:
            if domain.name not in data:
                raise ConsilienceError(
                    f"pairs: there is no file of {domain.name}; add --data {domain.name}=FILE"
                )
        return {d.name: load_collection(d, data[d.name], read.get(d.name)) for d in domains}
    ((name, path),) = data.items()
    first = next(domain for domain in domains if domain.name == name)
    whole = load_collection(first, path, read.get(name))
    if limit is not None:  # what is drawn here is drawn again below: the same records
        whole = limited_pair(whole, limit)
    found = {}
    for domain in domains:
        if domain is not first and domain.name not in whole.beside:
            raise ConsilienceError(
                f"{whole.source} holds {name} and says nothing of their {domain.name}; add --data {domain.name}=FILE "
                "with the same ids"
            )
        found[domain.name] = whole if domain is first else domain.beside(whole.beside[domain.name], whole)
    return found


def _aligned(found: Mapping[str, Collection]) -> dict[str, Collection]:
    """The objects that stand in all collections, in the order of the first; the others become failures."""
    places: dict[str, dict[str, int]] = {}
    for name, part in found.items():
        places[name] = {str(one): row for row, one in enumerate(part.ids)}
        if len(places[name]) < len(part):
            ids, counts = np.unique(part.ids.astype(str), return_counts=True)
            raise ConsilienceError(
                f"{part.source}: id {ids[counts > 1][0]!r} stands twice in {name}; pairs are matched by id"
            )
    first = next(iter(places.values()))
    common = [one for one in first if all(one in known for known in places.values())]
    if not common:
        sources = " and ".join(f"{part.source} ({next(iter(places[name]))})" for name, part in found.items())
        raise ConsilienceError(f"no id stands in both {sources}; pairs are matched by id")
    kept = set(common)
    aligned = {}
    for name, part in found.items():
        rows = np.array([places[name][one] for one in common], dtype=np.int64)
        lost = [
            Failure(index=row, id=one, reason=_missing(one, name, found))
            for one, row in places[name].items()
            if one not in kept
        ]
        chosen = part if np.array_equal(rows, np.arange(len(part))) else part.take(rows)
        aligned[name] = replace(chosen, failures=(*part.failures, *lost))
    return aligned


def _missing(one: str, name: str, found: Mapping[str, Collection]) -> str:
    """Why an object of one science has no partner."""
    for other, part in found.items():
        if other != name:
            for failure in part.failures:
                if failure.id == one:
                    return f"its {other} cannot be read: {failure.reason}"
    others = " or ".join(part.source for other, part in found.items() if other != name)
    return f"{one} does not stand in {others}"


def _joint_groups(columns: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) groups that no group of any column straddles, named by their first member in the first column."""
    n = len(columns[0])
    rows, nodes, first = [], [], n
    for column in columns:
        names, codes = np.unique(np.asarray(column).astype(str), return_inverse=True)
        rows.append(np.arange(n))
        nodes.append(codes + first)
        first += len(names)
    row, node = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(row), np.int8), (row, node)), shape=(first, first))
    component = connected_components(graph, directed=False)[1][:n]
    names = np.asarray(columns[0]).astype(str)
    # The least name of a component: the parts then do not depend on the order of the records.
    order = np.argsort(names, kind="stable")
    least: dict[int, str] = {}
    for number, name in zip(component[order].tolist(), names[order].tolist()):
        least.setdefault(number, name)
    return np.array([least[number] for number in component.tolist()])


def _of_all(prepared: Mapping[str, Prepared]) -> dict[str, Prepared]:
    """The objects that every tokenizer takes."""
    kept = set.intersection(*(set(part.collection.ids.tolist()) for part in prepared.values()))
    refused = {f.id: (name, f.reason) for name, part in prepared.items() for f in part.failures}
    if not kept:
        reason = next(iter(refused.values()))[1]
        raise ConsilienceError(f"no object can be tokenized in every modality; first: {reason}")
    done = {}
    for name, part in prepared.items():
        keep = np.array([row for row, one in enumerate(part.collection.ids) if one in kept], dtype=np.int64)
        if len(keep) == len(part.collection):
            done[name] = part
            continue
        lost = []
        for row, one in enumerate(part.collection.ids.tolist()):
            if one not in kept:
                other, reason = refused[one]
                lost.append(Failure(index=row, id=one, reason=f"its {other} cannot be tokenized: {reason}"))
        place = np.full(len(part.collection), -1)
        place[keep] = np.arange(len(keep))
        parts = {key: place[index][place[index] >= 0] for key, index in part.split.parts().items()}
        done[name] = replace(
            part,
            collection=part.collection.take(keep),
            split=Split(**parts),
            failures=(*part.failures, *lost),
        )
    return done
