"""What providers do wrong, each survived or reported; and what an error may not show."""

from __future__ import annotations

import asyncio
import json
import re
import time
import traceback
from email.utils import formatdate

import pytest

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ModelError
from aworld.core.message import Message
from aworld.core.model import Delta, ModelRequest
from aworld.models import http
from aworld.models.anthropic import AnthropicModel
from aworld.models.call import CallFailed, call_model
from aworld.models.gemini import GeminiModel
from aworld.models.http import retry_after
from aworld.models.openai import OpenAIModel
from aworld.models.openai_responses import ResponsesModel

from .provider import (
    DONE,
    EVENTS,
    Provider,
    Step,
    answer,
    broken,
    chat,
    chunked,
    event,
    head,
    piece,
    raw,
    stalled,
    status,
    stream,
)

HI = ModelRequest(messages=(Message("user", "hi"),))
HALF = head(200, {"Content-Type": "application/json", "Content-Length": "999"}) + b'{"id": "c1", "choi'

PASSING: dict[str, tuple[Step, int | None, str]] = {
    "429": (status(429, {"error": {"message": "Rate limit reached"}}, Retry_After="0"), 429, "Rate limit reached"),
    "408": (status(408, {"detail": "slow"}), 408, "slow"),
    "409": (status(409, {"message": "conflict"}), 409, "conflict"),
    "500": (status(500, {"error": "boom"}), 500, "boom"),
    "502 with a cause": (
        status(502, {"error": {"message": "Provider returned error", "metadata": {"raw": "GPU on fire"}}}),
        502,
        "Provider returned error: GPU on fire",
    ),
    "503 in HTML": (raw(b"<h1>Bad gateway</h1>", 503, "text/html"), 503, "Bad gateway"),
    "529": (status(529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}), 529, "Overloaded"),
    "closed at once": (broken(b""), None, "closed the connection without an answer|could not be reached"),
    "cut in mid-reply": (broken(HALF), None, "cut the connection in mid-reply|could not be reached"),
    "not HTTP": (broken(b"SSH-2.0-OpenSSH\r\n\r\n"), None, "broken HTTP reply|closed|could not"),
    "invalid JSON": (raw(b'{"choices": [{'), None, "is not a reply"),
    "not UTF-8": (raw(b'{"choices": [{"message": {"content": "\xff"}}]}'), None, "is not a reply"),
    "HTML instead": (raw(b"<html>Login</html>", 200, "text/html"), None, "text/html that is not.*<html>Login"),
    "empty": (raw(b""), None, "is not a reply"),
    "another shape": (raw(b'{"choices": "many"}'), None, "is not a reply"),
    "empty choices": (answer({"id": "c1", "choices": []}), None, "no choices"),
    "no choices": (answer({"id": "c1"}), None, "no choices"),
    "an error with status 200": (answer({"error": {"message": "upstream", "code": 502}}), 502, "upstream"),
}


@pytest.mark.parametrize("name", PASSING)
async def test_failures_that_may_pass_are_tried_again(name: str) -> None:
    step, code, text = PASSING[name]
    async with Provider(step, answer(chat("at last"))) as provider:
        outcome = await call_model(OpenAIModel(provider.config()), HI)
        assert len(provider.requests) == 2
    assert outcome.reply.message.content == "at last"
    (attempt,) = outcome.attempts
    assert attempt.status == code
    assert re.search(text, attempt.error), attempt.error
    assert outcome.started <= attempt.at <= outcome.ended


