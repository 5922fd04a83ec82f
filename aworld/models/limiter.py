"""Limits of a provider, shared by all tasks of an event loop.

Requests in flight, requests a minute, tokens a minute. The minute slides: at no time do more than the limit lie in
the 60 seconds before it. How many tokens a call takes is known only when it is over, so calls are let in while the
last minute is below the limit, and charged afterwards.

Who comes first goes first. Nobody polls: those who wait are woken by a release or by one timer, set for the moment at
which the first of them may go.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from weakref import WeakKeyDictionary

from msgspec import Struct

from aworld.core.checks import StructDoor

MINUTE = 60.0


class Limits(Struct, frozen=True, metaclass=StructDoor):
    """What a provider may be asked. Callers with equal limits and the same scope share one limiter."""

    scope: str = ""
    """Who is limited: provider, address, and a digest of the key."""
    max_concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Limiter:
    """Lets callers through within limits. `minute` is the length of the window in seconds."""

    def __init__(self, limits: Limits, *, minute: float = MINUTE) -> None:
        self.in_flight = 0
        self._most = limits.max_concurrency
        self._requests: _Window | None = None
        if (rate := limits.requests_per_minute) is not None:
            whole = max(1, int(rate))  # 0.5 a minute is one in two minutes
            self._requests = _Window(whole, minute * whole / rate)
        self._tokens = None if limits.tokens_per_minute is None else _Window(limits.tokens_per_minute, minute)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self) -> float:
        """Wait for a turn; the seconds that it took. A caller that is cancelled while it waits takes nothing."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting and self._opens_at(now) <= now:  # nobody is overtaken
            self._enter(now)
            return 0.0
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:  # the first in the line sets the timer; who comes later waits behind it
            self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.in_flight -= 1  # it was let in, and will not call
                if self._requests is not None:
                    self._requests.undo()  # the newest entry, whose ever it is: only how many there are counts
            else:
                with suppress(ValueError):  # it may have been passed over already
                    self._waiting.remove(turn)
            self._wake()
            raise
        return loop.time() - now

    def release(self, tokens: int | None = None) -> None:
        """End of a call that took `tokens`, None when the provider did not say."""
        self.in_flight -= 1
        if self._tokens is not None and tokens:
            self._tokens.add(asyncio.get_running_loop().time(), tokens)
        if self._waiting:
            self._wake()

    def _opens_at(self, now: float) -> float:
        """When the next caller may go, in loop time; infinity when only a release can tell."""
        if self._most is not None and self.in_flight >= self._most:
            return float("inf")
        at = now
        if self._requests is not None:
            at = max(at, self._requests.opens_at(now))
        if self._tokens is not None:
            at = max(at, self._tokens.opens_at(now))
        return at

    def _enter(self, now: float) -> None:
        self.in_flight += 1
        if self._requests is not None:
            self._requests.add(now, 1)

    def _wake(self) -> None:
        """Let in all who may go now, and set the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiting:
            at = self._opens_at(now)
            if at > now:
                if at != float("inf"):  # else a release wakes us, and no clock can
                    self._timer = loop.call_at(at, self._wake)
                return
            turn = self._waiting.popleft()
            if not turn.done():  # who was cancelled in the line is passed over
                self._enter(now)
                turn.set_result(None)


class _Window:
    """A sum over the last `length` seconds, held below `most`."""

    def __init__(self, most: float, length: float) -> None:
        self._most = most
        self._length = length
        self._entries: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, now: float, amount: int) -> None:
        self._entries.append((now, amount))
        self._sum += amount

    def undo(self) -> None:
        if self._entries:
            self._sum -= self._entries.pop()[1]

    def opens_at(self, now: float) -> float:
        entries = self._entries
        while entries and entries[0][0] + self._length <= now:
            self._sum -= entries.popleft()[1]
        if self._sum < self._most:
            return now
        left = self._sum  # the window opens when enough of the oldest entries have left it
        for at, amount in entries:
            left -= amount
            if left < self._most:
                return at + self._length
        return now


_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Limits, Limiter]] = WeakKeyDictionary()


def limiter_for(limits: Limits) -> Limiter:
    """The limiter of the running loop for these limits."""
    limiters = _limiters.setdefault(asyncio.get_running_loop(), {})
    return limiters.get(limits) or limiters.setdefault(limits, Limiter(limits))
