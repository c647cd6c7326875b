"""Readers: a file of molecules to a table of strings and columns, before any chemistry is done.

.smi and .txt: SMILES, then an optional name, parted by white space, with or without a header line.
.csv and .tsv: a header with a SMILES column. .parquet: the same. .sdf: structures with properties.
Any of the text formats may end in .gz.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from rdkit import Chem, rdBase

from consilience.core.errors import ConsilienceError

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
    """

    smiles: list[str]
    places: list[str]
    names: list[str] | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    reasons: Mapping[int, str] = field(default_factory=dict)


def read_table(path: Path, *, column: str | None = None, id_column: str | None = None) -> Table:
    """The table of a file, by its ending.

    Raises:
        ConsilienceError: no such file, an unknown ending, a broken or empty file, or no SMILES column.
    """
    if not path.is_file():
        raise ConsilienceError(f"{path}: no such file")
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() not in SUFFIXES:
        raise ConsilienceError(
            f"{path}: molecules are read from {', '.join(SUFFIXES)} (text also .gz), not {kind!r}"
        )
    with _named(path):
        table = _READERS[kind.lower()](path, column, id_column)
    if not table.smiles:
        raise ConsilienceError(f"{path}: the file is empty; it holds no molecule")
    return table


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the libraries below as one line that names the file."""
    try:
        yield
    except ConsilienceError:
        raise
    except pd.errors.EmptyDataError as error:
        raise ConsilienceError(f"{path}: the file is empty; it holds no molecule") from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConsilienceError(f"{path}: cannot be read ({reason}); is it whole?") from error


def _read_lines(path: Path, column: str | None, id_column: str | None) -> Table:
    """Lines of SMILES and name. A header is recognised by its first word; `#` starts a comment."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        lines = [(number, line.rstrip("\r\n")) for number, line in enumerate(file, 1)]
    lines = [(number, line) for number, line in lines if line.strip() and not line.startswith("#")]
    first = lines[0][1] if lines else ""
    if "," in "".join(first.split()[:1]):  # a comma in a name is no separator; a SMILES has none
        return _read_csv(path, column, id_column)
    words = first.split("\t") if "\t" in first else first.split()
    if words and (words[0].strip().lower() in SMILES_NAMES or column in words):
        # By hand: the last column takes the rest of its line, and `#` inside a line is a triple bond.
        rows = [
            line.split("\t") if "\t" in first else line.split(None, len(words) - 1) for _, line in lines[1:]
        ]
        named = [dict(zip(words, row)) for row in rows]
        frame = pd.DataFrame(named, columns=pd.Index(words), dtype=object)
        return _from_frame(frame, path, column, id_column, [f"line {number}" for number, _ in lines[1:]])
    if column is not None:
        raise ConsilienceError(f"{path}: there is no header line with a column {column!r}; leave column= out")
    cells = [line.split("\t", 1) if "\t" in line else line.split(None, 1) for _, line in lines]
    names = [cell[1].strip() if len(cell) > 1 else "" for cell in cells]
    return Table(
        smiles=[cell[0].strip() for cell in cells],
        places=[f"line {number}" for number, _ in lines],
        names=names if any(names) else None,
    )


def _read_csv(path: Path, column: str | None, id_column: str | None) -> Table:
    """Separated columns with a header, by tab, semicolon or comma, whichever the header holds."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        header = file.readline()
    separator = next((mark for mark in ("\t", ",", ";") if mark in header), ",")
    return _from_frame(pd.read_csv(path, sep=separator, dtype=str), path, column, id_column)


def _read_parquet(path: Path, column: str | None, id_column: str | None) -> Table:
    return _from_frame(pd.read_parquet(path), path, column, id_column)


def _from_frame(
    frame: pd.DataFrame,
    path: Path,
    column: str | None,
    id_column: str | None,
    places: list[str] | None = None,
) -> Table:
    """A data frame's SMILES, ids and numeric columns; rows are counted from 1 unless `places` names them."""
    names = [str(name).strip() for name in frame.columns]
    frame.columns = pd.Index(names)
    column = _find(path, names, column, SMILES_NAMES, "SMILES column", "column")
    if column is None:
        raise ConsilienceError(
            f"{path}: no SMILES column among {', '.join(names[:20])}; name it with column= (looked for "
            f"{', '.join(SMILES_NAMES)}), or use the ending .smi for a file without header"
        )
    identity = _find(path, names, id_column, ID_NAMES, "id column", "id_column")
    smiles = frame[column]
    wrong = [i for i, value in enumerate(smiles) if not isinstance(value, str) and not pd.isna(value)]
    if wrong:
        raise ConsilienceError(
            f"{path}: row {wrong[0] + 1} of column {column!r} is {smiles.iloc[wrong[0]]!r}, not a string; "
            "name the SMILES column with column="
        )
    numbers = {}
    for name in names:
        if name in (column, identity) or name.lower() in _NOT_LABELS or name.lower().startswith("unnamed"):
            continue
        values = pd.to_numeric(frame[name], errors="coerce") if frame[name].notna().any() else None
        if values is not None and bool((values.notna() == frame[name].notna()).all()):
            numbers[name] = values.to_numpy(np.float64, na_value=np.nan)
    return Table(
        smiles=["" if pd.isna(value) else str(value).strip() for value in smiles],
        places=places or [f"row {row}" for row in range(1, len(frame) + 1)],
        names=None if identity is None else ["" if pd.isna(v) else str(v) for v in frame[identity]],
        columns=numbers,
    )


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


def _read_sdf(path: Path, column: str | None, id_column: str | None) -> Table:
    """Structures of an SD file as canonical SMILES, with their numeric properties."""
    if column is not None:
        raise ConsilienceError(f"{path}: column= is for tables; an .sdf file holds structures")
    opener = gzip.open if path.suffix == ".gz" else open
    smiles: list[str] = []
    names: list[str] = []
    reasons: dict[int, str] = {}
    properties: list[dict[str, str]] = []
    with opener(path, "rb") as file, rdBase.BlockLogs():
        for entry, mol in enumerate(Chem.ForwardSDMolSupplier(file)):
            if mol is None:
                reasons[entry] = "RDKit cannot read this structure; correct it or leave it out"
            held = mol.GetPropsAsDict() if mol is not None else {}
            title = mol.GetProp("_Name") if mol is not None and mol.HasProp("_Name") else ""
            smiles.append("" if mol is None else str(Chem.MolToSmiles(mol)))
            names.append(str(held.pop(id_column, "")) if id_column else title.strip())
            properties.append(held)
    columns = {}
    for name in dict.fromkeys(key for held in properties for key in held):
        values = [held.get(name, np.nan) for held in properties]
        if all(isinstance(value, int | float) for value in values):
            columns[name] = np.array(values, np.float64)
    return Table(
        smiles=smiles,
        places=[f"entry {entry + 1}" for entry in range(len(smiles))],
        names=names if any(names) else None,
        columns=columns,
        reasons=reasons,
    )


_READERS: Mapping[str, Callable[[Path, str | None, str | None], Table]] = {
    ".smi": _read_lines,
    ".txt": _read_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".sdf": _read_sdf,
    ".parquet": _read_parquet,
}
