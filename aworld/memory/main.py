"""The memory of an agent: `Memory`, and `MemoryFactory`, which keeps one for the whole process.

    memory = MemoryFactory.init(config=MemoryConfig(path="memory.db"))
    await memory.add(Fact(content="Anna is allergic to nuts", metadata=MessageMetadata(user_id="anna")))
    for hit in await memory.search("which food is bad for her?", user_id="anna"):
        print(hit.item.content)

Nothing is opened before it is used, and nothing is asked of a server but embeddings.
"""

from __future__ import annotations

import array
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import msgspec

from aworld.core.checks import Count, Number, known_keys, one_of, typed
from aworld.core.event import now
from aworld.core.exceptions import ConfigError, StoreError, TaskError
from aworld.core.memory import (
    Embedder,
    ItemKind,
    ItemScope,
    MemoryChange,
    MemoryConfig,
    MemoryFilter,
    MemoryItem,
    Recollection,
    VectorDBConfig,
    VectorIndex,
)  # fmt: skip
from aworld.memory.embeddings import build_embedder
from aworld.memory.sqlite_items import CANDIDATES, SQLiteItems

_QUERIES = 256  # vectors of questions that are kept in this process
_FILL = 256  # items that get their missing vectors in one piece
_TRIES = 20  # of a change that others overtake


