"""consilience: one transformer core, many sciences.

    run = consilience.train("molecules", objective="next-token", out="runs/a")
    model = consilience.load("runs/a")
    vectors = model.embed(["CCO", "c1ccccc1"]).vectors
    new = model.generate(100)

Names are imported when they are first used, so that `import consilience` is quick and needs no science library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience.commands.benchmark import benchmark
    from consilience.commands.data import data
    from consilience.commands.embed import embed
    from consilience.commands.evaluate import evaluate
    from consilience.commands.finetune import finetune
    from consilience.commands.generate import generate
    from consilience.commands.models import load
    from consilience.commands.predict import predict
    from consilience.commands.properties import evaluate_task
    from consilience.commands.tokenize import tokenize
    from consilience.commands.tokens import tokens
    from consilience.commands.train import resume, train
    from consilience.core.errors import ConsilienceError
    from consilience.core.model import Embedding, FoundationModel
    from consilience.core.records import Collection, Failure
    from consilience.core.training_config import TrainingConfig
    from consilience.core.transformer import CoreConfig
    from consilience.study import run_study

__version__ = "0.1.0"

_PLACES = {
    "Collection": "core.records",
    "ConsilienceError": "core.errors",
    "CoreConfig": "core.transformer",
    "Embedding": "core.model",
    "Failure": "core.records",
    "FoundationModel": "core.model",
    "TrainingConfig": "core.training_config",
    "benchmark": "commands.benchmark",
    "data": "commands.data",
    "embed": "commands.embed",
    "evaluate": "commands.evaluate",
    "evaluate_task": "commands.properties",
    "finetune": "commands.finetune",
    "generate": "commands.generate",
    "load": "commands.models",
    "predict": "commands.predict",
    "resume": "commands.train",
    "run_study": "study",
    "tokenize": "commands.tokenize",
    "tokens": "commands.tokens",
    "train": "commands.train",
}
_FOLDERS = ("core", "datasets", "domains", "registry", "study", "tokenizers")

__all__ = [
    "Collection",
    "ConsilienceError",
    "CoreConfig",
    "Embedding",
    "Failure",
    "FoundationModel",
    "TrainingConfig",
    "__version__",
    "benchmark",
    "data",
    "embed",
    "evaluate",
    "evaluate_task",
    "finetune",
    "generate",
    "load",
    "predict",
    "resume",
    "run_study",
    "tokenize",
    "tokens",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in _PLACES:
        found = getattr(importlib.import_module(f"consilience.{_PLACES[name]}"), name)
        globals()[name] = found
        return found
    if name in _FOLDERS:
        return importlib.import_module(f"consilience.{name}")
    raise AttributeError(f"module 'consilience' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__, *_FOLDERS})
