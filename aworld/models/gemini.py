"""Google's own API of Gemini.

Signatures of thoughts must come back exactly, in the part that they came with, so the parts of an answer that has any
are kept in `Message.opaque["gemini"]`, and sent again from there.
Source: https://ai.google.dev/api/generate-content, https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Raw, Struct

from aworld.config.conf import ModelConfig
from aworld.core.event import now
from aworld.core.exceptions import ModelError
from aworld.core.message import Audio, Content, File, Image, Message, Text, ToolCall, Usage, content_text
from aworld.core.message import Part as ContentPart
from aworld.core.model import Delta, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.native_tools import NATIVE_TOOLS, CodeExecution, options_of_tool, read_native_tools
from aworld.models.remote_model import RemoteModel, data_of, json_object_of, walked
from aworld.models.wire_reply import WireReply, call_ids, plain, status_of

BASE_URL = "https://generativelanguage.googleapis.com/v1beta"

Part = dict[str, Any]

_UNSIGNED = "skip_thought_signature_validator"
"""What the API takes for the signature of a call that another model made."""
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
"""Tokens of thinking for each effort, as Google's OpenAI-compatible API has them."""
_GENERATION = {
    "max_tokens": "maxOutputTokens", "temperature": "temperature", "top_p": "topP", "seed": "seed",
    "stop": "stopSequences",
}  # fmt: skip
_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number"}
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


