"""What the log says was sent is what the server received, to the last field."""

from __future__ import annotations

import msgspec
from pydantic import BaseModel

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Audio, File, Image, Message, Text, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.task import Task
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore, TrajectoryStore
from tests.runners.scenes import RecordingServer, add, assert_sound, server_of

ODD = 'Ünïcødé "quoted" \\ back\nline\ttab \u2028 🙂 </s> <|im_end|>'


async def test_a_plain_run() -> None:
    async with server_of([call("add", a=1, b=2), call("search", query=ODD)], call("nothing"), ODD) as server:
        response = await Runners.run(ODD, server.agent(system_prompt=ODD))
        assert response.answer == ODD
        server.assert_exact(response.record)
    assert_sound(response.record)


async def test_a_streamed_run() -> None:
    async with server_of(call("search", query=ODD), ODD) as server:
        stream = Runners.streamed_run_task(Task(ODD, server.agent(system_prompt="Be brief.")))
        response = await stream.response()
        assert response.answer == ODD
        server.assert_exact(response.record)


async def test_pictures_sounds_and_files() -> None:
    parts = [
        Text("What?"),
        Image("data:image/png;base64,AA==", "low"),
        Audio("AAAA"),
        File("data:a/b;base64,AA==", "f"),
    ]
    async with server_of("That.") as server:
        response = await Runners.run(parts, server.agent())
        server.assert_exact(response.record)
        assert [part["type"] for part in server.bodies[0]["messages"][0]["content"]] == [
            "text", "image_url", "input_audio", "file",
        ]  # fmt: skip


async def test_thinking_goes_back_as_it_came() -> None:
    thought = Message("assistant", "Let me add.", tool_calls=(call("add", a=1, b=2),), reasoning="One and two.")
    async with server_of(thought, "3") as server:
        response = await Runners.run("1 + 2?", server.agent())
        server.assert_exact(response.record)
    assert response.trajectory[0]["action"]["reasoning"] == "One and two."


async def test_malformed_and_repeated_calls() -> None:
    calls = (
        ToolCall("c", "add", '{"a": 1'),
        ToolCall("c", "add", ""),
        ToolCall("", "add", "null"),
        ToolCall("", "", "x"),
    )
    async with server_of(Message("assistant", "Hm.", tool_calls=calls), "done") as server:
        response = await Runners.run("x", server.agent())
        server.assert_exact(response.record)
    assert_sound(response.record)
    sent = [call_["id"] for call_ in server.bodies[1]["messages"][1]["tool_calls"]]
    assert len(set(sent)) == 4


class Answer(BaseModel):
    """An answer with a shape."""

    total: int


async def test_corrections_of_a_structured_answer() -> None:
    async with server_of("three", '{"total": "drei"}', '{"total": 3}') as server:
        response = await Runners.run("1 + 2?", server.agent(output_type=Answer))
        assert response.answer == Answer(total=3)
        server.assert_exact(response.record)
        assert [message["role"] for message in server.bodies[2]["messages"]] == [
            "user", "assistant", "user", "assistant", "user",
        ]  # fmt: skip
        assert "total: Input should be a valid integer" in server.bodies[2]["messages"][-1]["content"]


class Reminder(Hooks):
    """Leaves the system prompt out, ends what is sent with a reminder, and offers one tool."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
        said = (message for message in request.messages if message.role != "system")
        kept = (*said, Message("user", f"Remember: {at.step}"))
        return msgspec.structs.replace(request, messages=kept, tools=request.tools[:1])

    async def after_model(
        self, at: HookContext, request: ModelRequest, reply: ModelReply | None, error: Exception | None
    ) -> ModelReply | None:
        if reply is None:
            return None
        message = msgspec.structs.replace(reply.message, content=(reply.message.text or "") + "!")
        return msgspec.structs.replace(reply, message=message)


async def test_hooks_that_rewrite_what_is_sent_and_what_came() -> None:
    async with server_of(call("add", a=1, b=2), call("add", a=3, b=4), "done") as server:
        response = await Runners.run("x", server.agent(system_prompt="S"), hooks=[Reminder()])
        server.assert_exact(response.record)
        assert response.answer == "done!"
    assert {len(body["tools"]) for body in server.bodies} == {1}
    assert [row["action"]["content"] for row in response.trajectory] == [None, None, "done"]  # as the model said it
    assert_rows_share_prefixes(response.record)


def assert_rows_share_prefixes(record: Trajectory) -> None:
    texts = [[message.text for message in record.path(call_.prompt)] for call_ in record.calls.values()]
    assert all("Remember: " in text[-1] for text in texts)


class Redacted(Hooks):
    """Rewrites the beginning of the conversation, each time."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
        first = msgspec.structs.replace(request.messages[0], content="[redacted]")
        return msgspec.structs.replace(request, messages=(first, *request.messages[1:]))


