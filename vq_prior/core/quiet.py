"""Keeping off stderr what C and C++ libraries write there by themselves, past Python."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_mute = threading.Lock()


@contextmanager
def muted() -> Iterator[None]:
    """Let nothing of this process reach stderr for the length of a block; what is raised in it is told after it."""
    with _mute:
        stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(nothing)
