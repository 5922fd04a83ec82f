"""Models that make vectors of texts: over HTTP (OpenAI's protocol, Ollama's), and in this process.

A provider is imported when it is first used. Keys come from the settings or the environment alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from aworld.core.checks import one_of
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.memory import Embedder, EmbeddingsConfig

if TYPE_CHECKING:
    from aworld.models.http import Endpoint

_WAIT = 0.5  # seconds before the first retry, doubled each time


class HTTPEmbedder:
    """Asks a server, in batches. `path` is that of the protocol, `take` finds the vectors in its answer."""

    def __init__(
        self,
        config: EmbeddingsConfig,
        base_url: str,
        path: str,
        take: Callable[[Any], list[Any]],
        key: str | None = None,
    ) -> None:
        from aworld.models.http import Endpoint  # an HTTP stack, which a memory without a server does not need

        self.model = _named(config)
        self._config = config
        self._take = take
        self._endpoint: Endpoint = Endpoint(
            f"embedding_config: the {config.provider} server at {base_url}",
            base_url.rstrip("/") + path,
            {"Authorization": f"Bearer {key}"} if key else {},
            secrets=[key] if key else [],
            timeout=config.timeout,
            stall_timeout=config.timeout,
        )

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See `Embedder`."""
        size, vectors = self._config.batch_size, list[list[float]]()
        for start in range(0, len(texts), size):
            vectors += await self._ask(texts[start : start + size])
        return vectors

    async def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        body: dict[str, Any] = {"model": self.model, "input": list(texts)}
        if self._config.dimensions is not None:
            body["dimensions"] = self._config.dimensions
        tries = self._config.max_retries
        for attempt in range(tries + 1):
            try:
                return self._vectors((await self._endpoint.post(msgspec.json.encode(body)))[0], len(texts))
            except ModelError as error:
                if not error.retryable or attempt == tries:
                    # The transport speaks of the settings of a model that answers.
                    text = str(error).replace("llm_stall_timeout", "timeout").replace("llm_", "")
                    raise ModelError(text, status=error.status, retryable=error.retryable) from None
                await asyncio.sleep(error.retry_after or _WAIT * 2**attempt)
        raise AssertionError("the last try has returned or raised")

    def _vectors(self, data: bytes, count: int) -> list[list[float]]:
        try:
            vectors = msgspec.convert(self._take(msgspec.json.decode(data)), list[list[float]])
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
            raise self._endpoint.unreadable("an answer without embeddings; look at base_url", data) from None
        lengths = {len(vector) for vector in vectors}
        if len(vectors) != count or len(lengths) != 1:
            raise self._endpoint.unreadable(f"{len(vectors)} vectors of {sorted(lengths)} dimensions for {count} texts")
        return _checked(self._config, vectors)


