"""Point clouds from tokens, and a description of tokens for people."""

from collections import Counter

import numpy as np
from scipy.spatial import cKDTree

from consilience.core.batch import TokenBatch
from consilience.tokenizers.point_bonds import bonds_of_pairs
from consilience.tokenizers.point_options import PointOptions, PointState
from consilience.tokenizers.point_records import PointCloud

SAME = 1e-4
"""Points of overlapping patches closer than this fraction of a patch's spread are one point told twice."""


def clouds(tokens: TokenBatch, options: PointOptions, learned: PointState) -> list[PointCloud]:
    """Clouds of a batch; see `PointTokenizer.decode`."""
    assert tokens.values is not None
    values = tokens.values.detach().cpu().double().numpy()
    codes = tokens.ids if options.types == "content" else tokens.address
    typed = None if codes is None else codes.cpu().numpy()
    centres = None if tokens.positions is None else tokens.positions.cpu().double().numpy()
    found = []
    for row, length in enumerate(tokens.length.tolist()):
        columns, types = values[row, :length], None
        if options.tokens == "patches":
            assert centres is not None
            columns = columns.reshape(length, options.patch_size, -1).copy()
            columns[..., :3] += centres[row, :length, None]
            columns = _merged(columns.reshape(length * options.patch_size, -1), SAME * learned.value_scale)
        elif typed is not None and learned.types:
            types = np.asarray(learned.types)[typed[row, :length]]
        features = None
        if learned.feature_shift:
            features = columns[:, 3:] / learned.value_scale * learned.feature_scale + learned.feature_shift
        bonds = None
        if tokens.pairs is not None:
            bonds = bonds_of_pairs(tokens.pairs[row, :length, :length].cpu().numpy())
        found.append(PointCloud(columns[:, :3], types, features, learned.unit, bonds))
    return found


def _merged(columns: np.ndarray, tolerance: float) -> np.ndarray:
    """Rows without those that repeat the place of an earlier row."""
    pairs = cKDTree(columns[:, :3]).query_pairs(tolerance, output_type="ndarray")
    return np.delete(columns, np.unique(pairs.max(1)), axis=0) if len(pairs) else columns


def description(tokens: TokenBatch, options: PointOptions, learned: PointState, most: int = 8) -> str:
    """The first tokens of a batch of one cloud as lines of text."""
    assert tokens.values is not None
    n = int(tokens.length[0])
    codes = tokens.ids if options.types == "content" else tokens.address
    names = [learned.types[int(code)] for code in codes[0, :n]] if codes is not None else []
    unit = " Å" if learned.unit == "angstrom" else ""
    made_of = " ".join(f"{name}{count}" for name, count in sorted(Counter(names).items())) or "no types"
    lines = [
        f"{n} tokens ({options.tokens}, {made_of}), order {options.order}, align {options.align}, "
        f"coordinates / {learned.value_scale:.3g}{unit} in the core"
    ]
    for i in range(min(n, most)):
        values = tokens.values[0, i].tolist()
        if options.tokens == "patches":
            centre = (
                ", ".join(f"{x:.2f}" for x in tokens.positions[0, i]) if tokens.positions is not None else "-"
            )
            reach = max(np.linalg.norm(np.reshape(values, (options.patch_size, -1))[:, :3], axis=1))
            lines.append(
                f"  {i:>3}  at ({centre}){unit}: {options.patch_size} points within {reach:.2f}{unit}"
            )
            continue
        address = [names[i]] if options.types == "address" and names else []
        address += [f"slot {i}"] if options.has_slots else []
        content = [names[i]] if options.types == "content" and names else []
        content += ["(" + ", ".join(f"{x:6.2f}" for x in values[:3]) + ")" + unit]
        content += [f"{x:.3g}" for x in values[3:]]
        lines.append(f"  {i:>3}  address {' '.join(address) or '-':<10} content {' '.join(content)}")
    if n > most:
        lines.append(f"  ... {n - most} more")
    return "\n".join(lines)
