"""Providers' own tools: what an agent may ask for, whoever answers, and what they did.

`Agent(native_tools=[WebSearch(max_uses=3), "code_execution"])` is a setting like any other (`llm_native_tools`), so it
is in the definition, and in the parameters of each recorded call. A dialect says which it has (`native_tools` of its
class) and puts them in its own words. What they did comes inside the reply, is kept there as it came
(`Message.opaque`), and `native_uses` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeAlias, cast

import msgspec
from msgspec import Struct

from aworld.core.checks import StructDoor
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message


class Location(Struct, frozen=True, omit_defaults=True, kw_only=True, metaclass=StructDoor):
    """Where somebody who searches is, as far as it matters."""

    country: str | None = None
    """Two letters, such as `NO`."""
    region: str | None = None
    city: str | None = None
    timezone: str | None = None
    """Such as `Europe/Oslo`."""


class WebSearch(
    Struct, frozen=True, omit_defaults=True, kw_only=True, tag="web_search", tag_field="type", metaclass=StructDoor
):
    """The provider searches the web."""

    max_uses: int | None = None
    """Most searches of one call of the model."""
    allowed_domains: Sequence[str] = ()
    """The only ones whose pages may be found."""
    blocked_domains: Sequence[str] = ()
    location: Location | None = None


class CodeExecution(Struct, frozen=True, tag="code_execution", tag_field="type", metaclass=StructDoor):
    """The provider runs code in a container of its own."""


NativeTool: TypeAlias = WebSearch | CodeExecution
NATIVE_TOOLS = frozenset({"web_search", "code_execution"})
"""The words for them."""


def read_native_tools(values: Any) -> list[NativeTool]:
    """The tools that settings name (`llm_native_tools`, or `native_tools` of parameters). Raises `ConfigError`."""
    if isinstance(values, list):
        values = [{"type": tool} if isinstance(tool, str) else tool for tool in cast("list[Any]", values)]
    try:
        return msgspec.convert(values or [], list[NativeTool])
    except msgspec.ValidationError as error:
        names = ", ".join(sorted(NATIVE_TOOLS))
        raise ConfigError(f"native_tools: {error}; known are: {names}.", setting="native_tools") from None


def check_settings(model: Any, params: Mapping[str, Any]) -> None:
    """Refuse settings that a model has no word for, and tools that its provider does not have. Raises `ConfigError`."""
    for name in getattr(model, "lacks", frozenset[str]()) & params.keys():
        if params[name] is not None:
            raise ConfigError(f"{model.provider} has no {name}: leave it (llm_{name}) unset.", setting=f"llm_{name}")
    for tool in read_native_tools(params.get("native_tools")):
        word = tool.__struct_config__.tag
        if word not in getattr(model, "native_tools", ()):
            raise ConfigError(
                f"{model.provider}:{model.name} has no {word} of its own: leave it out of native_tools, take another "
                "provider, or give the agent a tool that does it.", setting="native_tools",
            )  # fmt: skip


def open_settings(model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of an agent that its model leaves open. Raises `ConfigError` for one that it has no word for."""
    left = {name: value for name, value in settings.items() if name not in model.params}
    check_settings(model, left)
    return left


def options_of_tool(tool: NativeTool, provider: str, *takes: str) -> dict[str, Any]:
    """What is set of a tool, by its names here. Raises `ConfigError` for what the provider does not take."""
    options = {key: value for key, value in msgspec.to_builtins(tool).items() if key != "type"}
    for key in options.keys() - set(takes):
        what = tool.__struct_config__.tag
        raise ConfigError(f"{what} of {provider} takes no {key}: leave it out.", setting="native_tools")
    return options


class NativeUse(Struct, frozen=True):
    """What a provider's tool did once."""

    tool: str
    """`web_search`, `code_execution`, or the provider's word for another."""
    input: str
    """The query, or the code; empty where the provider does not say."""
    output: str | None = None
    """The addresses that were found, or what the code printed; None where it is not in this message."""


