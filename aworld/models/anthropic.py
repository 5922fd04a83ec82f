"""Anthropic's Messages API.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from aworld.config.conf import ModelConfig
from aworld.core.model import Delta, ModelRequest
from aworld.models.anthropic_wire import AnthropicReply, Block, wire_messages
from aworld.models.native_tools import NATIVE_TOOLS, NativeTool, options_of_tool, read_native_tools
from aworld.models.remote_model import RemoteModel, closed

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
MAX_TOKENS = 8192
"""Sent when nothing is set: the API insists on a number, and every current model takes this one."""
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


class AnthropicModel(RemoteModel):
    """A model behind Anthropic's Messages API. `config` needs `llm_model_name`. Raises `ConfigError`."""

    lacks: ClassVar[frozenset[str]] = frozenset({"seed", "logit_bias"})
    native_tools = NATIVE_TOOLS
    defaults: ClassVar[Mapping[str, Any]] = {"max_tokens": MAX_TOKENS}

    def __init__(self, config: ModelConfig, *, provider: str = "anthropic") -> None:
        base = (config.llm_base_url or BASE_URL).rstrip("/")
        headers = {"anthropic-version": config.llm_api_version or VERSION}
        if config.llm_api_key:
            headers["x-api-key"] = config.llm_api_key
        url = f"{base}/messages" if base.endswith("/v1") else f"{base}/v1/messages"
        super().__init__(config, provider=provider, url=url, headers=headers)

    def body(self, request: ModelRequest, *, stream: bool = False) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        system, messages = wire_messages(request.messages)
        # The messages last: what the log shows is what is sent, whatever a hook puts into the parameters.
        body: dict[str, Any] = {"model": self.name, **self.wire_params(request), "messages": messages}
        if system:
            body["system"] = system
        if request.tools:
            body["tools"] = [
                *body.get("tools", ()),
                *(
                    {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                    for tool in request.tools
                ),
            ]
        if cache := body.pop("prompt_cache", None):
            _mark(body, {"type": "ephemeral", "ttl": "1h"} if cache == "1h" else {"type": "ephemeral"})
        if request.output is not None:
            shape = {"type": "json_schema", "schema": closed(request.output.schema)}
            body["output_config"] = {"format": shape, **body.get("output_config", {})}
        if stream:
            body["stream"] = True
        return body

    def translated(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in the API's words; that a prompt is kept (`prompt_cache`) is left for the body."""
        body = super().translated(params)
        if (stop := body.pop("stop", None)) is not None:
            body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if (effort := body.pop("reasoning_effort", None)) is not None:
            body["output_config"] = {"effort": effort, **body.get("output_config", {})}
        choice, parallel = body.pop("tool_choice", None), body.pop("parallel_tool_calls", None)
        if isinstance(choice, str):
            choice = {"type": _CHOICES[choice]} if choice in _CHOICES else {"type": "tool", "name": choice}
        if parallel is not None and (choice or {}).get("type") != "none":
            choice = {"type": "auto", **(choice or {}), "disable_parallel_tool_use": not parallel}
        if choice:
            body["tool_choice"] = choice
        if tools := read_native_tools(body.pop("native_tools", None)):
            body["tools"] = [*(_native(tool, self.provider) for tool in tools), *body.get("tools", ())]
        return body

    def _parts(self, on_delta: Callable[[Delta], None] | None) -> AnthropicReply:
        return AnthropicReply(on_delta)


def _native(tool: NativeTool, provider: str) -> Block:
    """A tool of the provider itself in the API's words."""
    word = tool.__struct_config__.tag
    if word == "code_execution":
        return {"type": "code_execution_20250825", "name": word}
    options = options_of_tool(tool, provider, "max_uses", "allowed_domains", "blocked_domains", "location")
    if (place := options.pop("location", None)) is not None:
        options["user_location"] = {"type": "approximate", **place}
    return {"type": "web_search_20250305", "name": word, **options}


def _mark(body: dict[str, Any], mark: Block) -> None:
    """Say up to where the prompt is to be kept: after the tools, the system prompt, and the newest message, so that the
    next call of the conversation finds all of it."""
    if "tools" in body:
        body["tools"] = [*body["tools"][:-1], {**body["tools"][-1], "cache_control": mark}]
    if "system" in body:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": mark}]
    last: Block | None = next((message for message in reversed(body["messages"]) if message["role"] == "user"), None)
    if last is not None:  # copies: what stands in the log, and what every call sends, stay as they are
        last["content"] = [*last["content"][:-1], {**last["content"][-1], "cache_control": mark}]
