"""A table of molecules with measured labels, cleaned for a benchmark: one record a molecule, nothing dropped unsaid.

Rows are counted from 1, the header apart. Molecules are told apart by RDKit's canonical SMILES (with stereochemistry,
salts and all) and sorted by it, so that the order of the rows changes nothing that follows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rdkit import Chem

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, Failure, fingerprint
from consilience.domains.labelled import LabelledTable
from consilience.domains.molecules.readers import named, read_columns
from consilience.domains.molecules.scaffolds import scaffold_group
from consilience.domains.penalties import Kind
from consilience.tokenizers.molecule_notation import parse

SAME = 1e-6
"""Numbers that differ by less, relative to their size, are one measurement written twice."""


LARGEST = 1e30
"""Labels beyond it are no measurements, and their squares could not be added up."""


def read_labels(
    path: Path, targets: Sequence[str], *, smiles_column: str | None = None, kind: Kind | None = None
) -> LabelledTable:
    """Molecules and labels of a .csv or .tsv file (also .gz).

    Args:
        path: the file.
        targets: the label columns; an empty cell is an unknown label.
        smiles_column: default: the first of the usual names.
        kind: default: classification for columns of two different values, regression for other numbers.

    Raises:
        ConsilienceError: naming the file: no such column, labels that are neither two classes nor numbers, targets of
            different kinds, or no molecule left.
    """
    frame, column, identity = read_columns(path, column=smiles_column, option="--smiles-column")
    names = list(frame.columns)
    if not len(frame):
        raise ConsilienceError(f"{path}: there is no row after the header")
    for name in targets:
        if name not in names or name == column:
            raise ConsilienceError(
                f"{path}: there is no label column {name!r}; --target must be among "
                f"{', '.join(other for other in names if other != column) or 'none'}"
            )
    if not targets or len(set(targets)) != len(targets):
        raise ConsilienceError(
            f"{path}: name the label columns once each with --target; the file has {', '.join(names)}"
        )
    columns = {name: _text(frame[name]) for name in targets}
    kinds = {name: _kind(path, name, text, kind) for name, text in columns.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} ({found})" for name, found in kinds.items())
        raise ConsilienceError(
            f"{path}: the targets are of different kinds: {told}; evaluate them apart, or say --kind regression"
        )
    found: Kind = kinds[targets[0]]
    encoded = {name: _encode(path, name, text, found) for name, text in columns.items()}
    labels = np.column_stack([values for values, _ in encoded.values()])
    smiles = _text(frame[column])
    places = [f"row {row}" for row in range(1, len(frame) + 1)]
    ids = named(None if identity is None else _text(frame[identity]).tolist(), places)
    collection = _collect(path, column, smiles.tolist(), ids, labels, targets)
    return LabelledTable(
        collection=collection,
        targets=tuple(targets),
        kind=found,
        classes={name: classes for name, (_, classes) in encoded.items() if classes is not None},
        rows=len(frame),
        left_out=_reasons(collection.failures) | {"without a label": int(np.isnan(labels).all(axis=1).sum())},
    )


REPEATED, CONFLICT = "is the same molecule as", "are one molecule with different labels of"


def _reasons(failures: Sequence[Failure]) -> dict[str, int]:
    """How many rows were left out why."""
    repeated = sum(REPEATED in failure.reason for failure in failures)
    conflicts = sum(CONFLICT in failure.reason for failure in failures)
    return {
        "unreadable": len(failures) - repeated - conflicts,
        "repeated": repeated,
        "labels in conflict": conflicts,
    }


def _text(column: pd.Series) -> pd.Series:
    """Stripped text, "" where the cell is empty."""
    return column.fillna("").astype(str).str.strip()


def _values(text: pd.Series) -> list[str]:
    """The different known labels, numbers by size."""
    known = text[text != ""].unique().tolist()
    numbers = pd.to_numeric(pd.Series(known, dtype=object), errors="coerce")
    if not numbers.isna().any():
        return [_written(value) for value in sorted(set(numbers.tolist()))]
    return sorted(known)


def _written(value: float) -> str:
    """A number in as few digits as tell it from all others: 1, not 1.0."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _kind(path: Path, name: str, text: pd.Series, asked: Kind | None) -> Kind:
    """What a column holds; ConsilienceError where that is neither two classes nor numbers."""
    values = _values(text)
    if len(values) < 2:
        raise ConsilienceError(
            f"{path}: column {name!r} has {len(values)} different label(s) ({', '.join(values) or 'all empty'}); "
            "a task needs two"
        )
    numbers = pd.to_numeric(text[text != ""], errors="coerce")
    bad = numbers.index[~(numbers.abs() <= LARGEST)]
    if asked == "classification" and len(values) != 2:
        raise ConsilienceError(
            f"{path}: column {name!r} has {len(values)} different values, not two classes; cut it into 0 and 1, or "
            "leave out --kind classification"
        )
    if len(bad) and (asked == "regression" or len(values) != 2):
        raise ConsilienceError(
            f"{path}: row {bad[0] + 1} of column {name!r} is {text[bad[0]]!r}; labels are two classes or numbers of at "
            f"most {LARGEST:g}: correct it or leave it empty"
        )
    return asked or ("classification" if len(values) == 2 else "regression")


