"""The samples of memory run as people know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aworld.config.errors import ConfigError
from aworld.core.memory import EmbeddingsConfig, MemoryConfig, MemoryLLMConfig, VectorDBConfig
from aworld.memory.main import MemoryFactory
from aworld.memory.models import MemoryHumanMessage, MessageMetadata
from tests.memory.hashed import EmbeddingServer


async def test_the_short_sample_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFactory, "_memory", None)
    memory = MemoryFactory.instance()
    assert memory is MemoryFactory.instance()
    MemoryFactory.init(
        config=MemoryConfig(
            provider="aworld",
            llm_config=MemoryLLMConfig(
                provider="openai", model_name="m", api_key="secret", base_url="http://localhost"
            ),
        )
    )
    assert MemoryFactory.instance() is not memory
    memory = MemoryFactory.instance()
    assert "secret" not in repr(memory.config)
    about = MessageMetadata(user_id="anna", session_id="s1", task_id="t1", agent_id="tutor", agent_name="Tutor")
    await memory.add(MemoryHumanMessage(content="My cat is called Tom", metadata=about))
    assert [hit.item.content for hit in await memory.search("the name of the cat", limit=3)] == ["My cat is called Tom"]


async def test_the_long_sample_runs_with_chroma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFactory, "_memory", None)
    pytest.importorskip("chromadb", reason="chromadb is not installed")
    async with EmbeddingServer() as server:
        MemoryFactory.init(
            config=MemoryConfig(
                provider="aworld",
                llm_config=MemoryLLMConfig(provider="openai", model_name="m", api_key="k", base_url="http://localhost"),
                embedding_config=EmbeddingsConfig(
                    provider="ollama", base_url=server.base_url.removesuffix("/v1"), model_name="nomic-embed-text"
                ),
                vector_store_config=VectorDBConfig(
                    provider="chroma",
                    config={"chroma_data_path": str(tmp_path / "chroma_db"), "collection_name": "aworld"},
                ),
            )
        )
        memory = MemoryFactory.instance()
        anna, bob = (MessageMetadata(user_id=name, session_id="s1") for name in ("anna", "bob"))
        first = await memory.add(MemoryHumanMessage(content="my automobile is red", metadata=anna))
        await memory.add(MemoryHumanMessage(content="my car is blue", metadata=bob))
        for _ in range(2):  # asked by meaning alone: no word is the same
            hits = await memory.search("vehicle", user_id="anna")
            assert [hit.item.content for hit in hits] == ["my automobile is red"]
        await memory.edit(first.id, content="my boat is red")
        assert (await memory.search("boat", user_id="anna"))[0].item.version == 2
        assert await memory.erase("anna") == 1
        assert await memory.search("boat vehicle", user_id="anna") == []
        assert len(await memory.search("vehicle")) == 1


def test_without_chroma_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "chromadb", None)
    settings = MemoryConfig(
        embedding_config=EmbeddingsConfig(provider="ollama", model_name="m"),
        vector_store_config=VectorDBConfig(provider="chroma"),
    )
    with pytest.raises(
        ConfigError, match=r"vector_store_config: provider='chroma' needs chromadb.*pip install chromadb"
    ):
        MemoryFactory.init(settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"provider": "mem0"}, "provider='mem0'"),
        ({"embeding_config": None}, "embedding_config"),
        ({"embedding_config": {"provider": "olama", "model_name": "m"}}, "ollama"),
        ({"embedding_config": {"provider": "ollama"}}, "model_name"),
        ({"embedding_config": {"provider": "ollama", "model": "m"}}, "model_name"),
        ({"vector_store_config": {"provider": "chroma"}}, "embedding_config"),
        ({"ttl": 0}, "ttl"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MemoryFactory.init(MemoryConfig(**settings))


def test_openai_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    settings = MemoryConfig(embedding_config=EmbeddingsConfig(provider="openai", model_name="text-embedding-3-small"))
    with pytest.raises(ConfigError, match="api_key= or OPENAI_API_KEY"):
        MemoryFactory.init(settings)
