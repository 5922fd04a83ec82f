"""Small wrappers that give tools another shape: fewer, under other names, or only with a person's consent.

Each takes what may stand in `tools=[…]` (a function, a tool, a toolset, or a sequence of them) and returns a list that
may stand there too, so they nest in any order. Tools that are known are wrapped at once and their names checked; with
a toolset among them, all are wrapped when it is asked for its tools.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any, TypeAlias, cast

import msgspec

from aworld.core.checks import hint, typed
from aworld.core.context.base import RunScope
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.tool.base import Question, Tool, ToolContext, Toolset
from aworld.core.tool.func_to_tool import as_tools, checked_name

Change: TypeAlias = Callable[[Sequence[Tool]], Sequence[Tool]]
When: TypeAlias = Callable[[str, dict[str, Any], ToolContext], bool] | Collection[str]
"""Which calls need consent: names of tools, or a function of the tool's name, its arguments and the context."""
Approve: TypeAlias = Callable[[str, dict[str, Any], ToolContext], bool | str | Awaitable[bool | str]]
"""Asks for consent: True runs the call; False, or a text that says why, refuses it. A plain function may block."""

ALWAYS = "always"
"""The answer that lets a tool run for the rest of the run."""
CONSENT = f"Answer yes, {ALWAYS}, or say why not."
"""Ends a question of `approval_required`."""
_YES = frozenset({"yes", "y", "true", "approve", "approved", "ok", "okay"})


def means_yes(words: str) -> bool:
    """Whether a person's words are consent: a plain yes and nothing else, as more words may take it back."""
    return means_always(words) or _plain(words) in _YES


def means_always(words: str) -> bool:
    """Whether they are consent for the rest of the run."""
    return _plain(words) == ALWAYS


def _plain(words: str) -> str:
    return words.strip().lower().rstrip(".!")


@typed()
def filtered(tools: Any, keep: Callable[[Tool], bool] | Collection[str]) -> list[Tool | Toolset]:
    """Only the tools that `keep` names, or for which it returns True.

    Raises `ConfigError` when `keep` names a tool that is not there.
    """
    if callable(keep):
        return _changed(tools, lambda offered: [tool for tool in offered if keep(tool)])

    def change(offered: Sequence[Tool]) -> Sequence[Tool]:
        _check_offered(keep, offered, "filtered")
        return [tool for tool in offered if tool.name in keep]

    return _changed(tools, change)


@typed()
def prefixed(tools: Any, prefix: str) -> list[Tool | Toolset]:
    """The tools with `prefix` before their names. Raises `ConfigError` for a name that providers refuse."""
    return _changed(tools, lambda offered: [_renamed(tool, prefix + tool.name) for tool in offered])


@typed()
def renamed(tools: Any, names: Mapping[str, str]) -> list[Tool | Toolset]:
    """The tools under new names, `{old: new}`; the others as they are.

    Raises `ConfigError` for an old name that is not there, and for a new one that providers refuse or two tools share.
    """

    def change(offered: Sequence[Tool]) -> Sequence[Tool]:
        _check_offered(names, offered, "renamed")
        out = [_renamed(tool, names[tool.name]) if tool.name in names else tool for tool in offered]
        taken = [tool.name for tool in out]
        if twice := next((name for name in names.values() if taken.count(name) > 1), None):
            raise ConfigError(f"renamed: two tools would be named {twice!r}. Give each its own name.")
        return out

    return _changed(tools, change)


@typed()
def approval_required(tools: Any, when: When | None = None, approve: Approve | None = None) -> list[Tool | Toolset]:
    """The tools, run only with consent: for every call, or for those that `when` picks.

    `approve` is asked for it; without one, a person is (`Question`: the run waits until the answer comes), and yes,
    y, true, approve or ok let the call run, `always` this tool for the rest of the run. A refusal goes to the model as
    a `ToolError` with the words of who refused.
    Raises `ConfigError` when `when` names a tool that is not there, and for agents: what they do is done by their own
    tools.
    """
    if when is None or callable(when):
        return _changed(tools, lambda offered: [_approved(tool, when, approve) for tool in offered])

    def change(offered: Sequence[Tool]) -> Sequence[Tool]:
        _check_offered(when, offered, "approval_required")
        return [_approved(tool, None, approve) if tool.name in when else tool for tool in offered]

    return _changed(tools, change)


