"""The variants that presets name: objective, options, tokenizer and where each is shown.

Orders of tokens that have addresses (wavelengths, places in a string) are options of the objective; orders of genes
and of points, and other spellings of a molecule, are options of the tokenizer.
"""

from typing import Any

from consilience.study.plan import Variant

VARIANTS: dict[str, dict[str, Any]] = {
    "next-token": {"objective": "next-token", "figures": ("table", "orders", "dial", "heads")},
    "any-order": {"objective": "any-order", "figures": ("table", "orders")},
    "masked .15": {"objective": "masked", "options": {"rate": 0.15}, "figures": ("table", "rates")},
    "masked .5": {"objective": "masked", "options": {"rate": 0.5}, "figures": ("rates",)},
    "masked": {"objective": "masked", "figures": ("table", "rates")},
    "masked-diffusion": {"objective": "masked-diffusion", "figures": ("table", "dial")},
    "denoising": {"objective": "denoising", "figures": ("table",)},
    "two-phase": {"objective": "two-phase", "figures": ("table",)},
    "address-only": {"objective": "address-only", "figures": ("floor",)},
    # The dial: blocks of b tokens, next-token at one end, masked diffusion (or denoising) at the other.
    "block 1": {"objective": "block", "options": {"size": 1}, "figures": ("dial",)},
    "block 4": {"objective": "block", "options": {"size": 4}, "figures": ("dial",)},
    "block 16": {"objective": "block", "options": {"size": 16}, "figures": ("dial",)},
    "block flow 4": {"objective": "block", "options": {"size": 4, "noise": "gaussian"}, "figures": ("dial",)},
    "block flow 16": {
        "objective": "block",
        "options": {"size": 16, "noise": "gaussian"},
        "figures": ("dial",),
    },
    # Orders of tokens with addresses.
    "reversed": {"objective": "next-token", "options": {"order": "reversed"}, "figures": ("orders",)},
    "centre out": {"objective": "next-token", "options": {"order": "centre-out"}, "figures": ("orders",)},
    "genome order": {"objective": "next-token", "tokenizer": {"order": "vocabulary"}, "figures": ("orders",)},
    # The transpose: the rank is the address and the gene is the content.
    "ranks": {"objective": "next-token", "tokenizer": {"view": "ranks"}, "figures": ("table",)},
    "ranks, address-only": {
        "objective": "address-only",
        "tokenizer": {"view": "ranks"},
        "figures": ("floor",),
    },
    # Other spellings of one molecule.
    "randomised": {"objective": "next-token", "tokenizer": {"form": "randomised"}, "figures": ("orders",)},
    # Orders of points.
    "hilbert": {"objective": "next-token", "tokenizer": {"order": "hilbert"}, "figures": ("orders",)},
    "radial": {"objective": "next-token", "tokenizer": {"order": "radial"}, "figures": ("orders",)},
    "random points": {"objective": "next-token", "tokenizer": {"order": "random"}, "figures": ("orders",)},
    # Heads for real-valued content.
    "next-token, mixture": {"objective": "next-token", "options": {"head": "mixture"}, "figures": ("heads",)},
    "next-token, flow": {"objective": "next-token", "options": {"head": "flow"}, "figures": ("heads",)},
    "address-only, mixture": {
        "objective": "address-only",
        "options": {"head": "mixture"},
        "figures": ("floor",),
    },
}


def variants(*names: str) -> tuple[Variant, ...]:
    """Variants by name; a name that is not in the table is that of an objective, with its defaults."""
    return tuple(Variant(name=name, **VARIANTS.get(name, {"objective": name})) for name in names)
