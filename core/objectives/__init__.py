"""Pre-training objectives, one file each."""

from consilience.core.objectives.base import Objective, Predictor
from consilience.core.objectives.denoising import Denoising
from consilience.core.objectives.masked import Masked
from consilience.core.objectives.masked_diffusion import MaskedDiffusion
from consilience.core.objectives.next_token import NextToken

__all__ = ["Denoising", "Masked", "MaskedDiffusion", "NextToken", "Objective", "Predictor"]
