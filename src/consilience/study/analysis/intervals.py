"""What all tables of a study share: seeds of their resampling, p-values, and draws of nats."""

import zlib
from collections.abc import Iterable

import numpy as np
from scipy import stats

DRAWS = 2000
"""Draws of test groups and seeds behind every interval."""


def stable_seed(name: str) -> int:
    """A seed from the name of a setting: tasks with the same test groups share their draws, settings do not."""
    return zlib.crc32(name.encode())


def two_sided(draws: np.ndarray) -> float:
    """p of a difference being zero: the normal tail beyond its mean over its bootstrap standard error.

    Counting draws beyond zero cannot resolve the small levels that a correction over hundreds of comparisons asks
    for (Efron & Tibshirani 1993, ch. 13). NaN without draws, and for a difference that never varies.
    """
    spread = float(np.std(draws, ddof=1))
    if not spread > 0:
        return float("nan")
    return float(2 * stats.norm.sf(abs(float(np.mean(draws))) / spread))


def mean_of(values: Iterable[float | None]) -> float:
    """Mean of what is known; NaN without."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def nats_draws(nats: np.ndarray, tokens: np.ndarray, name: str) -> np.ndarray:
    """(D,) nats per token under new groups of records (the same for all rows of a setting) and new seeds."""
    generator = np.random.default_rng(stable_seed(name))
    seeds, groups = nats.shape
    times = generator.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)
    per_seed = (times @ nats.T) / (times @ tokens.T)
    if seeds == 1:
        return per_seed[:, 0]
    own = np.random.default_rng([stable_seed(name), seeds])
    shares = own.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=DRAWS) / (seeds - 1)
    return (per_seed * shares).sum(1)
