"""OpenAI's Responses API, without state on the server: every request holds the whole conversation.

Reasoning comes encrypted, as items of the answer. An answer with anything besides one text and function calls goes back
item by item as it came, from `Message.opaque["responses"]`: the API checks that what was reasoned stands before what
followed from it.
Source: https://platform.openai.com/docs/api-reference/responses, .../responses-streaming
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from aworld.config.conf import ModelConfig
from aworld.core.event import now
from aworld.core.exceptions import ModelError
from aworld.core.message import Audio, Content, File, Image, Message, Part, Text, ToolCall, Usage, content_text
from aworld.core.model import Delta, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.native_tools import NATIVE_TOOLS, CodeExecution, options_of_tool, read_native_tools
from aworld.models.openai import BASE_URL, cache_key
from aworld.models.openai_wire import CompletionDetails, PromptDetails
from aworld.models.remote_model import RemoteModel, is_strict
from aworld.models.wire_reply import WireReply, plain, status_of

Item = dict[str, Any]

_WITHOUT_REASONING = re.compile(r"(ft:)?(gpt-3|gpt-4|chatgpt-|gpt-5(\.\d+)?-chat)")
"""Names of models that refuse to be asked for encrypted reasoning, as they do none."""


_OUTCOMES = {"code_interpreter": "code_interpreter_call.outputs", "web_search": "web_search_call.action.sources"}
"""What is asked for so that the record has what came of a tool."""


def wire_input(messages: Iterable[Message]) -> list[Item]:
    """The conversation as input items. Raises `ModelError` for what the API cannot take."""
    items: list[Item] = []
    for message in messages:
        if message.role == "assistant":
            items += _said(message)
        elif message.role == "tool":
            output = _content(message.content or "")
            items.append({"type": "function_call_output", "call_id": message.tool_call_id, "output": output})
        else:
            items.append({"role": message.role, "content": _content(message.content or "")})
    return items


def _said(message: Message) -> list[Item]:
    kept = (message.opaque or {}).get("responses")
    if kept is not None:
        items: list[Item] = kept["output"]
        # The API refuses reasoning that nothing follows: that of an answer that was cut off.
        last = next((n for n in range(len(items), 0, -1) if items[n - 1].get("type") != "reasoning"), 0)
        calls = iter(message.tool_calls)  # which have ids of their own where the server gave one twice
        ids = [call.id if i.get("type") == "function_call" and (call := next(calls, None)) else None for i in items]
        return [{**i, "call_id": id} if id not in (None, i.get("call_id")) else i for i, id in zip(items[:last], ids)]
    text = content_text(message.content)
    items = [{"role": "assistant", "content": text}] if text else []
    items += [
        {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    return items


def _content(content: Content) -> str | list[Item]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Part) -> Item:
    match part:
        case Text():
            return {"type": "input_text", "text": part.text}
        case Image():
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "input_image", "image_url": part.url, **detail}
        case File():
            if part.file_id is not None:
                return {"type": "input_file", "file_id": part.file_id}
            if part.url is not None and not part.url.startswith("data:"):
                return {"type": "input_file", "file_url": part.url}
            return {"type": "input_file", "filename": part.name or "file", "file_data": part.url}
        case Audio():
            raise ModelError("OpenAI's Responses API takes no audio; leave it out, or take the provider 'openai'.")


class ResponsesUsage(Struct, gc=False):
    """Usage as the Responses API reports it."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: PromptDetails | None = None
    output_tokens_details: CompletionDetails | None = None

    def usage(self) -> Usage:
        """The same in our words."""
        cached = self.input_tokens_details and self.input_tokens_details.cached_tokens
        reasoned = self.output_tokens_details and self.output_tokens_details.reasoning_tokens
        figures = self.input_tokens, self.output_tokens, self.total_tokens
        return Usage(*figures, cached_tokens=cached, reasoning_tokens=reasoned)


