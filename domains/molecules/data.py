"""Molecules with labels and groups: the set that RDKit ships, and files of the user.

Records are SMILES strings. The bundled set holds RDKit's canonical SMILES, one per molecule. A user's file
is kept as written (the tokenizer writes the canonical form unless told otherwise), duplicates included: they
share a scaffold group and so stay on one side of a split. Salts and mixtures are molecules like others, with
their dots. Nothing is dropped without an entry in `failures`.
"""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import numpy as np
from rdkit import Chem, RDConfig

from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, Failure, fingerprint
from consilience.domains.molecules.properties import CHEAP, PROPERTIES
from consilience.domains.molecules.readers import Facts, Table, named, read_table, read_tables
from consilience.domains.molecules.scaffolds import scaffold_group
from consilience.domains.pieces import Piece, regroup
from consilience.tokenizers.molecule_notation import parse

SCANNED = 4096
"""Entries looked at together when a file is looked through."""
BUNDLED = "RDKit's NCI set (real structures, properties computed by RDKit)"


@lru_cache(maxsize=1)
def bundled() -> Collection:
    """The first 5,000 molecules of the NCI open database, as RDKit ships them.

    Canonical SMILES; the second and later lines of one molecule are failures that name the first. Labels are
    computed by RDKit (`properties.PROPERTIES`). Takes about 6 s, once a process.
    """
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    table = read_table(path)
    first: dict[str, str] = {}
    smiles, reasons = [], {}
    for place, (text, where) in enumerate(zip(table.smiles, table.places)):
        try:
            canonical = str(Chem.MolToSmiles(parse(text)))
        except ConsilienceError as error:
            canonical, reasons[place] = "", str(error)
        if canonical and first.setdefault(canonical, where) != where:
            reasons[place] = f"{text!r} is the same molecule as {first[canonical]}"
        smiles.append(canonical)
    names = [f"NCI-{name}" for name in table.names or []]
    cleaned = Table(smiles=smiles, places=table.places, names=names, reasons=reasons)
    return _collect(cleaned, source=BUNDLED, real=True, properties=tuple(PROPERTIES), scaffolds=True)


def read(
    path: Path,
    *,
    column: str | None = None,
    id_column: str | None = None,
    properties: bool | None = None,
    scaffolds: bool = True,
    processes: int = 1,
) -> Collection:
    """Molecules of a .smi, .txt, .csv, .tsv, .sdf or .parquet file (text also .gz).

    Args:
        path: the file.
        column: the SMILES column of a table; default: the first of the usual names.
        id_column: the column (or SD property) of the ids; default: the usual names. An entry without a name has the
            place in the file as its id, and one of a name that stands twice both: `aspirin#12`.
        properties: add labels that RDKit computes: all of them (True), none (False), or logP and TPSA
            where the file has no numeric column of its own (None).
        scaffolds: group by Bemis-Murcko scaffold; without, every molecule is its own group.
        processes: look at molecules in this many processes: a million takes some 8 minutes of one core.

    Returns:
        The readable molecules; the others are `failures`. Numeric columns are labels.

    Raises:
        ConsilienceError: naming the file, when it cannot be used or holds no readable molecule.
    """
    if processes < 1:
        raise ConsilienceError(f"{path}: processes must be at least 1, not {processes}")
    table = read_table(Path(path), column=column, id_column=id_column)
    table = Facts.of([table]).told(table)
    wanted = _wanted(properties, bool(table.columns))
    return _collect(
        table, source=str(path), real=False, properties=wanted, scaffolds=scaffolds, processes=processes
    )


def of_smiles(
    smiles: Sequence[str],
    *,
    source: str,
    ids: Sequence[str],
    labels: Mapping[str, np.ndarray] | None = None,
    properties: Sequence[str] = (),
) -> Collection:
    """Real molecules that are SMILES already, grouped by scaffold.

    Args:
        smiles: n strings.
        source: where they come from, for people.
        ids: n different names.
        labels: name -> (n,) float64, NaN where unknown.
        properties: names of `properties.PROPERTIES` to compute.
    """
    table = Table(
        smiles=list(smiles), places=list(ids), names=list(ids), columns={} if labels is None else labels
    )
    return _collect(table, source=source, real=True, properties=properties, scaffolds=True)


