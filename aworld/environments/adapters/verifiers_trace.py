"""An episode of ours as a trace of verifiers: what its rewards, metrics and judges look at."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from aworld.core.message import Content, Image, Message, Text
from aworld.environments.rubric import ScoredEpisode

_STOPPED = {"finished": "agent_completed", "limit_reached": "max_turns", "timeout": "agent_timeout", "failed": "error"}


def fill(trace: Any, episode: ScoredEpisode) -> None:
    """Put the conversation of the episode, its calls and its ending into a fresh trace."""
    types, graph = import_module("verifiers.v1.types"), import_module("verifiers.v1.graph")
    traces = import_module("verifiers.v1.trace")
    record = episode.record
    calls = {call.reply: call for call in record.calls.values() if call.reply is not None}
    leaf = record.activations[0].leaf if record.activations else None
    for number, id in enumerate(record.path_ids(leaf)):
        node = record.messages[id]
        message = _message(types, node.message)
        parent = number - 1 if number else None
        trace.nodes.append(graph.MessageNode(parent=parent, message=message, sampled=node.origin == "model"))
        call = calls.get(id)
        if call is not None:
            trace.calls.append(
                traces.ModelCall(
                    node=number,
                    model=call.model,
                    finish_reason=call.finish_reason
                    if call.finish_reason in ("stop", "length", "tool_calls")
                    else None,
                    usage=_usage(types, call.usage),
                )
            )
    for tools in record.toolsets.values():
        trace.tools = [types.Tool(**{k: tool[k] for k in ("name", "description", "parameters")}) for tool in tools]
    trace.is_completed, trace.ok = True, episode.status == "finished"
    trace.stop_condition = _STOPPED.get(episode.status)
    trace.is_timeout = episode.status == "timeout"


def _message(types: Any, message: Message) -> Any:
    match message.role:
        case "system":
            return types.SystemMessage(content=_content(types, message.content))
        case "user":
            return types.UserMessage(content=_content(types, message.content))
        case "tool":
            content = _content(types, message.content)
            return types.ToolMessage(tool_call_id=message.tool_call_id or "", content=content, name=message.name)
        case "assistant":
            calls = [types.ToolCall(id=c.id, name=c.name, arguments=c.arguments) for c in message.tool_calls]
            text = message.text if message.content is not None else None
            return types.AssistantMessage(content=text, reasoning_content=message.reasoning, tool_calls=calls or None)


def _content(types: Any, content: Content | None) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[Any] = []
    for part in content:
        if isinstance(part, Text):
            parts.append(types.TextContentPart(text=part.text))
        elif isinstance(part, Image):
            parts.append(types.ImageUrlContentPart(image_url=types.ImageUrlSource(url=part.url)))
    return parts


def _usage(types: Any, usage: Any) -> Any:
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached = usage.cached_tokens or 0
    return types.Usage(
        prompt_tokens=usage.input_tokens - cached,
        completion_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_tokens,
    )
