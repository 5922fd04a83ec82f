"""What the models behind an HTTP API share: settings, retries, limits, the endpoint, the price of a call, and data,
arguments and JSON schemas as providers want them."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec
from msgspec import Raw, structs

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.message import Usage
from aworld.core.model import Delta, ModelReply, ModelRequest
from aworld.models.call import Retry
from aworld.models.native_tools import check_settings
from aworld.models.prices import Price, price_of
from aworld.models.providers import without_name

if TYPE_CHECKING:
    from aworld.models.http import Endpoint
    from aworld.models.limiter import Limits
    from aworld.models.wire_reply import WireReply

_encoder = msgspec.json.Encoder()
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode

# Grammars that a provider compiles know only a part of JSON Schema: objects must be closed, and ranges and lengths are
# refused. What is taken out is not lost: the answer is validated in full by whoever asked for it.
_UNKNOWN = frozenset(
    {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
        "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "default",
    }
)  # fmt: skip
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What a decoder raises; the second for pieces that were left as they came (`Raw`), and are no text."""
_MAPS = ("properties", "$defs", "definitions")


class RemoteModel:
    """Base of the HTTP models. A value without run state: one instance serves any number of calls, in any loop."""

    reply_type: type[WireReply]
    """What gathers a reply in the protocol of this model."""
    lacks: ClassVar[frozenset[str]] = frozenset()
    """Settings (`ModelSettings`) that the API has no word for: they are refused."""
    native_tools: frozenset[str] = frozenset()
    """Tools of the provider itself that the API has."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings that are sent when nobody says more."""
    keeps_an_hour: ClassVar[bool] = False
    """Whether a prompt can be kept for an hour (`prompt_cache="1h"`)."""
    priced_as: ClassVar[str] = ""
    """The provider whose prices are this one's too."""

    def __init__(self, config: ModelConfig, *, provider: str, url: str, headers: dict[str, str]) -> None:
        if not config.llm_model_name:
            raise without_name()
        if "Authorization" in headers and "@" in urlsplit(url).netloc:
            raise ConfigError("llm_base_url has a user, and there is a key: leave out one of them, as HTTP sends one")
        self.provider = provider
        self.name: str = config.llm_model_name
        self.params: dict[str, Any] = {**self.defaults, **config.sampling()}
        self.config = config
        self.url = url
        self.stream_url = url
        """Where streamed answers are asked for."""
        self.retry = Retry(config.llm_max_retries, config.llm_retry_wait, config.llm_retry_wait_max)
        self.limits = _limits(config, provider, url)
        self._headers = _checked({**headers, **config.llm_headers})
        self._endpoint: Endpoint | None = None
        check_settings(self, self.params)
        self._sent = self.translated(self.params)

    @property
    def endpoint(self) -> Endpoint:
        """Where the requests go. Made at the first one: only then is the HTTP client imported."""
        if self._endpoint is None:
            from aworld.models.http import Endpoint

            config = self.config
            self._endpoint = Endpoint(
                self.provider,
                self.url,
                self._headers,
                stream_url=self.stream_url,
                secrets=(config.llm_api_key or "", *config.llm_headers.values()),
                timeout=config.llm_timeout,
                stall_timeout=config.llm_stall_timeout,
            )
        return self._endpoint

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        parts = self.reply_type(None)
        data, kind = await self.endpoint.post(self.encode(self.body(request)))
        self._read(parts, [data], kind)
        return self.finished(parts, request, data)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes. Raises `ModelError`."""
        parts = self.reply_type(on_delta)
        body = self.encode(self.body(request, stream=True))
        await self.endpoint.post(body, lambda events: self._read(parts, events))
        if not parts.complete:
            raise self.endpoint.unreadable("only the beginning of a stream")
        return self.finished(parts, request)

    def body(self, request: ModelRequest, *, stream: bool = False) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        raise NotImplementedError

    def translated(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in the API's words; the names are those of `ModelSettings`, others are passed on as they are. That a
        prompt is kept (`prompt_cache`) is left for the body. Raises `ConfigError` for what the API cannot say."""
        if params.get("prompt_cache") == "1h" and not self.keeps_an_hour:
            raise ConfigError(
                f"{self.provider} keeps no prompt for an hour: set llm_prompt_cache=True; at OpenAI "
                'params={"prompt_cache_retention": "24h"} keeps it for a day.', setting="llm_prompt_cache",
            )  # fmt: skip
        return {name: value for name, value in params.items() if value is not None}

    def wire_params(self, request: ModelRequest) -> dict[str, Any]:
        """The settings of this call in the API's words. Raises `ModelError` for what the API cannot say."""
        if not request.params:
            return self._sent
        # Rollouts send a seed with every request, whoever answers.
        params = {name: value for name, value in request.params.items() if name != "seed" or "seed" not in self.lacks}
        try:
            check_settings(self, params)
            return self.translated({**self.params, **params})
        except ConfigError as error:
            raise ModelError(str(error)) from error

    def _read(self, parts: WireReply, events: list[bytes], kind: str = "") -> bool:
        try:
            last = parts.feed(events)
        except _UNREADABLE as error:
            what = f"{kind} that" if kind and "json" not in kind else "what"
            raise self.endpoint.unreadable(f"{what} is not a reply ({error})", parts.refused) from None
        if parts.error:
            raise self.endpoint.reported(parts.error, parts.status)
        return last

    def finished(self, parts: WireReply, request: ModelRequest, data: bytes = b"") -> ModelReply:
        """The whole reply. Raises `ModelError` when it is none."""
        try:
            reply = parts.reply(request)
            return reply if reply.usage is None else structs.replace(reply, usage=_plausible(reply.usage))
        except _UNREADABLE as error:
            raise self.endpoint.unreadable(f"what is not a whole reply ({error})", data) from None

    def encode(self, body: dict[str, Any]) -> bytes:
        """The bytes of a request. Raises `ModelError` for what JSON cannot say."""
        try:
            return _encoder.encode(body)
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"The request to {self.provider} cannot be written as JSON: {error}") from error

    @property
    def price(self) -> Price | None:
        """What a call costs where the provider does not say; None when nobody knows. Raises `ConfigError`."""
        price_in, price_out = self.config.llm_input_price, self.config.llm_output_price
        if price_in is not None and price_out is not None:
            return Price(price_in, price_out, source="settings")
        return price_of(self.priced_as or self.provider, self.name, self.config.prices)


