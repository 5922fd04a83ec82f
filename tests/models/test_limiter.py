"""The limiter: order, limits, cancellation."""

from __future__ import annotations

import asyncio
import time

import pytest

from aworld.models.limiter import Limiter, Limits, limiter_for


async def test_no_more_in_flight_than_allowed_and_first_come_first_served() -> None:
    limiter = Limiter(Limits(max_concurrency=2))
    order: list[int] = []
    most = 0

    async def caller(number: int) -> None:
        nonlocal most
        await limiter.acquire()
        order.append(number)
        most = max(most, limiter.in_flight)
        await asyncio.sleep(0)
        limiter.release()

    await asyncio.gather(*(caller(number) for number in range(20)))
    assert order == list(range(20))
    assert most == 2
    assert limiter.in_flight == 0


async def test_requests_in_any_window_stay_below_the_limit() -> None:
    window = 0.05
    limiter = Limiter(Limits(requests_per_minute=4), minute=window)
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def caller() -> None:
        await limiter.acquire()
        times.append(loop.time())
        limiter.release()

    await asyncio.gather(*(caller() for _ in range(12)))
    assert len(times) == 12
    # Any five consecutive requests span at least a window (the clock's resolution aside).
    assert all(later - earlier >= window - 0.005 for earlier, later in zip(times, times[4:], strict=False))


async def test_a_newcomer_does_not_overtake() -> None:
    limiter = Limiter(Limits(requests_per_minute=1), minute=0.02)
    await limiter.acquire()
    order: list[str] = []

    async def caller(name: str) -> None:
        await limiter.acquire()
        order.append(name)

    waiting = asyncio.ensure_future(caller("first"))
    await asyncio.sleep(0)
    time.sleep(0.03)  # noqa: ASYNC251  # the loop is busy while the window opens
    await asyncio.gather(waiting, caller("second"))
    assert order == ["first", "second"]


async def test_tokens_are_charged_afterwards() -> None:
    window = 0.05
    limiter = Limiter(Limits(tokens_per_minute=100), minute=window)
    assert await limiter.acquire() == 0.0
    limiter.release(60)
    assert await limiter.acquire() == 0.0  # 60 of 100: one more may begin
    limiter.release(60)
    assert await limiter.acquire() > 0.01  # 120 of 100: wait until the first is a window ago
    limiter.release(None)
    assert await limiter.acquire() == 0.0


async def test_a_slow_rate_is_one_in_a_longer_window() -> None:
    limiter = Limiter(Limits(requests_per_minute=0.5), minute=0.02)
    assert await limiter.acquire() == 0.0
    assert await limiter.acquire() >= 0.035


async def test_who_is_cancelled_while_waiting_takes_nothing() -> None:
    limiter = Limiter(Limits(max_concurrency=1))
    await limiter.acquire()
    waiting = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    limiter.release()
    assert await asyncio.wait_for(waiting[1], 1) > 0
    assert limiter.in_flight == 1
    limiter.release()
    await asyncio.wait_for(waiting[2], 1)
    assert waiting[0].cancelled()


async def test_who_is_cancelled_after_its_turn_came_passes_it_on() -> None:
    limiter = Limiter(Limits(max_concurrency=1, requests_per_minute=3))
    await limiter.acquire()
    first = asyncio.ensure_future(limiter.acquire())
    second = asyncio.ensure_future(limiter.acquire())
    await asyncio.sleep(0)
    limiter.release()  # gives the turn to the first, which has not run yet
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 1)
    assert limiter.in_flight == 1
    limiter.release()
    assert await asyncio.wait_for(limiter.acquire(), 1) == 0.0  # two requests were made, not three


async def test_equal_limits_share_a_limiter() -> None:
    one, same, other = Limits("a", 2), Limits("a", 2), Limits("b", 2)
    assert limiter_for(one) is limiter_for(same)
    assert limiter_for(one) is not limiter_for(other)
