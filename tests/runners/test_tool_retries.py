"""Tools that are tried again: only where that cannot do a thing twice, within their time, each try on record."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from aworld.core import event as ev
from aworld.core.common import ActionResult
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import ToolCall
from aworld.core.output import ToolResultOutput
from aworld.core.task import Task, TaskResponse
from aworld.core.tool import ToolContext, renamed, tool
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.runners.scenes import assert_sound, scripted


class Service:
    """Is down for the first calls; as an async tool and as one that runs in a thread."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def answer(self, city: str) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return f"sun in {city}"

    def tool(self, kind: str, **settings: Any) -> Any:
        if kind == "thread":

            @tool(**settings)
            def weather(city: str) -> str:
                return self.answer(city)

            return weather

        @tool(name="weather", **settings)
        async def forecast(city: str) -> str:
            return self.answer(city)

        return forecast


def returned(response: TaskResponse) -> ev.ToolReturned:
    (result,) = [event for event in response.record.events if isinstance(event, ev.ToolReturned)]
    return result


async def ask(*tools: Any, **settings: Any) -> TaskResponse:
    return await Runners.run("x", scripted(call("weather", city="Oslo"), "done", tools=tools), **settings)


@pytest.mark.parametrize("kind", ["thread", "async"])
async def test_a_named_exception_is_tried_again(kind: str) -> None:
    service = Service(ConnectionResetError("reset \ud800"), ConnectionError("down"))
    response = await ask(*renamed(service.tool(kind, retries=2, retry_on=ConnectionError), {}))
    result = returned(response)
    assert (result.error, service.calls) == (None, 3)
    assert [attempt.waited for attempt in result.attempts] == [0.1, 0.2]
    assert [attempt.error.split(":")[0] for attempt in result.attempts] == ["ConnectionResetError", "ConnectionError"]
    assert result.duration is not None
    assert 0.3 <= result.duration < 5
    assert response.trajectory[0]["observation"][0]["content"] == "sun in Oslo"
    assert_sound(response.record)
    assert (await Runners.replay(response.record, scripted(call("weather", city="Oslo"), "done", tools=[
        service.tool(kind, retries=2, retry_on=ConnectionError)]))).same  # fmt: skip


async def test_the_last_error_goes_to_the_model() -> None:
    service = Service(*[OSError(f"down {n}") for n in range(3)])
    result = returned(await ask(service.tool("async", retries=1, idempotent=True)))
    assert result.error == "OSError: down 1"
    assert [attempt.error for attempt in result.attempts] == ["OSError: down 0"]


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (ValueError("other"), {"retries": 3, "retry_on": [ConnectionError, TimeoutError]}),
        (ToolError("on purpose"), {"retries": 3, "idempotent": True}),
        (ConnectionError("down"), {}),
    ],
)
async def test_others_are_not(error: Exception, settings: dict[str, Any]) -> None:
    service = Service(error)
    result = returned(await ask(service.tool("thread", **settings)))
    assert (service.calls, result.attempts) == (1, ())
    assert str(error) in (result.error or "")


async def test_wrong_arguments_are_not() -> None:
    service = Service()
    response = await Runners.run("x", scripted(
        call("weather", town="Oslo"), "done", tools=[service.tool("async", retries=3, idempotent=True)]))  # fmt: skip
    assert (service.calls, returned(response).attempts) == (0, ())


@pytest.mark.parametrize("kind", ["thread", "async"])
async def test_all_tries_share_the_time_of_the_tool(kind: str) -> None:
    calls: list[float] = []

    def work(city: str) -> str:
        calls.append(time.perf_counter())
        time.sleep(0.1)
        raise ConnectionError("down")

    async def wait(city: str) -> str:
        calls.append(time.perf_counter())
        await asyncio.sleep(0.1)
        raise ConnectionError("down")

    function: Any = work if kind == "thread" else wait
    made = tool(name="weather", timeout=0.25, retries=50, retry_on=ConnectionError)(function)
    result = returned(await ask(made))
    assert "No answer within 0.25 s" in (result.error or "")
    assert 1 <= len(result.attempts) <= 2
    assert len(calls) <= 3


async def test_the_tool_the_stream_and_hooks_see_the_tries() -> None:
    seen: list[int] = []

    @tool(retries=1, idempotent=True)
    async def weather(city: str, context: ToolContext) -> str:
        seen.append(len(context.attempts))
        if not context.attempts:
            raise OSError("down")
        return "sun"

    class Shouting(Hooks):
        async def after_tool(self, at: HookContext, call: ToolCall, result: ActionResult) -> ActionResult | None:
            return ActionResult(result.tool_call_id, result.name, "SUN")

    agent = scripted(call("weather", city="Oslo"), "done", tools=[weather])
    task = Task("x", agent, hooks=[Shouting()])
    outputs = [output async for output in Runners.streaming_run_task(task)]
    (result,) = [output.result for output in outputs if isinstance(output, ToolResultOutput)]
    assert (seen, result.content, len(result.attempts)) == ([0, 1], "SUN", 1)


def weather(city: str) -> str:
    """Code that might do a thing twice."""
    return city


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"retries": 2}, "retries=2 of tool 'weather' might do a thing twice: say idempotent=True"),
        ({"retries": -1}, "retries=-1"),
        ({"retries": 1, "retry_on": [KeyboardInterrupt]}, "names <class 'KeyboardInterrupt'>, which is no class"),
        ({"retries": 1, "retry_on": ["OSError"]}, r"retry_on\[0\]='OSError'"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tool(**settings)(weather)
