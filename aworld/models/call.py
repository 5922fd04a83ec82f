"""A model call with everything around the one exchange: turns at the limiter, retries, what was tried and waited.

The runtime calls `call_model`, for every model there is; the models themselves make one try. What a model allows is
read from attributes that it may have: `retry` (`Retry`) and `limits` (`Limits`); one without them is asked once. What a
call costs is computed here, by its `price` (`Price`), where the provider did not say.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from aworld.core.event import Attempt, now
from aworld.core.exceptions import ModelError
from aworld.core.model import Delta, Model, ModelReply, ModelRequest

if TYPE_CHECKING:
    from aworld.models.limiter import Limits


class Retry(Struct, frozen=True):
    """How often a failure that may pass is tried again, and how long is waited before. Times in seconds."""

    tries: int = 0
    """Tries after the first."""
    wait: float = 0.5
    """Longest wait before the first of them; it doubles each time."""
    wait_max: float = 60.0
    """Longest wait of all, and the longest `Retry-After` that is obeyed."""


NO_RETRY = Retry()


class Tries(Struct, frozen=True):
    """What a model call took. Times are UNIX seconds."""

    attempts: tuple[Attempt, ...]
    """The tries that failed, and what was waited after each."""
    queued: float
    """Seconds waited at the limiter, over all tries."""
    started: float
    """When the first try was sent."""
    ended: float


class Outcome(Tries, frozen=True):
    """What came of a model call that was answered."""

    reply: ModelReply
    asked: tuple[Model, ModelRequest] | None = None
    """The model that answered and what it was asked, where it is one of several (`Fallback`)."""


class CallFailed(ModelError):
    """Every try of a model call failed; `error` is the last one, `outcome` what it took."""

    def __init__(self, error: ModelError, outcome: Tries) -> None:
        tries = f" (after {len(outcome.attempts)} tries)" if len(outcome.attempts) > 1 else ""
        super().__init__(
            f"{error}{tries}", status=error.status, retryable=error.retryable, retry_after=error.retry_after
        )
        self.error, self.outcome = error, outcome


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
    if (ask_each := getattr(type(model), "ask_each", None)) is not None:  # a `Fallback`
        return await ask_each(model, request, on_delta, on_retry)
    limits: Limits | None = getattr(model, "limits", None)
    limiter, price = None, getattr(model, "price", None)
    if limits is not None:
        from aworld.models.limiter import limiter_for  # most runs have no limits

        limiter = limiter_for(limits)
    attempts: tuple[Attempt, ...] = ()
    queued = started = since = 0.0
    while True:
        if limiter is not None:
            queued += await limiter.acquire()
        if not started:
            started, since = now(), time.monotonic()
        began = started + time.monotonic() - since  # no clock that is set changes what is between two of these
        reply: ModelReply | None = None
        try:
            reply = await (model.generate(request) if on_delta is None else model.stream(request, on_delta))
            ended = started + time.monotonic() - since
            if reply.first_token is not None and not began <= reply.first_token <= ended:
                reply = structs.replace(reply, first_token=min(max(began, reply.first_token), ended))
            if price is not None and reply.usage is not None and reply.usage.cost is None:
                reply = structs.replace(reply, usage=price.priced(reply.usage))
            return Outcome(attempts, queued, started, ended, reply)
        except ModelError as error:
            failure = error
        finally:
            if limiter is not None:  # also when the caller was cancelled: a place is never lost
                limiter.release(_tokens(reply))
        wait, failure = _next_try(getattr(model, "retry", NO_RETRY), failure, len(attempts))
        attempts += (Attempt(began, str(failure), failure.status, wait or 0.0),)
        if wait is None:
            raise CallFailed(failure, Tries(attempts, queued, started, started + time.monotonic() - since)) from failure
        if on_retry is not None:
            on_retry(failure, wait)
        await asyncio.sleep(wait)


def _next_try(retry: Retry, error: ModelError, failed: int) -> tuple[float | None, ModelError]:
    """Seconds to wait before the next try, None for no next try, and the error that says so."""
    if not error.retryable or failed >= retry.tries:
        return None, error
    wait = error.retry_after
    if wait is None:
        # Full jitter: spreads the tries of many tasks that failed together better than any fixed wait.
        return random.uniform(0.0, min(retry.wait_max, retry.wait * 2.0 ** min(failed, 60))), error
    if wait > retry.wait_max:
        text = f"{error} (asks to wait {wait:.0f} s, more than llm_retry_wait_max, {retry.wait_max:g} s)"
        return None, ModelError(text, status=error.status, retryable=True, retry_after=wait)
    return wait * random.uniform(1.0, 1.1), error  # not all at the same moment


def _tokens(reply: ModelReply | None) -> int | None:
    """Tokens of a reply, None where nobody said."""
    usage = None if reply is None else reply.usage
    if usage is None or usage.total_tokens is not None:
        return usage and usage.total_tokens
    return (usage.input_tokens or 0) + (usage.output_tokens or 0)
