"""Tools for models that have no native tool calls (`llm_tool_mode="structured"` or `"prompt"`).

The tools are told in the system prompt, and the model answers in JSON: `{"tool": name, "arguments": {...}}` for a call,
`{"answer": ...}` for an answer. Who makes a call again that was answered already is offered the answer alone: small
models would go on for ever. With `structured` the server is asked to hold it to a JSON schema of those shapes; with
`prompt` it is asked in words, and the first JSON object in its text is read. The log has the call as a call; the text
that the model wrote is kept beside it (`Message.opaque`), and is what it sees of itself in later prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal, cast

from msgspec.structs import replace

from aworld.core.message import Message, ToolCall
from aworld.core.model import Delta, Model, ModelReply, ModelRequest, OutputSchema, TextDelta, ToolSchema

OPENINGS = 32
"""Braces of a text at which an object may begin; each is tried, and a model may write a million."""

_TEXT = {"type": "string"}
_OPENING = re.compile(r'\s*\{\s*"answer"\s*:\s*"')
_OPENING_OF_SHAPE = re.compile(r'\s*\{\s*"answer"\s*:\s*(?=\{)')
# A character of JSON text as it may be written; of one in two halves, both.
_HIGH, _LOW = "[dD][89abAB][0-9a-fA-F]{2}", "[dD][c-fC-F][0-9a-fA-F]{2}"
_CHARACTER = re.compile(rf'\\u{_HIGH}\\u{_LOW}|\\u(?!{_HIGH})[0-9a-fA-F]{{4}}|\\["\\/bfnrt]|[^"\\]')


class ToolsByText:
    """A model that is offered tools in words, around one that knows of none. A value, as every model is."""

    def __init__(self, model: Model, mode: Literal["structured", "prompt"]) -> None:
        self.model = model
        self.mode: Literal["structured", "prompt"] = mode
        self.provider = model.provider
        self.lacks = frozenset({"parallel_tool_calls", "tool_choice", *getattr(model, "lacks", ())})
        self.name = model.name
        self.params: dict[str, Any] = {**model.params, "tool_mode": mode}
        """Not sent: what the record says of how the tools were offered."""

    def __getattr__(self, name: str) -> Any:  # its retries, limits and what else a model may have
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.model, name)

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        if not _is_needed(request):
            return await self.model.generate(request)
        return read_reply(await self.model.generate(told_by_text(request, self.mode)), request)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once; of an answer its text is handed on as it comes, a call comes whole. Raises `ModelError`."""
        if not _is_needed(request):
            return await self.model.stream(request, on_delta)
        show = AnswerText(on_delta, shaped=request.output is not None)
        return read_reply(await self.model.stream(told_by_text(request, self.mode), show.take), request)


def _is_needed(request: ModelRequest) -> bool:
    """Whether there is a tool, or a call in what was said before."""
    return bool(request.tools) or any(message.tool_calls for message in request.messages)


def _repeats(messages: Sequence[Message]) -> bool:
    """Whether the last call is one that was made before, with the same arguments."""
    calls = [(call.name, call.arguments) for message in messages for call in message.tool_calls]
    return bool(calls) and messages[-1].role == "tool" and calls[-1] in calls[:-1]


def told_by_text(request: ModelRequest, mode: Literal["structured", "prompt"]) -> ModelRequest:
    """The request as a model without tools gets it."""
    if _repeats(request.messages):
        request = replace(request, tools=())
    system = [message for message in request.messages if message.role == "system"]
    rest = [message for message in request.messages if message.role != "system"]
    words = "\n\n".join([*(message.text for message in system), _instructions(request.tools, request.output)])
    names = {call.id: call.name for message in rest for call in message.tool_calls}
    messages = (Message("system", words), *_merged([_told(message, names) for message in rest]))
    output = OutputSchema("reply", reply_schema(request)) if mode == "structured" else None
    return replace(request, messages=messages, tools=(), output=output)


