"""Spectra <-> tokens: round trips, equality of tables and lists, bad pixels, bad records, state, speed of thought."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.tokenizers.spectra import PATCH, SCALE, SpectrumTokenizer
from consilience.tokenizers.spectra_patches import cut, grid_of_centres, patch_centres
from consilience.tokenizers.spectra_records import Spectrum, SpectrumTable, tables_of


def make_table(n: int = 12, n_pixels: int = 100, *, seed: int = 0, dtype: type = np.float32) -> SpectrumTable:
    rng = np.random.default_rng(seed)
    wavelength = np.geomspace(3600, 9800, n_pixels)
    level = rng.lognormal(2, 1, (n, 1))
    ivar = rng.uniform(5, 50, (n, n_pixels)) / level**2
    flux = level * (1 + 0.3 * np.sin(wavelength / 300)) + rng.normal(size=(n, n_pixels)) / np.sqrt(ivar)
    ivar[rng.random(ivar.shape) < 0.05] = 0
    return SpectrumTable(
        wavelength_angstrom=wavelength, flux=flux.astype(dtype), inverse_variance=ivar.astype(dtype)
    )


def with_pixels(spectrum: Spectrum, **changes: np.ndarray) -> Spectrum:
    parts = {
        name: getattr(spectrum, name)
        for name in ("wavelength_angstrom", "flux", "inverse_variance", "mask", "id")
    }
    return Spectrum(**(parts | changes))


def same(a, b) -> bool:
    pairs = ((getattr(a, f), getattr(b, f)) for f in ("length", "values", "weight", "address", "positions"))
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def table() -> SpectrumTable:
    return make_table()


@pytest.fixture
def tokenizer(table: SpectrumTable) -> SpectrumTokenizer:
    return SpectrumTokenizer.fit(table, patch_size=16)


def test_a_grid_wholly_outside_of_training_is_told_once(table, tokenizer, caplog):
    moved = [with_pixels(s, wavelength_angstrom=s.wavelength_angstrom / 10) for s in table]
    tokenizer.encode(table)
    tokenizer.encode([with_pixels(table[0], wavelength_angstrom=table.wavelength_angstrom + 6000)])
    assert not caplog.records
    for _ in range(2):
        tokenizer.encode([table[0], *moved])
    (record,) = caplog.records
    assert "from 360 to 980 Å lie wholly outside of 3600 to 9800 Å" in record.getMessage()
    assert "wavelength_unit" in record.getMessage()


def test_tokens_hold_scale_then_patches_blue_to_red(table, tokenizer):
    tokens = tokenizer.encode(table)
    assert tokens.length.tolist() == [1 + 7] * 12  # 100 pixels = 6 full patches and a partial one
    assert tokens.address[0].tolist() == [SCALE] + [PATCH] * 7
    assert (tokens.values[:, 0, 1:] == 0).all() and (tokens.weight[:, 0, 1:] == 0).all()
    assert (tokens.weight[:, 7, 4:] == 0).all() and (tokens.weight[:, 7, :4] > 0).any()
    patches = tokens.positions[0, 1:, 0]
    assert (patches.diff() > 0).all()
    assert patches[0] == np.float32(np.log(table.wavelength_angstrom[:16]).mean())
    standardised = tokenizer.spec.standardise(tokens.values)[:, 0, 0]
    assert abs(float(standardised.mean())) < 1e-5 and abs(float(standardised.std(correction=0)) - 1) < 1e-5
    scale = cut(table, 16, max_weight=1e4, min_weight=1e-2).scale
    expected = table.flux / scale[:, None] - 1
    got = tokens.values[:, 1:].reshape(12, -1)[:, :100].numpy()
    good = table.inverse_variance > 0
    np.testing.assert_allclose(got[good], expected[good], atol=1e-5)
    weight = tokens.weight[:, 1:].reshape(12, -1)[:, :100].numpy()
    np.testing.assert_allclose(weight, (table.inverse_variance * scale[:, None] ** 2), rtol=1e-5)


def test_positions_are_exact_in_float32_for_many_pixels():
    wavelength = 10 ** (3.55 + 1e-4 * np.arange(4671))
    centres = patch_centres(wavelength, 4)
    truth = np.log(wavelength[:4668]).reshape(-1, 4).mean(1)
    assert np.abs(centres[:-1] - truth).max() < 5e-7  # 0.15 km/s
    assert len(np.unique(centres)) == len(centres)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_pixels", [3, 16, 100, 257])
def test_decode_gives_the_spectra_back(dtype, n_pixels):
    table = make_table(n_pixels=n_pixels, dtype=dtype, seed=3)
    tokenizer = SpectrumTokenizer.fit(table, patch_size=16, max_weight=1e9, min_weight=0)
    for before, after in zip(table, tokenizer.decode(tokenizer.encode(table)), strict=True):
        good = before.measured
        np.testing.assert_array_equal(after.wavelength_angstrom, before.wavelength_angstrom)
        np.testing.assert_array_equal(after.measured, good)
        np.testing.assert_allclose(
            after.flux[good], before.flux[good], atol=3e-6 * np.abs(before.flux[good]).max()
        )
        np.testing.assert_allclose(after.inverse_variance[good], before.inverse_variance[good], rtol=3e-6)


def test_decode_rebuilds_a_logarithmic_grid_that_was_not_seen_in_fit(table, tokenizer):
    wavelength = np.geomspace(5000, 7000, 90)
    flux = np.full(90, 2.0)
    other = Spectrum(wavelength_angstrom=wavelength, flux=flux, inverse_variance=np.ones(90))
    decoded = tokenizer.decode(tokenizer.encode([other]))[0]
    np.testing.assert_allclose(decoded.wavelength_angstrom, wavelength, rtol=3e-6)
    np.testing.assert_allclose(decoded.flux, flux, rtol=1e-5)
    one_patch = grid_of_centres(
        patch_centres(wavelength[:16], 16), 16, float(np.log(wavelength[1] / wavelength[0]))
    )
    np.testing.assert_allclose(one_patch, wavelength[:16], rtol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_list_and_table_and_any_batch_give_the_same_bits(dtype):
    table = make_table(n=40, n_pixels=333, dtype=dtype)
    tokenizer = SpectrumTokenizer.fit(table, patch_size=16)
    whole = tokenizer.encode(table)
    assert same(whole, tokenizer.encode(list(table)))
    assert same(whole, tokenizer.encode(table, generator=torch.Generator().manual_seed(1)))
    order = np.random.default_rng(0).permutation(40)
    assert same(whole.take(order), tokenizer.encode(table.take(order)))
    for row in (0, 17, 39):
        assert same(whole.take([row]), tokenizer.encode([table[row]]))


def test_blocks_do_not_change_bits(monkeypatch):
    table = make_table(n=20, n_pixels=200)
    tokenizer = SpectrumTokenizer.fit(table, patch_size=16)
    before = tokenizer.encode(table)
    monkeypatch.setattr("consilience.tokenizers.spectra_patches.BLOCK_BYTES", 3 * 200 * 4)
    assert same(before, tokenizer.encode(table))


def test_different_grids_in_one_batch_keep_their_own_tokens(tokenizer):
    records = [make_table(n_pixels=n, seed=n)[0] for n in (100, 40, 100, 17)]
    tokens = tokenizer.encode(records)
    assert tokens.length.tolist() == tokenizer.lengths(records).tolist() == [8, 4, 8, 3]
    for row, record in enumerate(records):
        alone = tokenizer.encode([record])
        assert same(alone, tokens.take([row]).trim())
    assert (tokens.values[3, 3:] == 0).all() and (tokens.positions[3, 3:] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    bad=st.sets(st.integers(0, 99), max_size=30),
    kind=st.sampled_from(["nan", "inf", "zero", "negative", "nan-ivar", "inf-ivar", "mask"]),
    seed=st.integers(0, 50),
)
def test_bad_pixels_never_spread(bad, kind, seed):
    """A bad pixel says the same as a pixel with zero weight; every other token value stays what it was."""
    table = make_table(1, seed=seed)
    tokenizer = SpectrumTokenizer.fit(table, patch_size=16)
    index = sorted(bad)
    flux, ivar, mask = table.flux[0].copy(), table.inverse_variance[0].copy(), np.zeros(100, dtype=bool)
    cleaned = ivar.copy()
    cleaned[index] = 0
    if kind in ("nan", "inf"):
        flux[index] = np.nan if kind == "nan" else -np.inf
    elif kind == "mask":
        mask[index] = True
        flux[index] = 1e30
    else:
        ivar[index] = {"zero": 0.0, "negative": -1.0, "nan-ivar": np.nan, "inf-ivar": np.inf}[kind]
    spoiled = with_pixels(table[0], flux=flux, inverse_variance=ivar, mask=mask)
    clean = with_pixels(table[0], inverse_variance=cleaned)
    assert same(tokenizer.encode([spoiled]), tokenizer.encode([clean]))
    flat = tokenizer.encode([spoiled]).weight[0, 1:].reshape(-1)
    assert (flat[index] == 0).all()


def test_scale_is_robust_and_follows_the_flux(table, tokenizer):
    spectrum = table[0]
    spiked = with_pixels(spectrum, flux=np.where(np.arange(100) == 50, 1e6, spectrum.flux).astype(np.float32))
    spiked_scale, scale = (
        float(cut(tables_of([s])[0][1], 16, max_weight=1e4, min_weight=0).scale[0])
        for s in (spiked, spectrum)
    )
    assert 0.8 < spiked_scale / scale < 1.25
    brighter = with_pixels(spectrum, flux=spectrum.flux * 8, inverse_variance=spectrum.inverse_variance / 64)
    a, b = tokenizer.encode([spectrum]), tokenizer.encode([brighter])
    assert torch.equal(a.values[:, 1:], b.values[:, 1:]) and torch.equal(a.weight[:, 1:], b.weight[:, 1:])
    change = float(b.values[0, 0, 0] - a.values[0, 0, 0]) / tokenizer.statistics.value_spread
    assert change == pytest.approx(np.log(8) / tokenizer.statistics.log_scale_std, rel=1e-5)


@pytest.mark.parametrize("unit", [1e-17, 1e17])
def test_any_flux_unit_gives_the_same_patches(table, tokenizer, unit):
    unit = float(np.float64(2.0) ** round(np.log2(unit)))  # a power of two: exact
    other = SpectrumTable(
        wavelength_angstrom=table.wavelength_angstrom,
        flux=table.flux.astype(np.float64) * unit,
        inverse_variance=table.inverse_variance.astype(np.float64) / unit**2,
    )
    plain = make_table(dtype=np.float64)
    fitted = SpectrumTokenizer.fit(other, patch_size=16)
    reference = tokenizer.encode(table)
    assert torch.allclose(fitted.encode(other).values[:, 1:], reference.values[:, 1:], atol=1e-5)
    assert torch.isfinite(fitted.encode(plain).values).all()


def test_weights_are_cut_and_hopeless_or_absurd_pixels_dropped(tokenizer):
    ivar = np.full(100, 4.0)
    ivar[:3] = 1e30, 1e-9, 4.0
    flux = np.ones(100)
    flux[2] = 1e20
    record = Spectrum(wavelength_angstrom=np.geomspace(4000, 5000, 100), flux=flux, inverse_variance=ivar)
    weight = tokenizer.encode([record]).weight[0, 1]
    assert weight[0] == 1e4 and weight[1] == 0 and weight[2] == 0 and weight[3] == 4


def test_zero_flux_is_scaled_by_its_error(tokenizer):
    record = Spectrum(
        wavelength_angstrom=np.geomspace(4000, 5000, 50), flux=np.zeros(50), inverse_variance=np.full(50, 4.0)
    )
    tokens = tokenizer.encode([record])
    assert (tokens.values[0, 1, :] == -1).all() and (tokens.weight[0, 1] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.full(100, np.nan)}, "every flux is NaN"),
        ({"inverse_variance": np.zeros(100)}, "inverse variance is zero"),
        ({"mask": np.ones(100, dtype=bool)}, "every pixel is masked"),
        ({"wavelength_angstrom": np.geomspace(9800, 3600, 100)}, "must increase, but 9800 Å at pixel 0"),
        ({"wavelength_angstrom": np.full(100, 5000.0)}, "must increase"),
        ({"wavelength_angstrom": np.append(np.geomspace(4000, 5000, 99), np.nan)}, "pixel 99 is nan"),
        ({"wavelength_angstrom": np.linspace(-1, 5000, 100)}, "pixel 0 is -1.0"),
        ({"flux": np.ones(99)}, r"`wavelength_angstrom` has shape \(100,\), but `flux` has \(99,\)"),
        ({"mask": np.ones(3, dtype=bool)}, "`mask` has shape"),
        (dict.fromkeys(("flux", "wavelength_angstrom", "inverse_variance"), np.empty(0)), "no pixels"),
    ],
)
def test_bad_records_are_named_with_their_row(table, tokenizer, change, message):
    records = [table[0], with_pixels(table[1], id="bad one", **change), table[2]]
    with pytest.raises(UnreadableRecordError, match=f"record 1: .*{message}"):
        tokenizer.encode(records)
    failures = tokenizer.check(records)
    assert [(f.index, f.id) for f in failures] == [(1, "bad one")]
    assert (
        SpectrumTokenizer.fit(records, patch_size=16).state()
        == SpectrumTokenizer.fit([table[0], table[2]], patch_size=16).state()
    )


def test_flux_beyond_the_range_of_numbers_is_refused(table, tokenizer):
    bright = with_pixels(table[1], flux=np.full(100, 1e38, np.float32))
    with pytest.raises(UnreadableRecordError, match="in a larger unit") as caught, np.errstate(all="ignore"):
        tokenizer.encode([table[0], bright])
    assert caught.value.index == 1


def test_tokens_are_valid(table, tokenizer):
    tokenizer.encode(table).validate(tokenizer.spec)
    tokenizer.encode(list(table)).validate(tokenizer.spec)
    tokenizer.encode([]).validate(tokenizer.spec)


def test_the_first_bad_record_is_named_whatever_is_wrong_with_it(table, tokenizer):
    dark = with_pixels(table[2], inverse_variance=np.zeros(100))
    other = with_pixels(table[3], wavelength_angstrom=np.geomspace(4000, 5000, 100))
    other_dark = with_pixels(other, flux=np.full(100, np.nan))
    backwards = with_pixels(table[4], wavelength_angstrom=np.geomspace(9800, 3600, 100))
    holed = np.geomspace(3600, 9800, 100)
    holed[50] = np.nan
    with_hole = with_pixels(table[4], wavelength_angstrom=holed)
    for records, row, message in (
        ([table[0], other_dark, dark], 1, "every flux is NaN"),
        ([other, table[0], dark, other_dark], 2, "inverse variance is zero"),
        ([table[0], dark, backwards], 1, "inverse variance is zero"),
        ([table[0], backwards, dark], 1, "must increase"),
        ([table[0], table[1], with_hole], 2, "pixel 50 is nan"),
    ):
        assert next(iter(tokenizer.check(records))).index == row
        with pytest.raises(UnreadableRecordError, match=message) as caught:
            tokenizer.encode(records)
        assert caught.value.index == row


def test_bad_rows_of_a_table_are_named(table, tokenizer):
    ivar = table.inverse_variance.copy()
    ivar[3] = 0
    broken = SpectrumTable(
        wavelength_angstrom=table.wavelength_angstrom, flux=table.flux, inverse_variance=ivar
    )
    assert [f.index for f in tokenizer.check(broken)] == [3]
    with pytest.raises(UnreadableRecordError, match="record 3: the inverse variance is zero"):
        tokenizer.encode(broken)
    with pytest.raises(ConsilienceError, match="wavelengths must increase"):
        SpectrumTable(wavelength_angstrom=[2.0, 1.0], flux=np.ones((1, 2)), inverse_variance=np.ones((1, 2)))
    with pytest.raises(ConsilienceError, match=r"`inverse_variance` has shape \(1, 3\)"):
        SpectrumTable(wavelength_angstrom=[1.0, 2.0], flux=np.ones((1, 2)), inverse_variance=np.ones((1, 3)))


def test_nothing_usable_to_fit_on(table):
    with pytest.raises(ConsilienceError, match="no usable spectrum to fit the tokenizer on"):
        SpectrumTokenizer.fit([])
    with pytest.raises(ConsilienceError, match="record 0: every flux is NaN"):
        SpectrumTokenizer.fit([with_pixels(table[0], flux=np.full(100, np.nan))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "unknown option `patch` .*known: patch_size, max_weight"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"min_weight": 2.0, "max_weight": 1.0}, "min_weight < max_weight"),
        ({"max_grids": 0}, "max_grids must be at least 1"),
    ],
)
def test_bad_options(table, options, message):
    with pytest.raises(ConsilienceError, match=message):
        SpectrumTokenizer.fit(table, **options)


def test_fit_reads_the_given_rows_only(table):
    rows = [0, 3, 5]
    assert (
        SpectrumTokenizer.fit(table.take(rows)).state()
        == SpectrumTokenizer.fit([table[i] for i in rows]).state()
    )
    assert SpectrumTokenizer.fit(table.take(rows)).state() != SpectrumTokenizer.fit(table).state()


def test_state_survives_json(table, tokenizer):
    again = SpectrumTokenizer.from_state(json.loads(json.dumps(tokenizer.state())))
    assert again.spec == tokenizer.spec and again.state() == tokenizer.state()
    assert same(again.encode(table), tokenizer.encode(table))
    templates = [t.template(5, generator=torch.Generator().manual_seed(0)) for t in (again, tokenizer)]
    assert same(*templates)


def test_template_draws_training_grids_as_often_as_they_occurred():
    long, short = make_table(30, 100), make_table(10, 40)
    tokenizer = SpectrumTokenizer.fit([*long, *short], patch_size=16)
    template = tokenizer.template(400, generator=torch.Generator().manual_seed(0))
    template.validate(tokenizer.spec)
    counts = torch.bincount(template.length)
    assert int(counts[8] + counts[4]) == 400 and 0.68 < counts[8] / 400 < 0.82
    assert (template.values == 0).all()
    row = int((template.length == 8).nonzero()[0])
    encoded = tokenizer.encode([long[0]])
    assert torch.equal(template.positions[row, :8], encoded.positions[0])
    assert torch.equal(template.weight[row, 0], encoded.weight[0, 0])
    typical = np.median(tokenizer.encode(long).weight[:, 1:].reshape(30, -1)[:, :100].numpy(), axis=0)
    np.testing.assert_allclose(template.weight[row, 1:8].reshape(-1)[:100], typical, rtol=1e-3)
    decoded = tokenizer.decode(template.take([row]))[0]
    np.testing.assert_array_equal(decoded.wavelength_angstrom, long.wavelength_angstrom)


def test_only_the_commonest_grids_are_kept():
    records = [make_table(1, n, seed=n)[0] for n in (50, 60, 60, 70, 70, 70)]
    tokenizer = SpectrumTokenizer.fit(records, max_grids=2, patch_size=16)
    assert [(grid.wavelength_angstrom.size, grid.count) for grid in tokenizer.grids] == [(70, 3), (60, 2)]
    assert tokenizer.decode(tokenizer.encode(records[:1]))[0].wavelength_angstrom.size == 50


def test_periods_span_two_patches_to_twice_the_range(tokenizer):
    shortest, longest = tokenizer.spec.periods
    step = np.log(9800 / 3600) / 99
    assert shortest == pytest.approx(2 * 16 * step) and longest == pytest.approx(2 * np.log(9800 / 3600))


def test_describe_shows_tokens_to_a_person(table, tokenizer):
    text = tokenizer.describe(with_pixels(table[0], mask=np.arange(100) < 16))
    assert "100 pixels, 3600.0 to 9800.0 Å" in text and "token 0 <scale>: typical flux" in text
    assert "tokens 1 to 7 <patch>: 16 pixels" in text and "1    3600.0 to   4189.9 Å  not measured" in text


def test_real_spectra_survive_the_round_trip():
    folder = os.environ.get("CONSILIENCE_TEST_DATA")
    path = Path(folder or "nowhere") / "galaxies" / "real_sdss_boss.npz"
    if not path.exists():
        pytest.skip("set CONSILIENCE_TEST_DATA to a folder with galaxies/real_sdss_boss.npz")
    with np.load(path) as data:
        table = SpectrumTable(
            wavelength_angstrom=data["wave_A"], flux=data["flux"], inverse_variance=data["ivar"]
        )
    tokenizer = SpectrumTokenizer.fit(table)
    tokens = tokenizer.encode(table)
    assert float(tokens.values.abs().max()) < 1e3
    weight = tokens.weight[:, 1:].reshape(len(table), -1)[:, :4671].numpy()
    for i, decoded in enumerate(tokenizer.decode(tokens)):
        good = weight[i] > 0
        assert good.sum() > 0.95 * (table.inverse_variance[i] > 0).sum()
        scale = np.abs(table.flux[i][good]).max()
        np.testing.assert_allclose(decoded.flux[good], table.flux[i][good], atol=3e-6 * scale)
