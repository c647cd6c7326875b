"""What a study runs: one size of core, one budget, the sciences and the seeds."""

from dataclasses import dataclass, field

from consilience.core.errors import ConsilienceError
from consilience.core.training import TrainingConfig
from consilience.core.transformer import CoreConfig


@dataclass(frozen=True, kw_only=True)
class StudyPreset:
    """A study in full; every objective and science gets the same core and the same steps and tokens.

    Args:
        name: of the preset.
        core: size of the transformer.
        training: steps, tokens a step and everything else; the seed is replaced by each seed of the study.
        domains: the sciences.
        seeds: how many seeds.
        evaluation_records: held-out records on which losses are measured.
        evaluation_draws: draws of order or corruption per held-out record.
    """

    name: str
    core: CoreConfig
    training: TrainingConfig
    domains: tuple[str, ...] = ("cells", "galaxies", "molecules", "points")
    seeds: int = 2
    evaluation_records: int = 256
    evaluation_draws: int = 4
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConsilienceError(f"a study needs at least one seed, not {self.seeds}")
        if not self.domains:
            raise ConsilienceError("a study needs at least one science")


QUICK = StudyPreset(
    name="quick",
    core=CoreConfig(width=96, depth=4, heads=4),
    training=TrainingConfig(
        steps=120, tokens_per_batch=1536, learning_rate=4e-3, optimizer="muon", validations=8, save_every=0
    ),
    note=(
        "a first look: a small core and a few hundred thousand tokens per run, sized for ten minutes on two CPU "
        "cores. It shows that everything works and how to read it; it does not settle which objective is best."
    ),
)

PRESETS = {"quick": QUICK}
