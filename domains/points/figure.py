"""The figure a chemist looks at: a held-out conformer denoised, and the bond lengths of generated ones."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.figure import Figure

from consilience.core.batch import TokenBatch
from consilience.core.records import Collection, take_records
from consilience.domains.points.denoise import denoise, nearest_distances, root_mean_square
from consilience.tokenizers.point_records import PointCloud, element_numbers

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel

HELD_OUT = 64
GENERATED = 64
START = 0.7
"""Time at which denoising starts: 0 is pure noise, 1 the clean cloud."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def figure(models: "Mapping[str, FoundationModel]", collection: Collection, test: np.ndarray) -> Figure:
    """Held-out clouds noised in part and transported back; nearest-neighbour distances of generated clouds.

    The cloud shown is the held-out one of median size, not the best one. Generated clouds take composition and
    length from training clouds; everything else is compared with held-out clouds.
    """
    chosen = np.asarray(test)[np.linspace(0, len(test) - 1, min(HELD_OUT, len(test))).round().astype(int)]
    held_out = list(take_records(collection.records, chosen))
    generated = {
        name: [cloud.positions for cloud in model.generate(GENERATED, domain="points", seed=0)]
        for name, model in models.items()
    }
    denoiser = models.get("denoising")
    shown = Figure(figsize=(12, 6.6 if denoiser else 3.6), layout="constrained")
    rows = shown.subfigures(
        2 if denoiser else 1, 1, height_ratios=[3.0, 3.6] if denoiser else None, squeeze=False
    )[:, 0]
    below = rows[-1].subplots(1, 2 if denoiser else 1, squeeze=False)[0]
    if denoiser is not None:
        tokenizer = denoiser.tokenizers["points"]
        tokens = tokenizer.encode(held_out).to(denoiser.device)
        denoiser.eval()
        states, shrunk = denoise(denoiser.predictor("points"), tokens, start=START)
        before, after = root_mean_square(shrunk, tokens), root_mean_square(_values(states[-1][1]), tokens)
        middle = int(np.argsort([len(cloud) for cloud in held_out], kind="stable")[len(held_out) // 2])
        panels = [("held out", tokens), *((f"t = {t:.2f}", state) for t, state in states)]
        _draw_states(rows[0], [(title, tokenizer.decode(state.to("cpu"))[middle]) for title, state in panels])
        name = collection.ids[chosen[middle]]
        rows[0].suptitle(
            f"{name}: noised to t = {START} and denoised; root-mean-square error {before[middle]:.2f} before "
            f"(best scaling of the noisy cloud), {after[middle]:.2f} after",
            fontsize=11,
        )
        _draw_errors(below[1], before, after, _unit(held_out))
    _draw_neighbours(below[0], generated, [cloud.positions for cloud in held_out], _unit(held_out))
    return shown


def _values(tokens: TokenBatch) -> Any:
    return tokens.values


def _unit(clouds: Sequence[PointCloud]) -> str:
    return " (Å)" if clouds and clouds[0].unit == "angstrom" else ""


def bonds(cloud: PointCloud, tolerance: float = 1.25) -> np.ndarray:
    """(m, 2) pairs of atoms closer than `tolerance` times the sum of their covalent radii."""
    if cloud.types is None or cloud.unit != "angstrom":
        return np.zeros((0, 2), dtype=int)
    radii = covalent_radii[element_numbers(cloud.types)]
    distance = np.linalg.norm(cloud.positions[:, None] - cloud.positions[None], axis=2)
    return np.argwhere(np.triu(distance < tolerance * (radii[:, None] + radii[None]), k=1))


def _draw_states(part: Any, states: Sequence[tuple[str, PointCloud]]) -> None:
    """One 3D scatter a state, all in the frame of the first, seen along its shortest axis."""
    first = states[0][1].positions
    _, _, axes = np.linalg.svd(first - first.mean(0), full_matrices=False)
    reach = 1.15 * np.abs(first).max()
    for place, (title, cloud) in enumerate(states):
        axis = part.add_subplot(1, len(states), place + 1, projection="3d")
        x = cloud.positions @ axes.T
        numbers = np.zeros(len(x), dtype=int) if cloud.types is None else element_numbers(cloud.types)
        for i, j in bonds(cloud):
            axis.plot(*x[[i, j]].T, color="0.45", lw=1.6, zorder=1)
        sizes = 40 + 60 * covalent_radii[numbers] if cloud.types is not None else 6
        axis.scatter(
            *x.T, s=sizes, c=jmol_colors[numbers], edgecolors="0.25", linewidths=0.5, depthshade=False
        )
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        axis.set_box_aspect((1, 1, 1), zoom=1.6)
        axis.view_init(elev=80, azim=-90)
        axis.set_axis_off()
        axis.set_title(title, fontsize=10)


def _draw_neighbours(
    axis: Any, generated: Mapping[str, Sequence[np.ndarray]], real: Sequence[np.ndarray], unit: str
) -> None:
    """Distances to the nearest neighbour: held-out filled, generated as lines, on shared bins."""
    truth = nearest_distances(real)
    high = 1.6 * np.percentile(truth, 99)
    bins = np.linspace(0, high, 61).tolist()
    axis.hist(np.clip(truth, 0, high), bins, density=True, color="0.82", label="held out")
    for colour, (name, clouds) in zip(COLOURS, generated.items()):
        drawn = np.clip(nearest_distances(clouds), 0, high)
        axis.hist(
            drawn, bins, density=True, histtype="step", lw=1.6, color=colour, label=f"generated, {name}"
        )
    axis.set_xlabel(f"distance to the nearest neighbour{unit}")
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)


def _draw_errors(axis: Any, before: np.ndarray, after: np.ndarray, unit: str) -> None:
    """Error before and after denoising of every held-out cloud; below the line is better."""
    high = 1.05 * max(before.max(), after.max())
    axis.plot([0, high], [0, high], color="0.6", lw=1)
    axis.scatter(before, after, s=14, color=COLOURS[0], alpha=0.8)
    axis.set(xlim=(0, high), ylim=(0, high))
    axis.set_xlabel(f"error of the noisy cloud, best scaling{unit}")
    axis.set_ylabel(f"error after denoising{unit}")
    axis.set_title(
        f"{len(before)} held-out clouds: median {np.median(before):.2f} before, {np.median(after):.2f} after",
        fontsize=10,
    )
    axis.spines[["top", "right"]].set_visible(False)
