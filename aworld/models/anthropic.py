"""Anthropic's Messages API.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError
from aworld.core.model import Delta, ModelRequest
from aworld.models.anthropic_wire import AnthropicReply, wire_messages
from aworld.models.remote_model import RemoteModel, closed

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
MAX_TOKENS = 8192
"""Sent when nothing is set: the API insists on a number, and every current model takes this one."""


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

    def body(self, request: ModelRequest, *, stream: bool = False) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        system, messages = wire_messages(request.messages)
        # The messages last: what the log shows is what is sent, whatever a hook puts into the parameters.
        body: dict[str, Any] = {"model": self.name, **self.params, **_translated(request.params), "messages": messages}
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
        if stream:
            body["stream"] = True
        return body

    def _parts(self, on_delta: Callable[[Delta], None] | None) -> AnthropicReply:
        return AnthropicReply(on_delta)


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
