"""Messages: what a model reads and writes.

All values are frozen msgspec structs: they are created and encoded on the hot path, and a message that was sent
can never change afterwards. `chat_format` gives the chat-completions shape that rows, exports and OpenAI-compatible
providers share, so that "what the row shows" and "what was sent" are one function.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from msgspec import Struct

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Origin: TypeAlias = Literal["input", "model", "tool", "agent", "human", "memory"]


class Text(Struct, frozen=True, tag="text", tag_field="type", gc=False):
    """A piece of text."""

    text: str


class Image(Struct, frozen=True, tag="image", tag_field="type", omit_defaults=True, gc=False):
    """A picture, by web address or `data:` URL."""

    url: str
    detail: str | None = None
    """How closely the model looks: `low`, `high` or `auto`, where the provider knows such a thing."""

    @classmethod
    def from_file(cls, path: str | Path, detail: str | None = None) -> Image:
        """Read a picture from disk into a `data:` URL."""
        return cls(url=_data_url(Path(path)), detail=detail)


class Audio(Struct, frozen=True, tag="audio", tag_field="type", gc=False):
    """A sound: base64 data and its format, such as `wav` or `mp3`."""

    data: str
    format: str = "wav"

    @classmethod
    def from_file(cls, path: str | Path) -> Audio:
        """Read a sound from disk; the format is the file's ending."""
        path = Path(path)
        return cls(data=base64.b64encode(path.read_bytes()).decode(), format=path.suffix.lstrip(".").lower() or "wav")


class File(Struct, frozen=True, tag="file", tag_field="type", omit_defaults=True, gc=False):
    """A document: a `data:` URL (or web address, or the provider's own `file_id`) and a name."""

    url: str | None = None
    name: str | None = None
    file_id: str | None = None

    @classmethod
    def from_file(cls, path: str | Path) -> File:
        """Read a document from disk into a `data:` URL."""
        return cls(url=_data_url(Path(path)), name=Path(path).name)


Part: TypeAlias = Text | Image | Audio | File
Content: TypeAlias = str | tuple[Part, ...]


class ToolCall(Struct, frozen=True, gc=False):
    """A call that a model asks for. `arguments` is the JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, omit_defaults=True, gc=False):
    """One message of a conversation."""

    role: Role
    content: Content | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    """The model's thinking, where the provider shows it."""
    tool_call_id: str | None = None
    """On a tool's answer: the call that it answers."""
    name: str | None = None
    """On a tool's answer: the tool's name."""
    is_error: bool = False
    """On a tool's answer: the call failed, and the content says why."""
    opaque: dict[str, Any] | None = None
    """What a provider wants back untouched with this message, such as signatures of thinking blocks; by the name of the
    API that it belongs to (`chat`, `anthropic`)."""

    @property
    def text(self) -> str:
        """The text of the message, other parts left out."""
        return content_text(self.content)


class Usage(Struct, frozen=True, omit_defaults=True, gc=False):
    """Tokens and money of one or more calls, exactly as reported. None means that the provider did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    """Part of `input_tokens` that was read from the provider's cache."""
    cache_write_tokens: int | None = None
    """Tokens written to the provider's cache by this call."""
    reasoning_tokens: int | None = None
    """Part of `output_tokens` that was thinking."""
    cost: float | None = None
    """US dollars, as reported by the provider or computed from prices."""
    prices: str | None = None
    """The prices that `cost` was computed from, such as `table of 2026-11-28`; None where the provider reported it."""
    estimated: bool = False
    """Whether these tokens were not reported, but estimated from the length of the texts."""

    def __add__(self, other: Usage) -> Usage:
        """Sum of what is known; a figure that neither side knows stays None."""
        sums: Any = (_add(getattr(self, f), getattr(other, f)) for f in Usage.__struct_fields__[:-2])
        prices = sorted({*(self.prices or "").split(", "), *(other.prices or "").split(", ")} - {""})
        return Usage(*sums, prices=", ".join(prices) or None, estimated=self.estimated or other.estimated)


class Tokens(Struct, frozen=True, omit_defaults=True, gc=False):
    """Token ids and log-probabilities of one call, as the server gave them.

    `prompt_ids` is stored as a delta: where `base` names an earlier step of the log, the whole prompt is that step's
    prompt and completion followed by `prompt_ids`. `completion_ids` includes the end-of-sequence token, and
    `logprobs` (natural logarithm, one a completion token) is of the distribution that was sampled from.
    """

    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    base: int | None = None
    policy_version: str | None = None
    tokenizer: str | None = None
    """Digest of the tokenizer."""
    chat_template: str | None = None
    """Digest of the chat template."""

    @property
    def level(self) -> Literal["tokens", "logprobs", "text"]:
        """Capture level: `tokens` (prompt and completion ids), `logprobs`, or `text`."""
        if self.prompt_ids is not None and self.completion_ids is not None:
            return "tokens"
        return "logprobs" if self.logprobs is not None else "text"


def content_text(content: Content | None) -> str:
    """The text of a content, other parts left out."""
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content or () if isinstance(part, Text))


def chat_format(message: Message) -> dict[str, Any]:
    """A message in the shape of the chat-completions API (JSON-able).

    Of `opaque` only the part named `chat` is in that API's words; the parts of other providers stay out.
    """
    content: Any = message.content
    if content is not None and type(content) is not str:
        content = [_chat_part(part) for part in content]
    out: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        out["tool_calls"] = [tool_call_format(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    if message.opaque is not None and "chat" in message.opaque:
        out.update(message.opaque["chat"])
    return out


def message_of(value: Any) -> Message:
    """A message out of the form of the chat-completions API, or as it is. Raises ValueError that says what is wrong."""
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"a message is a Message or a dict with role and content; got {value!r:.100}")
    fields = cast("Mapping[str, Any]", value)
    role, content = fields.get("role"), fields.get("content")
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError(f"role={role!r} is not known; use system, user, assistant or tool")
    if isinstance(content, list | tuple):
        content = tuple(_part_of(part) for part in cast("Sequence[Any]", content))
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"content is text or a list of parts; got {content!r:.100}")
    calls = tuple(
        ToolCall(str(call["id"]), call["function"]["name"], call["function"].get("arguments") or "")
        for call in fields.get("tool_calls") or ()
    )
    return Message(
        role, content, calls, fields.get("reasoning_content"), fields.get("tool_call_id"), fields.get("name")
    )  # fmt: skip


def _part_of(part: Any) -> Part:
    match part:
        case Text() | Image() | Audio() | File():
            return part
        case str():
            return Text(part)
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "image_url", "image_url": {"url": str(url), **more}}:
            return Image(url, more.get("detail"))
        case {"type": "input_audio", "input_audio": {"data": str(data), **more}}:
            return Audio(data, more.get("format", "wav"))
        case {"type": "file", "file": {**file}}:
            named = cast("dict[str, str | None]", file)
            return File(named.get("file_data"), named.get("filename"), named.get("file_id"))
        case _:
            raise ValueError(f"a part is text, image_url, input_audio or file; got {part!r:.100}")


def tool_call_format(call: ToolCall) -> dict[str, Any]:
    """A tool call in the shape of the chat-completions API."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _chat_part(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            image = {"url": part.url} if part.detail is None else {"url": part.url, "detail": part.detail}
            return {"type": "image_url", "image_url": image}
        case Audio():
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
        case File():
            named = {"file_id": part.file_id, "filename": part.name, "file_data": part.url}
            return {"type": "file", "file": {k: v for k, v in named.items() if v is not None}}


def _data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _add(a: Any, b: Any) -> Any:
    if a is None:
        return b
    return a if b is None else a + b