def _known(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as the API knows it: a reference stands alone, and `const` is an `enum` of one."""
    if "$ref" in schema:
        return {key: value for key, value in schema.items() if key.startswith("$")}
    if "const" not in schema:
        return schema
    rest, value = {key: part for key, part in schema.items() if key != "const"}, schema["const"]
    return {**rest, "type": _TYPES[type(value)], "enum": [value]} if type(value) in _TYPES else rest


def wire_contents(messages: Iterable[Message], unsigned: str = "") -> tuple[str, list[Part]]:
    """The system prompt, and the other messages. `unsigned` is the signature for calls of other models. Raises
    `ModelError` for what the API cannot take."""
    system: list[str] = []
    out: list[Part] = []
    names: dict[str, str] = {}
    ids: set[str] = set()  # of the calls that are sent with theirs: their answers name it too, the others must not
    for message in messages:
        if message.role == "system":
            system.append(content_text(message.content))
            continue
        role, parts = "user", _content(message.content)
        if message.role == "assistant":
            role, parts = "model", _said(message, parts, unsigned)
            names |= {call.id: call.name for call in message.tool_calls}
            ids |= {str(call["id"]) for part in parts if (call := part.get("functionCall")) and call.get("id")}
        elif message.role == "tool":
            call_id = message.tool_call_id or ""
            response = {"error" if message.is_error else "output": content_text(message.content)}
            result = {"name": message.name or names.get(call_id, "tool"), "response": response}
            named = {"id": call_id} if call_id in ids else {}
            parts = [{"functionResponse": {**named, **result}}, *(part for part in parts if "text" not in part)]
        if out and role == out[-1]["role"]:
            out[-1]["parts"] += parts
        elif parts:
            out.append({"role": role, "parts": parts})
    return "\n\n".join(text for text in system if text), out


def _said(message: Message, parts: list[Part], unsigned: str) -> list[Part]:
    kept = (message.opaque or {}).get("gemini")
    if kept is not None:
        return list(kept["parts"])
    for call in message.tool_calls:
        part: Part = {"functionCall": {"id": call.id, "name": call.name, "args": json_object_of(call.arguments)}}
        if unsigned and call is message.tool_calls[0]:
            part["thoughtSignature"] = unsigned
        parts.append(part)
    return parts


def _content(content: Content | None) -> list[Part]:
    if isinstance(content, str):
        return [{"text": content}] if content else []
    return [_part(part) for part in content or ()]


def _part(part: ContentPart) -> Part:
    match part:
        case Text():
            return {"text": part.text}
        case Audio():
            return {"inlineData": {"mimeType": f"audio/{part.format}", "data": part.data}}
        case Image() | File():
            url = part.url or (part.file_id if isinstance(part, File) else None) or ""
            if url.startswith("data:"):
                media_type, data = data_of(url)
                return {"inlineData": {"mimeType": media_type, "data": data}}
            media_type = mimetypes.guess_type(urlsplit(url).path)[0]
            return {"fileData": {"fileUri": url, **({"mimeType": media_type} if media_type else {})}}


class GeminiUsage(Struct, rename="camel", gc=False):
    """Usage as Google reports it: the thinking stands beside the answer, what tools brought beside the prompt."""

    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    total_token_count: int | None = None

    def usage(self) -> Usage:
        """The same in our words, where input and output are wholes."""
        thoughts, cached = self.thoughts_token_count, self.cached_content_token_count
        prompt = _sum(self.prompt_token_count, self.tool_use_prompt_token_count)
        answer = _sum(self.candidates_token_count, thoughts)
        return Usage(prompt, answer, self.total_token_count, cached_tokens=cached, reasoning_tokens=thoughts)


class GeminiContent(Struct):
    """The parts of an answer, or of a piece of it."""

    parts: list[dict[str, Raw]] | None = None


class Candidate(Struct, rename="camel"):
    """One answer, or a piece of it."""

    index: int | None = 0
    content: GeminiContent | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    grounding_metadata: dict[str, Any] | None = None


class GeminiChunk(Struct, rename="camel"):
    """A whole reply, or one chunk of a streamed one."""

    candidates: list[Candidate] | None = None
    prompt_feedback: dict[str, Any] | None = None
    usage_metadata: GeminiUsage | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: Any = None


class _CallShape(Struct):
    name: str
    id: str | None = None
    args: Raw = Raw(b"{}")


_decode = msgspec.json.Decoder(GeminiChunk, strict=False).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_call = msgspec.json.Decoder(_CallShape).decode
_PLAIN = (frozenset({"text"}), frozenset({"functionCall"}))
_WORDS = frozenset({"text", "thought", "thoughtSignature"})
_FILTERED = ("BLOCKLIST", "IMAGE_SAFETY", "LANGUAGE", "PROHIBITED_CONTENT", "RECITATION", "SAFETY", "SPII")
_FINISH = {"STOP": "stop", "MAX_TOKENS": "length", **dict.fromkeys(_FILTERED, "content_filter")}
_BROKEN = frozenset({"MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "TOO_MANY_TOOL_CALLS", "UNEXPECTED_TOOL_CALL"})
"""Answers that the model did not get right: another try may."""


class GeminiReply(WireReply):
    """An answer as it comes in; candidate 0 only."""

    def __init__(self, on_delta: Callable[[Delta], None] | None = None) -> None:
        super().__init__(on_delta)
        self._seen: list[tuple[dict[str, Raw], list[str]]] = []
        """Parts, and the pieces of the text of each."""
        self._grounding: dict[str, Any] | None = None

    def read(self, data: bytes) -> bool:
        """Take in a chunk, or the whole reply. Which one is the last, only the end of the stream tells. Raises
        msgspec.DecodeError."""
        if data == b"[DONE]":  # of a proxy
            return True
        chunk = self._decoded(data, _decode, GeminiChunk)
        self.model, self.response_id = chunk.model_version or self.model, chunk.response_id or self.response_id
        if chunk.usage_metadata is not None:
            self.usage = chunk.usage_metadata.usage()
        blocked = (chunk.prompt_feedback or {}).get("blockReason")
        if chunk.error:
            self.error, self.status = chunk.error, status_of(chunk.error)
        elif blocked and not chunk.candidates:
            self.error, self.status = f"the prompt is not answered ({blocked}); ask in another way", 400
        for candidate in chunk.candidates or ():
            if not candidate.index:
                self._add(candidate)
        return False

    def _add(self, candidate: Candidate) -> None:
        for part in (candidate.content and candidate.content.parts) or ():
            if self._on_delta is not None:
                self.first_token = self.first_token or now()
            if "text" in part and part.keys() <= _WORDS:
                self._add_text(part, _decode_text(part["text"]))
            else:
                self._seen.append((part, []))
        self._grounding = candidate.grounding_metadata or self._grounding
        reason = candidate.finish_reason
        if reason in _BROKEN:
            self.error = f"{reason}: {candidate.finish_message or 'what the model wrote is no call of a tool it has'}"
        elif reason:
            self.finish_reason = _FINISH.get(reason, reason.lower())
        self.complete = self.complete or bool(reason) or (self._on_delta is None and candidate.content is not None)

    def _add_text(self, part: dict[str, Raw], text: str) -> None:
        """Join pieces of the same kind; one with a signature stands alone."""
        last, pieces = self._seen[-1] if self._seen else (part, [])
        signed = "thoughtSignature" in part
        if pieces and _is_thought(last) == _is_thought(part) and not signed and "thoughtSignature" not in last:
            pieces.append(text)
        elif text or signed:
            self._seen.append((part, [text]))
        if text and self._on_delta is not None:
            self._show(ReasoningDelta if _is_thought(part) else TextDelta, text)

    def reply(self, request: ModelRequest) -> ModelReply:
        """The whole reply. Raises msgspec.DecodeError when it is none."""
        if not self.complete:
            raise msgspec.DecodeError("it has no candidates, or none with content")
        ids = call_ids(request)
        for part, pieces in self._seen:
            if pieces:
                (self._thoughts if _is_thought(part) else self._texts).extend(pieces)
            elif "functionCall" in part:
                call, made = _decode_call(part["functionCall"]), next(ids)
                arguments = bytes(call.args).decode()
                self._calls.append(ToolCall(call.id or made, call.name, "{}" if arguments == "null" else arguments))
        opaque = None
        if self._grounding is not None or any(part.keys() not in _PLAIN for part, _ in self._seen):
            parts = [{**part, "text": "".join(pieces)} if pieces else part for part, pieces in self._seen]
            opaque = {"gemini": {"parts": plain(parts)}}
            if self._grounding is not None:
                opaque["gemini"]["grounding"] = self._grounding
        if self._calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return self._whole(opaque)


def _is_thought(part: dict[str, Raw]) -> bool:
    return bytes(part.get("thought", b"")) == b"true"


def _sum(*figures: int | None) -> int | None:
    numbers = [figure for figure in figures if figure is not None]
    return sum(numbers) if numbers else None


class GeminiModel(RemoteModel):
    """A model behind Google's API. `config` needs `llm_model_name`. Raises `ConfigError`."""

    lacks: ClassVar[frozenset[str]] = frozenset({"logit_bias", "parallel_tool_calls"})
    native_tools = NATIVE_TOOLS
    reply_type = GeminiReply

    def __init__(self, config: ModelConfig, *, provider: str = "gemini") -> None:
        base = (config.llm_base_url or BASE_URL).rstrip("/")
        if not re.search(r"/v\d\w*(/|$)", base):
            base = f"{base}/v1beta"
        name = config.llm_model_name or ""
        self._second = re.match(r"(.*/)?gemini-[12]", name) is not None
        """Of a generation that knows budgets instead of levels of thinking, and asks for no signatures."""
        url = f"{base}/{quote(name if '/' in name else f'models/{name}')}"
        headers = {"x-goog-api-key": config.llm_api_key} if config.llm_api_key else {}
        super().__init__(config, provider=provider, url=f"{url}:generateContent", headers=headers)
        self.stream_url = f"{url}:streamGenerateContent?alt=sse"

    def body(self, request: ModelRequest, *, stream: bool = False) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        system, contents = wire_contents(request.messages, "" if self._second else _UNSIGNED)
        body: dict[str, Any] = {**self.wire_params(request), "contents": contents}
        native = body.get("tools", ())
        if self._second and sum(map(bool, (request.tools, native, request.output))) > 1:
            raise ModelError(
                f"{self.name} takes only one of tools, native_tools and an output type: take a model of Gemini 3, or "
                'for tools and an output type llm_tool_mode="structured".'
            )
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        if request.tools:
            functions = [
                {"name": tool.name, "description": tool.description}
                | (
                    {"parametersJsonSchema": walked(tool.parameters, _known)}
                    if tool.parameters.get("properties")
                    else {}
                )
                for tool in request.tools
            ]
            body["tools"] = [*native, {"functionDeclarations": functions}]
            if native:
                body["toolConfig"] = {"includeServerSideToolInvocations": True, **body.get("toolConfig", {})}
        if request.output is not None:
            shape = {
                "responseMimeType": "application/json",
                "responseJsonSchema": walked(request.output.schema, _known),
            }
            body["generationConfig"] = {**shape, **body.get("generationConfig", {})}
        return body

    def translated(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in the API's words; what it calls by its own names stands where it was put."""
        body = super().translated(params)
        body.pop("prompt_cache", None)  # it keeps prompts by itself
        ours: dict[str, Any] = {_GENERATION[word]: body.pop(word) for word in _GENERATION.keys() & body.keys()}
        if isinstance(ours.get("stopSequences"), str):
            ours["stopSequences"] = [ours["stopSequences"]]
        theirs: dict[str, Any] = body.get("generationConfig", {})
        if (effort := body.pop("reasoning_effort", None)) is not None:
            budget = {"thinkingBudget": _BUDGETS.get(effort, _BUDGETS["high"])}
            thinking = budget if self._second else {"thinkingLevel": effort}
            ours["thinkingConfig"] = {**thinking, **theirs.get("thinkingConfig", {})}
            theirs = {name: value for name, value in theirs.items() if name != "thinkingConfig"}
        if ours or theirs:
            body["generationConfig"] = {**ours, **theirs}
        if (choice := body.pop("tool_choice", None)) is not None:
            mode = {"mode": _MODES[choice]} if choice in _MODES else {"mode": "ANY", "allowedFunctionNames": [choice]}
            body["toolConfig"] = {"functionCallingConfig": mode, **body.get("toolConfig", {})}
        for tool in read_native_tools(body.pop("native_tools", None)):
            word = "codeExecution" if isinstance(tool, CodeExecution) else "googleSearch"
            body["tools"] = [*body.get("tools", ()), {word: options_of_tool(tool, self.provider)}]
        return body
