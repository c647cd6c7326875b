"""What galaxies are judged by: the redshift read out of an embedding, beside a PCA of the flux."""

import numpy as np

from consilience.core.records import Collection
from consilience.domains.base import Baseline, Task
from consilience.domains.metrics import redshift_scores
from consilience.tokenizers.spectra_patches import cut
from consilience.tokenizers.spectra_records import SpectrumRecords, SpectrumTable, tables_of

KNOWN_TASKS = (
    Task(name="redshift", label="redshift", kind="regression"),
    Task(name="log stellar mass (solar masses)", label="log_stellar_mass", kind="regression"),
    Task(name="g-r colour (mag)", label="g_r", kind="regression"),
    Task(name="spectral class", label="spectral_class", kind="classification"),
)
"""Labels known by name, best known first; other numeric labels of a user's file become tasks after them."""

COMPONENTS = 50
"""Principal components of the baseline."""


def tasks_of(collection: Collection) -> list[Task]:
    """The tasks whose labels have at least two different known values, the redshift first."""
    found = [task for task in KNOWN_TASKS if task.label in collection.labels]
    named = {task.label for task in found}
    for label, column in collection.labels.items():
        if label not in named:
            name, number = label.replace("_", " "), column.dtype.kind == "f"
            found.append(Task(name=name, label=label, kind="regression" if number else "classification"))
    return [task for task in found if _varies(collection.labels[task.label], task.kind)]


def _varies(column: np.ndarray, kind: str) -> bool:
    if kind == "regression":
        finite = column[np.isfinite(column)]
        return finite.size > 1 and bool(finite.min() < finite.max())
    values, counts = np.unique(column[column != ""], return_counts=True)
    return values.size > 1 and values.size <= max(2, counts.sum() // 5)  # a name for every row is no class


def pca_baseline(collection: Collection, train: np.ndarray) -> tuple[str, np.ndarray]:
    """PCA of flux / scale, and the log of the scale; see `flux_matrix` for how gaps are filled.

    Args:
        collection: n spectra.
        train: indices of the records that the mean, the components and the grid are fitted on.

    Returns:
        The name, and (n, up to 51) float features.
    """
    from sklearn.decomposition import PCA

    flux, log_scale = flux_matrix(collection.records, train)
    known = flux[train]
    with np.errstate(invalid="ignore"):
        count = np.isfinite(known).sum(axis=0)
        mean = np.where(count > 0, np.nansum(known, axis=0) / np.maximum(count, 1), 0)
    flux = np.where(np.isfinite(flux), flux, mean)
    components = min(COMPONENTS, len(train), flux.shape[1])
    pca = PCA(
        components, svd_solver="randomized" if components < 0.8 * len(train) else "full", random_state=0
    )
    pca.fit(flux[train])
    return f"PCA({components}) of flux", np.column_stack([pca.transform(flux), log_scale])


def pca_baselines(collection: Collection, train: np.ndarray) -> list[Baseline]:
    """The PCA with a linear read-out and with boosted trees: redshift is no linear function of the components."""
    name, features = pca_baseline(collection, train)
    return [
        Baseline(name=name, features=features),
        Baseline(name=f"{name}, boosted trees", features=features, method="boosted-trees"),
    ]


def flux_matrix(records: SpectrumRecords, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux / scale of all spectra on one grid, NaN where not measured, and the log of their scales.

    Spectra on grids of their own are interpolated linearly between measured neighbours to the grid that is most
    common among the training rows.

    Args:
        records: n spectra.
        train: indices of the training rows.

    Returns:
        (n, n_pix) float32 and (n,) float64.
    """
    groups = tables_of(records)
    is_train = np.zeros(len(records), dtype=bool)
    is_train[train] = True
    common = max(groups, key=lambda group: int(is_train[group[0]].sum()))[1].wavelength_angstrom
    matrix = np.full((len(records), common.size), np.nan, dtype=np.float32)
    log_scale = np.empty(len(records))
    for rows, table in groups:
        flux, scale = _scaled(table)
        log_scale[rows] = np.log(scale)
        if np.array_equal(table.wavelength_angstrom, common):
            matrix[rows] = flux
            continue
        for row, spectrum in zip(rows, flux, strict=True):
            good = np.isfinite(spectrum)
            place = table.wavelength_angstrom[good]
            matrix[row] = np.interp(common, place, spectrum[good], left=np.nan, right=np.nan)
    return matrix, log_scale


def _scaled(table: SpectrumTable) -> tuple[np.ndarray, np.ndarray]:
    """(n, n_pix) flux / scale with NaN where not measured, and (n,) scales."""
    patches = cut(table, 32, max_weight=1e4, min_weight=1e-2)
    width = table.wavelength_angstrom.size
    values = patches.values.reshape(len(table), -1)[:, :width]
    weight = patches.weight.reshape(len(table), -1)[:, :width]
    return np.where(weight > 0, values + 1, np.nan), patches.scale


def sigma_nmad(predicted: np.ndarray, true: np.ndarray) -> float:
    """Robust scatter of redshifts, see `domains.metrics.redshift_scores`."""
    return float(redshift_scores(true, predicted, np.ones((1, len(true))))["nmad"][0])


def outlier_fraction(predicted: np.ndarray, true: np.ndarray, limit: float = 0.15) -> float:
    """Part of the redshifts with |predicted - true| / (1 + true) above the limit."""
    return float(np.mean(np.abs(predicted - true) / (1 + true) > limit))
