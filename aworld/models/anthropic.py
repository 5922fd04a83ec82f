"""Anthropic's Messages API.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError
from aworld.core.model import Delta, ModelReply, ModelRequest
from aworld.models.anthropic_wire import AnthropicReply, wire_messages
from aworld.models.remote_model import RemoteModel, closed

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
MAX_TOKENS = 8192
"""Sent when nothing is set: the API insists on a number, and every current model takes this one."""

_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicModel(RemoteModel):
    """A model behind Anthropic's Messages API. `config` needs `llm_model_name`. Raises `ConfigError`."""

    def __init__(self, config: ModelConfig, *, provider: str = "anthropic") -> None:
        base = (config.llm_base_url or BASE_URL).rstrip("/")
        headers = {"anthropic-version": config.llm_api_version or VERSION}
        if config.llm_api_key:
            headers["x-api-key"] = config.llm_api_key
        url = f"{base}/messages" if base.endswith("/v1") else f"{base}/v1/messages"
        super().__init__(config, provider=provider, url=url, headers=headers)
        self.params = _params(config)

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        data, kind = await self.endpoint.post(self.encode(self.body(request)))
        answer = AnthropicReply()
        self._read(answer, data, kind)
        if not answer.complete:
            raise self.endpoint.unreadable("a message without content", data)
        return self._finished(answer)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes. Raises `ModelError`."""
        body = self.body(request)
        body["stream"] = True
        answer = AnthropicReply(on_delta)

        def take(events: list[bytes]) -> bool:
            for data in events:
                self._read(answer, data)
                if answer.complete:
                    return True  # what comes behind it is not of the answer
            return False

        await self.endpoint.post(self.encode(body), take)
        if not answer.complete:
            raise self.endpoint.unreadable("only the beginning of a stream")
        return self._finished(answer)

    def body(self, request: ModelRequest) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        system, messages = wire_messages(request.messages)
        body: dict[str, Any] = {"model": self.name, "messages": messages, **self.params, **_translated(request.params)}
        if system:
            body["system"] = system
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in request.tools
            ]
        if request.output is not None:
            shape = {"type": "json_schema", "schema": closed(request.output.schema)}
            body["output_config"] = {"format": shape, **body.get("output_config", {})}
        return body

    def _read(self, answer: AnthropicReply, data: bytes, kind: str = "") -> None:
        try:
            event = answer.read(data)
        except msgspec.DecodeError as error:
            what = f"{kind} that" if kind and "json" not in kind else "what"
            raise self.endpoint.unreadable(f"{what} is not of a message ({error})", data) from None
        if event is not None and (event.type == "error" or event.error):
            error: Any = event.error
            name = cast("dict[str, Any]", error).get("type") if isinstance(error, dict) else None
            raise self.endpoint.reported(error, _STATUS.get(str(name)))

    def _finished(self, answer: AnthropicReply) -> ModelReply:
        try:
            message = answer.message()
        except msgspec.DecodeError as error:
            raise self.endpoint.unreadable(f"what is not a message ({error})") from None
        usage = None if answer.usage is None else answer.usage.usage()
        return self.priced(
            ModelReply(message, answer.stop_reason, usage, None, answer.model, answer.id, answer.first_token)
        )


def _params(config: ModelConfig) -> dict[str, Any]:
    """Sampling settings in the API's words."""
    if config.llm_seed is not None:
        raise ConfigError("Anthropic's API has no seed: leave llm_seed unset.")
    return {"max_tokens": MAX_TOKENS, **_translated(config.sampling())}


def _translated(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the two names that differ from everybody else's, and without the seed, which this API lacks."""
    if not params.keys() & {"stop", "reasoning_effort", "seed"}:
        return params
    out = dict(params)
    out.pop("seed", None)  # rollouts send one with every request
    stop = out.pop("stop", None)
    if stop is not None:
        out["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    effort = out.pop("reasoning_effort", None)
    if effort is not None:
        out["output_config"] = {"effort": effort, **out.get("output_config", {})}
    return out