class _Changed:
    """Tools of which some are known only when a run starts, changed when they are asked for."""

    def __init__(self, items: Sequence[Tool | Toolset], change: Change) -> None:
        self._items = items
        self._change = change

    def for_run(self, scope: RunScope) -> _Changed:
        """The run's own copies, changed in the same way."""
        return _Changed([scope.own(item) for item in self._items], self._change)

    async def list_tools(self) -> Sequence[Tool]:
        offered: list[Tool] = []
        for item in self._items:
            offered += [item] if isinstance(item, Tool) else await item.list_tools()
        return self._change(offered)


def _changed(tools: Any, change: Change) -> list[Tool | Toolset]:
    items = as_tools(tools)
    static = [item for item in items if isinstance(item, Tool)]
    return [*change(static)] if len(static) == len(items) else [_Changed(items, change)]


def _renamed(tool: Tool, name: str) -> Tool:
    return tool.under(checked_name(name, f"for {tool.name}")) or _Wrapped(tool, name)


def _approved(tool: Tool, when: Any, approve: Approve | None) -> Tool:
    if tool.under(tool.name) is not None:
        raise ConfigError(
            f"approval_required: {tool.name!r} is an agent or a team, which the runtime starts itself. Ask for consent "
            "where something is done: approval_required around its own tools."
        )
    return _Approved(tool, when, approve)


class _Wrapped(Tool):
    """A tool in front of another one, under a name of its own."""

    def __init__(self, inner: Tool, name: str) -> None:
        self.name = checked_name(name, f"for {inner.name}")
        self.description = inner.description
        self.parameters = inner.parameters
        self.timeout = inner.timeout
        self.idempotent = inner.idempotent
        self.guardrails = inner.guardrails
        self._inner = inner

    @property
    def for_run(self) -> Callable[[RunScope], Tool]:
        """Is there where the inner tool has it: what is shared stays shared behind a wrapper. Else AttributeError."""
        _ = cast("Any", self._inner).for_run
        return self._for_run

    def _for_run(self, scope: RunScope) -> Tool:
        if self.name in scope.used:  # the log has our name; the inner tool looks for its own
            scope.used |= {self._inner.name}
        own_wrapper = copy(self)
        own_wrapper._inner = scope.own(self._inner)
        return own_wrapper

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        return await self._inner.invoke(arguments, context)


class _Approved(_Wrapped):
    """A tool that asks before it runs."""

    def __init__(
        self, inner: Tool, when: Callable[[str, dict[str, Any], ToolContext], bool] | None, approve: Approve | None
    ) -> None:
        super().__init__(inner, inner.name)
        self._when = when
        self._approve = approve

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        values = decoded(arguments)
        if self._when is None or self._when(self.name, values, context):
            await self._consent(values, context)
        return await self._inner.invoke(arguments, context)

    async def _consent(self, values: dict[str, Any], context: ToolContext) -> None:
        if self._approve is None:
            question = _question(self.name, values, context.agent)
            if question not in context.answers:
                if context.always:
                    return
                raise Question(question)
            answer = context.answers[question].strip()
            if not means_yes(answer):
                raise ToolError(f"A person refused this call{_reason(answer)} Do not repeat it unchanged.")
            return
        from aworld.core.tool.threads import THREADS  # asyncio is not imported before it is needed

        verdict = await THREADS.call(self._approve, self.name, values, context)
        if isinstance(verdict, str) or not verdict:
            raise ToolError(f"This call was refused{_reason(verdict or '')} Do not repeat it unchanged.")


def decoded(arguments: str) -> dict[str, Any]:
    """The arguments of a call, as a model wrote them, as an object. Raises `ToolError`."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ToolError(f"The arguments are not a JSON object: {error}") from None


def _question(name: str, values: dict[str, Any], agent: str) -> str:
    # A name of an argument is the model's, too: it may have the lines of another question in it.
    names = (key if key.isidentifier() else msgspec.json.encode(key).decode() for key in values)
    shown = [f"  {key}: {msgspec.json.encode(value).decode()}" for key, value in zip(names, values.values())]
    return "\n".join([f"May {agent} call {name}?", *shown, CONSENT])


def _reason(words: str) -> str:
    return f', saying: "{words}".' if words else "."


def _check_offered(names: Collection[str], tools: Sequence[Tool], owner: str) -> None:
    there = [tool.name for tool in tools]
    for name in names:
        if name not in there:
            raise ConfigError(f"{owner}: there is no tool {name!r}; {hint(name, there)}")