def _plausible(usage: Usage) -> Usage:
    """Usage without figures that no call has, which would make room in a budget: negative ones, infinity, no number."""
    figures = ((name, getattr(usage, name)) for name in Usage.__struct_fields__[:-2])
    return structs.replace(usage, **{name: None for name, n in figures if n is not None and not 0 <= n < math.inf})


def _limits(config: ModelConfig, provider: str, url: str) -> Limits | None:
    limits = config.llm_max_concurrency, config.llm_requests_per_minute, config.llm_tokens_per_minute
    if limits == (None, None, None):
        return None
    from aworld.models.limiter import Limits

    # Limits are the account's, not the agent's: who has the same key at the same address shares them.
    key = hashlib.sha256((config.llm_api_key or "").encode()).hexdigest()[:16]
    return Limits(f"{provider} {urlsplit(url).netloc} {key}", *limits)


def _checked(headers: dict[str, str]) -> dict[str, str]:
    """Headers that can be sent. The error names the header, never its value."""
    for name, value in headers.items():
        if not (name + value).isascii() or any(ord(c) < 32 or ord(c) == 127 for c in name + value):
            raise ConfigError(f"Header {name!r} holds a character that HTTP cannot send; check the key or llm_headers")
    return headers


def json_object_of(arguments: str) -> Raw | dict[str, Any]:
    """Arguments of a call, for an API that takes only objects. What is something else, of another provider's model or
    cut off, is shown as it is."""
    try:
        _decode_object(arguments or "{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"arguments": arguments}
    return Raw((arguments or "{}").encode())


def data_of(url: str) -> tuple[str, str]:
    """Media type and base64 text of a `data:` URL."""
    head, _, data = url[5:].partition(",")
    if not head.endswith(";base64"):
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    return head.split(";")[0] or "text/plain", data


def walked(schema: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A copy of a JSON schema in which each schema is as `change` makes it."""
    out: dict[str, Any] = {}
    for key, value in change(schema).items():
        if key in _MAPS and isinstance(value, dict):
            out[key] = {name: _any(one, change) for name, one in cast("dict[str, Any]", value).items()}
        else:
            out[key] = _any(value, change) if key not in ("enum", "const", "required") else value
    return out


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in which every object is closed (`additionalProperties: false`) and unknown keywords are left out."""
    return walked(schema, _closed)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in schema.items() if key not in _UNKNOWN}
    if out.get("type") == "object" and not isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = False
    return out


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes a schema: every object closed, with all properties required."""
    if isinstance(schema, list):
        return all(is_strict(one) for one in cast("list[Any]", schema))
    if not isinstance(schema, dict):
        return True
    fields = cast("dict[str, Any]", schema)
    if fields.keys() & {"default", "oneOf", "allOf", "not"}:
        return False
    if fields.get("type") == "object":
        required: Any = fields.get("required", ())
        if fields.get("additionalProperties") is not False or set(required) != set(fields.get("properties", {})):
            return False
    return all(
        all(is_strict(one) for one in value.values()) if key in _MAPS else key == "enum" or is_strict(value)
        for key, value in fields.items()
    )


def _any(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if isinstance(value, dict):
        return walked(cast("dict[str, Any]", value), change)
    if isinstance(value, list):
        return [_any(one, change) for one in cast("list[Any]", value)]
    return value
