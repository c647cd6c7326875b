"""Train one shared core on one or several sciences."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience import registry
from consilience.commands.choices import (
    Files,
    Options,
    build,
    check_names,
    file_words,
    files_by_science,
    options_by_science,
    parse_files,
)
from consilience.commands.console import Interrupted, loss_in_words, say
from consilience.commands.models import find_data
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError
from consilience.domains.settings import SETTINGS, check_same, read_settings
from consilience.pretrained import model_folder

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.core.objectives import Objective
    from consilience.core.training_config import TrainingConfig
    from consilience.core.transformer import CoreConfig
    from consilience.domains.pretraining import TrainedRun

SMALL_CORE = {"width": 128, "depth": 4, "heads": 4}
SHORT_TRAINING = {"steps": 1000}
"""Defaults here are for a laptop: minutes, not hours."""


def train(
    domains: str | Sequence[str],
    *,
    out: str | Path,
    objective: str = "masked",
    data: Files | None = None,
    objective_options: Options | None = None,
    tokenizer_options: Options | None = None,
    read_options: Options | None = None,
    weights: Mapping[str, float] | None = None,
    limit: int | None = None,
    parts: Sequence[float] | None = None,
    condition: Sequence[str] = (),
    condition_column: Sequence[str] = (),
    condition_dropout: float = 0.1,
    condition_dropout_all: float = 0.1,
    pairs: bool = False,
    alone: float = 0.25,
    core: "CoreConfig | Options | None" = None,
    training: "TrainingConfig | Options | None" = None,
    init_core: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> "TrainedRun":
    """Train one set of core weights on the data of one or several sciences.

    Args:
        domains: the sciences: cells, galaxies, molecules, points, or package.module:NAME of your own.
        out: the folder of the run; new or empty unless the run in it is resumed.
        objective: what to train with: next-token, any-order, masked, masked-diffusion, denoising, block, two-phase,
            address-only, or package.module:NAME.
        data: a file, or one for each science (--data cells=a.h5ad --data points=b.xyz; in Python a dictionary);
            the name of a fetched data set and the folder of `consilience tokenize` work too. Bundled data where
            left out.
        objective_options: of the objective, such as --objective-options.rate 0.3.
        tokenizer_options: of the tokenizer, such as --tokenizer-options.max_length 96; with several sciences by
            science: '{cells: {max_genes: 256}}'.
        read_options: of the reader of the file, written like tokenizer options.
        weights: shares of the steps of several sciences, such as '{cells: 2}'; 1 where left out.
        limit: use at most this many records of each science, drawn with a fixed seed.
        parts: shares of train, validation and test, such as 0.98 0.01 0.01; default: 0.7 0.1 0.2. A group (a
            scaffold, an object) stays in one part.
        condition: properties that generation may ask for, computed from every record (molecules: logp, qed, tpsa,
            weight, rings, hbd, hba, sa), such as --condition logp qed.
        condition_column: the same, numeric columns of the file, such as --condition-column pIC50; empty = not known.
        condition_dropout: probability that training hides a property of a record, each on its own.
        condition_dropout_all: probability that training hides all properties of a record.
        pairs: the sciences are modalities of the same objects, such as --pairs with molecules and points: one file that
            holds them all (QM9, .sdf), or one for each with the same ids. The core then learns each modality alone and
            given the others.
        alone: share of the steps of pairs that predict one modality without the others.
        core: size and options of the transformer.
        training: steps, batch size, learning rate and so on.
        init_core: start from the core of the model in this folder, or of one that comes with the package, whatever its
            science.
        resume: go on with the run in `out`; its own settings count.
        progress: show a bar with the rate and the time left.

    Returns:
        The model, what the run did (with `outcome.interrupted` after Ctrl-C) and the data with its split.
    """
    from consilience.core.checkpoint import read_config
    from consilience.core.training_config import TrainingConfig
    from consilience.core.transformer import CoreConfig
    from consilience.domains.conditions import Wanted
    from consilience.domains.pairing import teller
    from consilience.domains.pretraining import train_domains

    folder = Path(out).expanduser()
    names = [domains] if isinstance(domains, str) else list(domains)
    if not names:
        raise ConsilienceError(f"name a science to train on: {', '.join(registry.names('domain'))}")
    chosen = [registry.domain(name) for name in names]
    sciences = [domain.name for domain in chosen]
    if len(set(sciences)) < len(sciences):
        raise ConsilienceError(f"a science stands twice in {', '.join(sciences)}; name each once")
    if pairs and len(chosen) < 2:
        raise ConsilienceError(
            f"pairs need two sciences, not {sciences[0]} alone: name both, such as molecules points"
        )
    if pairs and data is not None and not isinstance(data, Mapping):
        data = {teller(chosen, find_data(data)): data}
    files = {name: find_data(path) for name, path in files_by_science(data, sciences).items()}
    tokenizers = options_by_science(tokenizer_options, sciences, "tokenizer_options")
    readers = options_by_science(read_options, sciences, "read_options")
    asked = build(CoreConfig, core, SMALL_CORE, "core")
    how = build(TrainingConfig, training, SHORT_TRAINING, "training")
    settings: dict[str, Any] = {
        "domains": names,
        "objective": objective,
        "objective_options": dict(objective_options or {}),
        "data": [f"{name}={path.absolute()}" for name, path in files.items()],
        "tokenizer_options": tokenizers,
        "read_options": readers,
        "weights": dict(weights or {}),
        "limit": limit,
        "parts": None if parts is None else list(parts),
        "init_core": None if init_core is None else str(model_folder(init_core).absolute()),
        "core": asdict(asked),
        "training": asdict(how),
    }
    wanted = None
    if condition or condition_column:
        wanted = Wanted(
            computed=tuple(condition),
            columns=tuple(condition_column),
            drop_each=condition_dropout,
            drop_all=condition_dropout_all,
        )
        settings |= {
            "condition": list(condition),
            "condition_column": list(condition_column),
            "condition_dropout": condition_dropout,
            "condition_dropout_all": condition_dropout_all,
        }
    elif (condition_dropout, condition_dropout_all) != (0.1, 0.1):
        raise ConsilienceError(
            "--condition-dropout needs --condition or --condition-column: there is nothing to hide"
        )
    if pairs:
        if not 0 <= alone < 1:
            raise ConsilienceError(
                f"alone is a share of the steps in [0, 1), not {alone}; pairs at 1 are never seen"
            )
        settings |= {"pairs": True, "alone": alone}
    if limit is not None and limit < 1:
        raise ConsilienceError(f"limit must be at least 1 record, not {limit}")
    if resume:
        check_same(folder, settings)
    elif init_core is not None:
        read_config(model_folder(init_core))  # a wrong folder is told before the data are read
    return train_domains(
        chosen,
        build_objective(objective, objective_options or {}),
        data=files,
        read=readers,
        tokenizers=tokenizers,
        limit=limit,
        parts=parts,
        core=asked,
        training=how,
        folder=folder,
        resume=resume,
        conditions=wanted,
        alone=alone if pairs else None,
        weights=weights,
        init_core=None if init_core is None else model_folder(init_core),
        settings=settings,
        progress=progress,
    )


def resume(out: str | Path, *, progress: bool = True) -> "TrainedRun":
    """Go on with an interrupted run, with the settings in its folder.

    Args:
        out: the folder of the run.
        progress: show a bar with the rate and the time left.
    """
    folder = Path(out).expanduser()
    settings = read_settings(folder)
    if not settings:
        raise ConsilienceError(f"nothing to resume: {folder} holds no {SETTINGS}")
    settings["data"] = parse_files(file_words(settings["data"]))
    return train(**settings, out=folder, resume=True, progress=progress)


def build_objective(name: str, options: Options) -> "Objective":
    """The objective of this name with these options; ConsilienceError for one that it does not have."""
    cls = registry.objective(name)
    check_names(options, [field.name for field in fields(cls)], f"objective {name!r}")
    try:
        return cls(**options)
    except TypeError as error:
        raise ConsilienceError(f"objective {name!r} cannot take {dict(options)}: {error}") from error


class AppendFile(argparse.Action):
    """Repeated `--data`, after whatever a config file says in whatever form."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Append one word."""
        setattr(namespace, self.dest, [*file_words(getattr(namespace, self.dest)), values])


