"""A process that ends with the one that started it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """
    Have this process ended by SIGTERM when its parent ends: by force too, which no handler hears of.

    On other systems than Linux it goes on.

    Args:
        parent: process number of the one that started this one; if it has ended already, so does this one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(f"The process {parent}, which started this one, has ended.")
