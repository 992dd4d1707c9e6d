"""Keep freed memory in the process instead of giving every large tensor back to the kernel.

glibc serves each allocation above 128 KiB (at most 32 MiB) by a fresh ``mmap`` and returns it on
``free``, and trims a heap whose top is free; the next step of the same size pays for the page
faults again. With both switched off, the pages stay in the heap and are reused. Measured on a
training step of a 190-atom structure, two threads: 115 → 80 ms; on an evaluation of 24,000 atoms,
one thread, against thresholds of 1 GiB: 365 → 300 µs per atom.
"""

import ctypes
import platform
import sys

M_TRIM_THRESHOLD = -1  # <malloc.h>
M_MMAP_THRESHOLD = -3  # <malloc.h>
NEVER_TRIM = -1
THRESHOLDS = ((1 << 31) - 1, 32 << 20)  # bytes; what an int holds, and what older glibc allows


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks up to 2 GiB; the resident size then stays at its peak.

    Before version 2.35 glibc allows no more than 32 MiB, which is set there: larger blocks still
    go back to the kernel.

    A setting of the whole process, so nothing calls it on import. Calling it twice is harmless.

    Returns
    -------
    bool
        True if the setting was made, False where there is no glibc (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    reused = any(mallopt(M_MMAP_THRESHOLD, threshold) == 1 for threshold in THRESHOLDS)
    untrimmed = mallopt(M_TRIM_THRESHOLD, NEVER_TRIM) == 1
    return reused and untrimmed
