"""Point clouds to tokens: 1,024 points into 64 patches of 32, beside the same steps written plainly in torch.

Default data: points on noisy ellipsoids; `--data FILE` takes any file of clouds that consilience reads.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Report, options, race

from consilience.core.batch import TokenBatch
from consilience.tokenizers.point_records import PointCloud, PointTable
from consilience.tokenizers.points import PointTokenizer

POINTS, PATCHES, SIZE, BATCH = 1024, 64, 32, 32
REACH = 1_000


def synthetic(n: int) -> list[PointCloud]:
    """Clouds of 1,024 points on ellipsoids, with noise."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(n, POINTS, 3))
    points /= np.linalg.norm(points, axis=2, keepdims=True)
    points *= rng.uniform(0.3, 1, (n, 1, 3)) * (1 + 0.02 * rng.normal(size=(n, POINTS, 1)))
    return [PointCloud(cloud) for cloud in points.astype(np.float32)]


def real(path: Path, n: int) -> list[PointCloud]:
    """Up to n clouds of a file, 1,024 points of each (the first ones where it has more)."""
    from consilience.domains.points.data import read

    found = [cloud for cloud in read(path).records if len(cloud) >= POINTS]
    if not found:
        raise SystemExit(f"{path}: no cloud has {POINTS:,} points")
    return [PointCloud(cloud.positions[:POINTS]) for cloud in found[:n]]


def torch_patches(clouds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (B, 64, 3) and patches around them (B, 64, 32, 3): farthest points, then nearest neighbours."""
    clouds = (clouds.double() - clouds.double().mean(1, keepdim=True)).float()
    rows = torch.arange(len(clouds))
    nearest = torch.full(clouds.shape[:2], float("inf"))
    current = clouds.square().sum(2).argmax(1)
    chosen = []
    for _ in range(PATCHES):
        chosen.append(current)
        difference = clouds - clouds[rows, current][:, None]
        nearest = torch.minimum(nearest, difference.square().sum(2))
        current = nearest.argmax(1)
    index = torch.stack(chosen, 1)
    centres = clouds[rows[:, None], index]
    members = torch.cdist(centres, clouds).topk(SIZE, dim=2, largest=False).indices
    return centres, clouds[rows[:, None, None], members] - centres[:, :, None]


def torch_all(clouds: torch.Tensor) -> None:
    """The reference in batches."""
    for start in range(0, len(clouds), BATCH):
        torch_patches(clouds[start : start + BATCH])


def encode_all(tokenizer: PointTokenizer, records: Sequence[PointCloud], generator: Any = None) -> None:
    """Tokens in batches of a list, or of a table at once."""
    if isinstance(records, PointTable):
        tokenizer.encode(records, generator=generator)
        return
    for start in range(0, len(records), BATCH):
        tokenizer.encode(records[start : start + BATCH], generator=generator)


def as_sets(centres: np.ndarray, patches: np.ndarray) -> list[np.ndarray]:
    """Rows of every cloud that do not depend on the order of patches or of points: centre, distances in it."""
    reach = np.sort(np.linalg.norm(patches.astype(np.float64), axis=3), axis=2)
    rows = np.concatenate([centres.astype(np.float64), reach], axis=2)
    return [cloud[np.lexsort(np.round(cloud[:, :3], 5).T)] for cloud in rows]


def check(tokens: TokenBatch, again: TokenBatch, clouds: torch.Tensor, tokenizer: PointTokenizer) -> str:
    """Two runs equal; the same patches as torch's; every decoded point is a point of the cloud."""
    assert tokens.values is not None and tokens.positions is not None
    assert again.values is not None and torch.equal(tokens.values, again.values), "two runs differ"
    values = tokens.values.numpy().reshape(len(clouds), PATCHES, SIZE, 3)
    ours = as_sets(tokens.positions.numpy(), values)
    theirs = as_sets(*(part.numpy() for part in torch_patches(clouds)))
    equal = np.mean([np.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs)])
    assert equal >= 0.95, f"only {equal:.0%} of the clouds have torch's patches"
    for cloud, decoded in zip(clouds[:8].double().numpy(), tokenizer.decode(tokens.take(range(8)))):
        places = cloud - cloud.mean(0)
        apart = np.linalg.norm(decoded.positions[:, None] - places, axis=2).min(1)
        assert apart.max() < 1e-4, "a decoded point is no point of the cloud"
    return f"two runs equal; same patches as torch in {equal:.0%} of clouds (ties); decoded points are points"


def main() -> None:
    """Measure, check, write the table."""
    chosen = options(__doc__, data="", clouds=0, rounds=0)
    torch.set_num_threads(1)  # figures are per core
    n, rounds = chosen.clouds or (64 if chosen.quick else 1_024), chosen.rounds or (3 if chosen.quick else 7)
    records = real(Path(chosen.data), n) if chosen.data else synthetic(n)
    n = len(records)
    tokenizer = PointTokenizer.fit(
        records[:64], tokens="patches", types="ignore", n_patches=PATCHES, patch_size=SIZE
    )
    table = PointTable.of(records)
    clouds = torch.from_numpy(np.stack([record.positions for record in records]).astype(np.float32))
    checked = check(tokenizer.encode(records), tokenizer.encode(records), clouds, tokenizer)
    report = Report(
        "tokenize_points",
        f"Points to tokens: {n:,} clouds of {POINTS:,} points, {PATCHES} patches of {SIZE}, one thread",
        ("contender", "clouds/s", "times as long as ours", "checked"),
        packages=("numpy", "scipy"),
        notes=[
            f"Reach: {REACH:,} clouds/s on one core.",
            "consilience also sorts the rows canonically (tokens do not depend on the order of the points), refuses "
            "unusable clouds and puts the patches along a Morton curve; the torch reference does none of this.",
            f"Lists are given in batches of {BATCH}, torch's too; the table at once. Training adds random rotations.",
        ],
    )
    contenders: dict[str, Callable[[], Any]] = {
        "consilience, list of clouds": partial(encode_all, tokenizer, records),
        "consilience, table": partial(encode_all, tokenizer, table),
        "consilience, training": partial(encode_all, tokenizer, records, torch.Generator().manual_seed(0)),
        "torch: farthest points + cdist + topk": partial(torch_all, clouds),
    }
    ours = "consilience, list of clouds"
    times = race(contenders, rounds=rounds)
    for name in contenders:
        slower = "" if name == ours else times.ratio(name, ours)
        report.add(name, n / times.median(name), slower, checked if name == ours else "")
    report.write(chosen.out)


if __name__ == "__main__":
    main()
