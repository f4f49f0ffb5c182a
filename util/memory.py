"""The C library's memory: kept by the process, instead of returned to the system after every large block."""

import ctypes
import sys

from util.log import log

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, in glibc's malloc.h
LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Keeps freed memory for the next large tensor; whether the C library can.

    Without it glibc fetches fresh pages for every tensor above some megabytes, and the kernel clears them: on a CPU a
    tenth to a third of the time of a network. The process stays as large as it once was.
    """
    library = _glibc()
    if library is None:
        log.info("memory is handled as this platform does: it has no glibc, whose blocks could be kept")
        return False
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, LARGEST))


def return_memory() -> None:
    """Returns freed memory to the system, where the C library can: what a process has then is what it uses."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)  # what the process is linked with
    return library if hasattr(library, "gnu_get_libc_version") else None
