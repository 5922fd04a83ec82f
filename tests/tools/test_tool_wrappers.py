"""Filtered, prefixed, renamed, with approval: for functions, tools and toolsets, nested in any order."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.tool import (
    Question,
    Tool,
    ToolContext,
    Toolset,
    approval_required,
    filtered,
    prefixed,
    renamed,
    tool,
)


@tool(timeout=7, idempotent=True)
def read(path: str) -> str:
    """Read a file."""
    return f"read {path}"


async def delete(path: str) -> str:
    """Delete a file."""
    return f"deleted {path}"


def allow(name: str, arguments: dict[str, Any], context: ToolContext) -> bool:
    return True


class Server:
    """A toolset that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def list_tools(self) -> Sequence[Tool]:
        self.asked += 1
        return [read, tool(delete)]


async def listed(items: Sequence[Tool | Toolset]) -> list[Tool]:
    out: list[Tool] = []
    for item in items:
        out += [item] if isinstance(item, Tool) else await item.list_tools()
    return out


async def names(items: Sequence[Tool | Toolset]) -> list[str]:
    return [made.name for made in await listed(items)]


SOURCES = pytest.mark.parametrize("tools", [[read, delete], Server(), [read, filtered(Server(), ["delete"])]])


@SOURCES
async def test_filtered_by_name_or_condition(tools: Any) -> None:
    assert await names(filtered(tools, ["read"])) == ["read"]
    assert await names(filtered(tools, lambda t: t.name != "read")) == ["delete"]


@SOURCES
async def test_prefixed(tools: Any, context: ToolContext) -> None:
    made = await listed(prefixed(tools, "fs_"))
    assert [t.name for t in made] == ["fs_read", "fs_delete"]
    assert [t.description for t in made] == ["Read a file.", "Delete a file."]
    assert (made[0].timeout, made[0].idempotent, made[0].parameters) == (7, True, read.parameters)
    assert await made[1].invoke('{"path": "x"}', context) == "deleted x"


@SOURCES
async def test_renamed(tools: Any, context: ToolContext) -> None:
    made = await listed(renamed(tools, {"delete": "remove"}))
    assert [t.name for t in made] == ["read", "remove"]
    assert made[1].schema.name == "remove"
    assert await made[1].invoke('{"path": "x"}', context) == "deleted x"


@SOURCES
async def test_names_may_be_exchanged(tools: Any) -> None:
    assert await names(renamed(tools, {"delete": "read", "read": "delete"})) == ["delete", "read"]


@SOURCES
async def test_wrappers_nest_in_any_order(tools: Any, context: ToolContext) -> None:
    one = prefixed(filtered(renamed(tools, {"delete": "rm"}), ["rm"]), "fs_")
    other = filtered(renamed(prefixed(tools, "fs_"), {"fs_delete": "fs_rm"}), ["fs_rm"])
    guarded = renamed(approval_required(prefixed(tools, "fs_"), ["fs_delete"]), {"fs_delete": "fs_rm"})
    assert await names(one) == await names(other) == ["fs_rm"]
    assert await names(guarded) == ["fs_read", "fs_rm"]
    with pytest.raises(Question, match="call fs_delete"):
        await (await listed(guarded))[1].invoke('{"path": "x"}', context)
    assert await (await listed(guarded))[0].invoke('{"path": "x"}', context) == "read x"


async def test_tools_that_are_known_are_wrapped_at_once_and_toolsets_when_asked() -> None:
    server = Server()
    (dynamic,) = prefixed(server, "a_")
    assert server.asked == 0
    assert isinstance(dynamic, Toolset)
    assert await names([dynamic]) == ["a_read", "a_delete"]
    assert server.asked == 1
    assert [isinstance(item, Tool) for item in prefixed([read, delete], "a_")] == [True, True]


WRONG: list[tuple[Callable[[Any], list[Tool | Toolset]], str]] = [
    (lambda t: filtered(t, ["raed"]), r"filtered: there is no tool 'raed'; did you mean 'read'\?"),
    (lambda t: renamed(t, {"zzz": "x"}), r"renamed: there is no tool 'zzz'; known are: read, delete\."),
    (lambda t: approval_required(t, ["delte"]), r"approval_required: there is no tool 'delte'.*'delete'"),
    (lambda t: renamed(t, {"read": "delete"}), "two tools would be named 'delete'"),
    (lambda t: renamed(t, {"read": "a b"}), "'a b' cannot be the name of a tool"),
    (lambda t: prefixed(t, "a."), "'a.read' cannot be the name of a tool"),
    (lambda t: filtered(t, "read"), "='read'; give a function"),
    (lambda t: approval_required(t, "read"), "='read'; give a function"),
]


