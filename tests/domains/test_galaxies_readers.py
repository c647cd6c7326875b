"""Galaxies: readers of survey files and tables, and what they say of files that cannot be used."""

import gzip
import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from consilience.core.errors import ConsilienceError
from consilience.domains.galaxies.columns import spectra_of_columns
from consilience.domains.galaxies.domain import DOMAIN
from consilience.tokenizers.spectra_records import SpectrumTable

# --- FITS --------------------------------------------------------------------------------------------------------


def write_sdss(path: Path, *, redshift: float = 0.12, n: int = 300, header: bool = True) -> np.ndarray:
    """A file laid out like SDSS' spec-PLATE-MJD-FIBER.fits; returns its flux."""
    rng = np.random.default_rng(0)
    flux = rng.normal(10, 1, n).astype(np.float32)
    ivar = np.full(n, 4, dtype=np.float32)
    ivar[7] = 0
    masks = np.zeros(n, dtype=np.int32)
    masks[9] = 1 << 20
    primary = fits.PrimaryHDU()
    if header:
        primary.header.update({"TELESCOP": "SDSS 2.5-M", "VERS2D": "v5_7_0", "FIBERID": 12, "PLATE": 3586})
        primary.header["BUNIT"] = "1E-17 erg/cm^2/s/Ang"
    columns = [
        fits.Column(name="flux", format="E", array=flux),
        fits.Column(name="loglam", format="E", array=(3.58 + 1e-4 * np.arange(n)).astype(np.float32)),
        fits.Column(name="ivar", format="E", array=ivar),
        fits.Column(name="and_mask", format="J", array=masks),
        fits.Column(name="or_mask", format="J", array=masks),
    ]
    summary = [
        fits.Column(name="CLASS", format="6A", array=["GALAXY"]),
        fits.Column(name="Z", format="E", array=[redshift]),
        fits.Column(name="ZWARNING", format="J", array=[0]),
    ]
    fits.HDUList(
        [
            primary,
            fits.BinTableHDU.from_columns(columns, name="COADD"),
            fits.BinTableHDU.from_columns(summary, name="SPALL"),
        ]
    ).writeto(path)
    return flux


def write_desi(path: Path, *, n: int = 3) -> dict[str, np.ndarray]:
    """A file laid out like DESI's coadd-*.fits, three overlapping arms; returns the fluxes."""
    arms = {"B": np.arange(3600, 3680, 0.8), "R": np.arange(3664, 3760, 0.8), "Z": np.arange(3744, 3800, 0.8)}
    fibermap = [
        fits.Column(name="TARGETID", format="K", array=39627000 + np.arange(n)),
        fits.Column(name="TARGET_RA", format="D", array=np.arange(n) * 1.0),
    ]
    redshifts = [
        fits.Column(name="TARGETID", format="K", array=39627000 + np.arange(n)),
        fits.Column(name="Z", format="D", array=0.1 * (1 + np.arange(n))),
        fits.Column(name="SPECTYPE", format="6A", array=["GALAXY"] * (n - 1) + ["QSO"]),
    ]
    hdus = [
        fits.PrimaryHDU(),
        fits.BinTableHDU.from_columns(fibermap, name="FIBERMAP"),
        fits.BinTableHDU.from_columns(fibermap, name="SCORES"),
    ]
    fluxes = {}
    for place, (arm, wavelength) in enumerate(arms.items()):
        fluxes[arm] = (np.ones((n, wavelength.size)) * (place + 1) * (1 + np.arange(n))[:, None]).astype(
            np.float32
        )
        axis = fits.ImageHDU(wavelength, name=f"{arm}_WAVELENGTH")
        axis.header["BUNIT"] = "Angstrom"
        image = fits.ImageHDU(fluxes[arm], name=f"{arm}_FLUX")
        image.header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
        ivar = fits.ImageHDU(np.full_like(fluxes[arm], 3 - place), name=f"{arm}_IVAR")
        ivar.header["BUNIT"] = "10**+34 (s2 cm4 Angstrom2) / erg2"
        mask = np.zeros(fluxes[arm].shape, dtype=np.int32)
        mask[:, 0] = 1 if arm == "B" else 0
        hdus += [axis, image, ivar, fits.ImageHDU(mask, name=f"{arm}_MASK")]
    fits.HDUList([*hdus, fits.BinTableHDU.from_columns(redshifts, name="REDSHIFTS")]).writeto(path)
    return fluxes