def native_uses(message: Message) -> list[NativeUse]:
    """What providers' tools did within a message, in their order."""
    kept = message.opaque or {}
    try:
        return [use for key, read in _READERS.items() if key in kept for use in read(kept[key])]
    except (AttributeError, KeyError, RecursionError, TypeError):  # the record of a stranger may hold anything
        return []


def _of_anthropic(kept: Mapping[str, Any]) -> Iterator[NativeUse]:
    blocks = [cast("dict[str, Any]", block) for block in kept["content"]]
    results = {block.get("tool_use_id"): block for block in blocks if str(block.get("type")).endswith("_tool_result")}
    for block in blocks:
        if block.get("type") == "server_tool_use":
            result = results.pop(block.get("id"), None)
            name, asked = str(block.get("name")), cast("dict[str, Any]", block.get("input") or {})
            text = asked.get("query") or asked.get("code") or asked.get("command") or json.dumps(asked)
            output = None if result is None else outcome_text(result.get("content"))
            yield NativeUse("code_execution" if name.endswith("code_execution") else name, str(text), output)
    for block in results.values():  # of what was asked in a message before
        kind = str(block["type"]).removesuffix("_tool_result")
        tool = "code_execution" if kind.endswith("code_execution") else kind
        yield NativeUse(tool, "", outcome_text(block.get("content")))


def _of_chat(kept: Sequence[Mapping[str, Any]]) -> Iterator[NativeUse]:
    if cited := [one["url_citation"] for one in kept if one.get("type") == "url_citation"]:
        yield NativeUse("web_search", "", outcome_text(cited))


def _of_responses(kept: Mapping[str, Any]) -> Iterator[NativeUse]:
    for item in kept["output"]:
        if item.get("type") == "web_search_call":
            action = _fields(item.get("action"))
            text, sources = action.get("query") or action.get("pattern") or action.get("url"), action.get("sources")
            yield NativeUse("web_search", str(text or ""), None if sources is None else outcome_text(sources))
        elif item.get("type") == "code_interpreter_call":
            logs = item.get("outputs")
            yield NativeUse("code_execution", str(item.get("code") or ""), None if logs is None else outcome_text(logs))


def _of_gemini(kept: Mapping[str, Any]) -> Iterator[NativeUse]:
    codes = [_fields(part["executableCode"]) for part in kept["parts"] if "executableCode" in part]
    results = [_fields(part["codeExecutionResult"]) for part in kept["parts"] if "codeExecutionResult" in part]
    for code, result in zip_longest(codes, results):
        yield NativeUse("code_execution", str((code or {}).get("code") or ""), outcome_text(result))
    if grounding := _fields(kept.get("grounding")):
        pages = [_fields(_fields(chunk).get("web")) for chunk in grounding.get("groundingChunks") or ()]
        queries = "; ".join(map(str, grounding.get("webSearchQueries") or ()))
        yield NativeUse("web_search", queries, outcome_text([{**page, "url": page.get("uri", "")} for page in pages]))


_READERS = {"anthropic": _of_anthropic, "annotations": _of_chat, "gemini": _of_gemini, "responses": _of_responses}
"""By the key under which `Message.opaque` has what came."""


def _fields(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def outcome_text(content: Any) -> str:
    """What came of a tool, as text: pages by title and address, output of code, an error."""
    if isinstance(content, list):
        return "\n".join(filter(None, map(outcome_text, cast("list[Any]", content))))
    if not isinstance(content, dict):
        return "" if content is None else str(content)
    fields = cast("dict[str, Any]", content)
    if "error_code" in fields:
        return f"error: {fields['error_code']}"
    if "url" in fields:
        return f"{fields.get('title') or ''} {fields['url']}".strip()
    printed = [
        str(fields[key]).rstrip("\n")
        for key in ("stdout", "stderr", "content", "lines", "logs", "output")
        if fields.get(key)
    ]
    if fields.get("return_code"):
        printed.append(f"exit code {fields['return_code']}")
    return "\n".join(printed)
