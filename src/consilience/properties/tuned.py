"""A fine-tuned model on disk: the head, and either the adapters with the name of their base or the whole model.

`property.json` says what is predicted and from what it was made; `tuned.safetensors` holds the head and, under LoRA,
the adapters (a few hundred KB) for the base model that is named by folder and SHA-256. No pickle.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from consilience.commands.models import load
from consilience.core.checkpoint import weights_digest
from consilience.core.embed import readable_tokens
from consilience.core.errors import ConsilienceError
from consilience.core.files import replace_text
from consilience.core.lora import LoraOptions, adapter_state, add_adapters, load_adapters, merge_adapters
from consilience.core.records import Failure, take_records
from consilience.domains.finetuning import PropertyTarget, Tuned
from consilience.domains.headed import HeadedModel
from consilience.pretrained import model_folder, shipped
from consilience.properties.question import Question

ABOUT, WEIGHTS = "property.json", "tuned.safetensors"
FORMAT = 1
HEAD, ADAPTER = "head.", "adapter."
CHUNK = 4096
"""Records that are tokenized together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PropertyModel:
    """What predicts properties of new molecules.

    Args:
        headed: core, embedder and head; adapters are merged.
        target: from outputs to labels.
        targets: their names.
        classes: target -> names of class 0 and 1; empty for numbers.
    """

    headed: HeadedModel
    target: PropertyTarget
    targets: tuple[str, ...]
    classes: Mapping[str, tuple[str, str]]

    def predict(self, records: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, list[Failure]]:
        """Predictions of the records that can be read.

        Returns:
            (n, T) probabilities of class 1, or numbers; (n,) places of these records; the others with reasons.
        """
        values, index, failures = [np.zeros((0, len(self.targets)))], [np.zeros(0, np.int64)], []
        for first in range(0, len(records), CHUNK):
            part = take_records(records, np.arange(first, min(first + CHUNK, len(records))))
            _, good, refused = readable_tokens(self.headed.model, part, self.headed.name)
            values.append(self.target.decode(self.headed.outputs(take_records(part, good))))
            index.append(first + good)
            failures += [
                Failure(index=first + failure.index, id="", reason=failure.reason) for failure in refused
            ]
        return np.concatenate(values), np.concatenate(index), failures


