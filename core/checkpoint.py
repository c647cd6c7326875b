"""A saved model is a folder: `model.safetensors`, `config.json` and a model card. No pickle anywhere.

`config.json` holds the size of the core, the state of every tokenizer, the objective, versions and where the data
came from, so that a folder needs nothing beside it.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from consilience.core.batch import all_finite
from consilience.core.conditions import Conditions
from consilience.core.errors import ConsilienceError
from consilience.core.files import readable_json, replace_text
from consilience.core.objectives.base import Objective
from consilience.core.references import load_class, reference_of
from consilience.core.tokenizer import Tokenizer
from consilience.core.transformer import CoreConfig
from consilience.core.written import written

if TYPE_CHECKING:
    from consilience.core.model import FoundationModel

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
Model = TypeVar("Model", bound="FoundationModel")


def save_model(model: "FoundationModel", folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the model; each file is replaced in one step, so that a crash leaves the old one whole.

    Args:
        model: what is saved.
        folder: where.
        dtype: of the weights in the file; float16 halves it, at a relative error of 5e-4 of each weight. Whoever loads
            it computes in float32 all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / f"{WEIGHTS}.part", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.part", folder / WEIGHTS)
    replace_text(folder / CONFIG, readable_json(describe_model(model)))
    replace_text(folder / CARD, model_card(model))
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets the owner alone read its files
    return folder


def describe_model(model: "FoundationModel") -> dict[str, Any]:
    """What `config.json` holds."""
    return {
        "format": FORMAT,
        "core": asdict(model.core_config),
        "objective": {"class": reference_of(type(model.objective)), "options": written(model.objective)},
        "domains": {
            name: {"tokenizer": reference_of(type(tokenizer)), "state": tokenizer.state()}
            | ({"conditions": model.conditions[name].state()} if name in model.conditions else {})
            for name, tokenizer in model.tokenizers.items()
        },
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "safetensors")}
        | {"consilience": _own_version()},
        "provenance": model.provenance,
    }


def load_model(cls: type[Model], folder: Path, *, device: str = "cpu") -> Model:
    """Read a model written by `save_model`; ConsilienceError says what is missing, truncated or foreign."""
    config = read_config(folder)
    try:
        core = CoreConfig(**config["core"])
        objective = load_class(config["objective"]["class"], Objective)(  # type: ignore[type-abstract]
            **config["objective"]["options"]
        )
        tokenizers = {
            name: load_class(entry["tokenizer"], Tokenizer).from_state(entry["state"])  # type: ignore[type-abstract]
            for name, entry in config["domains"].items()
        }
        conditions = {
            name: Conditions.from_state(entry["conditions"])
            for name, entry in config["domains"].items()
            if "conditions" in entry
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ConsilienceError(
            f"{folder / CONFIG} is not a consilience model of this version: {error!r}"
        ) from error
    model = cls(core, tokenizers, objective, config.get("provenance"), conditions)
    model.load_state_dict(read_weights(folder, model.state_dict()))
    return model.to(device).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder."""
    if not folder.is_dir():
        raise ConsilienceError(f"no model at {folder}: give the folder that `consilience train --out` wrote")
    path = folder / CONFIG
    if not path.is_file():
        raise ConsilienceError(
            f"{folder} holds no {CONFIG}: it is not a consilience model, or its training was cut off"
        )
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConsilienceError(f"{path} is truncated or not JSON ({error}); save the model again") from error
    if not isinstance(config, dict) or "core" not in config or "domains" not in config:
        raise ConsilienceError(f"{path} belongs to another library: it has no 'core' and 'domains'")
    if config.get("format") != FORMAT:
        raise ConsilienceError(
            f"{path} has format {config.get('format')}, this version of consilience reads format {FORMAT}"
        )
    return config


