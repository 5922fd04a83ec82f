"""What an agent remembers: the items, the settings of a memory, and the contracts of its parts.

An item is one frozen record: what is remembered, whose it is (`metadata`, `scope`), where it comes from (`trajectory`,
`step`) and how sure it is. It is changed by deltas alone, and each is kept (`MemoryChange`). An embedder makes vectors
of texts; a vector index, where one is configured, finds the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias
from uuid import uuid4

from msgspec import Struct, field
from pydantic import Field

from aworld.config.conf import Settings
from aworld.core.checks import StructDoor
from aworld.core.event import now
from aworld.core.exceptions import ConfigError

MESSAGES = ("human", "ai", "system", "tool")
"""The kinds of items that are turns of a conversation: they have neighbours."""

ItemKind: TypeAlias = Literal["human", "ai", "system", "tool", "fact", "profile", "experience"]
ItemScope: TypeAlias = Literal["user", "session", "agent", "team", "global"]


class MessageMetadata(Struct, frozen=True, omit_defaults=True, kw_only=True, metaclass=StructDoor):
    """Whose an item is."""

    user_id: str | None = None
    session_id: str | None = None
    task_id: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    team: str | None = None


class MemoryItem(Struct, frozen=True, omit_defaults=True, kw_only=True, metaclass=StructDoor):
    """One thing that is remembered. `aworld.memory.models` makes those of each kind."""

    content: str
    kind: ItemKind = "fact"
    metadata: MessageMetadata = MessageMetadata()
    scope: ItemScope = "user"
    """To whom it matters. What is `global` is found whichever user, session, agent or team is asked for."""
    id: str = field(default_factory=lambda: uuid4().hex)
    version: int = 1
    """How often it was written."""
    trajectory: str | None = None
    """The run that it comes from, and the step there."""
    step: int | None = None
    confidence: float | None = None
    """From 0 to 1; None where nobody has said."""
    importance: float = 0.5
    """From 0 to 1: a small factor of its rank."""
    created_at: float = field(default_factory=now)
    updated_at: float | None = None
    expires_at: float | None = None
    """UNIX seconds from which it is no longer found; `expire` deletes it."""
    retired_at: float | None = None
    """Since when it no longer holds; it is kept, and not found by a search."""
    supersedes: tuple[str, ...] = ()
    """Ids of items in the place of which this one stands; they are retired when it is added."""
    data: dict[str, Any] = {}
    """What else belongs to it, as JSON."""

    def __post_init__(self) -> None:
        for name in ("confidence", "importance"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ConfigError(f"MemoryItem: {name}={value!r}; give a number from 0 to 1.", setting=name)


class MemoryChange(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One delta of an item, and what the item was after it."""

    action: Literal["added", "edited", "merged", "retired", "superseded"]
    item: MemoryItem
    at: float = field(default_factory=now)
    reason: str | None = None
    """Why, or the id of the item that stands in its place."""


class MemoryFilter(Struct, frozen=True, omit_defaults=True, kw_only=True, metaclass=StructDoor):
    """Which items are meant: those that have all of these. What is `global` has every user, session, agent and team."""

    user_id: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    team: str | None = None
    kinds: Sequence[ItemKind] = ()
    scopes: Sequence[ItemScope] = ()

    @property
    def owners(self) -> dict[str, str]:
        """The ids that are asked for."""
        names = ("user_id", "session_id", "agent_id", "team")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Recollection(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An item that was found."""

    item: MemoryItem
    score: float
    """The higher, the better; only to be compared within one search."""
    around: tuple[MemoryItem, ...] = ()
    """The turns before and after it, where they were asked for."""


class MemoryLLMConfig(Settings):
    """The model that extracts what is worth remembering."""

    provider: str = "openai"
    model_name: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    base_url: str | None = None


class EmbeddingsConfig(Settings):
    """The model that makes vectors of texts."""

    provider: str = "openai"
    """`openai` (also every OpenAI-compatible server), `ollama`, `huggingface` or `onnx`; see `register_embedder`."""
    model_name: str | None = None
    """Its name; of `onnx`, the folder of `model.onnx` and `tokenizer.json`."""
    api_key: str | None = Field(default=None, repr=False)
    base_url: str | None = None
    dimensions: int | None = Field(default=None, ge=1)
    """Length of a vector: asked of OpenAI's API, and checked of all."""
    batch_size: int = Field(default=64, ge=1)
    """Most texts in one request."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that one try may take."""
    max_retries: int = Field(default=2, ge=0)
    """Tries after the first, for failures that may pass."""


class VectorDBConfig(Settings):
    """Another index of vectors than the store's own."""

    provider: str = "chroma"
    config: dict[str, Any] = Field(default_factory=dict)
    """Its settings. Chroma: `chroma_data_path`, a folder, and `collection_name`."""


class MemoryConfig(Settings):
    """A memory. Without any setting: in this process, found by words, gone with the process."""

    provider: str = "aworld"
    llm_config: MemoryLLMConfig | None = None
    embedding_config: EmbeddingsConfig | None = None
    """None: items are found by their words alone."""
    vector_store_config: VectorDBConfig | None = None
    """None: vectors are searched where the items are, exactly."""
    path: str | None = None
    """A file, which several processes may use at once; None keeps everything in this process."""
    ttl: float | None = Field(default=None, gt=0)
    """Seconds that an item is kept which says nothing else (`expires_at`)."""
    timeout: float = Field(default=10.0, ge=0)
    """Seconds to wait for another process that writes to the file."""


class Embedder(Protocol):
    """Makes vectors of texts."""

    @property
    def model(self) -> str:
        """Its model. A store keeps the name, and refuses another."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector of each text. Raises `ModelError` or `ConfigError`, which name the setting."""
        ...


class VectorIndex(Protocol):
    """Finds the nearest vectors, where the store shall not do it itself. What it holds can always be made anew."""

    async def put(self, items: Sequence[MemoryItem], vectors: Sequence[Sequence[float]]) -> None:
        """Add or replace the vectors of items."""
        ...

    async def nearest(self, vector: Sequence[float], limit: int, which: MemoryFilter) -> dict[str, float]:
        """Cosines of the nearest items, by id."""
        ...

    async def delete(self, ids: Sequence[str]) -> None:
        """Forget these items, as far as it has them."""
        ...