class Memory:
    """Items that are added, changed by deltas, searched and forgotten. What was written is durable on return.

    Raises StoreError when the file cannot be used, ConfigError and ModelError for embeddings that cannot be had.
    """

    @typed()
    def __init__(self, config: MemoryConfig | None = None, *, embedder: Embedder | None = None) -> None:
        self.config = config = config or MemoryConfig()
        one_of("provider", config.provider, ("aworld",))
        self._store = SQLiteItems(config.path, timeout=config.timeout)
        self._embedder = embedder
        if embedder is None and config.embedding_config is not None:
            self._embedder = build_embedder(config.embedding_config)
        self._model = self._embedder.model if self._embedder is not None else None
        self._index: VectorIndex | None = None
        if config.vector_store_config is not None:
            if self._embedder is None:
                raise ConfigError("vector_store_config: there are no vectors without embedding_config; set that too")
            self._index = _build_index(config.vector_store_config)
        self._queries: OrderedDict[str, list[float]] = OrderedDict()
        self._begun = False

    @typed()
    async def add(self, item: MemoryItem, *more: MemoryItem) -> MemoryItem:
        """Remember items, all or none, and retire what they supersede. Returns the first.

        Raises TaskError for an item that is there already, or supersedes one that is not.
        """
        items = [self._with_expiry(one) for one in (item, *more)]
        changes = [MemoryChange(action="added", item=one) for one in items]
        for one in items:
            changes += [_retired(old, "superseded", one.id) for old in await self._all(one.supersedes)]
        if not await self._write(changes):
            raise TaskError(f"Memory item {item.id!r}, or one beside it, is there already, or has just been changed.")
        return items[0]

    @typed()
    async def search(
        self,
        query: str,
        limit: Count = 10,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        agent_id: str | None = None,
        team: str | None = None,
        kinds: Sequence[ItemKind] = (),
        scopes: Sequence[ItemScope] = (),
        neighbours: Number = 0,
    ) -> list[Recollection]:
        """The items that fit best, the best first, with as many turns before and after each as `neighbours` says.

        Those of a user, session, agent and team, and of some kinds, where that is asked; `global` ones are of all.
        """
        which = MemoryFilter(
            user_id=user_id, session_id=session_id, agent_id=agent_id, team=team, kinds=kinds, scopes=scopes
        )
        if not query.strip():
            return []
        vector, model, near = b"", None, dict[str, float]()
        if self._embedder is not None:
            await self._begin(self._embedder)
            values = await self._vector_of(query, self._embedder)
            vector, model = _packed(values), self._model
            if self._index is not None:
                near = await self._index.nearest(values, max(limit, CANDIDATES), which)
        return await self._store.search(query, vector, model, near, which, limit, neighbours)

    @typed()
    async def recent(self, limit: Count = 20, **owners: Any) -> list[MemoryItem]:
        """The latest items, the latest first: `user_id=`, `session_id=`, `kinds=`, … as `search` takes them."""
        known_keys("Memory.recent", owners, MemoryFilter.__struct_fields__, "argument")
        return await self._store.recent(MemoryFilter(**owners), limit)

    @typed()
    async def get(self, id: str) -> MemoryItem:
        """An item, also one that no longer holds. Raises TaskError where there is none."""
        return (await self._all([id]))[0]

    @typed()
    async def edit(self, id: str, *, reason: str | None = None, **changes: Any) -> MemoryItem:
        """Change fields of an item, such as `content=` or `confidence=`; what it was stays in its history."""
        known_keys("Memory.edit", changes, _EDITABLE, "field")
        return await self._change([id], lambda items: [_edited(items[0], changes, "edited", reason)])

    @typed()
    async def merge(self, ids: Sequence[str], content: str) -> MemoryItem:
        """Let the first of these items say what all of them say; the others are retired."""
        if len(set(ids)) < 2 or len(set(ids)) != len(ids):
            raise TaskError(f"Memory.merge: ids={list(ids)}; give two different ids or more.")

        def deltas(items: list[MemoryItem]) -> list[MemoryChange]:
            first, *others = items
            edited = _edited(first, {"content": content, "supersedes": (*first.supersedes, *ids[1:])}, "merged", None)
            return [edited, *(_retired(other, "superseded", first.id) for other in others)]

        return await self._change(ids, deltas)

    @typed()
    async def retire(self, id: str, reason: str | None = None) -> MemoryItem:
        """Let an item no longer hold: it is not found any more, and can still be read."""
        return await self._change([id], lambda items: [_retired(items[0], "retired", reason)])

    @typed()
    async def history(self, id: str) -> list[MemoryChange]:
        """All that was done to an item, the first first. Raises TaskError where there is none."""
        changes = await self._store.changes(id)
        if not changes:
            await self._all([id])
        return changes

    @typed()
    async def forget(self, id: str) -> None:
        """Delete an item with its history, so that no file of this memory holds a byte of it."""
        await self._all([id])
        await self._drop(await self._store.purge(ids=[id]))

    @typed()
    async def erase(self, user: str) -> int:
        """Delete everything of a user: items, history, words, vectors. Returns how many items there were."""
        self._queries.clear()
        ids = await self._store.purge(user=user)
        await self._drop(ids)
        return len(ids)

    async def expire(self) -> int:
        """Delete what has expired. Returns how many items that were."""
        ids = await self._store.purge(before=now())
        await self._drop(ids)
        return len(ids)

    async def embed_again(self) -> int:
        """Make all vectors anew by the model that is configured now. Returns how many items hold."""
        if self._embedder is None:
            raise ConfigError(
                "Memory.embed_again: there is no model; set embedding_config.", setting="embedding_config"
            )
        await self._store.strip()
        return await self._fill(self._embedder)

    async def close(self) -> None:
        """Let go of the file. The next call opens it again."""
        await self._store.close()
        self._begun = False

    async def _begin(self, embedder: Embedder) -> None:
        """Give vectors to what was added without a model."""
        if not self._begun:
            await self._fill(embedder)
            self._begun = True

    async def _fill(self, embedder: Embedder) -> int:
        count = 0
        while items := await self._store.bare(_FILL):
            vectors = await embedder.embed([item.content for item in items])
            packed = {item.id: _packed(vector) for item, vector in zip(items, vectors)}
            await self._store.fill(packed, embedder.model)
            if self._index is not None:
                await self._index.put(items, vectors)
            count += len(items)
        return count

    async def _vector_of(self, query: str, embedder: Embedder) -> list[float]:
        vector = self._queries.pop(query, None) or (await embedder.embed([query]))[0]
        self._queries[query] = vector
        if len(self._queries) > _QUERIES:
            self._queries.popitem(last=False)
        return vector

    async def _write(self, changes: Sequence[MemoryChange]) -> bool:
        items = [change.item for change in changes if change.item.retired_at is None]
        vectors = await self._vectors_of(items)
        if not await self._store.write(changes, vectors, self._model):
            return False
        if self._index is not None:
            if items:
                await self._index.put(items, [_unpacked(vectors[item.id]) for item in items])
            if gone := [change.item.id for change in changes if change.item.retired_at is not None]:
                await self._index.delete(gone)
        return True

    async def _vectors_of(self, items: Sequence[MemoryItem]) -> dict[str, bytes]:
        """Vectors of contents; what the store has of the same content is not asked for again."""
        if self._embedder is None or not items:
            return {}
        await self._begin(self._embedder)
        digests = {item.id: hashlib.sha256(item.content.encode()).digest() for item in items}
        ready = await self._store.vectors(list(set(digests.values())))
        texts = {digests[item.id]: item.content for item in items if digests[item.id] not in ready}
        if texts:
            ready |= zip(texts, map(_packed, await self._embedder.embed(list(texts.values()))))
        return {id: ready[digest] for id, digest in digests.items()}

    async def _all(self, ids: Sequence[str]) -> list[MemoryItem]:
        items = await self._store.read(ids)
        if len(items) < len(ids):
            missing = set(ids) - {item.id for item in items}
            raise TaskError(f"There is no memory item {', '.join(map(repr, sorted(missing)))}; `search` shows the ids.")
        return items

    async def _change(self, ids: Sequence[str], deltas: Callable[[list[MemoryItem]], list[MemoryChange]]) -> MemoryItem:
        for _ in range(_TRIES):  # another process may change the same item between our reading and writing
            changes = deltas(await self._all(ids))
            if await self._write(changes):
                return changes[0].item
        raise StoreError(f"Memory item {ids[0]!r} is changed by others all the time; try again later.")

    async def _drop(self, ids: Sequence[str]) -> None:
        if self._index is not None and ids:
            await self._index.delete(ids)

    def _with_expiry(self, item: MemoryItem) -> MemoryItem:
        if self.config.ttl is None or item.expires_at is not None:
            return item
        return msgspec.structs.replace(item, expires_at=item.created_at + self.config.ttl)


