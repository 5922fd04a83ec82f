"""The same server over stdio, SSE and streamable HTTP: what a call gives, what is heard meanwhile, how it ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ToolError
from aworld.core.message import Audio, File, Image, Text
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import RunFinished, ToolNoteOutput
from aworld.core.task import Task
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools.mcp import mcp_tools
from aworld.tools.mcp_session import Sample, hubs_here
from tests.tools_mcp.conftest import Caller, config, rough, stdio, tools_of

TRANSPORTS = ["stdio", "sse", "streamable-http"]


@pytest.fixture(params=TRANSPORTS)
def server(request: pytest.FixtureRequest, addresses: dict[str, str]) -> dict[str, Any]:
    """The SDK's server, as it is written in a configuration."""
    kind: str = request.param
    return stdio() if kind == "stdio" else {"type": kind, "url": addresses[kind]}


async def everything(server: dict[str, Any], caller: Caller) -> None:
    """Results of every kind. One test a transport: a stdio server takes a second to start."""
    tools = await tools_of(server=server)
    assert await caller(tools["add"], a=2, b=3) == "5"
    assert json.loads(await caller(tools["weather"], city="Rome")) == {"city": "Rome", "degrees": 21.5}
    assert await caller(tools["both"]) == (Text("three rows"), Text('{"rows":[1,2,3]}'))
    look, picture, sound, plain, report, link = await caller(tools["mixed"])
    assert look == Text("look:")
    assert picture == Image("data:image/png;base64,iVBORw==")
    assert sound == Audio("UklGRg==", "wav")
    assert plain == Text("[resource file:///tmp/a.txt]\ninside")
    assert report == File("data:application/pdf;base64,JVBERg==", name="report.pdf")
    assert link == Text("[resource x at https://example.org/x]: an example")
    with pytest.raises(ToolError, match="executing tool fail"):
        await caller(tools["fail"])
    with pytest.raises(ToolError, match="not a JSON object"):
        await tools["add"].invoke('{"a": 1', caller.context())
    with pytest.raises(ToolError, match="validation error"):
        await caller(tools["add"], a="many")


async def told(server: dict[str, Any], caller: Caller) -> None:
    """What a server tells while it works, and what it asks."""
    tools = await tools_of(server=server)
    assert await caller(tools["work"], steps=2) == "worked"
    assert [data["progress"] for kind, data in caller.heard if kind == "progress"] == [1, 2]
    assert (await caller.until("log"))["message"] == "all done"
    assert await caller(tools["book"], city="Rome") == "no seats: decline"
    note = await caller.until("elicitation")
    assert (note["server"], note["message"], note["action"]) == ("server", "How many seats to Rome?", "decline")


async def cancelled(server: dict[str, Any], caller: Caller) -> None:
    """A call that is cancelled ends at the server, and no other call with it."""
    tools = await tools_of(server=server)
    caller = Caller()  # who has heard of no progress yet
    hanging = asyncio.create_task(caller(tools["hang"]))
    await caller.until("progress")
    hanging.cancel()
    assert await caller(tools["was_cancelled"]) == "cancelled"
    assert hanging.cancelled()
    assert await caller(tools["add"], a=1) == "2"


async def changed(server: dict[str, Any], caller: Caller) -> None:
    """A server that changes its tools: a run keeps those that it was offered, the next is offered the new ones."""
    (toolset,) = mcp_tools(config(server=server))
    offered = {tool.name: tool for tool in await toolset.list_tools()}
    assert "juggle" not in offered
    await caller(offered["learn"], name="juggle")
    assert await caller(offered["add"], a=1) == "2"
    for hub in hubs_here():
        hub._tools_changed()  # as servers of 2025 tell us; of others the list grows old in a few seconds
    assert "juggle" in {tool.name for tool in await toolset.list_tools()}


async def test_a_transport_does_it_all(server: dict[str, Any], caller: Caller) -> None:
    await everything(server, caller)
    await told(server, caller)
    await cancelled(server, caller)
    await changed(server, caller)


async def test_schemas_reach_the_model_untouched(addresses: dict[str, str]) -> None:
    from mcp import Client

    url = addresses["streamable-http"]
    async with Client(url) as bare:
        listed = {tool.name: tool for tool in (await bare.list_tools()).tools}
    seen: list[ModelRequest] = []

    def think(request: ModelRequest) -> str:
        seen.append(request)
        return "done"

    agent = Agent("a", model=FunctionModel(think), mcp_servers=["s"], mcp_config=config(s={"url": url}))
    assert (await Runners.run("hi", agent)).success
    schemas = {schema.name: schema for schema in seen[0].tools}
    assert schemas["weather"].parameters == listed["weather"].input_schema
    assert schemas["add"].description == "Add two numbers."
    assert schemas.keys() - listed.keys() == {"odd_name_with_dots"}, "names that providers refuse are made valid"


