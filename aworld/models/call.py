"""A model call with everything around the one exchange: turns at the limiter, retries, what was tried and waited.

The runtime calls `call_model`, for every model there is; the models themselves make one try. What a model allows is
read from two attributes that it may have: `retry` (`Retry`) and `limits` (`Limits`). One without them is asked once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from aworld.core.event import Attempt
from aworld.core.exceptions import ModelError
from aworld.core.model import Delta, Model, ModelReply, ModelRequest

if TYPE_CHECKING:
    from aworld.models.limiter import Limiter, Limits


class Retry(Struct, frozen=True):
    """How often a failure that may pass is tried again, and how long is waited before. Times in seconds."""

    tries: int = 0
    """Tries after the first."""
    wait: float = 0.5
    """Longest wait before the first of them; it doubles each time."""
    wait_max: float = 60.0
    """Longest wait of all, and the longest `Retry-After` that is obeyed."""


NO_RETRY = Retry()


class Outcome(Struct, frozen=True):
    """What came of a model call. Times are UNIX seconds."""

    reply: ModelReply
    attempts: tuple[Attempt, ...]
    """The tries that failed, and what was waited after each."""
    queued: float
    """Seconds waited at the limiter, over all tries."""
    started: float
    """When the first try was sent."""
    ended: float


class CallFailed(ModelError):
    """Every try of a model call failed. Says what `Outcome` says, without a reply; `attempts` holds every try."""

    def __init__(
        self, error: ModelError, *, attempts: tuple[Attempt, ...], queued: float, started: float, ended: float
    ) -> None:
        tries = f" (after {len(attempts)} tries)" if len(attempts) > 1 else ""
        super().__init__(
            f"{error}{tries}", status=error.status, retryable=error.retryable, retry_after=error.retry_after
        )
        self.attempts = attempts
        self.queued = queued
        self.started = started
        self.ended = ended


async def call_model(
    model: Model,
    request: ModelRequest,
    *,
    on_delta: Callable[[Delta], None] | None = None,
    on_retry: Callable[[ModelError, float], None] | None = None,
) -> Outcome:
    """Ask a model until it answers, or until another try makes no sense.

    With `on_delta` the answer is streamed, and each piece handed on. `on_retry` is told the error and the seconds to
    wait before each further try; the pieces handed on so far are then void, the answer begins again.
    Raises `CallFailed`.
    """
    limits: Limits | None = getattr(model, "limits", None)
    limiter = None if limits is None else _limiter(limits)
    attempts: tuple[Attempt, ...] = ()
    queued = 0.0
    first = 0.0
    while True:
        if limiter is not None:
            queued += await limiter.acquire()
        began = time.time()
        first = first or began
        reply: ModelReply | None = None
        try:
            reply = await (model.generate(request) if on_delta is None else model.stream(request, on_delta))
            return Outcome(reply, attempts, queued, first, time.time())
        except ModelError as error:
            failure = error
        finally:
            if limiter is not None:
                limiter.release(_spent(reply))
        wait, failure = _next_try(getattr(model, "retry", NO_RETRY), failure, len(attempts))
        attempts += (Attempt(began, str(failure), failure.status, wait or 0.0),)
        if wait is None:
            raise CallFailed(failure, attempts=attempts, queued=queued, started=first, ended=time.time()) from failure
        if on_retry is not None:
            on_retry(failure, wait)
        await asyncio.sleep(wait)


def _next_try(retry: Retry, error: ModelError, failed: int) -> tuple[float | None, ModelError]:
    """Seconds to wait before the next try, None for no next try, and the error that says so."""
    if not error.retryable or failed >= retry.tries:
        return None, error
    asked = error.retry_after
    if asked is None:
        # Full jitter: spreads the tries of many tasks that failed together better than any fixed wait.
        return random.uniform(0.0, min(retry.wait_max, retry.wait * 2.0 ** min(failed, 60))), error
    if asked > retry.wait_max:
        text = f"{error} (asks to wait {asked:.0f} s, more than llm_retry_wait_max, {retry.wait_max:g} s)"
        return None, ModelError(text, status=error.status, retryable=True, retry_after=asked)
    return asked * random.uniform(1.0, 1.1), error  # not all at the same moment


def _spent(reply: ModelReply | None) -> int | None:
    if reply is None or reply.usage is None:
        return None
    usage = reply.usage
    if usage.total_tokens is not None:
        return usage.total_tokens
    return (usage.input_tokens or 0) + (usage.output_tokens or 0)


def _limiter(limits: Limits) -> Limiter:
    from aworld.models.limiter import limiter_for  # most runs have no limits

    return limiter_for(limits)
