"""Point clouds in .npz files: named arrays, flat or in equal sizes."""

from pathlib import Path

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.domains.points.source import Source
from consilience.tokenizers.point_records import PointTable, Unit, type_names

POINT_ARRAYS = {"positions": ("positions", "xyz", "points", "R"), "types": ("types", "numbers", "z", "Z")}
"""What -> the names it may have in a file, first found counts."""


def read_npz(path: Path, held: dict[str, np.ndarray]) -> Source:
    """Clouds of named arrays.

    positions: (n, m, 3), or (T, 3) with `n_points` or `n_atoms` (n,) to cut it; also called xyz, points or R.
    types: names or atomic numbers, (T,), (n, m), or (m,) shared by all; also called numbers, z or Z. Clouds
        with types are in ångström unless `unit` (a string, "angstrom" or "") says otherwise.
    features: (T, F) or (n, m, F).
    ids, groups: (n,). Every other array of length n is a label.
    """
    names = {
        what: next((name for name in known if name in held), None) for what, known in POINT_ARRAYS.items()
    }
    if names["positions"] is None:
        raise ConsilienceError(
            f"{path}: no array `positions` among {', '.join(held) or 'none'}; store (n, m, 3), or (T, 3) with n_points"
        )
    positions = held[names["positions"]]
    starts = _starts(path, positions, held)
    n = len(starts) - 1
    flat = positions.reshape(-1, 3)
    flat = flat.astype(np.promote_types(flat.dtype, np.float32), copy=False)
    unit = _unit(path, held, typed=names["types"] is not None)
    codes: np.ndarray | None = None
    type_list: tuple[str, ...] = ()
    if names["types"] is not None:
        types = held[names["types"]]
        if types.ndim == 1 and positions.ndim == 3 and len(types) == positions.shape[1]:
            types = np.broadcast_to(types, positions.shape[:2])
        if types.dtype.kind not in "iuUS":
            raise ConsilienceError(
                f"{path}: `{names['types']}` must be names or atomic numbers, not {types.dtype}"
            )
        _fits(path, names["types"], types.size, len(flat))
        unique, codes = np.unique(types.reshape(-1), return_inverse=True)
        try:
            type_list = tuple(str(name) for name in type_names(unique, unit))
        except ConsilienceError as error:
            raise ConsilienceError(f"{path}: `{names['types']}`: {error}") from error
    features = held.get("features")
    if features is not None:
        if features.dtype.kind not in "iufb" or features.ndim < 2:
            raise ConsilienceError(
                f"{path}: `features` must be numbers of shape (T, F) or (n, m, F), not {features.shape} of "
                f"{features.dtype}"
            )
        features = features.reshape(-1, features.shape[-1]).astype(np.float64)
        _fits(path, "features", len(features), len(flat))
    used = {*names.values(), "n_points", "n_atoms", "features", "unit", "ids", "groups"}
    labels = {
        name: array.astype(np.float64) if array.dtype.kind in "iufb" else array.astype(str)
        for name, array in held.items()
        if name not in used and array.ndim == 1 and len(array) == n and array.dtype.kind in "iufbUS"
    }
    for name in ("ids", "groups"):
        if name in held:
            if held[name].ndim != 1:
                raise ConsilienceError(f"{path}: `{name}` must be (n,), one a cloud, not {held[name].shape}")
            _fits(path, name, len(held[name]), n)
    return Source(
        clouds=PointTable(flat, starts, codes, type_list, features, unit),
        ids=held["ids"].astype(str).tolist() if "ids" in held else [f"{path.stem}-{i}" for i in range(n)],
        places=range(n),
        labels=labels,
        groups=held["groups"].astype(str) if "groups" in held else None,
    )


def _starts(path: Path, positions: np.ndarray, held: dict[str, np.ndarray]) -> np.ndarray:
    """(n + 1,) where each cloud begins in the flat array."""
    if positions.dtype.kind not in "fiu" or positions.ndim not in (2, 3) or positions.shape[-1] != 3:
        raise ConsilienceError(
            f"{path}: positions must be numbers of shape (n, m, 3) or (T, 3), "
            f"not {positions.shape} of {positions.dtype}"
        )
    if positions.ndim == 3:
        return np.arange(len(positions) + 1, dtype=np.int64) * positions.shape[1]
    sizes = held.get("n_points", held.get("n_atoms", np.array([len(positions)])))
    if sizes.dtype.kind not in "iu" or sizes.ndim != 1 or (sizes < 0).any():
        raise ConsilienceError(
            f"{path}: n_points must be (n,) whole numbers of points, not {sizes.shape} of {sizes.dtype}"
        )
    sizes = sizes.astype(np.int64)
    _fits(path, "positions", len(positions), int(sizes.sum()))
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _unit(path: Path, held: dict[str, np.ndarray], typed: bool) -> Unit:
    unit = str(held["unit"]) if "unit" in held else "angstrom" if typed else ""
    if unit == "angstrom" or unit == "":
        return "angstrom" if unit else ""
    raise ConsilienceError(f"{path}: unit must be 'angstrom' or '', not {unit!r}")


def _fits(path: Path, name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ConsilienceError(f"{path}: `{name}` has {found} entries, expected {wanted}")
