"""Readers: a file of molecules to a table of strings and columns, before any chemistry is done.

.smi and .txt: SMILES, then an optional name, parted by white space, with or without a header line.
.csv and .tsv: a header with a SMILES column. .parquet: the same. .sdf: structures with properties.
Any of the text formats may end in .gz.
"""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from rdkit import Chem, rdBase

from consilience.core.errors import ConsilienceError
from consilience.domains.molecules.separated import check_cells, check_there, header_of, separator_of
from consilience.domains.sdf import properties_of, title_of

SUFFIXES = (".smi", ".txt", ".csv", ".tsv", ".sdf", ".parquet")

SMILES_NAMES = (
    "smiles",
    "canonical_smiles",
    "isomeric_smiles",
    "can_smiles",
    "smi",
    "mol",
    "structure",
    "molecule",
)
ID_NAMES = (
    "id",
    "name",
    "mol_id",
    "molecule_id",
    "compound id",
    "compound_id",
    "chembl_id",
    "zinc_id",
    "iupac",
    "cid",
)
_NOT_LABELS = ("index", "valid")


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a file holds.

    Args:
        smiles: n strings, "" where there is none.
        places: n descriptions of where each stands ("line 17"), for messages.
        names: n ids, or None when the file has none.
        columns: numeric columns, name -> (n,) float64, NaN where empty.
        reasons: index -> why the file's own reader refused an entry.
        text: columns that hold something else than numbers.
        order: all columns in the order of the file; empty = that of `columns`.
    """

    smiles: list[str]
    places: list[str]
    names: list[str] | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    reasons: Mapping[int, str] = field(default_factory=dict)
    text: frozenset[str] = frozenset()
    order: tuple[str, ...] = ()


def read_table(path: Path, *, column: str | None = None, id_column: str | None = None) -> Table:
    """The table of a file, by its ending.

    Raises:
        ConsilienceError: no such file, an unknown ending, a broken or empty file, or no SMILES column.
    """
    return next(read_tables(path, None, column=column, id_column=id_column))


def read_tables(
    path: Path, size: int | None, *, column: str | None = None, id_column: str | None = None
) -> Iterator[Table]:
    """The table of a file in pieces of `size` entries (None: all at once); errors as in `read_table`.

    What is said of a whole column (numeric or not, names or none) is said of the piece; `Facts` joins it.
    """
    check_there(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() not in SUFFIXES:
        raise ConsilienceError(
            f"{path}: molecules are read from {', '.join(SUFFIXES)} (text also .gz), not {kind!r}"
        )
    found = False
    with _named(path):
        for table in _READERS[kind.lower()](path, column, id_column, size):
            found = found or bool(table.smiles)
            if found:
                yield table
    if not found:
        raise ConsilienceError(f"{path}: the file is empty; it holds no molecule")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What holds of a whole file and is not seen in a piece of it.

    Args:
        columns: the columns that are numeric throughout, in the order of the file.
        named: whether any entry has a name.
        repeated: (k,) uint64, sorted hashes of the names that stand at several entries.
    """

    columns: tuple[str, ...]
    named: bool
    repeated: np.ndarray

    @classmethod
    def of(cls, tables: Iterable[Table]) -> "Facts":
        """Facts of the pieces of a file; 8 bytes an entry are held, for the names."""
        order: dict[str, None] = {}
        numeric: set[str] = set()
        text: set[str] = set()
        hashes: list[np.ndarray] = []
        for table in tables:
            order |= dict.fromkeys(table.order or table.columns)
            numeric |= set(table.columns)
            text |= table.text
            hashes.append(_hashed([name for name in table.names or () if name]))
        every = np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes]))
        columns = tuple(name for name in order if name in numeric - text)
        return cls(
            columns=columns, named=bool(len(every)), repeated=np.unique(every[1:][every[1:] == every[:-1]])
        )

    def told(self, table: Table) -> Table:
        """A piece with the columns and names that the whole file has."""
        empty = np.full(len(table.smiles), np.nan)
        columns = {name: table.columns.get(name, empty) for name in self.columns}
        names = named(table.names, table.places, self.repeated) if self.named else None
        return replace(table, columns=columns, names=names)


def named(
    names: Sequence[str] | None, places: Sequence[str], repeated: np.ndarray | None = None
) -> list[str]:
    """Different ids: the names of the file, its place where an entry has none, both where a name stands twice.

    Args:
        names: n names, "" where there is none; None = none at all.
        places: n places, all different ("row 3").
        repeated: (k,) hashes of the names that stand several times, of `Facts`; None = counted among these.
    """
    plain = [place.replace(" ", "-") for place in places]
    if names is None:
        return plain
    hashes = _hashed(names)
    if repeated is None:
        values, counts = np.unique(hashes, return_counts=True)
        repeated = values[counts > 1]
    twice = np.isin(hashes, repeated)
    numbers = [place.rsplit(" ", 1)[-1] for place in places]
    told = [
        f"{name}#{number}" if again else name for name, number, again in zip(names, numbers, twice.tolist())
    ]
    return [one if name else place for one, name, place in zip(told, names, plain)]