class ResponsesEvent(Struct):
    """Any event of a stream, or a whole response, which has no type."""

    type: str = ""
    delta: str = ""
    output_index: int = 0
    summary_index: int = 0
    item: Item | None = None
    response: ResponsesEvent | None = None
    code: Any = None
    message: Any = None
    id: str | None = None
    model: str | None = None
    status: str | None = None
    output: list[Item] | None = None
    usage: ResponsesUsage | None = None
    incomplete_details: Item | None = None
    error: Any = None


class _PartShape(Struct):
    text: str = ""
    refusal: str = ""


class _ItemShape(Struct):
    """What is read of an item. A function call has an id and a name."""

    type: str
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    content: list[_PartShape] | None = None
    summary: list[_PartShape] | None = None


_decode = msgspec.json.Decoder(ResponsesEvent, strict=False).decode
_TEXT = frozenset({"response.output_text.delta", "response.refusal.delta"})
_THOUGHT = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})
_ARGUMENTS = "response.function_call_arguments.delta"
_GROWING = _TEXT | _THOUGHT | {_ARGUMENTS}
_ENDS = frozenset({"response.completed", "response.failed", "response.incomplete"})
_EVENTS = _GROWING | _ENDS | {"", "error", "response.output_item.done"}
_CODES = {"server_error": 500, "rate_limit_exceeded": 429}
_LASTING = ("bio_", "context_length", "image_", "invalid_", "unsupported_")
_PLAIN = frozenset({"function_call", "message"})
"""What a message says by itself, where it is one text and then calls."""


class ResponsesReply(WireReply):
    """A response as it comes in."""

    def __init__(self, on_delta: Callable[[Delta], None] | None = None) -> None:
        super().__init__(on_delta)
        self._items: dict[int, Item] = {}
        self._thought: tuple[int, int] | None = None

    def read(self, data: bytes) -> bool:
        """Take in an event, or the whole reply; True for the last one. Raises msgspec.DecodeError."""
        event = self._event(data, _decode, ResponsesEvent, _EVENTS)
        if event is not None:
            self._add(event)
        return self.complete

    def _add(self, event: ResponsesEvent) -> None:
        kind = event.type
        if kind in _GROWING and (self._on_delta is None or not event.delta):
            return
        if kind in _TEXT:
            self._show(TextDelta, event.delta)
        elif kind in _THOUGHT:
            part = event.output_index, event.summary_index
            gap = "\n\n" if self._thought not in (None, part) else ""
            self._thought = part
            self._show(ReasoningDelta, gap + event.delta)
        elif kind == "response.output_item.done":
            if event.item is not None:
                self._items[event.output_index] = event.item
        elif kind in _ENDS:
            self._end(event.response or event, failed=kind == "response.failed")
        elif not kind:
            self._end(event)
        elif kind == "error":
            self._fail(event.error or {"message": event.message or event.code or "an error", "code": event.code})
        elif kind == _ARGUMENTS:
            self.first_token = self.first_token or now()

    def _end(self, response: ResponsesEvent, *, failed: bool = False) -> None:
        if response.error or failed or response.status in ("cancelled", "failed"):
            self._fail(response.error or {"message": f"the response is {response.status or 'failed'}"})
            return
        self.model, self.response_id = response.model, response.id
        self.usage = None if response.usage is None else response.usage.usage()
        if response.output:  # some servers leave it empty in a stream
            self._items = dict(enumerate(response.output))
        cut = response.incomplete_details
        if cut is not None or response.status == "incomplete":
            reason = str((cut or {}).get("reason") or "incomplete")
            self.finish_reason = "length" if reason == "max_output_tokens" else reason
        self.complete = bool(self._items) or (response.output is not None and response.status is not None)

    def _fail(self, error: Any) -> None:
        self.error = error
        code = str(cast("Item", error).get("code")) if isinstance(error, dict) else ""
        self.status = _CODES.get(code, 400 if code.startswith(_LASTING) else status_of(error))

    def reply(self, request: ModelRequest) -> ModelReply:
        """The whole reply. Raises msgspec.DecodeError for an item that is none."""
        if not self.complete:
            raise msgspec.DecodeError("it has no output")
        items = [self._items[index] for index in sorted(self._items)]
        kinds = [str(item.get("type")) for item in items]
        kept = not {*kinds[:1]} <= _PLAIN or not {*kinds[1:]} <= {"function_call"} or any("phase" in i for i in items)
        for item in items:
            match item.get("type"):
                case "message":
                    for part in msgspec.convert(item, _ItemShape).content or ():
                        self._texts.append(part.text or part.refusal)
                        if part.refusal:
                            kept, self.finish_reason = True, self.finish_reason or "refusal"
                case "function_call":
                    call = msgspec.convert(item, _ItemShape)
                    if not (call.call_id and call.name):
                        raise msgspec.ValidationError("a function call without a call_id or a name")
                    self._calls.append(ToolCall(call.call_id, call.name, call.arguments or "{}"))
                case "reasoning":
                    shape = msgspec.convert(item, _ItemShape)
                    self._thoughts += [part.text for part in shape.summary or shape.content or ()]
                case _:
                    pass  # kept
        self.finish_reason = self.finish_reason or ("tool_calls" if self._calls else "stop")
        return self._whole({"responses": {"output": plain(items)}} if kept else None, "\n\n")


