"""`@tool`, `@be_tool` and `as_tools`: every kind of callable, the registry, and where functions run."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from aworld.core.context.base import Context
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.tool import FunctionTool, Tool, ToolContext, as_tools, be_tool, find_tools, tool

who: ContextVar[str] = ContextVar("who")


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@tool(name="look_up", desc="Look it up.", timeout=2.5, idempotent=True)
async def search(query: str) -> str:
    """Not what the model sees."""
    await asyncio.sleep(0)
    return query.upper()


def offered(item: Any) -> Tool:
    (made,) = as_tools(item)
    assert isinstance(made, Tool)
    return made


async def test_a_decorated_function_is_still_the_function() -> None:
    assert add(1) == 2
    assert add(1, b=4) == 5
    assert await search("x") == "X"
    assert add.__name__ == "add"
    assert add.__doc__ == "Add two numbers."


async def test_and_a_tool(context: ToolContext) -> None:
    assert (add.name, add.description, add.timeout, add.idempotent) == ("add", "Add two numbers.", None, False)
    assert (search.name, search.description, search.timeout, search.idempotent) == (
        "look_up",
        "Look it up.",
        2.5,
        True,
    )
    assert await add.invoke('{"a": 1}', context) == 2
    assert await search.invoke('{"query": "x"}', context) == "X"
    assert add.schema.parameters == add.parameters


async def test_nested_functions(context: ToolContext) -> None:
    n = 10

    @tool
    def plus(a: int) -> int:
        return a + n

    def minus(a: int) -> int:
        return a - n

    assert await plus.invoke('{"a": 1}', context) == 11
    assert await offered(minus).invoke('{"a": 1}', context) == -9


class Counter:
    """An object whose methods are tools."""

    def __init__(self, start: int) -> None:
        self.start = start

    @tool
    def count(self, by: int = 1) -> int:
        """Count on."""
        return self.start + by

    @tool
    async def count_later(self, by: int) -> int:
        return self.start + by

    def bare(self, by: int) -> int:
        return self.start - by

    @tool
    @staticmethod
    def inner_static(a: int) -> int:
        return a

    @staticmethod
    @tool
    def outer_static(a: int) -> int:
        return a

    @tool
    @classmethod
    def inner_class(cls, a: int) -> str:
        return f"{cls.__name__}{a}"

    @classmethod
    @tool
    def outer_class(cls, a: int) -> str:
        return f"{cls.__name__}{a}"

    async def __call__(self, by: int) -> int:
        """Count by calling."""
        return self.start + by


class Child(Counter):
    """Inherits the tools."""


async def test_methods_are_tools_of_their_object(context: ToolContext) -> None:
    one, ten = Counter(1), Counter(10)
    assert one.count(by=2) == 3
    assert await ten.count_later(1) == 11
    assert one.count.description == "Count on."
    assert list(one.count.parameters["properties"]) == ["by"]
    assert await offered(one.count).invoke("{}", context) == 2
    assert await offered(ten.count).invoke('{"by": 5}', context) == 15
    assert await offered(ten.count_later).invoke('{"by": 1}', context) == 11
    assert await offered(ten.bare).invoke('{"by": 1}', context) == 9
    assert Counter.count(one, 4) == 5


async def test_static_and_class_methods_in_both_orders(context: ToolContext) -> None:
    child: Any = Child(1)  # checkers do not follow a descriptor through `staticmethod` and `classmethod`
    kind: Any = Child
    assert kind.inner_static(3) == kind.outer_static(3) == child.outer_static(3) == child.inner_static(3) == 3
    assert child.inner_class(1) == kind.inner_class(1) == "Child1"
    assert child.outer_class(1) == kind.outer_class(1) == "Child1"
    for item in (kind.inner_static, child.inner_static, kind.outer_static, child.outer_static):
        assert await offered(item).invoke('{"a": 3}', context) == 3
    for item in (child.inner_class, kind.inner_class, child.outer_class, kind.outer_class):
        assert await offered(item).invoke('{"a": 3}', context) == "Child3"


@pytest.mark.parametrize("method", [Counter.count, Counter.bare])
def test_a_method_without_its_object_is_refused_with_the_remedy(method: Any) -> None:
    with pytest.raises(ToolError, match=r"Counter\.(count|bare) is a method.*my_object\.(count|bare)"):
        as_tools([method])


async def test_callable_objects_and_partials(context: ToolContext) -> None:
    made = offered(Counter(5))
    assert (made.name, made.description) == ("Counter", "Count by calling.")
    assert await made.invoke('{"by": 1}', context) == 6

    async def power(base: int, exponent: int) -> int:
        return base**exponent

    square = offered(functools.partial(power, exponent=2))
    assert square.name == "power"
    assert await square.invoke('{"base": 3}', context) == 9
    cached = offered(functools.lru_cache(add.__wrapped__))
    assert await cached.invoke('{"a": 3}', context) == 4


async def test_a_plain_function_that_returns_an_awaitable_is_awaited(context: ToolContext) -> None:
    def logged(function: Callable[[int], Awaitable[int]]) -> Callable[[int], Awaitable[int]]:
        @functools.wraps(function)
        def wrapper(a: int) -> Awaitable[int]:
            return function(a)

        return wrapper

    @tool
    @logged
    async def twice(a: int) -> int:
        return 2 * a

    assert await twice.invoke('{"a": 4}', context) == 8


async def test_sync_functions_run_off_the_loop_with_context_variables(context: ToolContext) -> None:
    def where() -> tuple[int, str]:
        return threading.get_ident(), who.get()

    who.set("alice")
    here = threading.get_ident()
    ident, name = await tool(where).invoke("", context)
    assert ident != here
    assert name == "alice"
    assert await tool(inline=True)(where).invoke("", context) == (here, "alice")


async def test_contexts_are_handed_in(context: ToolContext) -> None:
    @tool(inline=True)
    def remember(key: str, call: ToolContext, state: Context, /, maybe: ToolContext | None = None) -> Any:
        state.set(key, call.agent)
        return call, maybe

    assert await remember.invoke('{"key": "who"}', context) == (context, context)
    assert context.context["who"] == "bob"


@pytest.mark.parametrize("inline", [True, False])
async def test_errors_of_the_function_come_out_as_they_are(inline: bool, context: ToolContext) -> None:
    @tool(inline=inline)
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail.invoke("", context)


async def test_a_tool_cannot_end_the_program(context: ToolContext) -> None:
    def leave() -> None:
        sys.exit(3)

    async def leave_later() -> None:
        sys.exit(3)

    for item in (tool(leave), tool(inline=True)(leave), tool(leave_later)):
        with pytest.raises(ToolError, match=r"tried to end the program \(exit code 3\)"):
            await item.invoke("", context)


def test_be_tool_registers_functions_under_one_name() -> None:
    @be_tool(tool_name="files", tool_desc="Works on files.", name="read_file", desc="Read a file.")
    def read(path: str) -> str:
        return path

    @be_tool(tool_name="files", tool_desc="Works on files.")
    def write(path: str) -> str:
        return path

    @be_tool(tool_name="files", tool_desc="Works on files.")
    def stat(path: str) -> str:
        """Look at a file."""
        return path

    assert [t.name for t in find_tools("files")] == ["read_file", "write", "stat"]
    assert [t.description for t in find_tools("files")] == ["Read a file.", "Works on files.", "Look at a file."]
    assert be_tool is tool


def test_the_same_name_defined_again_replaces_the_former() -> None:
    @tool(tool_name="reloaded")
    def one() -> int:
        return 1

    former = one

    @tool(tool_name="reloaded", name="one")
    def again() -> int:
        return 2

    assert find_tools("reloaded") == [again]
    assert former not in find_tools("reloaded")


def test_an_unknown_registry_name_names_the_nearest() -> None:
    tool(tool_name="weather")(add.__wrapped__)
    with pytest.raises(ConfigError, match=r"'wether'; did you mean 'weather'\?"):
        find_tools("wether")
    with pytest.raises(ConfigError, match=r"known are: .*weather.*imported"):
        find_tools("zzz")


def test_a_tool_that_is_not_registered_is_not_found() -> None:
    with pytest.raises(ConfigError):
        find_tools("look_up")


def test_a_method_cannot_be_registered() -> None:
    with pytest.raises(ConfigError, match=r"tool_name='x'.*is a method.*Leave tool_name out"):

        class Holder:  # pyright: ignore[reportUnusedClass] - its body is what is tested
            @tool(tool_name="x")
            def method(self, a: int) -> int:
                return a


@pytest.mark.parametrize("name", ["with space", "über", "a" * 65, "a.b", "a\n"])
def test_names_that_providers_refuse(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be the name of a tool.*1 to 64.*@tool\(name="):
        tool(name=name)(add.__wrapped__)


def test_a_function_name_that_providers_refuse() -> None:
    def größe(a: int) -> int:
        return a

    with pytest.raises(ConfigError, match=r"'größe'.*function größe.*name='gr_e'"):
        tool(größe)
    assert tool(name="size")(größe).name == "size"


def _yields() -> Any:
    yield 1


async def _yields_later() -> Any:
    yield 1


NO_TOOLS: list[tuple[Any, type[Exception], str]] = [
    (lambda x: x, ToolError, "lambda has no name"),  # pyright: ignore[reportUnknownLambdaType] - as users write it
    (len, ToolError, "len: parameter 'obj' has no annotation"),
    (dict.fromkeys, ToolError, "fromkeys"),
    (type, ToolError, "type is a class"),
    (Counter, ToolError, "Counter is a class"),
    (5, ToolError, "5 is not callable"),
    (None, ToolError, "None is not callable"),
    ({"a": 1}, ToolError, "not callable"),
    ("add", ConfigError, r"tool_names=\['add'\]"),
    (_yields, ToolError, "_yields yields.*Return a list"),
    (_yields_later, ToolError, "_yields_later yields"),
]


@pytest.mark.parametrize(("item", "error", "said"), NO_TOOLS)
def test_what_cannot_be_a_tool(item: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        as_tools([item])


def test_a_builtin_without_signature() -> None:
    with pytest.raises(ToolError, match=r"next cannot be a tool: Python knows no signature|next: parameter"):
        as_tools(next)
    with pytest.raises(ToolError, match=r"max cannot be a tool: Python knows no signature.*annotated function"):
        as_tools(max)


class Server:
    """A toolset."""

    async def list_tools(self) -> list[Tool]:
        return [add]


def test_as_tools_takes_one_or_many_nested_or_not_in_order() -> None:
    def plain(a: int) -> int:
        return a

    server = Server()
    made = as_tools([plain, [add, (server, search)], (f for f in [add])])
    assert [m.name if isinstance(m, Tool) else m for m in made] == ["plain", "add", server, "look_up", "add"]
    assert made[1] is add
    assert as_tools(add) == [add]
    assert as_tools(server) == [server]
    assert as_tools(()) == []


def test_a_tool_made_again_from_a_tool_keeps_function_and_binding() -> None:
    again = FunctionTool(add, name="plus")
    assert again(1) == 2
    assert again.name == "plus"
    assert again.description == "Add two numbers."


async def test_one_tool_serves_many_calls_at_once(context: ToolContext) -> None:
    calls = [add.invoke(f'{{"a": {i}}}', context) for i in range(500)]
    assert await asyncio.gather(*calls) == [i + 1 for i in range(500)]


_IMPORT = """
import sys
import aworld.core.tool
print([name for name in ("griffe", "asyncio", "aiohttp", "aworld.core.tool.arguments") if name in sys.modules])
"""


def test_the_import_is_cheap() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