def save_tuned(
    folder: Path,
    tuned: Tuned,
    question: Question,
    base: Path,
    *,
    lora: LoraOptions,
    test: Mapping[str, float],
) -> None:
    """Write a fine-tuned model.

    Args:
        folder: of the new model.
        tuned: what was trained.
        question: that it was trained on.
        base: folder of the model that it started from.
        lora: size of its adapters, if it has any.
        test: its metrics on the test part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{HEAD}{name}": part.detach().contiguous() for name, part in tuned.headed.head.state_dict().items()
    }
    if tuned.method == "lora":
        tensors |= {f"{ADAPTER}{name}": part for name, part in adapter_state(tuned.headed.model.core).items()}
    else:
        tuned.headed.model.save(folder)
    save_file(tensors, folder / f"{WEIGHTS}.part", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.part", folder / WEIGHTS)
    about = {
        "format": FORMAT,
        "method": tuned.method,
        "domain": question.domain.name,
        "targets": question.data.targets,
        "kind": question.data.kind,
        "classes": question.data.classes,
        "mean": tuned.target.mean.tolist(),
        "spread": tuned.target.spread.tolist(),
        "base": {"folder": _named(base), "sha256": question.model_digest},
        "lora": asdict(lora) if tuned.method == "lora" else None,
        "learning_rate": tuned.learning_rate,
        "epoch": tuned.epoch,
        "seed": tuned.seed,
        "validation_loss": tuned.validation_loss,
        "test": dict(test),
        "data": {
            "source": question.data.collection.source,
            "fingerprint": question.data.collection.fingerprint,
        },
        "split": question.digest,
    }
    replace_text(folder / ABOUT, json.dumps(about, indent=1))  # last: a folder with this file is whole


def load_tuned(folder: Path, *, base: Path | None = None, device: str = "cpu") -> PropertyModel:
    """A model written by `save_tuned`.

    Args:
        folder: of `consilience finetune --out`.
        base: where the base model of adapters lies now; default: where it lay then.
        device: cpu, cuda, or auto.

    Raises:
        ConsilienceError: naming the file, when a part is missing or broken, or the base is another model.
    """
    about = _about(folder)
    _check_about(about, folder / ABOUT)
    if base is not None and about["lora"] is None:
        raise ConsilienceError(f"{folder} holds a whole model and needs no base: leave out --base")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ConsilienceError(
            f"{folder / WEIGHTS} is missing, truncated or not a safetensors file"
        ) from error
    try:
        lora, place = about["lora"], Path(about["base"]["folder"])
        target = PropertyTarget(
            kind=about["kind"], mean=np.array(about["mean"]), spread=np.array(about["spread"])
        )
        outputs, width = tensors[f"{HEAD}weight"].shape
        if outputs != target.width:
            raise KeyError(f"{target.width} targets, but a head of {outputs}")
        head = nn.Linear(width, outputs)
        start = (
            folder
            if lora is None
            else _base(model_folder(base or place), about["base"]["sha256"], said=base is not None)
        )
        model = load(start, device=device)
        if lora is not None:
            with torch.random.fork_rng(devices=[]):
                add_adapters(model.core, LoraOptions(**lora))
            load_adapters(
                model.core,
                {
                    name.removeprefix(ADAPTER): part
                    for name, part in tensors.items()
                    if name.startswith(ADAPTER)
                },
            )
            merge_adapters(model.core)
        head.load_state_dict(
            {name.removeprefix(HEAD): part for name, part in tensors.items() if name.startswith(HEAD)}
        )
        headed = HeadedModel(
            model=model.eval(), head=head, name=model.domain_of(about["domain"]), target=target
        )
        headed.to(str(model.device))
        return PropertyModel(
            headed=headed,
            target=target,
            targets=tuple(about["targets"]),
            classes={name: (pair[0], pair[1]) for name, pair in about["classes"].items()},
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise ConsilienceError(
            f"{folder / ABOUT} does not fit its weights: {error!r}; fine-tune again"
        ) from error


def _named(base: Path) -> str:
    """A shipped model is found by its name wherever the package is installed, another one by its place."""
    return base.name if shipped().get(base.name) == base else str(base.resolve())


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConsilienceError(
            f"{folder} holds no {ABOUT}: give the folder that `consilience finetune --out` wrote"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConsilienceError(f"{path} is truncated or not JSON; fine-tune again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ConsilienceError(f"{path} was written by another version of consilience; fine-tune again")
    return about


def _check_about(about: Mapping[str, Any], path: Path) -> None:
    """Raise ConsilienceError where `property.json` does not say what is predicted."""
    targets, kind, classes = about.get("targets"), about.get("kind"), about.get("classes")
    numbers = [about.get("mean"), about.get("spread")]
    good = (
        isinstance(targets, list)
        and len(targets) > 0
        and kind in ("classification", "regression")
        and isinstance(classes, dict)
        and set(classes) == (set(targets) if kind == "classification" else set())
        and all(isinstance(pair, list) and len(pair) == 2 for pair in classes.values())
        and all(isinstance(values, list) and len(values) == len(targets) for values in numbers)
        and isinstance(about.get("base"), dict)
        and "lora" in about
    )
    if not good:
        raise ConsilienceError(f"{path} is damaged (targets, kind, classes or scales); fine-tune again")


def _base(folder: Path, digest: str, *, said: bool) -> Path:
    """The folder of the base model, if it holds the very weights that the adapters were trained for."""
    if not folder.is_dir():
        raise ConsilienceError(
            f"there is no base model at {folder}: name its folder with --base"
            if said
            else f"the base model of these adapters lay in {folder}: say where it is with --base"
        )
    if weights_digest(folder) != digest:
        raise ConsilienceError(
            f"{folder} holds other weights than those the adapters were trained for (SHA-256 {digest[:16]}...): "
            "name the right folder with --base, or fine-tune again"
        )
    return folder