class ResponsesModel(RemoteModel):
    """A model behind the Responses API. `config` needs `llm_model_name`. Raises `ConfigError`."""

    lacks: ClassVar[frozenset[str]] = frozenset({"logit_bias", "seed", "stop"})
    native_tools = NATIVE_TOOLS
    reply_type = ResponsesReply
    priced_as: ClassVar[str] = "openai"

    def __init__(self, config: ModelConfig, *, provider: str = "openai-responses") -> None:
        base = (config.llm_base_url or BASE_URL).rstrip("/")
        url = base if base.endswith("/responses") else f"{base}/responses"
        headers = {"Authorization": f"Bearer {config.llm_api_key}"} if config.llm_api_key else {}
        super().__init__(config, provider=provider, url=url, headers=headers)

    def body(self, request: ModelRequest, *, stream: bool = False) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        body: Item = {"model": self.name, **self.wire_params(request), "input": wire_input(request.messages)}
        if body.pop("prompt_cache", False):
            body.setdefault("prompt_cache_key", cache_key(request.messages))
        if request.tools:
            # Strict is the default here, and refuses schemas that are not closed.
            functions = [{"type": "function", **asdict(tool), "strict": False} for tool in request.tools]
            body["tools"] = [*body.get("tools", ()), *functions]
        if request.output is not None:
            shape: dict[str, Any] = {"type": "json_schema", "name": request.output.name}
            shape |= {"schema": request.output.schema, "strict": is_strict(request.output.schema)}
            body["text"] = {"format": shape, **body.get("text", {})}
        if stream:
            body["stream"] = True
        return body

    def translated(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in the API's words."""
        body = super().translated(params)
        if "max_tokens" in body:
            body["max_output_tokens"] = body.pop("max_tokens")
        if "reasoning_effort" in body:
            body["reasoning"] = {"effort": body.pop("reasoning_effort"), **body.get("reasoning", {})}
        if isinstance(choice := body.get("tool_choice"), str) and choice not in ("auto", "none", "required"):
            body["tool_choice"] = {"type": "function", "name": choice}
        include = [] if _WITHOUT_REASONING.match(self.name) else ["reasoning.encrypted_content"]
        for tool in read_native_tools(body.pop("native_tools", None)):
            if isinstance(tool, CodeExecution):
                native: Item = {"type": "code_interpreter", "container": {"type": "auto"}}
            else:
                options = options_of_tool(tool, self.provider, "allowed_domains", "blocked_domains", "location")
                place = options.pop("location", None)
                native = {"type": "web_search", **({"filters": options} if options else {})}
                native |= {"user_location": {"type": "approximate", **place}} if place else {}
            include.append(_OUTCOMES[native["type"]])
            body["tools"] = [*body.get("tools", ()), native]
        return {"store": False, **({"include": include} if include else {}), **body}
