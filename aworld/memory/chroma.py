"""Vectors in Chroma. It gets ids, vectors and owners, and no text; what it has can be made anew from the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aworld.core.checks import known_keys
from aworld.core.exceptions import AWorldError, ConfigError, StoreError
from aworld.core.memory import MemoryFilter, MemoryItem

_FIELDS = ("user_id", "session_id", "agent_id", "team")
_BATCH = 1000


class ChromaVectors:
    """A collection of Chroma, in a folder (`chroma_data_path`) or in this process. Satisfies `VectorIndex`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        known_keys("vector_store_config", config, ("chroma_data_path", "collection_name"))
        try:
            import chromadb  # pyright: ignore[reportMissingImports] - half a gigabyte, and optional
        except ImportError as error:
            raise ConfigError(
                "vector_store_config: provider='chroma' needs chromadb; install it: pip install chromadb",
                setting="vector_store_config",
            ) from error
        self._chroma: Any = chromadb
        self._config = dict(config)
        self._collection: Any = None
        self._lock = asyncio.Lock()

    async def put(self, items: Sequence[MemoryItem], vectors: Sequence[Sequence[float]]) -> None:
        """See `VectorIndex`."""
        arguments = {"ids": [item.id for item in items], "metadatas": [_metadata(item) for item in items]}
        await self._do("upsert", embeddings=[list(vector) for vector in vectors], **arguments)

    async def nearest(self, vector: Sequence[float], limit: int, which: MemoryFilter) -> dict[str, float]:
        """See `VectorIndex`."""
        answer = await self._do("query", query_embeddings=[list(vector)], n_results=limit, where=_where(which))
        return {id: 1.0 - distance for id, distance in zip(answer["ids"][0], answer["distances"][0])}

    async def delete(self, ids: Sequence[str]) -> None:
        """See `VectorIndex`."""
        for start in range(0, len(ids), _BATCH):
            await self._do("delete", ids=list(ids[start : start + _BATCH]))

    async def _do(self, method: str, **arguments: Any) -> Any:
        async with self._lock:  # its clients are not made for several threads at once
            try:
                return await asyncio.to_thread(self._call, method, arguments)
            except AWorldError:
                raise
            except Exception as error:  # its errors have no common base
                raise StoreError(
                    f"vector_store_config: Chroma failed to {method}: {error}; look at {self._config}"
                ) from error

    def _call(self, method: str, arguments: dict[str, Any]) -> Any:
        if self._collection is None:
            settings = self._chroma.Settings(anonymized_telemetry=False)
            if "chroma_data_path" in self._config:
                client = self._chroma.PersistentClient(path=str(self._config["chroma_data_path"]), settings=settings)
            else:
                client = self._chroma.EphemeralClient(settings=settings)
            self._collection = client.get_or_create_collection(
                self._config.get("collection_name", "aworld"),
                metadata={"hnsw:space": "cosine"},
                embedding_function=None,
            )
        return getattr(self._collection, method)(**arguments)


def _metadata(item: MemoryItem) -> dict[str, Any]:
    owners = {name: value for name in _FIELDS if (value := getattr(item.metadata, name)) is not None}
    return {**owners, "kind": item.kind, "scope": item.scope}


def _where(which: MemoryFilter) -> dict[str, Any] | None:
    parts: list[dict[str, Any]] = []
    if owners := [{name: value} for name, value in which.owners.items()]:
        same = owners[0] if len(owners) == 1 else {"$and": owners}
        parts.append({"$or": [{"scope": "global"}, same]})
    for name, values in (("kind", which.kinds), ("scope", which.scopes)):
        if values:
            parts.append({name: {"$in": list(values)}})
    return None if not parts else parts[0] if len(parts) == 1 else {"$and": parts}
