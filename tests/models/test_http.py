"""Sessions: one a loop, closed with the loop, nothing left open."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.models import http
from aworld.models.openai import OpenAIModel

from .provider import EVENTS, Provider, answer, chat, chunked, piece, stalled

HI = ModelRequest(messages=(Message("user", "hi"),))


async def ask_twice() -> int:
    async with Provider(answer(chat()), answer(chat())) as provider:
        model = OpenAIModel(provider.config())
        await model.generate(HI)
        await model.generate(HI)
        return provider.connections


async def test_a_connection_is_used_again_until_it_is_closed() -> None:
    async with Provider(*[answer(chat())] * 3) as provider:
        model = OpenAIModel(provider.config())
        await model.generate(HI)
        await model.generate(HI)
        assert provider.connections == 1
        await http.close_transports()
        assert asyncio.get_running_loop() not in http._sessions
        await http.close_transports()  # nothing to close is fine
        await model.generate(HI)
        assert provider.connections == 2


def test_a_session_ends_with_its_loop() -> None:
    # A warning about something left open would fail this test.
    assert asyncio.run(ask_twice()) == 1
    assert asyncio.run(ask_twice()) == 1
    assert not any(loop.is_closed() for loop in http._sessions)


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # asyncio's own word on such a loop
def test_a_loop_that_is_just_closed_is_forgotten() -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(ask_twice())
    loop.close()  # without shutting down its generators
    assert loop in http._sessions
    asyncio.run(ask_twice())
    assert loop not in http._sessions
    assert loop not in http._lifetimes


def test_one_model_serves_several_loops() -> None:
    model: list[OpenAIModel] = []

    async def ask() -> str | None:
        async with Provider(answer(chat("x"))) as provider:
            model.append(OpenAIModel(provider.config()))
            return (await model[0].generate(HI)).message.text

    assert asyncio.run(ask()) == "x"
    with pytest.raises(Exception, match="could not be reached"):  # the first provider is gone, not its loop's session
        asyncio.run(ask())


def test_nothing_is_said_at_exit() -> None:
    code = (
        "import aiohttp, asyncio\n"  # within the loop, the debug mode would remark on how long its import takes
        "from aworld.models import build_model, ScriptedModel; from aworld.server import ModelServer\n"
        "from aworld.config.conf import ModelConfig; from aworld.core.model import ModelRequest\n"
        "from aworld.core.message import Message\n"
        "async def main():\n"
        "    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is no remark\n"
        "    async with ModelServer(ScriptedModel(['hi'])) as server:\n"
        "        model = build_model(ModelConfig(llm_base_url=server.base_url, llm_model_name='m'))\n"
        "        print((await model.generate(ModelRequest(messages=(Message('user', 'x'),)))).message.content)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("hi\n", "")


async def test_cancelling_a_stream_closes_its_connection() -> None:
    async with Provider(stalled(EVENTS + chunked(piece(content="Hel"))), answer(chat())) as provider:
        model = OpenAIModel(provider.config())
        begun = asyncio.Event()
        asking = asyncio.create_task(model.stream(HI, lambda _: begun.set()))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await model.generate(HI)
        assert provider.connections == 2


async def test_many_calls_at_once() -> None:
    async with Provider(*[answer(chat())] * 200) as provider:
        model = OpenAIModel(provider.config())
        replies = await asyncio.gather(*(model.generate(HI) for _ in range(200)))
        assert len(provider.requests) == 200
    assert all(reply.message.content == "hello" for reply in replies)