def new_parser() -> CommandParser:
    """The options of `consilience train`."""
    from jsonargparse import ActionConfigFile

    from consilience.core.training_config import TrainingConfig
    from consilience.core.transformer import CoreConfig

    parser = CommandParser("train", train, "DOMAIN [DOMAIN ...] --out FOLDER [options]")
    parser.add_argument("sciences", nargs="*", metavar="DOMAIN", help=parser.helps["domains"])
    parser.option("--domains", type=list[str], default=[], help=argparse.SUPPRESS)  # as in settings.yaml
    parser.option("--out", type=str, required=True, metavar="FOLDER")
    parser.option("--objective", metavar="NAME")
    parser.option("--data", action=AppendFile, metavar="FILE")
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="a YAML file of options, such as the settings.yaml of a run.",
    )
    parser.option("--resume", action="store_true")
    parser.option("--init-core", type=str | None, metavar="FOLDER")
    parser.option("--limit", type=int | None, metavar="N")
    parser.option("--parts", nargs=3, type=float, metavar=("TRAIN", "VALIDATION", "TEST"))
    parser.option("--condition", nargs="+", type=str, metavar="NAME")
    parser.option("--condition-column", nargs="+", type=str, metavar="NAME")
    parser.option("--condition-dropout", type=float)
    parser.option("--condition-dropout-all", type=float)
    parser.option("--pairs", action="store_true")
    parser.option("--alone", type=float)
    parser.option("--weights", type=dict[str, float], default={})
    parser.option("--objective-options", type=dict[str, Any], default={})
    parser.option("--tokenizer-options", type=dict[str, Any], default={})
    parser.option("--read-options", type=dict[str, Any], default={})
    parser.option("--progress", type=bool)
    parser.add_argument("--core", type=CoreConfig, default=CoreConfig(**SMALL_CORE))  # type: ignore[arg-type]
    parser.add_argument("--training", type=TrainingConfig, default=TrainingConfig(**SHORT_TRAINING))  # type: ignore[arg-type]
    return parser


