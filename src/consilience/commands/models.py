"""From what a person names (a folder, a file, a science) to a model and the records to give it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience import registry
from consilience.core.errors import ConsilienceError
from consilience.domains.settings import read_settings
from consilience.pretrained import model_folder, shipped

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel
    from consilience.core.records import Collection
    from consilience.domains.base import Domain

logger = logging.getLogger(__name__)


def load(folder: "str | Path", *, device: str = "cpu") -> "FoundationModel":
    """A trained model from its folder, ready to embed and generate without any other file.

    Args:
        folder: what `consilience train --out` wrote, or the name of a model that comes with the package, such as
            molecules-small.
        device: cpu, cuda, or auto: a GPU when there is one.
    """
    from consilience.core.model import FoundationModel

    place = model_folder(folder)
    if not place.exists() and place.parent == Path():
        raise ConsilienceError(
            f"no model at {folder}: give the folder that `consilience train --out` wrote"
            + (f", or a model of this package: {', '.join(shipped())}" if shipped() else "")
        )
    if (place / "property.json").is_file() and not (place / "config.json").is_file():
        raise ConsilienceError(
            f"{folder} holds adapters that `consilience finetune` wrote: they are for `consilience predict`; name the "
            "model that they were trained on (`base` in its property.json)"
        )
    model = FoundationModel.load(place, device=pick_device(device))
    done = model.provenance.get("outcome")
    if model.provenance.get("training") and (done is None or done.get("interrupted")):
        logger.warning(
            "%s: training has not finished (consilience train --out %s --resume goes on)", folder, folder
        )
    return model


def pick_device(name: str) -> str:
    """The device of a name: itself, or for `auto` a GPU when there is one; ConsilienceError if it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch's own errors for a wrong name and a missing GPU
        known = "Expected one of" not in str(error)
        why = f": {str(error).splitlines()[0]}" if known else ""
        raise ConsilienceError(f"device {name!r} cannot be used here{why}; use cpu or auto") from error
    return name


def open_model(model: "FoundationModel | str | Path", device: str) -> "tuple[FoundationModel, Path | None]":
    """A model with its folder; a model that is loaded already stays where it is."""
    if isinstance(model, str | Path):
        return load(model, device=device), model_folder(model)
    return model, None


def science_of(model: "FoundationModel", folder: Path | None, name: str | None) -> "Domain":
    """The science of a model: the named one, or the only one. Plug-ins are found by the path they were trained by."""
    if name is not None and ":" in name:
        chosen = registry.domain(name)
        model.domain_of(chosen.name)
        return chosen
    wanted = model.domain_of(name)
    for path in read_settings(folder).get("domains", []) if folder else []:
        if ":" in path and (found := registry.domain(path)).name == wanted:
            return found
    return registry.domain(wanted)


def find_data(data: "str | Path") -> Path:
    """A path, or where a fetched data set of this name lies when there is no such file."""
    path = Path(data).expanduser()
    from consilience import datasets

    if path.exists() or str(data) not in {entry.name for entry in datasets.DATASETS}:
        return path
    found = datasets.find(str(data))
    if found is None:
        raise ConsilienceError(f"{data} is not fetched yet: consilience data fetch {data}")
    return found


def read_collection(
    domain: "Domain", data: "str | Path | None", options: Mapping[str, Any] | None = None
) -> "Collection":
    """Records of a file, or the bundled ones when there is none."""
    from consilience.domains.preparation import load_collection

    return load_collection(domain, None if data is None else find_data(data), options)
