"""What the C library does with freed memory: keep it while training, give it back while embedding.

glibc takes every block above 32 MB from the system anew, and the system clears it page by page: a training step of
256 samples spent a quarter of its time there (benchmarks/scaling.py). Other C libraries are left as they are.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEFAULT_MMAP_MAX = 65536
_LARGEST_THRESHOLD = 32 * 2**20
"""What glibc's own threshold grows to in a process with big blocks. It no longer grows once a limit was set, and would
stay at 128 kB."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Big blocks come from the heap, and the heap does not shrink; afterwards it does."""
    library = _c_library()
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        give_back_memory()


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can: batches of many shapes leave holes in the heap."""
    library = _c_library()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _c_library() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
