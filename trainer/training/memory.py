"""Keep the memory of freed feature maps in the process instead of returning it after every layer,
on a CPU.
"""

from __future__ import annotations

import ctypes
import sys

# glibc's numbers of these parameters, from its malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26}
# glibc's defaults.
GIVE_BACK = {MMAP_MAX: 65536, TRIM_THRESHOLD: 2**17, TOP_PAD: 2**17}


def keep_freed_memory(keep: bool = True) -> None:
    """Tell glibc to keep freed memory. Without glibc, nothing happens.

    By default glibc maps every block above 32 MiB anew, and the kernel clears its pages each time.
    For the first layers of a network at twice the size of a photograph that costs more than the
    convolutions (``bench/cams.py``, ``bench/train_step.py``).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (KEEP if keep else GIVE_BACK).items():
            mallopt(option, value)
