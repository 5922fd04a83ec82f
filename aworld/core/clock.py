"""The time of day for what is recorded: two times that one process gives out are a duration."""

from __future__ import annotations

import time

_ahead = time.time() - time.monotonic()
"""By how much the time of day was last ahead of the monotonic clock."""


def now() -> float:
    """UNIX seconds that never go back in this process, whatever is done to the clock of the machine.

    A clock that is set forward, or that went on while the machine slept, is followed; one that is set back is not.
    """
    global _ahead
    monotonic = time.monotonic()
    ahead = time.time() - monotonic
    if ahead > _ahead:  # by microseconds, nearly always: the two are not read at the same moment
        _ahead = ahead
    return monotonic + _ahead
