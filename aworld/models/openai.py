"""OpenAI-compatible chat completions: OpenAI, Azure, vLLM, Ollama, OpenRouter, DeepSeek, Qwen and many more.

The body is made of plain dicts, with messages in `chat_format`: what a trajectory row shows is what was sent.
Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message, chat_format
from aworld.core.model import ModelRequest, OutputSchema, function_format
from aworld.models.native_tools import options_of_tool, read_native_tools
from aworld.models.openai_wire import ChatReply
from aworld.models.remote_model import RemoteModel, is_strict

BASE_URL = "https://api.openai.com/v1"
AZURE_API_VERSION = "2024-10-21"

_CAPTURE: dict[str, Any] = {"return_token_ids": True, "logprobs": True, "top_logprobs": 0}


class OpenAIModel(RemoteModel):
    """A model behind the chat-completions API.

    `config` needs `llm_model_name`; `llm_base_url` is OpenAI's when not given, and without `llm_api_key` no
    `Authorization` header is sent. `provider` is the name that goes into the log. Raises `ConfigError`.
    """

    reply_type = ChatReply

    def __init__(self, config: ModelConfig, *, provider: str = "openai") -> None:
        url = self._url(config)
        self._official = _is_official(url)
        searches = provider in ("litellm", "openrouter") or (provider == "openai" and self._official)
        self.native_tools = frozenset({"web_search"} if searches else ())  # other servers would pass it over
        super().__init__(config, provider=provider, url=url, headers=self._authorization(config.llm_api_key))
        self._fixed: dict[str, Any] = _CAPTURE if config.llm_capture_tokens else {}

    def body(self, request: ModelRequest, *, stream: bool = False) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        body: dict[str, Any] = {
            "model": self.name,
            **self._fixed,
            **self.wire_params(request),
            # Last: what the log shows is what is sent, whatever a hook puts into the parameters.
            "messages": [chat_format(_plain(m) if self._official else m) for m in request.messages],
        }
        if body.pop("prompt_cache", False):
            body.setdefault("prompt_cache_key", cache_key(request.messages))
        if request.tools:
            body["tools"] = [function_format(tool) for tool in request.tools]
        if request.output is not None:
            body.setdefault("response_format", wire_output(request.output))
        if stream:
            body["stream"] = True
            body.setdefault("stream_options", {"include_usage": True})
        return body

    def translated(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in the API's words."""
        body = super().translated(params)
        if self._official and "max_tokens" in body:
            # OpenAI has replaced the word, and refuses the old one for its reasoning models; others know only that.
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
        choice = body.get("tool_choice")
        if isinstance(choice, str) and choice not in ("auto", "none", "required"):
            body["tool_choice"] = {"type": "function", "function": {"name": choice}}
        for tool in read_native_tools(body.pop("native_tools", None)):
            options = options_of_tool(tool, self.provider, "location")
            place = {"user_location": {"type": "approximate", "approximate": options["location"]}} if options else {}
            body["web_search_options"] = {**place, **body.get("web_search_options", {})}
        return body

    def _url(self, config: ModelConfig) -> str:
        base = (config.llm_base_url or BASE_URL).rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def _authorization(self, key: str | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}


class AzureModel(OpenAIModel):
    """A model in Azure OpenAI. `llm_base_url` is the resource's endpoint, `llm_model_name` the deployment.

    An endpoint that ends in `/openai/v1` uses the API without versions; else `llm_api_version` is sent.
    Raises `ConfigError` when the endpoint is missing.
    """

    def __init__(self, config: ModelConfig, *, provider: str = "azure") -> None:
        super().__init__(config, provider=provider)

    def _url(self, config: ModelConfig) -> str:
        base = (config.llm_base_url or "").rstrip("/")
        if not base:
            raise ConfigError("No Azure endpoint: set AZURE_OPENAI_ENDPOINT or AgentConfig(llm_base_url=...)")
        if base.endswith("/openai/v1"):
            return f"{base}/chat/completions"
        if "/openai/deployments/" not in base:
            base = f"{base}/openai/deployments/{config.llm_model_name}"
        return f"{base}/chat/completions?api-version={config.llm_api_version or AZURE_API_VERSION}"

    def _authorization(self, key: str | None) -> dict[str, str]:
        return {"api-key": key} if key else {}


def cache_key(messages: Iterable[Message]) -> str:
    """Tells the provider which requests begin alike: those of one conversation, wherever and whenever it goes on."""
    key = hashlib.sha256()
    for message in messages:
        key.update(message.text.encode())
        if message.role == "user":
            break
    return key.hexdigest()[:32]


def _plain(message: Message) -> Message:
    """A message for OpenAI's own servers, which refuse what other servers have added to the protocol. It matters only
    when a conversation changes its provider: they never send such fields themselves."""
    if message.reasoning is None and message.opaque is None:
        return message
    return msgspec.structs.replace(message, reasoning=None, opaque=None)


def wire_output(output: OutputSchema) -> dict[str, Any]:
    """The shape of an answer in the API's words. Strict where the schema allows it: then the server enforces it."""
    shape: dict[str, Any] = {"name": output.name, "schema": output.schema}
    if is_strict(output.schema):
        shape["strict"] = True
    return {"type": "json_schema", "json_schema": shape}


def _is_official(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "api.openai.com" or host.endswith(".openai.azure.com")