@pytest.mark.parametrize("header", [True, False])
def test_reads_sdss(tmp_path, header):
    flux = write_sdss(tmp_path / "spec-3586-55181-0012.fits", header=header)
    found = DOMAIN.read(tmp_path / "spec-3586-55181-0012.fits")
    spectrum = found.records[0]
    assert len(found) == 1 and list(found.ids) == ["spec-3586-55181-0012"] and found.origin == "user"
    np.testing.assert_array_equal(spectrum.flux, flux)
    np.testing.assert_allclose(spectrum.wavelength_angstrom, 10 ** (3.58 + 1e-4 * np.arange(300)), rtol=1e-5)
    assert sorted(np.flatnonzero(~spectrum.measured)) == [7, 9]
    assert found.labels["redshift"][0] == pytest.approx(0.12)
    DOMAIN.tokenizer.fit(found.records, patch_size=16).encode(found.records)


def test_reads_desi_arms_joined_object_by_object(tmp_path):
    write_desi(tmp_path / "coadd-main-dark-1.fits")
    found = DOMAIN.read(tmp_path / "coadd-main-dark-1.fits")
    assert list(found.ids) == ["39627000", "39627001", "39627002"]
    np.testing.assert_allclose(found.labels["redshift"], [0.1, 0.2, 0.3])
    assert found.labels["spectral_class"].tolist() == ["GALAXY", "GALAXY", "QSO"]
    spectrum = found.records[1]
    wavelength = spectrum.wavelength_angstrom
    np.testing.assert_allclose(np.diff(wavelength), 0.8, atol=2e-3)
    assert wavelength[0] == 3600 and not spectrum.measured[0]
    overlap = (wavelength > 3664.5) & (
        wavelength < 3679.5
    )  # b and r measure the same pixels: weights 3 and 2
    np.testing.assert_allclose(spectrum.inverse_variance[overlap], 5)
    np.testing.assert_allclose(spectrum.flux[overlap], 2 * (3 * 1 + 2 * 2) / 5, rtol=1e-6)
    np.testing.assert_allclose(spectrum.flux[(wavelength > 3690) & (wavelength < 3740)], 4)


def test_reads_plain_fits_tables_and_generic_spectra(tmp_path):
    from astropy import units
    from astropy.nddata import StdDevUncertainty
    from specutils import Spectrum as Spectrum1D

    wavelength = np.linspace(4000, 5000, 50)
    columns = [
        fits.Column(name="WAVE", format="50D", array=np.tile(wavelength, (2, 1))),
        fits.Column(name="Flux", format="50E", array=np.ones((2, 50))),
        fits.Column(name="ERR", format="50E", array=np.full((2, 50), 0.5)),
        fits.Column(name="Z", format="D", array=[0.1, 0.2]),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "table.fits")
    found = DOMAIN.read(tmp_path / "table.fits")
    np.testing.assert_allclose(found.records.inverse_variance, 4)
    np.testing.assert_allclose(found.labels["redshift"], [0.1, 0.2])

    generic = Spectrum1D(
        flux=np.arange(50) * units.Jy,
        spectral_axis=np.linspace(4, 8, 50) * 1e14 * units.Hz,
        uncertainty=StdDevUncertainty(np.full(50, 2.0) * units.Jy),
    )
    generic.write(tmp_path / "frequency.fits", format="tabular-fits")
    spectrum = DOMAIN.read(tmp_path / "frequency.fits", format="tabular-fits").records[0]
    assert (np.diff(spectrum.wavelength_angstrom) > 0).all()
    np.testing.assert_allclose(spectrum.wavelength_angstrom[0], 2.99792458e18 / 8e14)
    np.testing.assert_allclose(spectrum.flux, np.arange(50)[::-1])
    np.testing.assert_allclose(spectrum.inverse_variance, 0.25)


