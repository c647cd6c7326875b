"""Drawing records batch by batch; what was drawn is kept beside the output until that is written.

Every batch has a seed of its own, so that a command that was stopped goes on with the same numbers.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from consilience.commands.console import bar
from consilience.core.batch import TokenBatch
from consilience.core.checkpoint import CONFIG, WEIGHTS
from consilience.core.generation import batch_seed

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.commands.generate import Asked
    from consilience.commands.given import Shown
    from consilience.core.model import FoundationModel

JOB = "job.json"


@dataclass(frozen=True)
class Kept:
    """The batches of one output, in a hidden folder beside it.

    Args:
        folder: there is one, and it holds batches of this job alone.
    """

    folder: Path

    @classmethod
    def of(cls, target: Path, model: Path, asked: "Asked", domain: str, device: str) -> "Kept":
        """Those of the same job, as far as it came; another job's are removed."""
        folder = _beside(target)
        whose = json.dumps({"job": _fingerprint(model, asked, domain, device)})
        told = folder / JOB
        if folder.exists() and (not told.is_file() or told.read_text() != whose):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told.write_text(whose)
        return cls(folder)

    def read(self, place: int) -> TokenBatch | None:
        """A batch that was drawn before; None where there is none, or none that can be read."""
        path = self._path(place)
        try:
            return _tokens(load_file(path)) if path.is_file() else None
        except (
            SafetensorError,
            OSError,
            TypeError,
            ValueError,
        ):  # a disk that was full, a machine that lost power
            path.unlink(missing_ok=True)
            return None

    def write(self, place: int, tokens: TokenBatch) -> None:
        """Keep a batch; it is there whole or not at all."""
        part = self._path(place).with_suffix(".part")
        # Copies: the format refuses tensors that share memory, as those of a batch may.
        save_file({name: tensor.contiguous().clone() for name, tensor in _named(tokens).items()}, part)
        os.replace(part, self._path(place))

    @staticmethod
    def forget(target: Path) -> None:
        """Remove those of any job: the output is written."""
        shutil.rmtree(_beside(target), ignore_errors=True)

    def _path(self, place: int) -> Path:
        return self.folder / f"batch-{place:08d}.safetensors"


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.batches").absolute()


def _fingerprint(model: Path, asked: "Asked", domain: str, device: str) -> str:
    """A hash of the model, of what is asked and of the file beside it (its size and date)."""
    told: dict[str, Any] = {"domain": domain, "device": device} | asdict(asked)
    if asked.given is not None:
        state = asked.given.stat()
        told |= {"given": str(asked.given.absolute()), "size": state.st_size, "changed": state.st_mtime_ns}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name in (CONFIG, WEIGHTS):
        with (model / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _named(tokens: TokenBatch) -> "dict[str, Tensor]":
    """Name -> tensor; those of a context are named `context.MODALITY.FIELD`."""
    found = {}
    for field in fields(tokens):
        value = getattr(tokens, field.name)
        if isinstance(value, torch.Tensor):
            found[field.name] = value
        elif value is not None:
            for name, beside in value.items():
                found |= {f"{field.name}.{name}.{key}": tensor for key, tensor in _named(beside).items()}
    return found


def _tokens(named: "Mapping[str, Tensor]") -> TokenBatch:
    own: dict[str, Any] = {}
    beside: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        if "." in name:
            _, modality, field = name.split(".")
            beside.setdefault(modality, {})[field] = tensor
        else:
            own[name] = tensor
    context = {modality: _tokens(parts) for modality, parts in beside.items()}
    return TokenBatch(**own, context=context or None)


def draw(
    model: "FoundationModel",
    asked: "Asked",
    domain: str,
    options: Mapping[str, Any],
    *,
    progress: bool,
    told: "Tensor | None" = None,
    given: "Shown | None" = None,
    kept: Kept | None = None,
) -> TokenBatch:
    """`model.generate_tokens` batch by batch with a bar; the first batch has the seed itself, later ones their own.

    Args:
        model: draws.
        asked: how many, the seed, the batch size and the precision.
        domain: of the records.
        options: of the sampler, and the pattern.
        progress: show the bar.
        told: (n, K) conditions.
        given: records of another modality, one for each.
        kept: batches that were drawn before, and where new ones are kept; None = nowhere.
    """
    lower = torch.autocast(model.device.type, dtype=torch.bfloat16)
    done: list[TokenBatch] = []
    with bar("records", shown=progress) as shown:
        task = shown.add_task("generating", total=asked.n, note="")
        try:
            for place, first in enumerate(range(0, asked.n, asked.batch_size)):
                count = min(asked.batch_size, asked.n - first)
                tokens = None if kept is None else kept.read(place)
                if tokens is None:
                    with nullcontext() if asked.precision == "32-true" else lower:
                        tokens = model.generate_tokens(
                            count,
                            domain=domain,
                            seed=batch_seed(asked.seed, place),
                            batch_size=count,
                            conditions=None if told is None else told[first : first + count],
                            context=None if given is None else given.take(range(first, first + count)),
                            **options,
                        )
                    if kept is not None:
                        kept.write(place, tokens)
                done.append(tokens)
                shown.update(task, advance=count)
        except KeyboardInterrupt as stopped:
            if kept is None or not done:
                raise
            count = sum(tokens.size for tokens in done)
            raise KeyboardInterrupt(
                f"interrupted; {count} of {asked.n} records are kept, and the same command goes on"
            ) from stopped
    return TokenBatch.concatenate(done)