def stream(
    path: Path,
    size: int,
    *,
    column: str | None = None,
    id_column: str | None = None,
    properties: bool | None = None,
    scaffolds: bool = False,
) -> Iterator[Piece]:
    """The molecules of a file in pieces of `size`, with the ids and labels that `read` gives them.

    The file is read twice: once for what holds of the whole of it, once for its molecules. Options and errors
    as in `read`.
    """
    path, columns = Path(path), {"column": column, "id_column": id_column}
    facts = Facts.of(read_tables(path, SCANNED, **columns))
    wanted = _wanted(properties, bool(facts.columns))

    def pieces() -> Iterator[Piece]:
        before = 0
        for table in read_tables(path, size, **columns):
            told = facts.told(table)
            part = _collect(
                told,
                source=str(path),
                real=False,
                properties=wanted,
                scaffolds=scaffolds,
                before=before,
                partly=True,
            )
            unread = [failure.index for failure in part.failures]
            places = np.setdiff1d(np.arange(before, before + len(table.smiles)), unread)
            yield Piece(collection=part, places=places)
            before += len(table.smiles)

    yield from regroup(pieces(), size)


def _wanted(properties: bool | None, columns: bool) -> tuple[str, ...]:
    """The properties to compute: as asked, or the cheap ones where the file has no numeric column."""
    return {None: () if columns else CHEAP, True: tuple(PROPERTIES), False: ()}[properties]


Look = str | tuple[str, tuple[float, ...]]
"""What RDKit says of a SMILES: why it cannot be read, or its scaffold group ("" where not asked) and its properties."""


def _look_at_all(
    smiles: Sequence[str], properties: Sequence[str], scaffolds: bool, processes: int
) -> Iterator[Look]:
    """Of every SMILES in order, in this many processes."""
    if processes == 1 or len(smiles) <= SCANNED:
        yield from _look_at(smiles, properties, scaffolds)
        return
    parts = [smiles[first : first + SCANNED] for first in range(0, len(smiles), SCANNED)]
    with ProcessPoolExecutor(min(processes, len(parts)), multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(_look_at, parts, repeat(properties), repeat(scaffolds)):
            yield from found


def _look_at(smiles: Sequence[str], properties: Sequence[str], scaffolds: bool) -> list[Look]:
    found: list[Look] = []
    for text in smiles:
        try:
            mol = parse(text)
        except ConsilienceError as error:
            found.append(str(error))
            continue
        group = scaffold_group(mol) if scaffolds else ""
        found.append((group, tuple(float(PROPERTIES[name](mol)) for name in properties)))
    return found


def _collect(
    table: Table,
    *,
    source: str,
    real: bool,
    properties: Sequence[str],
    scaffolds: bool,
    before: int = 0,
    partly: bool = False,
    processes: int = 1,
) -> Collection:
    """A collection of the molecules that RDKit can read, each looked at once.

    Of a piece of a file (`partly`) none may be readable, and `before` entries stand before it.
    """
    ids = table.names or named(None, table.places)
    kept: list[int] = []
    groups: list[str] = []
    failures: list[Failure] = []
    computed: dict[str, list[float]] = {name: [] for name in properties if name not in table.columns}
    looks = _look_at_all(table.smiles, list(computed), scaffolds, processes)
    for place, look in enumerate(looks):
        if place in table.reasons or isinstance(look, str):
            reason = f"{table.places[place]}: {table.reasons.get(place, look)}"
            failures.append(Failure(index=before + place, id=ids[place], reason=reason))
            continue
        group, values = look
        kept.append(place)
        if scaffolds:
            groups.append(group)
        for column, value in zip(computed.values(), values):
            column.append(value)
    if not kept and not partly:
        raise ConsilienceError(
            f"{source}: none of its {len(table.smiles)} molecules can be read; first, {failures[0].reason}"
        )
    labels = {name: column[kept] for name, column in table.columns.items()}
    labels |= {name: np.array(column) for name, column in computed.items()}
    smiles = [table.smiles[place] for place in kept]
    return Collection(
        records=smiles,
        ids=np.array([ids[place] for place in kept], dtype=str),
        source=source,
        origin="real" if real else "user",
        fingerprint=fingerprint(["\n".join(smiles), *labels.values()]),
        labels=labels,
        groups=np.array(groups) if scaffolds else None,
        failures=tuple(failures),
    )
