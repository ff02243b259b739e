"""Memory allocation on the CPU."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Tells glibc, where that is the C library, to keep freed memory for the next allocation.

    Every step allocates the same large tensors; fresh pages for each cost up to half of a matching step on a CPU. The
    process keeps its peak memory until it ends.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for name, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**30)):
            libc.mallopt(name, value)