class MemoryFactory:
    """The memory of this process, for those who want one for all. Agents can have their own: `Memory(config)`."""

    _memory: ClassVar[Memory | None] = None

    @classmethod
    @typed()
    def init(cls, config: MemoryConfig | None = None) -> Memory:
        """Make the memory of this process. Raises ConfigError that names the setting."""
        cls._memory = Memory(config)
        return cls._memory

    @classmethod
    def instance(cls) -> Memory:
        """The memory of this process; one that is kept nowhere, where `init` was not called."""
        return cls._memory or cls.init()


_EDITABLE = ("content", "scope", "confidence", "importance", "expires_at", "data", "trajectory", "step")


def _edited(item: MemoryItem, fields: Mapping[str, Any], action: Any, reason: str | None) -> MemoryChange:
    values: dict[str, Any] = {name: getattr(item, name) for name in MemoryItem.__struct_fields__}
    values |= {**fields, "version": item.version + 1, "updated_at": now()}
    return MemoryChange(action=action, item=MemoryItem(**values), reason=reason)


def _retired(item: MemoryItem, action: Any, reason: str | None) -> MemoryChange:
    return _edited(item, {"retired_at": now()}, action, reason)


def _packed(vector: Sequence[float]) -> bytes:
    return array.array("f", vector).tobytes()


def _unpacked(vector: bytes) -> list[float]:
    return array.array("f", vector).tolist()


def _chroma(config: Mapping[str, Any]) -> VectorIndex:
    from aworld.memory.chroma import ChromaVectors

    return ChromaVectors(config)


IndexFactory: TypeAlias = Callable[[Mapping[str, Any]], VectorIndex]

_indexes: dict[str, IndexFactory] = {"chroma": _chroma}


def register_vector_index(name: str, factory: IndexFactory) -> None:
    """Let `VectorDBConfig(provider=name)` mean what `factory` makes of its `config`."""
    _indexes[name] = factory


def _build_index(config: VectorDBConfig) -> VectorIndex:
    return _indexes[one_of("vector_store_config.provider", config.provider, _indexes)](config.config)
