"""Freed memory is kept while training and given back afterwards, where the C library can.

Asked of the C library itself (`mallinfo2`): page faults and resident sizes are disturbed by threads of other tests, and
some sandboxes do not count them at all.
"""

import ctypes

import pytest
import torch

from consilience.core.memory import give_back_memory, kept_memory

FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)
BIG = 20 * 2**20
"""Numbers in a block of 80 MB: above what glibc ever keeps by itself."""


class Mallinfo(ctypes.Structure):
    """<malloc.h>, struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


@pytest.fixture
def mapped():
    """Bytes of the blocks that were taken from the system one by one, and go back to it when freed."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("no mallinfo2 in this C library")
    library.mallinfo2.restype = Mallinfo
    return lambda: library.mallinfo2().hblkhd


def growth(mapped, numbers):
    """Of the mapped bytes while a block of so many float32 numbers is held."""
    before = mapped()
    block = torch.ones(numbers)
    grown = mapped() - before
    del block
    return grown


def test_big_blocks_are_of_the_heap_inside_and_mapped_outside(mapped):
    with kept_memory():
        assert growth(mapped, BIG) == 0
    assert growth(mapped, BIG) >= 4 * BIG


def test_blocks_of_a_megabyte_are_of_the_heap_after_training_too(mapped):
    """glibc's own threshold stops growing once it was told anything: at 128 kB all tensors would be mapped anew."""
    # M_MMAP_THRESHOLD, as in a process that has had no big block yet
    ctypes.CDLL(None).mallopt(-3, 128 * 2**10)
    with kept_memory():
        pass
    assert growth(mapped, 2 * 2**20) == 0


def test_an_error_restores_the_rule(mapped):
    with pytest.raises(ValueError, match="stop"), kept_memory():
        raise ValueError("stop")
    assert growth(mapped, BIG) >= 4 * BIG
    give_back_memory()