def test_reads_a_folder_and_a_pattern_and_keeps_what_is_good(tmp_path):
    write_sdss(tmp_path / "spec-1.fits", redshift=0.1)
    write_sdss(tmp_path / "spec-2.fits", redshift=0.2)
    (tmp_path / "spec-3.fits").write_bytes(b"not fits at all")
    (tmp_path / "notes.txt").write_text("ignored")
    for path in (tmp_path, tmp_path / "spec-*.fits"):
        found = DOMAIN.read(path)
        assert list(found.ids) == ["spec-1", "spec-2"] and isinstance(found.records, SpectrumTable)
        np.testing.assert_allclose(found.labels["redshift"], [0.1, 0.2])
        assert [(f.index, f.id) for f in found.failures] == [(2, "spec-3.fits")]
        assert "spec-3.fits: not a FITS file" in found.failures[0].reason


def cut_files(folder: Path) -> dict[str, bytes]:
    """What a table of spectra, and a survey's file, look like when their ends are lost."""
    wavelength = np.linspace(4000, 5000, 1000)
    columns = [
        fits.Column(name="WAVE", format="1000D", array=np.tile(wavelength, (30, 1))),
        fits.Column(name="FLUX", format="1000E", array=np.ones((30, 1000))),
        fits.Column(name="IVAR", format="1000E", array=np.ones((30, 1000))),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(folder / "whole.fits")
    write_sdss(folder / "spec.fits")
    table, spec = (folder / "whole.fits").read_bytes(), (folder / "spec.fits").read_bytes()
    return {
        "half.fits": table[: len(table) // 2],
        "end.fits": table[:-3000],
        "half.fits.gz": gzip.compress(table)[:-2000],
        "end.fits.gz": gzip.compress(spec)[:-9],
        "header.fits": spec[:-4000],  # in the header of the table of redshifts
    }


@pytest.mark.parametrize("name", ["half.fits", "end.fits", "half.fits.gz", "end.fits.gz", "header.fits"])
def test_fits_files_that_are_cut_short(tmp_path, name):
    content = cut_files(tmp_path)[name]
    (tmp_path / "whole.fits").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConsilienceError, match=rf"{name}: .*cut short or damaged.*fetch it again") as caught:
        DOMAIN.read(tmp_path / name)
    assert "\n" not in str(caught.value)
    found = DOMAIN.read(tmp_path)
    assert found.ids.tolist() == ["spec"] and [failure.id for failure in found.failures] == [name]


# --- tables ------------------------------------------------------------------------------------------------------


def columns_of(n: int = 4, n_pixels: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "wavelength": np.linspace(4000, 5000, n_pixels),
        "flux": rng.normal(5, 1, (n, n_pixels)).astype(np.float32),
        "ivar": np.full((n, n_pixels), 2, dtype=np.float32),
        "z": np.linspace(0, 0.3, n),
        "kind": np.array(["a", "b"] * (n // 2)),
        "object_id": np.arange(n) + 100,
    }


def write_columns(path: Path, columns: dict[str, np.ndarray]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **columns)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, column in columns.items():
                file[f"spectra/{name}"] = column.astype("S") if column.dtype.kind == "U" else column
    else:
        n = next(len(column) for column in columns.values() if column.ndim == 2)
        rows = {k: list(v) if len(v) == n else [v] * n for k, v in columns.items()}
        pd.DataFrame(rows).to_parquet(path)


@pytest.mark.parametrize("ending", [".npz", ".h5", ".parquet"])
def test_reads_tables_with_names_of_any_case(tmp_path, ending):
    columns = columns_of()
    renamed = {
        "Lambda": "wavelength",
        "FLUX": "flux",
        "IVar": "ivar",
        "Z": "z",
        "kind": "kind",
        "TARGETID": "object_id",
    }
    path = tmp_path / f"mine{ending}"
    write_columns(path, {new: columns[old] for new, old in renamed.items()})
    found = DOMAIN.read(path)
    np.testing.assert_array_equal(found.records.flux, columns["flux"])
    np.testing.assert_array_equal(found.records.wavelength_angstrom, columns["wavelength"])
    np.testing.assert_array_equal(found.labels["redshift"], columns["z"])
    assert found.labels["kind"].tolist() == ["a", "b", "a", "b"] and found.ids.tolist() == [
        "100",
        "101",
        "102",
        "103",
    ]


def test_reads_log_wavelengths_errors_masks_and_ragged_rows(tmp_path):
    found = spectra_of_columns(
        {
            "loglam": np.log10([4000.0, 4500, 5000]),
            "flux": np.ones((2, 3)),
            "err": np.array([[0.5, 0, np.nan], [1, 1, 1]]),
            "mask": np.array([[0, 0, 0], [4, 0, 0]]),
        },
        "mine",
    )
    np.testing.assert_allclose(found.records.wavelength_angstrom, [4000, 4500, 5000])
    np.testing.assert_allclose(found.records.inverse_variance, [[4, 0, 0], [1, 1, 1]])
    assert found.records[1].measured.tolist() == [False, True, True]
    frame = {
        "wave": [[4001.0, 4002, 4003], [4001.0, 4002]],
        "flux": [[1.0, 1, 1], [2.0, 2]],
        "ivar": [[1.0, 1, 1], [1.0, 1]],
    }
    pd.DataFrame(frame).to_parquet(tmp_path / "ragged.parquet")
    ragged = DOMAIN.read(tmp_path / "ragged.parquet")
    assert [len(record) for record in ragged.records] == [3, 2]
    assert (
        len(spectra_of_columns({"wave": [4e3, 5e3], "flux": [1.0, 1], "ivar": [1.0, 1]}, "one").records) == 1
    )


def test_bad_rows_of_a_file_are_listed(tmp_path):
    columns = columns_of()
    columns["flux"][1] = np.nan
    columns["ivar"][2] = 0
    np.savez(tmp_path / "mine.npz", **columns)
    found = DOMAIN.read(tmp_path / "mine.npz")
    assert found.ids.tolist() == ["100", "103"] and found.labels["redshift"].tolist() == [0, 0.3]
    assert [(f.index, f.id) for f in found.failures] == [(1, "101"), (2, "102")]
    grids = np.tile(columns["wavelength"], (4, 1))
    grids[3] = grids[3][::-1]
    good = columns_of() | {"wavelength": grids}
    np.savez(tmp_path / "grids.npz", **good)
    failure = DOMAIN.read(tmp_path / "grids.npz").failures
    assert failure[0].index == 3 and "wavelengths must increase, but 5000 Å at pixel 0" in failure[0].reason


def nulls(folder: Path) -> Path:
    """A .parquet file of four spectra, the second of which has no flux and the third too few pixels."""
    columns = columns_of()
    flux, ivar = list(columns["flux"]), list(columns["ivar"])
    rows = {"flux": [flux[0], None, flux[2][:20], flux[3]], "ivar": ivar, "z": columns["z"]}
    path = folder / "nulls.parquet"
    pd.DataFrame(rows | {"wavelength": [columns["wavelength"]] * 4}).to_parquet(path)
    return path


def test_a_null_in_a_column_of_pixels_loses_one_row(tmp_path):
    path = nulls(tmp_path)
    write_columns(tmp_path / "others.parquet", columns_of())
    reason = "its `flux` is missing (null)"
    found = DOMAIN.read(path)
    assert found.ids.tolist() == ["0", "3"] and found.labels["redshift"].tolist() == [0, 0.3]
    assert [failure.index for failure in found.failures] == [1, 2] and reason in found.failures[0].reason
    many = DOMAIN.read(tmp_path / "*.parquet")
    assert len(many) == 6 and reason in many.failures[0].reason
    for size in (1, 2, 8):
        pieces = list(DOMAIN.stream(path, size))
        assert [p for piece in pieces for p in piece.places.tolist()] == [0, 3]
        assert [f.index for piece in pieces for f in piece.collection.failures] == [1, 2]


@pytest.mark.parametrize("gap", ["wavelength", "ivar", "mask"])
@pytest.mark.parametrize("value", [None, np.ones((2, 20)), np.array(["a"] * 40)])
def test_a_gap_in_any_column_of_pixels(gap, value):
    columns = {name: list(np.tile(np.ones(40), (3, 1))) for name in ("flux", "ivar", "mask")}
    columns["wavelength"] = list(np.tile(np.linspace(4000, 5000, 40), (3, 1)))
    columns["mask"] = [np.zeros(40)] * 3
    columns[gap] = [value, *columns[gap][1:]]
    held = {}
    for name, rows in columns.items():
        held[name] = np.empty(3, dtype=object)
        held[name][:] = rows
    read = spectra_of_columns(held, "mine", before=10)
    assert read.ids.tolist() == ["11", "12"] and len(read.records) == 2
    assert [(f.index, f.id) for f in read.failures] == [(0, "10")] and f"`{gap}`" in read.failures[0].reason


@pytest.mark.parametrize("unit", ["nm", "um", "m"])
def test_wavelengths_in_another_unit_are_refused_until_it_is_named(tmp_path, unit):
    factor = {"nm": 10, "um": 1e4, "m": 1e10}[unit]
    columns = columns_of()
    path = tmp_path / "other.npz"
    np.savez(path, **(columns | {"wavelength": columns["wavelength"] / factor}))
    said = r"other\.npz: .*wavelengths run from .* Å, but .* lie between 912 and 300000 Å; name .* wavelength_unit"
    with pytest.raises(ConsilienceError, match=said):
        DOMAIN.read(path)
    found = DOMAIN.read(path, wavelength_unit=unit)
    np.testing.assert_allclose(found.records.wavelength_angstrom, columns["wavelength"])
    believed = DOMAIN.read(path, wavelength_unit="angstrom").records
    np.testing.assert_array_equal(believed.wavelength_angstrom, columns["wavelength"] / factor)
    with pytest.raises(
        ConsilienceError, match="wavelength_unit must be one of angstrom, nm, um, m, not 'cm'"
    ):
        DOMAIN.read(path, wavelength_unit="cm")


def test_wavelengths_in_another_unit_of_a_stream_and_of_single_rows(tmp_path):
    columns = columns_of()
    rows = [columns["wavelength"] * factor for factor in (1, 100, 1, 1)]
    path = tmp_path / "mixed.parquet"
    pd.DataFrame({"flux": list(columns["flux"]), "ivar": list(columns["ivar"]), "wave": rows}).to_parquet(
        path
    )
    (failure,) = DOMAIN.read(path).failures
    assert failure.index == 1 and "run from 400000 to 500000 Å" in failure.reason
    (piece,) = DOMAIN.stream(path, 8)
    assert piece.places.tolist() == [0, 2, 3]
    (piece,) = DOMAIN.stream(path, 8, wavelength_unit="angstrom")
    assert len(piece.collection) == 4


@pytest.mark.parametrize(
    ("unit", "factor"), [("um", 1e4), ("nm", 10), ("Angstrom", 1), ("furlongs", 1), ("Jy", 1)]
)
def test_a_fits_table_says_its_unit(tmp_path, unit, factor):
    wavelength = np.linspace(4000, 5000, 50)
    columns = [
        fits.Column(name="WAVE", format="50D", unit=unit, array=np.tile(wavelength / factor, (2, 1))),
        fits.Column(name="FLUX", format="50E", array=np.ones((2, 50))),
        fits.Column(name="IVAR", format="50E", array=np.ones((2, 50))),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    found = DOMAIN.read(tmp_path / "a.fits")
    np.testing.assert_allclose(found.records.wavelength_angstrom, wavelength)
    named = DOMAIN.read(tmp_path / "a.fits", wavelength_unit="um").records
    np.testing.assert_allclose(named.wavelength_angstrom, wavelength / factor * 1e4)


def test_the_unit_named_is_believed_of_a_loader_too(tmp_path):
    write_sdss(tmp_path / "spec.fits")
    there = DOMAIN.read(tmp_path / "spec.fits").records.wavelength_angstrom
    moved = DOMAIN.read(tmp_path / "spec.fits", wavelength_unit="nm").records.wavelength_angstrom
    np.testing.assert_allclose(moved, there * 10)


def without(*names: str) -> dict[str, np.ndarray]:
    return {name: column for name, column in columns_of().items() if name not in names}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            without("flux"),
            r"mine.npz: no column for the flux; .*the file has ivar, kind, object_id, wavelength, z",
        ),
        (without("wavelength"), "no column for the wavelength"),
        (without("ivar"), "no inverse variance; add a column `ivar`"),
        (columns_of() | {"flux": np.empty((0, 40))}, "holds no spectra"),
        (columns_of() | {"ivar": np.ones((3, 40))}, "`inverse_variance` has 3 rows for 4 spectra"),
        (
            columns_of() | {"flux": np.full((4, 40), np.nan)},
            "no usable spectrum in it; first reason: every flux is NaN",
        ),
        (columns_of() | {"wavelength": np.ones(40)}, "wavelengths must increase"),
        (columns_of() | {"ivar": np.ones((4, 39))}, "`inverse_variance` has shape"),
    ],
)
def test_clear_errors_name_the_file(tmp_path, columns, message):
    np.savez(tmp_path / "mine.npz", **columns)
    with pytest.raises(ConsilienceError, match=message) as caught:
        DOMAIN.read(tmp_path / "mine.npz")
    assert "mine.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    for name in ("a.fits", "a.npz", "a.h5", "a.parquet"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ConsilienceError, match=f"{name}: the file is empty"):
            DOMAIN.read(tmp_path / name)
        (tmp_path / name).write_bytes(b"PK\x03\x04 this is something else")
        with pytest.raises(ConsilienceError, match=name):
            DOMAIN.read(tmp_path / name)
    write_sdss(tmp_path / "whole.fits")
    (tmp_path / "cut.fits").write_bytes((tmp_path / "whole.fits").read_bytes()[:4000])
    with pytest.raises(ConsilienceError, match=r"cut\.fits"):
        DOMAIN.read(tmp_path / "cut.fits")
    fits.PrimaryHDU(np.ones((4, 4))).writeto(tmp_path / "image.fits")
    with pytest.raises(ConsilienceError, match=r"image\.fits"):
        DOMAIN.read(tmp_path / "image.fits")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConsilienceError, match=r"a\.txt: unknown kind of file"):
        DOMAIN.read(tmp_path / "a.txt")
    with pytest.raises(ConsilienceError, match="no such file"):
        DOMAIN.read(tmp_path / "missing.fits")
    with pytest.raises(ConsilienceError, match="no spectra in this folder"):
        (tmp_path / "empty").mkdir()
        DOMAIN.read(tmp_path / "empty")
    with pytest.raises(ConsilienceError, match="unknown option `colour`"):
        DOMAIN.read(tmp_path / "whole.fits", colour=1)
    with pytest.raises(ConsilienceError, match="error must be positive"):
        DOMAIN.read(tmp_path / "whole.fits", error=-1.0)


def test_one_error_for_all_pixels_where_the_file_has_none(tmp_path):
    np.savez(tmp_path / "mine.npz", **without("ivar"))
    np.testing.assert_allclose(DOMAIN.read(tmp_path / "mine.npz", error=0.5).records.inverse_variance, 4)


def test_reads_real_spectra_when_there_are_some():
    folder = Path(os.environ.get("CONSILIENCE_TEST_DATA") or "nowhere") / "galaxies"
    if not (folder / "real_sdss_boss.npz").exists():
        pytest.skip("set CONSILIENCE_TEST_DATA to a folder with galaxies/real_sdss_boss.npz")
    found = DOMAIN.read(folder / "real_sdss_boss.npz")
    assert len(found) == 253 and 0 < np.nanmedian(found.labels["redshift"]) < 3
    assert (found.labels["spclass"] == "QSO").sum() == 185