def expand(argv: Sequence[str]) -> list[str]:
    """With --resume, the settings of the run come first, so that nothing needs to be said again."""
    argv = list(argv)
    if "--resume" not in argv:
        return argv
    places = [text.partition("=")[2] for text in argv if text.startswith("--out=")]
    places += [after for before, after in pairwise(argv) if before == "--out"]
    saved = [Path(place).expanduser() / SETTINGS for place in places]
    return [*(f"--config={path}" for path in saved[:1] if path.is_file()), *argv]


def run(options: "Namespace") -> None:
    """`consilience train`."""
    from consilience.core.distributed import writes
    from consilience.core.objectives.base import weakened
    from consilience.core.training import LAST

    given = options.as_dict()
    given.pop("config", None)
    given["domains"] = given.pop("sciences") or given["domains"]
    given["data"] = parse_files(file_words(given["data"]))
    folder = Path(options.out)
    again = f"consilience train --out {folder} --resume"
    try:
        done = train(**given)
    except KeyboardInterrupt:
        begun = f"go on with: {again}" if (folder / SETTINGS).is_file() else "nothing was written"
        raise Interrupted(f"interrupted; {begun}") from None
    outcome = done.outcome
    if outcome.interrupted:
        kept = f"{folder / LAST} holds" if (folder / LAST).is_file() else f"{folder} holds the start of"
        raise Interrupted(
            f"interrupted at step {outcome.steps} of {options.training.steps}: {kept} the run; "
            f"go on with: {again}"
        )
    if not writes():  # of several processes the first one speaks
        return
    for name, values in outcome.history.validation.items():
        kind = weakened(done.model.objective.kind, done.model.predictor(name).likelihoods)
        beside = " given " + " and ".join(other for other in done.prepared if other != name)
        say(f"{name}{beside if options.pairs else ''}: validation: {loss_in_words(values[-1][1], kind)}")
    # Without a test part there is nothing to evaluate on.
    tested = any(len(part.split.test) for part in done.prepared.values())
    following = f"evaluate {folder}" if tested else f"embed {folder} YOUR_FILE --out FILE"
    say(
        f"{folder}: {outcome.steps} steps, {outcome.tokens:,} tokens in {outcome.seconds:.0f} s; "
        f"next: consilience {following}"
    )
