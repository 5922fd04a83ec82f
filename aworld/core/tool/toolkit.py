"""A toolkit: the tools that one agent is offered, by name, with the digest under which the log keeps their schemas."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import msgspec

from aworld.core.context.base import RunScope
from aworld.core.exceptions import ConfigError
from aworld.core.model import ToolSchema
from aworld.core.tool.base import Tool, Toolset
from aworld.core.tool.func_to_tool import as_tools, find_tools


class Offer:
    """A resolved set of tools: what is sent, and what is called."""

    __slots__ = ("by_name", "dicts", "digest", "schemas")

    def __init__(self, tools: Iterable[Tool], owner: str) -> None:
        self.by_name: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self.by_name:
                raise ConfigError(
                    f"Two tools of {owner} are named {tool.name!r}; give one another name, "
                    "for example with renamed(tools, {...}) or prefixed(tools, '...')."
                )
            self.by_name[tool.name] = tool
        self.schemas: tuple[ToolSchema, ...] = tuple(tool.schema for tool in self.by_name.values())
        self.digest, self.dicts = describe(self.schemas)

    def of_run(self, scope: RunScope) -> Offer:
        """The same offer, with the run's own copies of the tools: what a model is sent is not made again."""
        offer = copy(self)
        offer.by_name = {name: scope.own(tool) for name, tool in self.by_name.items()}
        return offer


def describe(schemas: Sequence[ToolSchema]) -> tuple[str | None, tuple[dict[str, Any], ...]]:
    """The digest of a set of schemas, None for an empty set, and the schemas as the log keeps them."""
    dicts = tuple({"name": s.name, "description": s.description, "parameters": s.parameters} for s in schemas)
    return (digest_of(dicts), dicts) if dicts else (None, ())


def digest_of(body: Any) -> str:
    """The digest under which the log keeps something JSON-able: a set of schemas, the definition of an agent."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()[:16]


class Toolkit:
    """The tools given to an agent. Those known beforehand are resolved once; toolsets when a run starts."""

    def __init__(self, tools: Sequence[Any] = (), tool_names: Sequence[str] = (), *, owner: str) -> None:
        self.owner = owner
        self.tool_names = tuple(tool_names)
        self.given: list[Tool | Toolset] = as_tools(tools)
        """What was handed over, without what was found by name."""
        self.items: list[Tool | Toolset] = list(self.given)
        for name in tool_names:
            try:
                self.items += find_tools(name)
            except ConfigError as error:
                raise ConfigError(f"{owner[:1].upper()}{owner[1:]} misses a tool. {error}") from None
        self._scoped = any(hasattr(item, "for_run") for item in self.items)
        static = [item for item in self.items if isinstance(item, Tool)]
        self._offer = Offer(static, owner) if len(static) == len(self.items) else None

    def ready(self, scope: RunScope | None = None) -> Offer | None:
        """The offer of a run, when no toolset has to be asked first; the same one for all where no tool is a run's."""
        if scope is None or not self._scoped or self._offer is None:
            return self._offer
        return self._offer.of_run(scope)

    async def resolve(self, extra: Sequence[Tool | Toolset], scope: RunScope) -> Offer:
        """The offer of a run, `extra` tools of its task added."""
        offer = None if extra else self.ready(scope)
        if offer is not None:
            return offer
        tools: list[Tool] = []
        for item in map(scope.own, (*self.items, *extra)):
            tools += [item] if isinstance(item, Tool) else await item.list_tools()
        return Offer(tools, self.owner)