def reply_schema(request: ModelRequest) -> dict[str, Any]:
    """The JSON schema of a reply: a call of one of the tools, or an answer (of the shape that the request asks for)."""
    answer = _TEXT if request.output is None else request.output.schema
    definitions: dict[str, Any] = {}
    shapes = [
        _object(tool={"const": tool.name}, arguments=_lifted(tool.parameters, definitions)) for tool in request.tools
    ]
    schema: dict[str, Any] = {"anyOf": [*shapes, _object(answer=_lifted(answer, definitions))]}
    return {**schema, "$defs": definitions} if definitions else schema


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _lifted(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema without its definitions, which references seek at the top."""
    definitions |= cast("dict[str, Any]", schema.get("$defs", {}))
    return {name: value for name, value in schema.items() if name != "$defs"}


def _instructions(tools: Sequence[ToolSchema], output: OutputSchema | None) -> str:
    answer = '"..."' if output is None else f"an object of this JSON schema: {json.dumps(output.schema)}"
    if not tools:
        return f'Answer with JSON alone: {{"answer": {answer}}}.'
    lines = [
        f"- {tool.name}: {tool.description} arguments: {json.dumps(tool.parameters.get('properties', {}))}"
        for tool in tools
    ]
    return "\n".join(
        [
            "You have these tools:",
            *lines,
            'To use one, answer with JSON alone: {"tool": "its name", "arguments": {...}}. Its result comes next.',
            f'When you know the answer, or need no tool: {{"answer": {answer}}}.',
        ]
    )


def _told(message: Message, names: dict[str, str]) -> Message:
    """A message of a conversation with tools, as one without."""
    if message.role == "tool":
        return Message("user", f"Result of {names.get(message.tool_call_id or '', 'the tool')}: {message.text}")
    if message.role != "assistant":
        return message
    wrote = (message.opaque or {}).get("text")
    if wrote is None and message.tool_calls:  # said by another model
        wrote = "\n".join(json.dumps({"tool": c.name, "arguments": _parsed(c.arguments)}) for c in message.tool_calls)
    return Message(
        "assistant", wrote if wrote is not None else json.dumps({"answer": message.text}, ensure_ascii=False)
    )


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _merged(messages: list[Message]) -> list[Message]:
    """The messages, those of users that follow each other as one: many templates refuse two in a row."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is not None and last.role == message.role == "user" and isinstance(last.content, str):
            merged[-1] = Message("user", f"{last.content}\n\n{message.text}")
        else:
            merged.append(message)
    return merged


def read_reply(reply: ModelReply, request: ModelRequest) -> ModelReply:
    """The reply as the runtime takes it: a call as a call, an answer as its text. What is neither is taken as text."""
    text = reply.message.text
    value = _first_object(text)
    kept = {"text": text}
    if isinstance(value.get("tool"), str):
        before = sum(len(message.tool_calls) for message in request.messages)
        arguments = value.get("arguments", {})
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        call = ToolCall(f"call_{before}", value["tool"], written)
        message = replace(reply.message, content=None, tool_calls=(call,), opaque=kept)
        return replace(reply, message=message, finish_reason="tool_calls")
    if "answer" in value:
        answer = value["answer"]
        content = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        return replace(reply, message=replace(reply.message, content=content, opaque=kept))
    return reply


def _first_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text; empty when there is none."""
    decoder = json.JSONDecoder()
    for match in islice(re.finditer(r"\{", text), OPENINGS):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return cast("dict[str, Any]", value)
    return {}


class AnswerText:
    """Hands on the text of `{"answer": "..."}` while it is written, or the JSON of one that has a shape."""

    def __init__(self, on_delta: Callable[[Delta], None], *, shaped: bool = False) -> None:
        self._on_delta = on_delta
        self._opening = _OPENING_OF_SHAPE if shaped else _OPENING
        self._text = ""
        self._at = 0
        """Where the text goes on that was not handed on yet; 0 before the answer begins."""

    def take(self, delta: Delta) -> None:
        """A piece of what the model writes."""
        if not isinstance(delta, TextDelta):
            self._on_delta(delta)
            return
        self._text += delta.text
        if not self._at:
            opening = self._opening.match(self._text)
            if opening is None:
                return
            self._at = opening.end()
        if self._opening is _OPENING_OF_SHAPE:
            end = len(self._text.rstrip().removesuffix("}"))  # which may be the one that closes the reply
            if end > self._at:
                self._on_delta(TextDelta(self._text[self._at : end]))
                self._at = end
            return
        pieces: list[str] = []
        while (piece := _CHARACTER.match(self._text, self._at)) is not None:
            pieces.append(piece[0])
            self._at = piece.end()
        if pieces:
            self._on_delta(TextDelta(json.loads(f'"{"".join(pieces)}"', strict=False)))
