"""The study: objective x science on one core at one budget, beside trivial and classical baselines."""

from consilience.study.plan import Setting, StudyPreset, Variant
from consilience.study.presets import PRESETS
from consilience.study.runner import run_study

__all__ = ["PRESETS", "Setting", "StudyPreset", "Variant", "run_study"]
