"""Memory allocation on the CPU."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next allocation instead of returning it to the system.

    Every step allocates the same large tensors; fresh pages for each cost up to half of a matching step on a CPU. The
    process keeps its peak memory until it ends.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**30))
    done = [libc.mallopt(name, value) == 1 for name, value in settings]  # all of them, whatever the first says
    return all(done)