def read_weights(folder: Path, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`model.safetensors` of a model folder, checked against the names and shapes expected."""
    path = folder / WEIGHTS
    tensors = _tensors(path)
    missing, foreign = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or foreign:
        raise ConsilienceError(
            f"{path} does not fit {CONFIG}: {len(missing)} weights missing {missing[:2]}, "
            f"{len(foreign)} unknown {foreign[:2]}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ConsilienceError(
                f"{path}: weight '{name}' is {tuple(tensor.shape)}, config.json asks for {tuple(expected[name].shape)}"
            )
        if tensor.is_floating_point() and not all_finite(tensor):
            raise ConsilienceError(
                f"{path}: weight '{name}' holds NaN or infinity, and so would all that is computed with it; its "
                "training diverged: train again at a lower training.learning_rate"
            )
    return tensors


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ConsilienceError(f"{path.parent} holds no {WEIGHTS}: copy the whole folder, or train again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConsilienceError(f"{path} is truncated or not a safetensors file ({error})") from error


def weights_digest(folder: Path) -> str:
    """SHA-256 (64 hex digits) of the weights of a model folder: names the model that something was made from."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConsilienceError(f"{folder} holds no {WEIGHTS}: copy the whole folder, or train again")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take_core(model: "FoundationModel", folder: Path) -> None:
    """Start the core of a model from the core saved in another folder (`--init-core`), whatever its science."""
    try:
        saved = CoreConfig(**read_config(folder)["core"])
    except TypeError as error:
        raise ConsilienceError(
            f"{folder / CONFIG} is not a consilience model of this version: {error}"
        ) from error
    ours = model.core_config
    for name in ("width", "depth", "heads", "mlp", "mlp_ratio", "residual_scale"):
        if getattr(saved, name) != getattr(ours, name):
            raise ConsilienceError(
                f"the core in {folder} has {name} {getattr(saved, name)}, this one {getattr(ours, name)}; "
                f"train with the same size to take it over"
            )
    weights = _tensors(folder / WEIGHTS)
    core = {name.removeprefix("core."): t for name, t in weights.items() if name.startswith("core.")}
    expected = model.core.state_dict()
    unfit = [name for name in expected if name not in core or core[name].shape != expected[name].shape]
    if unfit or len(core) > len(expected):
        raise ConsilienceError(
            f"{folder / WEIGHTS} does not fit its {CONFIG}: its core is another one {unfit[:2]}"
        )
    model.core.load_state_dict(core)


def model_card(model: "FoundationModel") -> str:
    """A short model card in Markdown with the metadata that the Hugging Face Hub reads."""
    count = sum(parameter.numel() for parameter in model.parameters())
    trunk = sum(parameter.numel() for parameter in model.core.parameters())
    sciences = ", ".join(model.domains)
    lines = [
        "---",
        "library_name: consilience",
        "license: bsd-3-clause",
        f"tags: [{', '.join(['consilience', model.objective.name, *model.domains])}]",
        "---",
        f"# {sciences}: {model.objective.name}",
        "",
        f"A transformer with {count:,} parameters ({trunk:,} in the shared core) pre-trained on {sciences} "
        f"with the objective `{model.objective.name}`.",
        "",
        "```python",
        "import consilience",
        "model = consilience.load('THIS_FOLDER')",
        "vectors = model.embed(records).vectors",
        "```",
        "",
        "## Trained on",
        "",
    ]
    for key, value in model.provenance.items():
        lines.append(f"- {key}: {value}")
    return "\n".join(lines) + "\n"


def fetch_model(model_id: str, options: dict[str, Any]) -> Path:
    """A local folder as it is, or the files of a Hugging Face Hub repository downloaded to its cache."""
    if Path(model_id).is_dir():
        return Path(model_id)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    known = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConsilienceError(f"from_pretrained: unknown option '{unknown[0]}'; known: {', '.join(known)}")
    try:
        return Path(snapshot_download(model_id, allow_patterns=[WEIGHTS, CONFIG, CARD], **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConsilienceError(
            f"no model at {model_id}: neither a folder here nor a repository that can be reached ({reason})"
        ) from error


def _own_version() -> str:
    try:
        return metadata.version("consilience")
    except metadata.PackageNotFoundError:
        return "unknown"
