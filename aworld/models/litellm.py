"""Any provider that LiteLLM knows, for those without an adapter of our own. Needs the package `litellm`.

LiteLLM answers in the shape of chat completions, so its requests and answers are those of any such server.
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
from aworld.core.model import Delta, ModelReply, ModelRequest
from aworld.models.http import ERROR_TEXT, may_pass, retry_after
from aworld.models.openai import OpenAIModel
from aworld.models.openai_wire import ChatReply, Chunk


class LiteLLMModel(OpenAIModel):
    """A model called through LiteLLM; `llm_model_name` is LiteLLM's, such as `bedrock/anthropic.claude-…`.

    Raises `ConfigError` when LiteLLM is not installed.
    """

    def __init__(self, config: ModelConfig, *, provider: str = "litellm") -> None:
        super().__init__(config, provider=provider)
        self._litellm: Any = import_extra("litellm", "The provider litellm", "litellm>=1.80")
        self._errors: Any = import_module("openai").OpenAIError  # the base of LiteLLM's own errors

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        answer = ChatReply()
        try:
            answer.add(_chunk(await self._ask(request)))
        except self._errors as error:
            raise self._failure(error) from None  # its errors carry the whole request, so they are not chained
        return self.finished(answer, request)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes. Raises `ModelError`."""
        answer = ChatReply(on_delta)
        try:
            async for piece in await self._ask(request, stream=True, stream_options={"include_usage": True}):
                answer.add(_chunk(piece))
        except self._errors as error:
            raise self._failure(error) from None
        return self.finished(answer, request)

    def _ask(self, request: ModelRequest, **more: Any) -> Any:
        config = self.config
        arguments: dict[str, Any] = {
            "timeout": config.llm_timeout,
            "num_retries": 0,
            "max_retries": 0,  # retries are the runtime's
            "api_key": config.llm_api_key,
            "api_base": config.llm_base_url,
            "api_version": config.llm_api_version,
            **({"extra_headers": config.llm_headers} if config.llm_headers else {}),
        }
        return self._litellm.acompletion(**arguments, **self.body(request), **more)

    def _url(self, config: ModelConfig) -> str:
        return config.llm_base_url or "litellm"

    def _failure(self, error: Any) -> ModelError:
        status: int | None = getattr(error, "status_code", None)
        headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
        text = self.endpoint.redact(f"{self.provider}: {error}")[:ERROR_TEXT]
        passes = status is None or may_pass(status)
        return ModelError(text, status=status, retryable=passes, retry_after=retry_after(headers))


def _chunk(piece: Any) -> Chunk:
    return msgspec.convert(piece.model_dump(), Chunk, strict=False)