STREAMS: dict[str, tuple[Step, str]] = {
    "cut in mid-stream": (broken(EVENTS + chunked(piece(content="Hel"))), "cut the connection|could not be reached"),
    "ends without an end": (stream([piece(content="Hel")]), "only the beginning of a stream"),
    "stalls": (stalled(EVENTS + chunked(piece(content="Hel"))), "no byte for 0.05 s .llm_stall_timeout"),
    "an error in mid-stream": (
        stream([piece(content="Hel"), event({"error": {"message": "engine died", "code": 500}})]),
        "engine died",
    ),
    "invalid JSON in mid-stream": (stream([piece(content="Hel"), event(b'{"choices": [')]), "is not a reply"),
    "HTML instead": (raw(b"<html>Login</html>", 200, "text/html"), "text/html instead of an event stream"),
    "no choices": (stream([event({"choices": []}), DONE]), "no choices"),
    "500": (status(500, {"error": {"message": "boom"}}), "boom"),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_streams_that_break_are_asked_for_again_as_a_whole(name: str) -> None:
    step, text = STREAMS[name]
    deltas: list[Delta] = []
    retries: list[tuple[str, float]] = []
    async with Provider(step, stream([piece(content="Hel"), piece("stop", content="lo"), DONE])) as provider:
        outcome = await call_model(
            OpenAIModel(provider.config(llm_stall_timeout=0.05)),
            HI,
            on_delta=deltas.append,
            on_retry=lambda error, wait: retries.append((str(error), wait)),
        )
    assert outcome.reply.message.content == "Hello"
    assert "".join(delta.text for delta in deltas).endswith("Hello")
    (attempt,) = outcome.attempts
    assert re.search(text, attempt.error), attempt.error
    assert retries == [(attempt.error, attempt.waited)]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
async def test_other_refusals_fail_at_once_with_the_providers_words(code: int) -> None:
    async with Provider(status(code, {"error": {"message": "The model `x` does not exist"}})) as provider:
        with pytest.raises(CallFailed, match=f"openai answered {code}: The model `x` does not exist") as caught:
            await call_model(OpenAIModel(provider.config()), HI)
        assert len(provider.requests) == 1
    assert caught.value.status == code
    assert not caught.value.retryable
    assert [attempt.waited for attempt in caught.value.outcome.attempts] == [0.0]


async def test_a_redirect_is_not_followed() -> None:
    async with Provider(raw(b"", 302, Location="https://elsewhere.example/v1")) as provider:
        with pytest.raises(CallFailed, match=r"elsewhere.example/v1; set llm_base_url"):
            await call_model(OpenAIModel(provider.config()), HI)


async def test_tries_end() -> None:
    async with Provider(*[status(500, {"error": {"message": "boom"}})] * 3) as provider:
        with pytest.raises(CallFailed, match=r"boom \(after 3 tries\)") as caught:
            await call_model(OpenAIModel(provider.config(llm_max_retries=2)), HI)
        assert len(provider.requests) == 3
    failed = caught.value.outcome
    assert [attempt.status for attempt in failed.attempts] == [500, 500, 500]
    assert [attempt.waited > 0 for attempt in failed.attempts] == [True, True, False]
    assert failed.started <= failed.ended


async def test_no_whole_answer_in_time() -> None:
    async with Provider(stalled(HALF)) as provider:
        config = provider.config(llm_timeout=0.05, llm_max_retries=0)
        with pytest.raises(CallFailed, match=r"no whole answer within 0.05 s \(llm_timeout\)") as caught:
            await call_model(OpenAIModel(config), HI)
    assert caught.value.retryable


async def test_nobody_listens() -> None:
    async with Provider() as provider:
        config = provider.config(llm_max_retries=1)
    with pytest.raises(CallFailed, match="could not be reached") as caught:
        await call_model(OpenAIModel(config), HI)
    assert len(caught.value.outcome.attempts) == 2


async def test_a_reply_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REPLY", 1 << 20)
    huge = chat("x" * (2 << 20))
    async with Provider(answer(huge), stream([event(huge)])) as provider:
        model = OpenAIModel(provider.config())
        with pytest.raises(CallFailed, match="more than 1 MB"):
            await call_model(model, HI)
        with pytest.raises(CallFailed, match="more than 1 MB"):
            await call_model(model, HI, on_delta=lambda _: None)


async def test_retry_after_is_obeyed() -> None:
    busy = {"error": {"message": "busy"}}
    steps = [status(429, busy, retry_after_ms="40"), status(503, busy, Retry_After="0.02"), answer(chat())]
    async with Provider(*steps) as provider:
        outcome = await call_model(OpenAIModel(provider.config()), HI)
    first, second = outcome.attempts
    assert 0.04 <= first.waited <= 0.05
    assert 0.02 <= second.waited <= 0.03
    assert outcome.ended - outcome.started >= 0.055


async def test_a_wait_longer_than_allowed_fails_at_once() -> None:
    async with Provider(status(429, {"error": {"message": "busy"}}, Retry_After="2")) as provider:
        with pytest.raises(CallFailed, match=r"asks to wait 2 s, more than llm_retry_wait_max, 1 s") as caught:
            await call_model(OpenAIModel(provider.config(llm_retry_wait_max=1.0)), HI)
        assert len(provider.requests) == 1
    assert caught.value.retry_after == 2


def test_retry_after_in_each_of_its_forms() -> None:
    assert retry_after({}) is None
    assert retry_after({"Retry-After": "1.5"}) == 1.5
    assert retry_after({"Retry-After": "-3"}) == 0.0
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({"retry-after-ms": "1500", "Retry-After": "9"}) == 1.5
    for odd in (
        "nan",
        "1e999",
        "-inf",
        "",
        "Fri, 31 Dec 0001 23:59:59 -0000",
        "Fri, 99 Foo 99999 99:99:99 +9999",
        "\x00",
    ):
        assert retry_after({"Retry-After": odd, "retry-after-ms": odd}) in (None, 0.0, float("inf"))
    assert retry_after({}, b'{"error": {"details": [{"retryDelay": "34.5s"}]}}') == 34.5
    assert retry_after({"Retry-After": "2"}, b'"retryDelay": "34s"') == 2
    assert retry_after({}, b'"retryDelay": "1.2.3s"') is None
    date = retry_after({"Retry-After": formatdate(time.time() + 30, usegmt=True)})
    assert date is not None
    assert 27 < date <= 30


async def test_cancelling_a_call_ends_it_and_frees_its_turn() -> None:
    async with Provider(stalled(), answer(chat())) as provider:
        model = OpenAIModel(provider.config(llm_max_concurrency=1))
        task = asyncio.ensure_future(call_model(model, HI))
        await provider.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        outcome = await asyncio.wait_for(call_model(model, HI), 1)
    assert outcome.queued == 0.0


async def test_requests_in_flight_are_limited_over_all_callers() -> None:
    most = now = 0

    async def step(connection: object) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1
        await answer(chat())(connection)  # pyright: ignore[reportArgumentType]  # the connection is passed on

    async with Provider(*[step] * 12) as provider:
        config = provider.config(llm_max_concurrency=3)
        models = [OpenAIModel(config), OpenAIModel(config)]  # two agents, one provider
        outcomes = await asyncio.gather(*(call_model(models[n % 2], HI) for n in range(12)))
    assert most == 3
    assert sum(outcome.queued > 0 for outcome in outcomes) == 9


KEY = "sk-very-secret-key"
PASSWORD = "hunter2-in-a-header"


@pytest.mark.parametrize("kind", [OpenAIModel, AnthropicModel, ResponsesModel, GeminiModel])
async def test_no_error_shows_a_key_or_a_header(
    kind: type[OpenAIModel] | type[AnthropicModel] | type[GeminiModel],
) -> None:
    echo = f"bad key {KEY}, headers: Authorization: Bearer {KEY}, X-Gate: {PASSWORD}"
    long = {"error": {"message": "z" * 1990 + KEY}}
    steps = [
        status(401, {"error": {"message": echo}}),
        raw(echo.encode(), 400, "text/plain"),
        raw(echo.encode(), 200, "text/html"),
        answer({"error": {"message": echo}}),
        raw(b"", 302, Location=f"https://x.example/?key={KEY}"),
        status(400, long),
        broken(b"HTTP/1.1 200 OK\r\nBad Header Line\r\n\r\n"),
        broken(HALF),
    ]
    count = len(steps)
    async with Provider(*steps) as provider:
        config = provider.config(llm_api_key=KEY, llm_headers={"X-Gate": PASSWORD}, llm_max_retries=0)
        model = kind(config)
        shown: list[str] = [repr(model), str(model.__dict__.get("params"))]
        for _ in range(count):
            with pytest.raises(ModelError) as caught:
                await call_model(model, HI)
            shown += [*traceback.format_exception(caught.value), repr(caught.value)]
        assert KEY in json.dumps(provider.requests[0].headers)  # it was sent
        assert provider.requests[0].headers["x-gate"] == PASSWORD
    text = "\n".join(shown)
    assert KEY not in text
    assert KEY[:12] not in text
    assert PASSWORD not in text
    assert "bad key ***" in text


async def test_a_key_that_no_header_can_hold_is_not_shown_either() -> None:
    with pytest.raises(ValueError, match="'Authorization'") as caught:
        OpenAIModel(ModelConfig(llm_model_name="m", llm_api_key="sk-secret\nX: y"))
    assert "sk-secret" not in str(caught.value)