async def test_a_hook_that_rewrites_the_beginning() -> None:
    async with server_of(call("add", a=1, b=2), "done") as server:
        response = await Runners.run("my secret", server.agent(), hooks=[Redacted()])
        server.assert_exact(response.record)
    assert response.trajectory[1]["state"]["input"] == "[redacted]"


async def test_replaced_results_and_added_observations() -> None:
    async with server_of([call("add", a=1, b=2), call("add", a=3, b=4)], call("add", a=0, b=0), "done") as server:
        task = Task("x", server.agent())
        await Runners.step(task)
        await Runners.step(task, tool_results={"call_0_0": "4"})
        _, _, response = await Runners.step(task, observation="Go on.", tool_results={"call_1_0": "zero"})
        server.assert_exact(response.record)
        contents = [message["content"] for message in server.bodies[2]["messages"]]
        assert contents == ["x", None, "4", "7", None, "zero", "Go on."]


def prefixes(record: Trajectory, kind: str) -> list[int]:
    return [event.seq + 1 for event in record.events if event.__struct_config__.tag == kind]


async def test_runs_resumed_after_each_acknowledged_event() -> None:
    async with server_of([call("add", a=1, b=2), call("search", query="x")], call("add", a=2, b=2), "done") as server:
        agent = server.agent(system_prompt="S")
        whole = (await Runners.run("x", agent, id="run")).record
        for cut in prefixes(whole, "tool_result") + prefixes(whole, "tool_call"):
            store = MemoryStore()
            await store.append("run", whole.events[:cut])
            server.bodies.clear()
            before = len(Trajectory.of("run", whole.events[:cut]).calls)
            response = await Runners.resume("run", agent, store=store)
            assert response.answer == "done"
            assert_calls(server, response.record, before)


def assert_calls(server: RecordingServer, record: Trajectory, first: int) -> None:
    """The calls from number `first` on are what the server received."""
    from aworld.core.rows import rows

    shown = rows(record)[first:]
    assert [row["state"]["messages"] for row in shown] == [body["messages"] for body in server.bodies]
    assert [row["state"]["tools"] for row in shown] == [body.get("tools", []) for body in server.bodies]


async def test_forks(store: TrajectoryStore) -> None:
    async with server_of(call("add", a=1, b=2), call("add", a=2, b=2), "done") as server:
        agent = server.agent(system_prompt="S")
        first = await Runners.run("x", agent, run_conf=RunConfig(store=store))
        for at in (0, 1, 2):
            server.bodies.clear()
            forked = await Runners.fork(first.id, agent, at=at, store=store)
            assert forked.answer == "done"
            assert_calls(server, forked.record, at)
            assert_calls(server, Trajectory.of(forked.id, await store.read(forked.id)), at)


async def test_token_ids_are_as_reported() -> None:
    from aworld.config import AgentConfig
    from aworld.core.message import Tokens

    replies = [
        ModelReply(
            Message("assistant", tool_calls=(call("add", a=1, b=2),)), tokens=Tokens((1, 2), (3, 4), (-0.5, -0.25))
        ),
        ModelReply(Message("assistant", "done"), tokens=Tokens((1, 2, 3, 4, 5), (6,), (-1.0,))),
    ]
    async with server_of(*replies) as server:
        conf = AgentConfig(llm_base_url=server.base_url, llm_model_name="m", llm_capture_tokens=True)
        response = await Runners.run("x", Agent("a", conf, tools=[add]))
        server.assert_exact(response.record)
    assert [row["tokens"] for row in response.trajectory] == [
        {"prompt_ids": [1, 2], "completion_ids": [3, 4], "logprobs": [-0.5, -0.25]},
        {"prompt_ids": [1, 2, 3, 4, 5], "completion_ids": [6], "logprobs": [-1.0]},
    ]
    stored = response.record.calls[1].tokens
    assert stored is not None
    assert stored.prompt_ids == (5,)  # as a delta
