"""The presets: quick (a demo of ten minutes), standard (hours on two cores), full (hours on a GPU)."""

from dataclasses import replace

from consilience import registry
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.study.plan import Crossover, Setting, StudyPreset
from consilience.study.variants import variants


def quick() -> StudyPreset:
    """Bundled data of every science, as its `Domain.quick` says; no search of learning rates."""
    settings = []
    for name in registry.DOMAINS:
        chosen = registry.domain(name).quick
        settings.append(
            Setting(
                name=name,
                domain=name,
                variants=variants(*chosen.objectives),
                tasks=chosen.tasks,
                tokenizer=chosen.tokenizer,
                records=chosen.records,
            )
        )
    return StudyPreset(
        name="quick",
        core=CoreConfig(width=96, depth=4, heads=4),
        training=TrainingConfig(
            steps=100,
            tokens_per_batch=1536,
            learning_rate=4e-3,
            optimizer="muon",
            validations=8,
            save_every=0,
        ),
        settings=tuple(settings),
        profile=("masked", "denoising"),
        note=(
            "a first look: a small core and a few hundred thousand tokens per run, sized for ten minutes on two CPU "
            "cores. It shows that everything works and how to read it; it does not settle which objective is best."
        ),
    )


_COMMON = ("masked", "next-token", "any-order", "masked .15", "masked .5", "masked-diffusion", "two-phase")


def standard() -> StudyPreset:
    """The study that docs/study.md reports; all but molecules, points and photometry need the folder of data.

    Where no likelihood can be claimed (points: a centred cloud has no density), orders and blocks are compared by
    probes alone, and the variants that only a likelihood could tell apart are left out.
    """
    main = (
        Setting(
            name="cells",
            domain="cells",
            data="pbmc-sorted",
            tasks=("cell type",),
            variants=variants(
                *_COMMON, "denoising", "ranks", "genome order", "block 4", "block 16", "address-only",
                "ranks, address-only",
            ),
        ),
        Setting(
            name="galaxies",
            domain="galaxies",
            data="galaxies-simulated",
            tasks=("redshift", "log ssfr"),
            variants=variants(
                *_COMMON, "denoising", "reversed", "centre out", "block 4", "block 16", "block flow 16",
                "next-token, mixture", "next-token, flow", "address-only", "address-only, mixture",
            ),
        ),
        Setting(
            name="molecules",
            domain="molecules",
            data="moses-slice",
            tasks=("logP", "QED"),
            variants=variants(*_COMMON, "reversed", "randomised", "block 4", "block 16", "address-only"),
        ),
        Setting(
            name="points",
            domain="points",
            data="qm9",
            tasks=("HOMO-LUMO gap (eV)", "dipole moment (D)"),
            variants=variants(*_COMMON, "denoising", "hilbert", "radial", "random points", "block flow 4"),
        ),
    )  # fmt: skip
    few = variants("masked", "next-token", "masked-diffusion")
    real = variants("masked", "next-token", "masked-diffusion", "denoising")
    more = (
        Setting(
            name="supernovae", domain="galaxies", data="supernovae", tasks=("broad type",), variants=real
        ),
        Setting(name="photometry", domain="galaxies", data="photometry", variants=real),
        Setting(name="PBMC3k to sorted", domain="cells", data="pbmc3k-to-sorted", variants=few),
        Setting(name="sorted to PBMC3k", domain="cells", data="sorted-to-pbmc3k", variants=few),
        Setting(name="Tabula Muris", domain="cells", data="tabula-muris", variants=few),
        Setting(
            name="CITE-seq",
            domain="cells",
            data="cite-cbmc",
            tasks=("cell type", "CD4 protein"),
            variants=few,
        ),
        Setting(name="shapes", domain="points", data="modelnet10", variants=real),
    )
    return StudyPreset(
        name="standard",
        core=CoreConfig(width=96, depth=4, heads=4),
        training=TrainingConfig(
            steps=250,
            tokens_per_batch=2048,
            learning_rate=4e-3,
            optimizer="muon",
            validations=8,
            save_every=0,
        ),
        settings=main + more,
        seeds=3,
        learning_rates=(2e-3, 4e-3, 8e-3, 16e-3),
        profile=("masked", "masked-diffusion", "denoising"),
        sharing=("next-token", "masked"),
        transfer="masked",
        crossover=Crossover(
            setting="molecules", variants=("next-token", "masked-diffusion"), records=(400, 4000), epochs=120
        ),
        note=(
            "two CPU cores, a few hours, resumable. A small core and half a million tokens a run: it compares "
            "objectives at one small budget and does not say what happens at a larger one."
        ),
    )


def full() -> StudyPreset:
    """The same questions with a larger core, more tokens and five seeds; one GPU, hours."""
    small = standard()
    return replace(
        small,
        name="full",
        core=CoreConfig(width=384, depth=8, heads=6),
        training=replace(small.training, steps=8000, tokens_per_batch=32_768, learning_rate=2e-3, workers=8),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        seeds=5,
        evaluation_records=2048,
        note="one GPU, hours. Nobody has run it to the end yet unless docs/study.md says so.",
    )


PRESETS = {"quick": quick, "standard": standard, "full": full}
"""Name -> what makes the preset (the quick one looks the sciences up)."""
