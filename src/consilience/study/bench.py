"""The data of a study, prepared once for every setting and tokenizer, and the cost of a step of every variant."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from consilience import registry
from consilience.core.errors import ConsilienceError
from consilience.core.feed import TokenFeed
from consilience.core.flops import StepCost, step_cost
from consilience.core.model import FoundationModel
from consilience.core.records import Collection, fingerprint
from consilience.domains.base import Task
from consilience.domains.preparation import Prepared, limited, load_collection, prepare
from consilience.domains.splits import Split
from consilience.study import data as sets
from consilience.study.plan import Setting, StudyPreset, Variant

logger = logging.getLogger(__name__)

COSTS = "costs.json"
"""The costs of steps in the folder of a study; written when it begins."""
COUNTED_STEPS = 4
"""Steps whose operations are counted for the cost of a variant."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that jobs work on.

    Args:
        preset: the study.
        prepared: (setting, tokenizer options as JSON) -> its data; the records of a setting are shared.
        costs: (setting, variant) -> the cost of a training step.
    """

    preset: StudyPreset
    prepared: Mapping[tuple[str, str], Prepared]
    costs: Mapping[tuple[str, str], StepCost]

    def of(self, setting: Setting, variant: Variant | None = None) -> Prepared:
        """The data of a setting, as a variant tokenizes them."""
        return self.prepared[setting.name, tokenizer_key(setting, variant)]

    def budget(self, setting: Setting) -> float:
        """Floating-point operations of every run of a setting."""
        return self.preset.training.steps * self.costs[setting.name, setting.variants[0].name].flops

    def steps(self, setting: Setting, variant: Variant, share: float = 1.0) -> int:
        """As many steps of a variant as the budget (or a share of it) pays for."""
        return max(1, round(share * self.budget(setting) / self.costs[setting.name, variant.name].flops))

    def tasks(self, setting: Setting) -> list[Task]:
        """The tasks that are read out."""
        prepared = self.of(setting)
        tasks = prepared.domain.tasks(prepared.collection)
        known = {task.name: task for task in tasks}
        unknown = [name for name in setting.tasks if name not in known]
        if unknown:
            raise ConsilienceError(
                f"setting {setting.name} asks for the task '{unknown[0]}'; its data have: {', '.join(known)}"
            )
        return [known[name] for name in setting.tasks] or tasks[:1]


def tokenizer_key(setting: Setting, variant: Variant | None) -> str:
    """The options of the tokenizer of a variant, as text."""
    return json.dumps({**setting.tokenizer, **(variant.tokenizer if variant else {})}, sort_keys=True)


def open_bench(
    preset: StudyPreset, folder: Path, *, data: Path | None, tell: Callable[[str], None]
) -> tuple[Bench, StudyPreset]:
    """Read and tokenize; settings whose data are not at hand are left out with a warning.

    Returns:
        The bench, and the preset with the settings that are there, their tasks and tokenizers filled in.
    """
    if any(setting.data is not None for setting in preset.settings):
        sets.data_folder(data)  # a folder that is none is an error, one without some of the data is not
    prepared: dict[tuple[str, str], Prepared] = {}
    settings = []
    for setting in preset.settings:
        tell(f"{setting.name}: reading and tokenizing")
        found = _read(setting, data)
        if found is None:
            continue
        setting, collection, split = found
        domain = registry.domain(setting.domain)
        for variant in (None, *setting.variants):
            key = tokenizer_key(setting, variant)
            if (setting.name, key) not in prepared:
                options = json.loads(key)
                prepared[setting.name, key] = prepare(domain, collection, tokenizer=options, split=split)
        settings.append(setting)
    if not settings:
        raise ConsilienceError("none of the data of this study are at hand; see the warnings above")
    preset = replace(preset, settings=tuple(settings))
    tell("counting operations")
    costs = _costs(preset, prepared, folder / COSTS)
    return Bench(preset=preset, prepared=prepared, costs=costs), preset


def _read(setting: Setting, data: Path | None) -> tuple[Setting, Collection, Split | None] | None:
    if setting.data is None:
        domain = registry.domain(setting.domain)
        return setting, limited(load_collection(domain, None), setting.records), None
    chosen = sets.get(setting.data)
    try:
        collection = limited(chosen.load(data), setting.records)
    except ConsilienceError as error:
        logger.warning("%s is left out: %s", setting.name, error)
        return None
    split = chosen.split_of(collection)
    setting = replace(
        setting,
        tasks=setting.tasks or chosen.tasks,
        tokenizer={**chosen.tokenizer, **setting.tokenizer},
    )
    return setting, collection, split


def _costs(
    preset: StudyPreset, prepared: Mapping[tuple[str, str], Prepared], path: Path
) -> dict[tuple[str, str], StepCost]:
    """The cost of a step of every variant, kept in a file: counting takes a second each."""
    try:
        kept = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        kept = {}
    found = {}
    for setting in preset.settings:
        for variant in setting.variants:
            part = prepared[setting.name, tokenizer_key(setting, variant)]
            objective = variant.build()
            name = fingerprint(
                [part.fingerprint, tokenizer_key(setting, variant), repr(objective), repr(preset.core),
                 str(preset.training.tokens_per_batch)]
            )  # fmt: skip
            if name not in kept:
                feed = TokenFeed(
                    {setting.domain: part.source("train")},
                    steps=COUNTED_STEPS,
                    tokens_per_batch=preset.training.tokens_per_batch,
                    seed=0,
                )
                torch.manual_seed(0)
                model = FoundationModel(preset.core, {setting.domain: part.tokenizer}, objective)
                kept[name] = vars(step_cost(model, [feed[step] for step in range(len(feed))]))
                path.write_text(json.dumps(kept, indent=1))
            found[setting.name, variant.name] = StepCost(**kept[name])
    return found
