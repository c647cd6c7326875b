"""Freed memory is kept while training and given back afterwards, where the C library can."""

import platform
import resource

import pytest
import torch

from consilience.core.memory import give_back_memory, kept_memory


def faults(numbers: int) -> int:
    """Pages that the system had to provide for ten blocks, each freed before the next."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(numbers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_big_blocks_are_used_again_inside_and_not_outside():
    numbers = 20 * 2**20  # 80 MB: above what glibc ever keeps
    with kept_memory():
        torch.ones(numbers)
        # Threads of earlier tests may take a part of the block that was just given back: the best of a few tries.
        inside = min(faults(numbers) for _ in range(5))
    outside = min(faults(numbers) for _ in range(5))
    assert inside < outside / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_of_a_megabyte_are_used_again_after_training():
    """glibc's own threshold stops growing once it was told anything: at 128 kB all tensors would be mapped anew."""
    with kept_memory():
        pass
    numbers = 2 * 2**20  # 8 MB
    torch.ones(numbers)
    assert (
        faults(numbers) < 10 * numbers * 4 / 4096 / 4
    )  # a page fault for every page of every block otherwise


def test_an_error_restores_the_rule():
    with pytest.raises(ValueError, match="stop"), kept_memory():
        raise ValueError("stop")
    give_back_memory()
