"""What the models behind an HTTP API share: settings, retries, limits, the endpoint, and the price of a call."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from aworld.config.conf import ModelConfig
from aworld.config.errors import ConfigError
from aworld.core.exceptions import ModelError
from aworld.core.message import Usage
from aworld.core.model import ModelReply
from aworld.models.call import Retry

if TYPE_CHECKING:
    from aworld.models.http import Endpoint
    from aworld.models.limiter import Limits

_encoder = msgspec.json.Encoder()


class RemoteModel:
    """Base of the HTTP models. A value without run state: one instance serves any number of calls, in any loop."""

    def __init__(self, config: ModelConfig, *, provider: str, url: str, headers: dict[str, str]) -> None:
        if not config.llm_model_name:
            raise ConfigError("No model name: set LLM_MODEL_NAME or AgentConfig(llm_model_name=...)")
        self.provider = provider
        self.name: str = config.llm_model_name
        self.params: dict[str, Any] = {}
        self.config = config
        self.url = url
        self.retry = Retry(config.llm_max_retries, config.llm_retry_wait, config.llm_retry_wait_max)
        self.limits = _limits(config, provider, url)
        self._headers = _checked({**headers, **config.llm_headers})
        self._endpoint: Endpoint | None = None

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
                secrets=(config.llm_api_key or "", *config.llm_headers.values()),
                timeout=config.llm_timeout,
                stall_timeout=config.llm_stall_timeout,
            )
        return self._endpoint

    def encode(self, body: dict[str, Any]) -> bytes:
        """The bytes of a request. Raises `ModelError` for what JSON cannot say."""
        try:
            return _encoder.encode(body)
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"The request to {self.provider} cannot be written as JSON: {error}") from error

    def priced(self, reply: ModelReply) -> ModelReply:
        """The reply with the cost of the call, where the provider did not say and the settings do."""
        usage = reply.usage
        if usage is None or usage.cost is not None:
            return reply
        cost = self._cost(usage)
        if cost is None:
            return reply
        return msgspec.structs.replace(reply, usage=msgspec.structs.replace(usage, cost=cost))

    def _cost(self, usage: Usage) -> float | None:
        price_in, price_out = self.config.llm_input_price, self.config.llm_output_price
        if price_in is None or price_out is None or usage.input_tokens is None or usage.output_tokens is None:
            return None
        return (usage.input_tokens * price_in + usage.output_tokens * price_out) / 1_000_000


def _limits(config: ModelConfig, provider: str, url: str) -> Limits | None:
    if (
        config.llm_max_concurrency is None
        and config.llm_requests_per_minute is None
        and config.llm_tokens_per_minute is None
    ):
        return None
    from aworld.models.limiter import Limits

    key = hashlib.sha256((config.llm_api_key or "").encode()).hexdigest()[:16]
    return Limits(
        f"{provider} {urlsplit(url).netloc} {key}",
        config.llm_max_concurrency,
        config.llm_requests_per_minute,
        config.llm_tokens_per_minute,
    )


def _checked(headers: dict[str, str]) -> dict[str, str]:
    """Headers that can be sent. The error names the header, never its value."""
    for name, value in headers.items():
        if not (name + value).isascii() or any(ord(c) < 32 or ord(c) == 127 for c in name + value):
            raise ConfigError(f"Header {name!r} holds a character that HTTP cannot send; check the key or llm_headers")
    return headers
