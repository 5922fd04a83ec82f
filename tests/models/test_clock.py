"""Times of a model call while the clock of the machine is set."""

from __future__ import annotations

import time
from itertools import count

import pytest

from aworld.core import event
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.models import call_model
from aworld.models.openai import OpenAIModel

from .provider import DONE, Provider, piece, status, stream

HOUR = 3600.0


@pytest.fixture(params=[-HOUR, HOUR], ids=["back", "forward"])
def _clock_is_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each look the clock of the machine stands another hour further back, or ahead."""
    monkeypatch.setattr(event, "_ahead", event.now() - time.monotonic())  # put back: or all that follows is ahead
    steps, real = count(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + request.param * next(steps))


@pytest.mark.usefixtures("_clock_is_set")
async def test_the_latency_of_a_call_is_the_monotonic_clocks() -> None:
    busy = status(500, {"error": {"message": "boom"}})
    async with Provider(busy, stream([piece(content="a"), piece("stop", content="b"), DONE])) as provider:
        before = time.monotonic()
        outcome = await call_model(
            OpenAIModel(provider.config()), ModelRequest((Message("user", "hi"),)), on_delta=lambda _: None
        )
        took = time.monotonic() - before
    first = outcome.reply.first_token
    assert first is not None
    assert outcome.started <= outcome.attempts[0].at <= first <= outcome.ended
    assert outcome.ended - outcome.started <= took