async def test_an_agent_in_the_shape_of_the_seeds(server: dict[str, Any]) -> None:
    mcp_config = config(Everything=server)
    agent = Agent(
        name="calculator",
        system_prompt="You add.",
        model=ScriptedModel([[call("add", a=2, b=2), call("fail")], "It is 4."]),
        mcp_servers=mcp_config.get("mcpServers", {}).keys(),
        mcp_config=mcp_config,
    )
    response = await Runners.run(input="What is 2 + 2?", agent=agent)
    assert (response.status, response.answer) == ("finished", "It is 4.")
    assert [seen["content"] for seen in response.trajectory[0]["observation"]] == ["4", "Error executing tool fail"]
    assert response.trajectory[0]["observation"][1]["error"]


async def test_progress_and_logs_are_in_the_stream(addresses: dict[str, str]) -> None:
    servers = config(s={"url": addresses["streamable-http"]})
    agent = Agent("a", model=ScriptedModel([call("work", steps=1), "ok"]), mcp_config=servers)
    notes: list[ToolNoteOutput] = []
    async for output in Runners.streamed_run_task(Task("go", agent=agent)).stream_events():
        match output:
            case ToolNoteOutput():
                notes.append(output)
            case RunFinished():
                assert output.response.success
            case _:
                pass
    assert [(note.kind, note.data.get("message")) for note in notes] == [("progress", "step 1"), ("log", "all done")]


@pytest.mark.parametrize("kind", ["stdio", "sse", "streamable-http"])
async def test_a_thousand_calls_at_once_over_one_session(kind: str, addresses: dict[str, str], caller: Caller) -> None:
    tools = await tools_of(s=stdio() if kind == "stdio" else {"type": kind, "url": addresses[kind]})
    answers = await asyncio.gather(*(caller(tools["add"], a=number) for number in range(1000)))
    assert answers == [str(number + 1) for number in range(1000)]


async def test_elicitation_is_answered_by_a_callback(addresses: dict[str, str], caller: Caller) -> None:
    asked: list[tuple[str, Any, Any]] = []

    async def elicit(message: str, schema: dict[str, Any], context: Any) -> dict[str, Any]:
        asked.append((message, schema["required"], context.call_id))
        return {"seats": 2}

    (toolset,) = mcp_tools(config(s={"url": addresses["streamable-http"]}), elicit=elicit)
    tools = {tool.name: tool for tool in await toolset.list_tools()}
    assert await caller(tools["book"], city="Rome") == "2 seats to Rome"
    assert asked == [("How many seats to Rome?", ["seats"], "call")]


async def test_sampling_is_answered_by_the_agents_model_where_it_may(addresses: dict[str, str]) -> None:
    def think(request: ModelRequest) -> Any:
        if request.messages[-1].text == "A word about rain?":
            assert request.params["max_tokens"] == 50
            return "wet"
        return call("muse", topic="rain") if len(request.messages) == 1 else request.messages[-1].text

    url = addresses["streamable-http"]
    agent = Agent("a", model=FunctionModel(think), mcp_config=config(s={"url": url, "sampling": True}))
    assert (await Runners.run("muse", agent)).answer == "the model says: wet"
    refused = Agent("a", model=FunctionModel(think), mcp_config=config(s={"url": url}))
    assert "sampling" in (await Runners.run("muse", refused)).answer
    other = agent.with_model(FunctionModel(lambda r: "dry" if "word about" in r.messages[-1].text else think(r)))
    assert (await Runners.run("muse", other)).answer == "the model says: dry", "the model it was given last"


async def test_agents_without_sampling_share_a_session_and_those_with_it_do_not(caller: Caller) -> None:
    async def sample(request: ModelRequest, context: Any) -> ModelReply:
        raise AssertionError("nobody asks")

    async def pid(sampled_by: Sample | None, **settings: Any) -> str:
        (toolset,) = mcp_tools(config(s=rough(**settings)), sample=sampled_by)
        tools = {tool.name: tool for tool in await toolset.list_tools()}
        return await caller(tools["pids"])

    assert await pid(None) == await pid(sample)
    assert await pid(None, sampling=True) != await pid(sample, sampling=True)


async def test_a_server_of_the_older_kind_without_its_type_is_told_how_to_say_it(addresses: dict[str, str]) -> None:
    with pytest.raises(ToolError, match=r'HTTP 405\); if it is a server of the older kind, say "type": "sse" in its'):
        await tools_of(old={"url": addresses["sse"]})
    with pytest.raises(ToolError) as other:
        await tools_of(old={"url": addresses["streamable-http"].replace("/mcp", "/nowhere")})
    assert "older kind" not in str(other.value)
