"""glibc's allocator, told to keep what is freed.

By default it gives large blocks back to the kernel as soon as they are free, and every tensor of some megabytes costs
page faults when it is made: a tenth of the CPU time of an update of the published 1M model. Kept, a process takes no
more memory than it did at its peak.
"""

import ctypes
import os
import platform

OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
PAD_BYTES = 2**26  # claimed beyond what is needed, so that the kernel is asked less often


def keep_freed_memory() -> bool:
    """Whether it was told so: on Linux with glibc, and where none of the variables ``OWN`` says otherwise."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OWN):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, PAD_BYTES)])
