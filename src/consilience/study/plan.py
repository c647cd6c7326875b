"""What a study runs: one size of core, one budget of floating-point operations, settings, variants and seeds.

A *setting* is a science with its data, tokenizer and tasks; a *variant* is an objective with its options, and with
options of the tokenizer where those are what is compared (an order of genes, of atoms, of points).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from consilience import registry
from consilience.core.errors import ConsilienceError
from consilience.core.objectives import Objective
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig

Figure = Literal["table", "orders", "dial", "rates", "heads", "floor"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to pre-train.

    Args:
        name: for people, unique within a setting.
        objective: its name in the registry.
        options: of the objective.
        tokenizer: options that differ from the setting's.
        figures: where it is shown: table (the main comparison), orders, dial, rates, heads, floor (the address-only
            marginal that captured dependence is counted from).
    """

    name: str
    objective: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ("table",)

    @property
    def identity(self) -> tuple[str, str]:
        """What decides its numbers, whatever it is called; the tokenizer counts for itself."""
        return self.objective, json.dumps(dict(self.options), sort_keys=True)

    def build(self) -> Objective:
        """The objective itself."""
        return registry.objective(self.objective)(**self.options)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A science with data.

    Args:
        name: unique in the study.
        domain: the science.
        data: name of a set of `study.data`; None = what is bundled.
        variants: what is compared; the first one's cost per step sets the budget.
        tasks: names of the tasks read out; empty = the first.
        tokenizer: its options.
        records: at most this many, drawn with a fixed seed; None = all, or what the set says.
    """

    name: str
    domain: str
    data: str | None = None
    variants: tuple[Variant, ...]
    tasks: tuple[str, ...] = ()
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    records: int | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names):
            raise ConsilienceError(f"setting {self.name}: variants need names of their own, not {names}")


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Loss against epochs where data are few: next-token beside masked diffusion.

    Args:
        setting: name of the setting.
        variants: names of its variants.
        records: numbers of training records.
        epochs: passes over the fewest records; more records see as many tokens in fewer passes.
        seeds: how many.
    """

    setting: str
    variants: tuple[str, ...]
    records: tuple[int, ...]
    epochs: float
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class StudyPreset:
    """A study in full.

    Args:
        name: of the preset.
        core: size of the transformer, the same for every row.
        training: everything about a run; `steps` are those of the first variant of each setting, and every other
            variant gets as many as cost the same floating-point operations. The seed is replaced by each seed of
            the study, the learning rate by the chosen one.
        settings: what is compared on which data.
        seeds: how many.
        learning_rates: the grid that every variant chooses from on validation loss; empty = `training`'s for all.
        trial: share of the budget of each trial of a learning rate.
        evaluation_records: held-out records on which losses are measured.
        evaluation_draws: draws of order or corruption per held-out record, where there are any.
        supervised: whether the same core is trained on the labels from scratch, as the upper reference.
        profile: names of variants whose models draw the information profile.
        sharing: names of variants that are also trained on all sciences at once, at the same total cost.
        transfer: name of the variant whose trunks are carried from science to science; None = none. These runs get
            half the budget.
        alignment: whether representations of one science are compared by neighbours.
        crossover: the data-constrained comparison; None = none.
        note: what the preset is for.
    """

    name: str
    core: CoreConfig
    training: TrainingConfig
    settings: tuple[Setting, ...]
    seeds: int = 2
    learning_rates: tuple[float, ...] = ()
    trial: float = 0.25
    evaluation_records: int = 256
    evaluation_draws: int = 4
    supervised: bool = True
    profile: tuple[str, ...] = ()
    sharing: tuple[str, ...] = ()
    transfer: str | None = None
    alignment: bool = True
    crossover: Crossover | None = None
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConsilienceError(f"a study needs at least one seed, not {self.seeds}")
        if not self.settings:
            raise ConsilienceError("a study needs at least one science")
        if not 0 < self.trial <= 1:
            raise ConsilienceError(f"a trial is a share of the budget in (0, 1], not {self.trial}")

    @property
    def main(self) -> tuple[Setting, ...]:
        """The first setting of every science: what is done first, and whose cores are shared and carried over."""
        found: dict[str, Setting] = {}
        for setting in self.settings:
            found.setdefault(setting.domain, setting)
        return tuple(found.values())

    @property
    def tiers(self) -> tuple[tuple[Setting, ...], ...]:
        """The main settings, then the others."""
        names = {setting.name for setting in self.main}
        others = tuple(setting for setting in self.settings if setting.name not in names)
        return (self.main, others) if others else (self.main,)

    def setting(self, name: str) -> Setting:
        """The setting of this name."""
        return next(setting for setting in self.settings if setting.name == name)
