"""The tokens of one spectrum as lines for a person."""

import numpy as np

from consilience.tokenizers.spectra_records import Spectrum


def describe_patches(
    record: Spectrum, values: np.ndarray, weight: np.ndarray, *, scale: float, deviation: float
) -> str:
    """Scale, wavelength range, mean flux and signal-to-noise of each patch; long spectra show both ends.

    Args:
        record: the spectrum.
        values: (N, P) flux / scale - 1.
        weight: (N, P) inverse variance, 0 where not measured.
        scale: in the flux's unit.
        deviation: the log of the scale in standard deviations from the training mean.
    """
    wavelength, size = record.wavelength_angstrom, values.shape[1]
    lines = [
        f"{len(record)} pixels, {wavelength[0]:.1f} to {wavelength[-1]:.1f} Å, "
        f"{1 - record.measured.mean():.1%} not measured",
        f"token 0 <scale>: typical flux {scale:.4g}, {deviation:+.3f} standard deviations of the training log fluxes",
        f"tokens 1 to {len(values)} <patch>: {size} pixels each, blue to red "
        "(mean of flux / scale, median signal-to-noise):",
    ]
    shown = range(len(values)) if len(values) <= 12 else [*range(6), *range(len(values) - 6, len(values))]
    previous = -1
    for i in shown:
        if i != previous + 1:
            lines.append(f"  ... {i - previous - 1} more")
        previous = i
        here, good = wavelength[i * size : (i + 1) * size], weight[i] > 0
        content = "not measured"
        if good.any():
            flux = values[i][good] + 1
            content = f"{flux.mean():+.3f}, {np.median(np.abs(flux) * np.sqrt(weight[i][good])):.1f}"
        lines.append(f"  {i + 1:4d}  {here[0]:8.1f} to {here[-1]:8.1f} Å  {content}")
    return "\n".join(lines)
