"""Keeps the memory of tensors on a CPU, in huge pages."""

import ctypes
import os
import sys

from util.record.log import log

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, in glibc's malloc.h
LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Keep freed memory for later tensors; return whether that works.

    It is up to the C library. Without it glibc fetches fresh pages for every tensor above some megabytes, and the
    kernel clears them: on a CPU a tenth to a third of the time of a network. The process stays as large as it once was.
    Huge pages, of which the processor has to look up 512 times as few, PyTorch asks for if this is called before the
    first tensor is made.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch, once
    library = _glibc()
    if library is None:
        log.info("memory is handled as this platform does: it has no glibc, whose blocks could be kept")
        return False
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, LARGEST))


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)  # what the process is linked with
    return library if hasattr(library, "gnu_get_libc_version") else None
