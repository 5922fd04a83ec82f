"""Any provider that LiteLLM knows, for those without an adapter of our own. Needs the package `litellm`.

LiteLLM answers in the shape of chat completions, so its answers are read like those of any such server.
Source: https://docs.litellm.ai/docs/completion
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import msgspec

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ModelError
from aworld.core.extras import import_extra
from aworld.core.message import chat_format
from aworld.core.model import Delta, ModelReply, ModelRequest, function_format
from aworld.models.http import ERROR_TEXT, RETRYABLE, retry_after
from aworld.models.openai import wire_output
from aworld.models.openai_wire import ChatReply, Chunk
from aworld.models.remote_model import RemoteModel


class LiteLLMModel(RemoteModel):
    """A model called through LiteLLM; `llm_model_name` is LiteLLM's, such as `bedrock/anthropic.claude-…`.

    Raises `ConfigError` when LiteLLM is not installed.
    """

    def __init__(self, config: ModelConfig, *, provider: str = "litellm") -> None:
        super().__init__(config, provider=provider, url=config.llm_base_url or "litellm", headers={})
        self._litellm: Any = import_extra("litellm", "The provider litellm", "litellm>=1.80")
        self._errors: Any = import_module("openai").OpenAIError  # the base of LiteLLM's own errors
        self.params = config.sampling()

    async def generate(self, request: ModelRequest) -> ModelReply:
        """ChatReply once. Raises `ModelError`."""
        answer = ChatReply()
        answer.add(msgspec.convert((await self._ask(request)).model_dump(), Chunk, strict=False))
        return self._finished(answer, request)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """ChatReply once, and hand on each piece as it comes. Raises `ModelError`."""
        answer = ChatReply(on_delta)
        pieces = await self._ask(request, stream=True, stream_options={"include_usage": True})
        try:
            async for piece in pieces:
                answer.add(msgspec.convert(piece.model_dump(), Chunk, strict=False))
        except self._errors as error:
            raise self._failure(error) from None
        return self._finished(answer, request)

    async def _ask(self, request: ModelRequest, **more: Any) -> Any:
        config = self.config
        arguments: dict[str, Any] = {
            "model": self.name,
            "messages": [chat_format(message) for message in request.messages],
            "timeout": config.llm_timeout,
            "num_retries": 0,
            "max_retries": 0,  # retries are the runtime's
            "api_key": config.llm_api_key,
            "api_base": config.llm_base_url,
            "api_version": config.llm_api_version,
            **({"extra_headers": config.llm_headers} if config.llm_headers else {}),
            **self.params,
            **request.params,
            **more,
        }
        if request.tools:
            arguments["tools"] = [function_format(tool) for tool in request.tools]
        if request.output is not None:
            arguments.setdefault("response_format", wire_output(request.output))
        try:
            return await self._litellm.acompletion(**arguments)
        except self._errors as error:
            # Its errors carry the whole request, so they are not chained.
            raise self._failure(error) from None

    def _failure(self, error: Any) -> ModelError:
        status: int | None = getattr(error, "status_code", None)
        headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
        text = f"{self.provider}: {error}"
        for secret in (self.config.llm_api_key, *self.config.llm_headers.values()):
            text = text.replace(secret, "***") if secret else text
        return ModelError(
            text[:ERROR_TEXT],
            status=status,
            retryable=status is None or status >= 500 or status in RETRYABLE,
            retry_after=retry_after(headers),
        )

    def _finished(self, answer: ChatReply, request: ModelRequest) -> ModelReply:
        if not answer.seen:
            raise ModelError(f"{self.provider} sent a chat completion without choices", retryable=True)
        return self.priced(answer.reply(request))
