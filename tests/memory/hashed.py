"""An embedding model for tests: each word has a direction of its own, and synonyms share one. Also as a server, of both
protocols."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

from aworld.core.memory import EmbeddingsConfig
from tests.models.provider import Connection, Provider, head

SYNONYMS = {"automobile": "car", "vehicle": "car", "physician": "doctor", "dwells": "lives", "residence": "home"}


def vector_of(text: str, dimensions: int = 64) -> list[float]:
    vector = [0.0] * dimensions
    for word in text.lower().replace("?", " ").replace(".", " ").split():
        vector[zlib.crc32(SYNONYMS.get(word, word).encode()) % dimensions] += 1.0
    return vector


class HashedEmbedder:
    """Counts what it is asked."""

    def __init__(self, model: str = "hashed", dimensions: int = 64) -> None:
        self.model = model
        self.dimensions = dimensions
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.texts += texts
        return [vector_of(text, self.dimensions) for text in texts]


class EmbeddingServer(Provider):
    """A server that speaks Ollama's protocol and OpenAI's; steps come before the answers."""

    def __init__(self, *steps: Any, dimensions: int = 64) -> None:
        super().__init__(*steps, *[self.answer] * 100)
        self._dimensions = dimensions

    def settings(self, provider: str, **more: Any) -> EmbeddingsConfig:
        base_url = self.base_url if provider == "openai" else self.base_url.removesuffix("/v1")
        return EmbeddingsConfig(provider=provider, model_name="hashed", base_url=base_url, **more)

    async def answer(self, connection: Connection) -> None:
        request = self.requests[-1]
        vectors = [vector_of(text, self._dimensions) for text in request.json["input"]]
        if request.target == "/api/embed":
            answer: Any = {"model": "hashed", "embeddings": vectors}
        else:
            assert request.target == "/v1/embeddings"
            rows = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
            answer = {"data": rows[::-1]}  # the order is the server's business
        body = json.dumps(answer).encode()
        await connection.send(head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}) + body)