def _hashed(names: Sequence[str]) -> np.ndarray:
    """(n,) uint64."""
    return np.asarray(pd.util.hash_array(np.array(names, dtype=object), categorize=False), dtype=np.uint64)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the libraries below as one line that names the file."""
    try:
        yield
    except ConsilienceError:
        raise
    except pd.errors.EmptyDataError as error:
        raise ConsilienceError(f"{path}: the file is empty; it holds no molecule") from error
    except UnicodeDecodeError as error:
        raise ConsilienceError(
            f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
        ) from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConsilienceError(f"{path}: cannot be read ({reason}); is it whole?") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of what is neither blank nor a comment."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield number, line.rstrip("\r\n")


def _read_lines(path: Path, column: str | None, id_column: str | None, size: int | None) -> Iterator[Table]:
    """Lines of SMILES and name. A header is recognised by its first word; `#` starts a comment."""
    first = next(_lines(path), (0, ""))[1]
    if "," in "".join(first.split()[:1]):  # a comma in a name is no separator; a SMILES has none
        yield from _read_csv(path, column, id_column, size)
        return
    words = first.split("\t") if "\t" in first else first.split()
    header = bool(words) and (words[0].strip().lower() in SMILES_NAMES or column in words)
    if column is not None and not header:
        raise ConsilienceError(f"{path}: there is no header line with a column {column!r}; leave column= out")
    lines = _lines(path)
    if header:
        next(lines)
    before = 0
    while part := list(islice(lines, size)):
        places = [f"line {number}" for number, _ in part]
        if header:
            # By hand: the last column takes the rest of its line, and `#` inside a line is a triple bond.
            rows = [
                line.split("\t") if "\t" in first else line.split(None, len(words) - 1) for _, line in part
            ]
            named = [dict(zip(words, row)) for row in rows]
            frame = pd.DataFrame(named, columns=pd.Index(words), dtype=object)
            yield _from_frame(frame, path, column, id_column, before, places)
        else:
            cells = [line.split("\t", 1) if "\t" in line else line.split(None, 1) for _, line in part]
            names = [cell[1].strip() if len(cell) > 1 else "" for cell in cells]
            yield Table(
                smiles=[cell[0].strip() for cell in cells],
                places=places,
                names=names if any(names) else None,
            )
        before += len(part)


def read_columns(
    path: Path, *, column: str | None = None, id_column: str | None = None, option: str = "column"
) -> tuple[pd.DataFrame, str, str | None]:
    """Every column of a .csv or .tsv file (also .gz) as text, and which of them hold SMILES and ids.

    Errors as in `read_table`; `option` is what the argument `column` is called in them.
    """
    check_there(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() not in (".csv", ".tsv"):
        raise ConsilienceError(f"{path}: labels are read from .csv and .tsv files (also .gz), not {kind!r}")
    with _named(path):
        header = header_of(path)
        frame = pd.read_csv(path, sep=separator_of(path), dtype=str)
    check_cells(frame, path)
    twice = next((name for place, name in enumerate(header) if name and name in header[:place]), None)
    if twice is not None:
        raise ConsilienceError(f"{path}: two columns are called {twice!r}; give each a name of its own")
    names = [str(name).strip() for name in frame.columns]
    frame.columns = pd.Index(names)
    found = _smiles_column(path, names, column, option)
    return frame, found, _find(path, names, id_column, ID_NAMES, "id column", "id_column")


def _read_csv(path: Path, column: str | None, id_column: str | None, size: int | None) -> Iterator[Table]:
    """Separated columns with a header."""
    before = 0
    frames = pd.read_csv(path, sep=separator_of(path), dtype=str, chunksize=size)
    for frame in [frames] if isinstance(frames, pd.DataFrame) else frames:
        check_cells(frame, path)
        yield _from_frame(frame, path, column, id_column, before)
        before += len(frame)


def _read_parquet(path: Path, column: str | None, id_column: str | None, size: int | None) -> Iterator[Table]:
    if size is None:
        yield _from_frame(pd.read_parquet(path), path, column, id_column, 0)
        return
    import pyarrow.parquet as pq

    before = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=size):
            yield _from_frame(batch.to_pandas(), path, column, id_column, before)
            before += batch.num_rows


def _from_frame(
    frame: pd.DataFrame,
    path: Path,
    column: str | None,
    id_column: str | None,
    before: int,
    places: list[str] | None = None,
) -> Table:
    """A data frame's SMILES, ids and numeric columns; rows are counted from 1 unless `places` names them.

    `before` rows of the file stand before this frame.
    """
    names = [str(name).strip() for name in frame.columns]
    frame.columns = pd.Index(names)
    column = _smiles_column(path, names, column)
    identity = _find(path, names, id_column, ID_NAMES, "id column", "id_column")
    smiles = frame[column]
    wrong = [i for i, value in enumerate(smiles) if not isinstance(value, str) and not pd.isna(value)]
    if wrong:
        raise ConsilienceError(
            f"{path}: row {before + wrong[0] + 1} of column {column!r} is {smiles.iloc[wrong[0]]!r}, not a string; "
            "name the SMILES column with column="
        )
    numbers, text = {}, set()
    for name in names:
        if name in (column, identity) or name.lower() in _NOT_LABELS or name.lower().startswith("unnamed"):
            continue
        values = pd.to_numeric(frame[name], errors="coerce") if frame[name].notna().any() else None
        if values is not None and bool((values.notna() == frame[name].notna()).all()):
            numbers[name] = values.to_numpy(np.float64, na_value=np.nan)
        elif values is not None:
            text.add(name)
    return Table(
        smiles=["" if pd.isna(value) else str(value).strip() for value in smiles],
        places=places or [f"row {row}" for row in range(before + 1, before + len(frame) + 1)],
        names=None if identity is None else ["" if pd.isna(v) else str(v) for v in frame[identity]],
        columns=numbers,
        text=frozenset(text),
        order=tuple(names),
    )


def _smiles_column(path: Path, names: list[str], wanted: str | None, option: str = "column") -> str:
    found = _find(path, names, wanted, SMILES_NAMES, "SMILES column", option)
    if found is None:
        raise ConsilienceError(
            f"{path}: no SMILES column among {', '.join(names[:20])}; name it with {option}= (looked for "
            f"{', '.join(SMILES_NAMES)}), or use the ending .smi for a file without header"
        )
    return found


def _find(
    path: Path, names: list[str], wanted: str | None, known: tuple[str, ...], what: str, option: str
) -> str | None:
    """The column asked for, or the first known one, upper or lower case; None when there is none."""
    if wanted is not None and wanted not in names:
        raise ConsilienceError(
            f"{path}: there is no {what} {wanted!r}; {option}= must be one of {', '.join(names)}"
        )
    if wanted is not None:
        return wanted
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), None)


def _read_sdf(path: Path, column: str | None, id_column: str | None, size: int | None) -> Iterator[Table]:
    """Structures of an SD file as canonical SMILES, with their numeric properties."""
    if column is not None:
        raise ConsilienceError(f"{path}: column= is for tables; an .sdf file holds structures")
    opener = gzip.open if path.suffix == ".gz" else open
    before = 0
    with opener(path, "rb") as file:
        supplier = Chem.ForwardSDMolSupplier(file)
        while True:
            with rdBase.BlockLogs():
                mols = list(islice(supplier, size))
            if not mols:
                return
            yield _structures(mols, id_column, before)
            before += len(mols)


def _structures(mols: Sequence[Chem.Mol | None], id_column: str | None, before: int) -> Table:
    smiles: list[str] = []
    names: list[str] = []
    reasons: dict[int, str] = {}
    properties: list[dict[str, str]] = []
    for entry, mol in enumerate(mols):
        if mol is None:
            reasons[entry] = "RDKit cannot read this structure; correct it or leave it out"
        held = {} if mol is None else properties_of(mol)
        held = {name: value for name, value in held.items() if not name.startswith("_")}
        smiles.append("" if mol is None else str(Chem.MolToSmiles(mol)))
        names.append(str(held.pop(id_column, "")) if id_column else "" if mol is None else title_of(mol))
        properties.append(held)
    columns, text = {}, set()
    for name in dict.fromkeys(key for held in properties for key in held):
        values = [held.get(name, np.nan) for held in properties]
        if all(isinstance(value, int | float) for value in values):
            columns[name] = np.array(values, np.float64)
        else:
            text.add(name)
    return Table(
        smiles=smiles,
        places=[f"entry {before + entry + 1}" for entry in range(len(smiles))],
        names=names if any(names) else None,
        columns=columns,
        reasons=reasons,
        text=frozenset(text),
    )


_READERS: Mapping[str, Callable[[Path, str | None, str | None, int | None], Iterator[Table]]] = {
    ".smi": _read_lines,
    ".txt": _read_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".sdf": _read_sdf,
    ".parquet": _read_parquet,
}
