"""Memory that is free and that the allocator keeps."""

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Have the allocator return to the machine what is free; some milliseconds.

    Vectors of an older index and what forward passes of many shapes leave behind is in pieces that
    are too small for it to do so by itself: the process would grow for hours.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc than GNU's
            ctypes.CDLL(None).malloc_trim(0)