class LocalEmbedder:
    """A model in this process: a function of a list of texts, which runs in a thread."""

    def __init__(self, config: EmbeddingsConfig, load: Callable[[], Callable[[list[str]], Any]]) -> None:
        self.model = _named(config)
        self._config = config
        self._load = load
        self._function: Callable[[list[str]], Any] | None = None
        self._lock = asyncio.Lock()

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See `Embedder`."""
        async with self._lock:
            if self._function is None:
                self._function = await asyncio.to_thread(self._load)
            function, size, vectors = self._function, self._config.batch_size, list[list[float]]()
            for start in range(0, len(texts), size):
                batch = await asyncio.to_thread(function, list(texts[start : start + size]))
                vectors += [[float(value) for value in vector] for vector in batch]
        return _checked(self._config, vectors)


def _named(config: EmbeddingsConfig) -> str:
    if not config.model_name:
        raise ConfigError(f"embedding_config: {config.provider} needs a model; set model_name=", setting="model_name")
    return config.model_name


def _checked(config: EmbeddingsConfig, vectors: list[list[float]]) -> list[list[float]]:
    if config.dimensions and vectors and len(vectors[0]) != config.dimensions:
        raise ConfigError(
            f"embedding_config: dimensions={config.dimensions}, and {config.model_name} made {len(vectors[0])}; "
            "set that number, or leave it out",
            setting="dimensions",
        )
    return vectors


def _openai(config: EmbeddingsConfig) -> Embedder:
    base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    key = config.api_key or os.environ.get("OPENAI_API_KEY")
    if key is None and "api.openai.com" in base_url:
        raise ConfigError("embedding_config: OpenAI needs a key; set api_key= or OPENAI_API_KEY", setting="api_key")

    def take(answer: Any) -> list[Any]:
        rows = sorted(answer["data"], key=lambda row: row["index"])  # a server may answer in any order
        return [row["embedding"] for row in rows]

    return HTTPEmbedder(config, base_url, "/embeddings", take, key)


def _ollama(config: EmbeddingsConfig) -> Embedder:
    base_url = config.base_url or os.environ.get("OLLAMA_HOST") or "http://localhost:11434"
    if "://" not in base_url:  # its own variable may be a host and a port alone
        base_url = f"http://{base_url}"
    return HTTPEmbedder(config, base_url, "/api/embed", lambda answer: answer["embeddings"], config.api_key)


def _huggingface(config: EmbeddingsConfig) -> Embedder:
    def load() -> Callable[[list[str]], Any]:
        kind = _imported("sentence_transformers", "sentence-transformers", config).SentenceTransformer
        try:
            return kind(config.model_name).encode
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"embedding_config: model_name={config.model_name!r} cannot be loaded: {error}"
            ) from error

    return LocalEmbedder(config, load)


def _onnx(config: EmbeddingsConfig) -> Embedder:
    """A folder of `model.onnx` and `tokenizer.json`: the mean of the last layer over the tokens, of length 1."""

    def load() -> Callable[[list[str]], Any]:
        runtime, tokenizers = (
            _imported("onnxruntime", "onnxruntime", config),
            _imported("tokenizers", "tokenizers", config),
        )
        np, folder = _imported("numpy", "numpy", config), str(config.model_name)
        for name in ("model.onnx", "tokenizer.json"):
            if not os.path.isfile(os.path.join(folder, name)):
                raise ConfigError(
                    f"embedding_config: model_name={folder!r} is to be a folder with {name}, and has none"
                )
        tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        tokenizer.enable_padding()
        tokenizer.enable_truncation(256)
        session = runtime.InferenceSession(os.path.join(folder, "model.onnx"), providers=["CPUExecutionProvider"])
        names = {entry.name for entry in session.get_inputs()}

        def function(texts: list[str]) -> Any:
            rows = tokenizer.encode_batch(texts)
            ids, mask = (np.array([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask"))
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            layer = session.run(None, {name: value for name, value in inputs.items() if name in names})[0]
            mean = (layer * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            return mean / np.linalg.norm(mean, axis=1, keepdims=True)

        return function

    return LocalEmbedder(config, load)


def _imported(module: str, package: str, config: EmbeddingsConfig) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"embedding_config: provider={config.provider!r} needs {package}; install it: pip install {package}",
            setting="provider",
        ) from error


EmbedderFactory: TypeAlias = Callable[[EmbeddingsConfig], Embedder]

_embedders: dict[str, EmbedderFactory] = {
    "openai": _openai, "ollama": _ollama, "huggingface": _huggingface, "onnx": _onnx,
}  # fmt: skip


def register_embedder(name: str, factory: EmbedderFactory) -> None:
    """Let `EmbeddingsConfig(provider=name)` mean what `factory` makes of it."""
    _embedders[name] = factory


def build_embedder(config: EmbeddingsConfig) -> Embedder:
    """The embedder of these settings. Raises ConfigError that names the setting."""
    return _embedders[one_of("embedding_config.provider", config.provider, _embedders)](config)
