"""How much memory the process holds from picture to picture, and handing back what was freed."""

from __future__ import annotations

import ctypes
import os


def resident_mb() -> float | None:
    """Memory of this process that is held in RAM, in units of 2^20 bytes; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def trim() -> None:
    """Hand freed memory back to the system, where the C library is glibc; elsewhere nothing happens."""
    if os.name == "posix":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


class SteadyMemory:
    """Keeps freed memory from piling up in the process, where the C library is glibc; elsewhere it only watches.

    glibc keeps what arrays of many sizes leave behind, for each thread apart. Handing it back after every picture costs
    a fifth of a small picture's time, since the same pages are soon asked for again; so it waits until half as much
    again is held as was once left.
    """

    def __init__(self):
        self._least = 0.0

    def __call__(self) -> float | None:
        """To be called between pictures: hands memory back if it is time, and returns what `resident_mb` then says."""
        held = resident_mb()
        if held is not None and held > 1.5 * self._least:
            trim()
            held = resident_mb()
            self._least = min(self._least or held, held)
        return held
