"""Spectra to tokens: 4,000 and 8,000 pixels with inverse variance, beside the same steps spectrum by spectrum in numpy.

Default data: synthetic spectra with noise and unmeasured pixels; `--data FILE` takes any file of spectra that
consilience reads.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Report, options, race

from consilience.core.batch import TokenBatch
from consilience.tokenizers.spectra import SpectrumTokenizer
from consilience.tokenizers.spectra_records import Spectrum, SpectrumRecords, SpectrumTable, tables_of

PATCH, BATCH = 32, 64
REACH = 10_000


def synthetic(n: int, pixels: int) -> SpectrumTable:
    """Spectra of very different brightness with a wave, noise, and 5 % of pixels not measured."""
    rng = np.random.default_rng(0)
    wavelength = np.geomspace(3600, 9800, pixels)
    level = rng.lognormal(2, 1, (n, 1))
    ivar = rng.uniform(5, 50, (n, pixels)) / level**2
    flux = level * (1 + 0.3 * np.sin(wavelength / 300)) + rng.normal(size=(n, pixels)) / np.sqrt(ivar)
    ivar[rng.random(ivar.shape) < 0.05] = 0
    return SpectrumTable(
        wavelength_angstrom=wavelength,
        flux=flux.astype(np.float32),
        inverse_variance=ivar.astype(np.float32),
    )


def real(path: Path, n: int) -> SpectrumTable:
    """The largest group of spectra on one grid in a file, repeated up to n rows."""
    from consilience.domains.galaxies.data import read_spectra

    _, table = max(tables_of(read_spectra(path).records), key=lambda group: len(group[0]))
    return table.take(np.arange(n) % len(table))


def one_by_one(spectra: Sequence[Spectrum], tokenizer: SpectrumTokenizer) -> list[tuple[np.ndarray, ...]]:
    """The tokenizer's steps for each spectrum on its own: mask, scale, patches, weights, wavelengths of patches."""
    statistics, settings = tokenizer.statistics, tokenizer.options
    unit = statistics.log_scale_std / statistics.value_spread
    found = []
    for spectrum in spectra:
        flux, ivar = spectrum.flux, spectrum.inverse_variance
        good = np.isfinite(flux) & (ivar > 0) & np.isfinite(ivar)
        n = -(-len(flux) // PATCH)
        values, weight = np.zeros((2, (n + 1) * PATCH), dtype=np.float32)
        pixels = slice(PATCH, PATCH + len(flux))
        values[pixels], weight[pixels] = np.where(good, flux, 0), np.where(good, ivar, 0)
        values, weight = values.reshape(n + 1, PATCH), weight.reshape(n + 1, PATCH)
        total, light = weight[1:].sum(1), (np.abs(values[1:]) * weight[1:]).sum(1)
        levels = np.sort(light[total > 0] / total[total > 0])
        scale = levels[(len(levels) - 1) // 2]
        values /= scale
        weight *= scale**2
        keep = (weight >= settings.min_weight) & (np.abs(values) <= 1e4)
        values, weight = (
            np.where(keep, values - 1, 0),
            np.where(keep, np.minimum(weight, settings.max_weight), 0),
        )
        values[0, 0] = (np.log(scale) - statistics.log_scale_mean) / unit
        weight[0, 0] = 1e4 / statistics.value_spread**2
        logs = np.full(n * PATCH, np.nan)
        logs[: len(flux)] = np.log(spectrum.wavelength_angstrom)
        centres = np.nanmean(logs.reshape(n, PATCH), axis=1)
        found.append((values, weight, np.append(centres.mean(), centres).astype(np.float32)))
    return found


def stack(spectra: Sequence[Spectrum], tokenizer: SpectrumTokenizer) -> list[torch.Tensor]:
    """The same in batches, as torch tensors."""
    batches = []
    for start in range(0, len(spectra), BATCH):
        rows = one_by_one(spectra[start : start + BATCH], tokenizer)
        batches += [torch.from_numpy(np.stack(part)) for part in zip(*rows)]
    return batches


def encode_all(tokenizer: SpectrumTokenizer, records: SpectrumRecords, size: int | None = None) -> None:
    """Tokens of all records at once, or in batches."""
    if size is None:
        tokenizer.encode(records)
        return
    for start in range(0, len(records), size):
        stop = min(start + size, len(records))
        part = (
            records.take(np.arange(start, stop))
            if isinstance(records, SpectrumTable)
            else records[start:stop]
        )
        tokenizer.encode(part)


def check(table: SpectrumTable, spectra: list[Spectrum], tokenizer: SpectrumTokenizer) -> str:
    """Two runs, table and list equal to the bit; numpy's values; measured pixels come back."""

    def parts(tokens: TokenBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert tokens.values is not None and tokens.weight is not None and tokens.positions is not None
        return tokens.values, tokens.weight, tokens.positions

    tokens = tokenizer.encode(table)
    for other in (tokenizer.encode(table), tokenizer.encode(spectra)):
        assert all(map(torch.equal, parts(tokens), parts(other))), "two runs, or table and list, differ"
    few = slice(0, min(BATCH, len(table)))
    theirs = stack(spectra[few], tokenizer)
    for ours, reference in zip(parts(tokens), theirs):
        torch.testing.assert_close(ours[few].reshape(reference.shape), reference, rtol=1e-4, atol=1e-4)
    for before, after in zip(spectra[few], tokenizer.decode(tokens.take(range(few.stop)))):
        kept = after.inverse_variance > 0
        level = np.median(np.abs(before.flux[kept]))
        assert np.array_equal(kept, before.measured & kept)
        assert np.abs(after.flux[kept] - before.flux[kept]).max() < 1e-4 * level, "decode(encode) lost flux"
    return "two runs equal; table = list; numpy's values; decode(encode) = flux to 1e-4"


def main() -> None:
    """Measure, check, write the table."""
    chosen = options(__doc__, data="", spectra=0, rounds=0)
    torch.set_num_threads(1)  # figures are per core
    n, rounds = (
        chosen.spectra or (128 if chosen.quick else 2_048),
        chosen.rounds or (3 if chosen.quick else 9),
    )
    report = Report(
        "tokenize_spectra",
        "Spectra to tokens: flux with inverse variance, patches of 32 pixels, one thread",
        ("pixels", "contender", "spectra/s", "times as long as ours", "checked"),
        packages=("numpy",),
        notes=[
            f"Reach: {REACH:,} spectra/s on one core.",
            f"{n:,} spectra a row; float32, 5 % of the pixels not measured.",
            "Table: arrays of many spectra on one grid. List: one object a spectrum, as it comes from FITS files.",
            f"Batches of {BATCH} where the row says so, and for numpy.",
        ],
    )
    tables = [real(Path(chosen.data), n)] if chosen.data else [synthetic(n, p) for p in (4_000, 7_781, 8_000)]
    for table in tables:
        spectra = list(table)
        tokenizer = SpectrumTokenizer.fit(table.take(np.arange(0, n, 4)), patch_size=PATCH)
        checked = check(table, spectra, tokenizer)
        contenders: dict[str, Callable[[], Any]] = {
            "consilience, table": partial(encode_all, tokenizer, table),
            f"consilience, table in batches of {BATCH}": partial(encode_all, tokenizer, table, BATCH),
            f"consilience, list in batches of {BATCH}": partial(encode_all, tokenizer, spectra, BATCH),
            "numpy, one by one": partial(stack, spectra, tokenizer),
        }
        ours = f"consilience, list in batches of {BATCH}"
        times = race(contenders, rounds=rounds)
        for name in contenders:
            slower = "" if name == ours else times.ratio(name, ours)
            pixels = table.wavelength_angstrom.size
            report.add(pixels, name, n / times.median(name), slower, checked if name == ours else "")
    report.write(chosen.out)


if __name__ == "__main__":
    main()