def _encode(path: Path, name: str, text: pd.Series, kind: Kind) -> tuple[np.ndarray, tuple[str, str] | None]:
    """(n,) labels as numbers, and the names of the classes 0 and 1."""
    numbers = pd.to_numeric(text.where(text != ""), errors="coerce").to_numpy(np.float64)
    if kind == "regression":
        return numbers, None
    negative, positive = _values(text)
    if not np.isnan(numbers[(text != "").to_numpy()]).any():
        written = np.array(["" if np.isnan(value) else _written(value) for value in numbers])
    else:
        written = text.to_numpy(str)
    codes = np.where(written == positive, 1.0, np.where(written == negative, 0.0, np.nan))
    return codes, (negative, positive)


def _collect(
    path: Path,
    column: str,
    smiles: Sequence[str],
    ids: Sequence[str],
    labels: np.ndarray,
    targets: Sequence[str],
) -> Collection:
    """One record a molecule, in the order of the canonical SMILES."""
    failures: list[Failure] = []
    places: dict[str, list[int]] = {}
    groups: dict[str, str] = {}
    for place, text in enumerate(smiles):
        if np.isnan(labels[place]).all():
            continue
        try:
            mol = parse(text)
        except ConsilienceError as error:
            failures.append(Failure(index=place, id=ids[place], reason=f"row {place + 1}: {error}"))
            continue
        canonical = str(Chem.MolToSmiles(mol))
        places.setdefault(canonical, []).append(place)
        groups.setdefault(canonical, scaffold_group(mol))
    kept: dict[str, np.ndarray] = {}
    for canonical in sorted(places):
        values, conflicts = _merged(places[canonical], labels, targets, ids)
        failures += conflicts
        if not np.isnan(values).all():
            kept[canonical] = values
    if not kept:
        raise ConsilienceError(
            f"{path}: no molecule with a label is left of {len(smiles)} rows"
            + (f"; first, {failures[0].reason} (column {column!r} is read as SMILES)" if failures else "")
        )
    table = np.stack(list(kept.values()))
    return Collection(
        records=list(kept),
        ids=np.array([ids[places[canonical][0]] for canonical in kept], dtype=str),
        source=str(path),
        origin="user",
        fingerprint=fingerprint(["\n".join(kept), table]),
        labels={name: table[:, place] for place, name in enumerate(targets)},
        groups=np.array([groups[canonical] for canonical in kept]),
        failures=tuple(sorted(failures, key=lambda failure: failure.index)),
    )


def _merged(
    places: Sequence[int], labels: np.ndarray, targets: Sequence[str], ids: Sequence[str]
) -> tuple[np.ndarray, list[Failure]]:
    """The (T,) labels of a molecule that stands in these rows, NaN where the rows disagree; and what to report."""
    found, notes = labels[places[0]].copy(), []
    rows = ", ".join(str(place + 1) for place in places)
    for number, name in enumerate(targets):
        own = labels[places, number]
        own = own[~np.isnan(own)]
        if not len(own):
            continue
        found[number] = own[0]
        if np.ptp(own) > SAME * max(1.0, np.abs(own).max()):
            told = ", ".join(f"{value:g}" for value in own)
            reason = f"rows {rows} {CONFLICT} {name!r} ({told}): all are left out"
            notes.append(Failure(index=places[0], id=ids[places[0]], reason=reason))
            found[number] = np.nan
    for place in places[1:]:
        reason = f"row {place + 1} {REPEATED} row {places[0] + 1}"
        notes.append(Failure(index=place, id=ids[place], reason=reason))
    return found, notes
