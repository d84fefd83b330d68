"""The most memory that this process has held, on every system."""

import sys


def peak_memory_bytes() -> int | None:
    """Return the most memory that this process has held, in bytes; None where no one can tell."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return _by_psutil()
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


def _by_psutil() -> int | None:
    try:
        import psutil

        memory = psutil.Process().memory_info()
    except (ImportError, OSError):
        return None
    return int(getattr(memory, "peak_wset", memory.rss))