@pytest.mark.parametrize(("wrap", "said"), WRONG)
async def test_wrong_names_are_errors_for_known_tools_and_for_toolsets(wrap: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wrap([read, delete])
    with pytest.raises(ConfigError, match=said):
        await listed(wrap(Server()))


# --- approval


def answered(context: ToolContext, answer: str) -> ToolContext:
    question = 'May bob call delete?\n  path: "x"\nAnswer yes, always, or say why not.'
    return dataclasses.replace(context, answers={question: answer})


async def test_without_a_callback_a_person_is_asked(context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete))
    with pytest.raises(Question) as caught:
        await made.invoke('{"path": "x"}', context)
    assert caught.value.text == 'May bob call delete?\n  path: "x"\nAnswer yes, always, or say why not.'


@pytest.mark.parametrize("answer", ["yes", "y", "Y", " Yes! ", "true", "approve", "ok", "OK."])
async def test_a_person_who_agrees_lets_the_call_run(answer: str, context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete))
    assert await made.invoke('{"path": "x"}', answered(context, answer)) == "deleted x"


@pytest.mark.parametrize("answer", ["no", "not that file", "yes, but another one"])
async def test_a_refusal_tells_the_model_the_words_of_the_person(answer: str, context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete))
    with pytest.raises(ToolError, match=f'A person refused this call, saying: "{answer}"'):
        await made.invoke('{"path": "x"}', answered(context, answer))


async def test_an_empty_answer_is_a_refusal(context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete))
    with pytest.raises(ToolError, match=r"A person refused this call\."):
        await made.invoke('{"path": "x"}', answered(context, " "))


async def test_the_answer_to_another_call_does_not_count(context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete))
    with pytest.raises(Question):
        await made.invoke('{"path": "y"}', answered(context, "yes"))


async def test_a_callback_decides(context: ToolContext) -> None:
    seen: list[Any] = []

    async def ask(name: str, arguments: dict[str, Any], context: ToolContext) -> bool | str:
        await asyncio.sleep(0)
        seen.append((name, arguments, context.agent))
        return arguments["path"] == "x" or "only x"

    (made,) = await listed(approval_required(delete, approve=ask))
    assert await made.invoke('{"path": "x"}', context) == "deleted x"
    with pytest.raises(ToolError, match='refused, saying: "only x"'):
        await made.invoke('{"path": "y"}', context)
    assert seen == [("delete", {"path": "x"}, "bob"), ("delete", {"path": "y"}, "bob")]


@pytest.mark.parametrize("verdict", [False, "", None])
async def test_a_callback_may_refuse_without_words(verdict: Any, context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete, approve=lambda name, arguments, context: verdict))
    with pytest.raises(ToolError, match=r"This call was refused\. Do not repeat"):
        await made.invoke('{"path": "x"}', context)


async def test_a_plain_callback_may_block_as_it_runs_off_the_loop(context: ToolContext) -> None:
    idents: list[int] = []

    def ask(name: str, arguments: dict[str, Any], context: ToolContext) -> bool:
        idents.append(threading.get_ident())
        return True

    (made,) = await listed(approval_required(delete, approve=ask))
    assert await made.invoke('{"path": "x"}', context) == "deleted x"
    assert idents != [threading.get_ident()]


async def test_when_picks_the_calls(context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete, when=lambda name, arguments, context: arguments["path"] == "/"))
    assert await made.invoke('{"path": "x"}', context) == "deleted x"
    with pytest.raises(Question):
        await made.invoke('{"path": "/"}', context)


@pytest.mark.parametrize("arguments", ["[1]", "{", "null", '{"a": "\\ud83d"}'])
async def test_arguments_that_cannot_be_shown_are_never_approved(arguments: str, context: ToolContext) -> None:
    (made,) = await listed(approval_required(delete, approve=allow))
    with pytest.raises(ToolError, match="not a JSON object"):
        await made.invoke(arguments, context)


async def test_no_arguments_at_all(context: ToolContext) -> None:
    @tool
    def now() -> int:
        return 1

    (made,) = await listed(approval_required(now, approve=allow))
    assert await made.invoke("", context) == 1


async def test_wrong_arguments_are_told_by_the_tool_itself(context: ToolContext) -> None:
    (made,) = await listed(prefixed(read, "fs_"))
    with pytest.raises(ToolError, match="- path: missing"):
        await made.invoke("{}", context)
