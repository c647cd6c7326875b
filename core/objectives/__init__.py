"""Pre-training objectives, one file each."""

from consilience.core.objectives.address_only import AddressOnly
from consilience.core.objectives.any_order import AnyOrder
from consilience.core.objectives.base import Objective, Predictor
from consilience.core.objectives.block import Block
from consilience.core.objectives.denoising import Denoising
from consilience.core.objectives.masked import Masked
from consilience.core.objectives.masked_diffusion import MaskedDiffusion
from consilience.core.objectives.next_token import NextToken
from consilience.core.objectives.two_phase import TwoPhase

__all__ = [
    "AddressOnly",
    "AnyOrder",
    "Block",
    "Denoising",
    "Masked",
    "MaskedDiffusion",
    "NextToken",
    "Objective",
    "Predictor",
    "TwoPhase",
]
