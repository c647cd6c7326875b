"""The study: objective x science on one core at one budget, beside trivial and classical baselines."""

from consilience.study.presets import PRESETS, StudyPreset
from consilience.study.runner import run_study

__all__ = ["PRESETS", "StudyPreset", "run_study"]
