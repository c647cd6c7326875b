"""Galaxies: bundled model spectra, the baseline, writers and the figure."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from consilience.core.errors import ConsilienceError
from consilience.core.model import Embedding
from consilience.core.records import Collection
from consilience.domains.galaxies import bundled, photometry
from consilience.domains.galaxies.domain import DOMAIN
from consilience.domains.galaxies.evaluate import flux_matrix, outlier_fraction, sigma_nmad
from consilience.domains.galaxies.figure import filled_spectra
from consilience.study.sets.galaxies import photometry_spectra
from consilience.tokenizers.spectra_records import Spectrum, SpectrumTable


@pytest.fixture(scope="module")
def galaxies() -> Collection:
    return DOMAIN.bundled(300)


# --- bundled -----------------------------------------------------------------------------------------------------


def test_photometry_is_the_real_catalogue():
    table = photometry.photometry()
    assert len(table.row) == 10_000 and 0.01 < table.redshift.min() < table.redshift.max() < 0.6
    assert np.median(table.redshift) == pytest.approx(0.0993, abs=1e-3)
    r = -2.5 * np.log10(table.maggies[:, 2])
    assert 15 < np.median(r) < 18.5


def test_templates_fit_the_photometry_to_a_few_percent():
    table = photometry.photometry()
    coefficients, model = photometry.fit_coefficients(
        table.maggies[:500], table.inverse_variance[:500], table.redshift[:500]
    )
    assert (coefficients >= 0).all() and (coefficients.sum(axis=1) > 0).all()
    good = (table.maggies[:500] > 0).all(axis=1)
    residual = -2.5 * np.log10(table.maggies[:500][good] / model[good])
    assert (np.median(np.abs(residual), axis=0) < [0.05, 0.015, 0.01, 0.015, 0.02]).all()


def test_fit_recovers_known_coefficients():
    redshift = np.array([0.05, 0.2])
    truth = np.array([[1, 0, 2, 0.5, 0], [0, 0.1, 0, 3, 1.0]])
    maggies = np.einsum("nbk,nk->nb", photometry.projections(redshift), truth)
    found, _ = photometry.fit_coefficients(maggies, 1e4 / maggies**2, redshift)
    np.testing.assert_allclose(found, truth, atol=1e-4)


@pytest.mark.parametrize("redshift", [0.0, 0.12, 0.4])
def test_projection_agrees_with_kcorrect(redshift):
    response = pytest.importorskip("kcorrect.response")
    template = pytest.importorskip("kcorrect.template")
    path = photometry.package_file("templates", "kcorrect-default-v4.fits")
    seds = template.Template(filename=str(path))
    seds.set_redshift(redshift)
    filters = response.ResponseDict()
    ours = photometry.project(redshift)
    for b, band in enumerate(photometry.BANDS):
        filters.load_response(f"sdss_{band}0")
        theirs = filters[f"sdss_{band}0"].project(wave=seds.wave, flux=seds.flux)
        np.testing.assert_allclose(ours[b], theirs, rtol=4e-3)


def test_lines_and_break_stand_at_the_redshift():
    redshift = np.array([0.03, 0.11, 0.25])
    wavelength = bundled.observed_grid()
    bursty = bundled.model_flux(np.tile([0, 1e-6, 0, 0, 0.0], (3, 1)), redshift, wavelength)
    old = bundled.model_flux(np.tile([0, 0, 0, 1e-6, 0.0], (3, 1)), redshift, wavelength)
    for z, young_flux, old_flux in zip(redshift, bursty, old, strict=True):
        near = np.abs(wavelength / (1 + z) - 5008) < 60
        peak = wavelength[near][np.argmax(young_flux[near])] / (1 + z)
        assert peak == pytest.approx(5008.2, abs=6)
        red = old_flux[(wavelength / (1 + z) > 4050) & (wavelength / (1 + z) < 4250)].mean()
        blue = old_flux[(wavelength / (1 + z) > 3750) & (wavelength / (1 + z) < 3950)].mean()
        assert red / blue > 1.4


def test_pixels_conserve_the_light_of_narrow_lines():
    wavelength = bundled.observed_grid()
    coefficient = np.array([[0, 1e-6, 0, 0, 0.0]])
    coarse = wavelength[::8]
    for grid in (wavelength, coarse):
        step = np.gradient(np.log(grid)) * grid
        inside = (grid > 4500) & (grid < 8000)
        light = (bundled.model_flux(coefficient, np.array([0.07]), grid)[0] * step)[inside].sum()
        if grid is wavelength:
            reference = light
    assert light == pytest.approx(reference, rel=0.02)


def test_bundled_galaxies_are_called_model_spectra(galaxies):
    assert galaxies.origin == "model" and "model spectra" in galaxies.source
    assert isinstance(galaxies.records, SpectrumTable) and galaxies.records.flux.shape == (
        300,
        bundled.N_PIXELS,
    )
    assert set(galaxies.labels) == {"redshift", "g_r", "log_stellar_mass"}
    assert len(set(galaxies.ids)) == 300 and (galaxies.group_of == galaxies.ids).all()
    assert DOMAIN.tasks(galaxies)[0].name == "redshift"
    assert 9 < np.nanmedian(galaxies.labels["log_stellar_mass"]) < 11.5


def test_bundled_subset_is_the_beginning_of_a_larger_one(galaxies):
    small = bundled.model_spectra(20)
    np.testing.assert_array_equal(small.records.flux, galaxies.records.flux[:20])
    np.testing.assert_array_equal(small.ids, galaxies.ids[:20])
    assert small.fingerprint != galaxies.fingerprint


def test_noise_follows_its_law(galaxies):
    table, row = photometry.photometry(), np.array([int(name.removeprefix("gst-")) for name in galaxies.ids])
    coefficients, _ = photometry.fit_coefficients(
        table.maggies[row], table.inverse_variance[row], table.redshift[row]
    )
    clean = bundled.model_flux(coefficients, table.redshift[row], galaxies.records.wavelength_angstrom)
    good = galaxies.records.inverse_variance > 0
    pull = ((galaxies.records.flux - clean) * np.sqrt(galaxies.records.inverse_variance))[good]
    assert abs(pull.mean()) < 0.01 and pull.std() == pytest.approx(1, abs=0.01)
    assert 1 - good.mean() == pytest.approx(bundled.MASKED_FRACTION, rel=0.1)
    signal = np.median(galaxies.records.flux * np.sqrt(galaxies.records.inverse_variance), axis=1)
    assert 4 < np.median(signal) < 10


def test_redshift_is_in_the_spectra_but_not_for_free():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    galaxies = DOMAIN.bundled(1000)
    train, test = np.arange(800), np.arange(800, 1000)
    name, features = DOMAIN.baseline(galaxies, train)
    assert name == "PCA(50) of flux" and features.shape == (1000, 51)
    scaled = StandardScaler().fit(features[train]).transform(features)
    redshift = galaxies.labels["redshift"]
    predicted = Ridge(10.0).fit(scaled[train], redshift[train]).predict(scaled[test])
    r2 = 1 - ((predicted - redshift[test]) ** 2).sum() / ((redshift[test] - redshift[test].mean()) ** 2).sum()
    assert 0.6 < r2 < 0.95
    assert sigma_nmad(predicted, redshift[test]) < 0.03
    assert outlier_fraction(predicted, redshift[test]) < 0.05


# --- baseline ----------------------------------------------------------------------------------------------------


def test_baseline_is_fitted_on_training_rows_only(galaxies):
    train = np.arange(100)
    table = galaxies.records
    changed = Collection(
        records=SpectrumTable(
            wavelength_angstrom=table.wavelength_angstrom,
            flux=np.where(np.arange(300)[:, None] < 200, table.flux, table.flux[::-1] * 3),
            inverse_variance=table.inverse_variance,
        ),
        ids=galaxies.ids,
        source="test",
        origin="model",
        fingerprint="",
    )
    a, b = DOMAIN.baseline(galaxies, train)[1], DOMAIN.baseline(changed, train)[1]
    np.testing.assert_allclose(a[:200], b[:200], atol=1e-5)
    assert np.abs(a[200:] - b[200:]).max() > 0.1
    assert np.isfinite(a).all()


def test_baseline_interpolates_other_grids(galaxies):
    common = galaxies.records.wavelength_angstrom
    other = np.geomspace(4000, 9000, 700)
    smooth = Spectrum(wavelength_angstrom=other, flux=other / 5000, inverse_variance=np.ones(700))
    matrix, log_scale = flux_matrix([*galaxies.records.take(range(5)), smooth], np.arange(6))
    inside = (common > 4000) & (common < 9000)
    assert np.isnan(matrix[5][~inside]).all()
    np.testing.assert_allclose(matrix[5][inside], common[inside] / 5000 / np.exp(log_scale[5]), rtol=1e-4)


# --- writers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npz", ".fits", ".parquet"])
def test_written_spectra_can_be_read(tmp_path, galaxies, ending):
    records = galaxies.records.take(range(3))
    DOMAIN.write_records(records, tmp_path / f"new{ending}", {"redshift": galaxies.labels["redshift"][:3]})
    found = DOMAIN.read(tmp_path / f"new{ending}")
    np.testing.assert_array_equal(found.records.flux, records.flux)
    np.testing.assert_array_equal(found.records.inverse_variance, records.inverse_variance)
    np.testing.assert_array_equal(found.records.wavelength_angstrom, records.wavelength_angstrom)
    np.testing.assert_array_equal(found.ids, galaxies.ids[:3])
    np.testing.assert_array_equal(found.labels["redshift"], galaxies.labels["redshift"][:3])


@pytest.mark.parametrize("ending", [".fits", ".parquet"])
def test_ragged_spectra_are_written(tmp_path, ending):
    records = [
        Spectrum(
            wavelength_angstrom=np.arange(4001.0, 4000 + n),
            flux=np.ones(n - 1),
            inverse_variance=np.ones(n - 1),
            id=f"s{n}",
        )
        for n in (5, 9)
    ]
    DOMAIN.write_records(records, tmp_path / f"new{ending}")
    found = DOMAIN.read(tmp_path / f"new{ending}")
    assert [len(record) for record in found.records] == [4, 8] and found.ids.tolist() == ["s5", "s9"]
    with pytest.raises(ConsilienceError, match="different wavelength grids"):
        DOMAIN.write_records(records, tmp_path / "new.npz")
    with pytest.raises(ConsilienceError, match="choose one of these endings"):
        DOMAIN.write_records(records, tmp_path / "new.csv")


def test_embedding_is_written_beside_ids_and_labels(tmp_path, galaxies):
    vectors = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    embedding = Embedding(vectors=vectors, ids=galaxies.ids[[4, 2]], index=np.array([4, 2]))
    DOMAIN.write_embedding(galaxies, embedding, tmp_path / "e.parquet")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert frame["id"].tolist() == galaxies.ids[[4, 2]].tolist()
    np.testing.assert_array_equal(frame[["embedding_0", "embedding_1", "embedding_2"]].to_numpy(), vectors)
    np.testing.assert_array_equal(frame["redshift"], galaxies.labels["redshift"][[4, 2]])
    with pytest.raises(ConsilienceError, match="choose that ending"):
        DOMAIN.write_embedding(galaxies, embedding, tmp_path / "e.csv")


# --- figure ------------------------------------------------------------------------------------------------------


class FlatModel:
    """Stands in for a trained model: fills hidden patches with the scale itself, give or take a tenth."""

    def __init__(self, tokenizer) -> None:
        self.tokenizers = {"galaxies": tokenizer}
        self.hidden: list[torch.Tensor] = []

    def fill(self, tokens, hidden, *, domain, seed=0, mean=False):
        self.hidden.append(hidden)
        noise = torch.randn(tokens.values.shape, generator=torch.Generator().manual_seed(seed))
        filled = torch.zeros_like(tokens.values) if mean else 0.1 * noise
        values = torch.where(hidden[..., None], filled, tokens.values)
        return replace(tokens, values=values)


def test_figure_of_bands_shows_points_and_no_lines():
    bands = photometry_spectra()
    model = FlatModel(DOMAIN.tokenizer.fit(bands.records.take(range(200)), patch_size=1))
    figure = filled_spectra({"masked": model}, bands, np.arange(200, 300))
    for axis in figure.axes:
        assert not axis.texts and axis.get_xscale() == "log"
        seen, hidden, said = (len(box.lines[0].get_xdata()) for box in axis.containers)
        assert hidden <= said == 1 and seen + hidden <= 8
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {"seen by the model", "hidden, as measured", "model's mean, 68 % of draws"}


def test_figure_shows_held_out_model_spectra_with_lines(galaxies):
    model = FlatModel(DOMAIN.tokenizer.fit(galaxies.records.take(range(200)), **DOMAIN.quick.tokenizer))
    test = np.arange(200, 300)
    figure = filled_spectra({"next-token": FlatModel(None), "masked": model}, galaxies, test)
    assert (
        len(figure.axes) == 2
        and "Model spectra" in figure.get_suptitle()
        and "masked" in figure.get_suptitle()
    )
    titles = [axis.get_title(loc="right") for axis in figure.axes]
    held_out = set(galaxies.ids[test])
    assert all(title.split(",")[0] in held_out and "z = 0." in title for title in titles)
    assert all({" Hβ", " Hα"} <= {text.get_text() for text in axis.texts} for axis in figure.axes)
    hidden = model.hidden[0][0]
    assert not hidden[0] and 3 <= int(hidden.sum()) <= 5
    assert (hidden.nonzero().diff(dim=0) == 1).all()


def test_quick_preset_has_few_tokens(galaxies):
    tokens = DOMAIN.tokenizer.fit(galaxies.records, **DOMAIN.quick.tokenizer).encode(galaxies.records)
    assert set(tokens.length.tolist()) == {33}
    assert DOMAIN.quick.tasks == ("redshift",) and 1500 <= (DOMAIN.quick.records or 0) <= 2000
