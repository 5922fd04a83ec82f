"""Vectors: over both protocols, cached by content, of one model; found with words and never worse than either."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from aworld.config.errors import ConfigError
from aworld.core.exceptions import ModelError
from aworld.core.memory import EmbeddingsConfig, MemoryConfig
from aworld.memory.embeddings import build_embedder, register_embedder
from aworld.memory.main import Memory
from aworld.memory.models import Fact, MemoryAIMessage, MemoryHumanMessage, MessageMetadata
from tests.memory.hashed import SYNONYMS, EmbeddingServer, HashedEmbedder
from tests.models.provider import answer, raw, stalled, status


@pytest.mark.parametrize("provider", ["openai", "ollama"])
async def test_what_means_the_same_is_found(provider: str) -> None:
    async with EmbeddingServer() as server:
        memory = Memory(MemoryConfig(embedding_config=server.settings(provider, api_key="sk-secret", batch_size=2)))
        await memory.add(*(Fact(content=text) for text in ("the car is red", "a doctor came", "rain again")))
        assert [len(exchange.json["input"]) for exchange in server.requests] == [2, 1]
        assert server.requests[0].headers["authorization"] == "Bearer sk-secret"
        assert server.requests[0].json["model"] == "hashed"
        assert (await memory.search("automobile"))[0].item.content == "the car is red"
        assert (await memory.search("physician"))[0].item.content == "a doctor came"
        count = len(server.requests)
        await memory.search("physician")
        await memory.add(Fact(content="the car is red", metadata=MessageMetadata(user_id="anna")))
        assert len(server.requests) == count  # the same content, the same question: nobody is asked again


async def test_a_server_that_fails_is_named_and_nothing_is_half_there() -> None:
    async with EmbeddingServer(
        status(503, {"error": "busy"}), EmbeddingServer.answer, status(401, {"error": "sk-secret is no key"}),
        answer({"data": "nothing"}), answer({"data": []}), raw(b"<html>"), stalled(),
    ) as server:  # fmt: skip
        server.steps[1] = server.answer
        settings = server.settings("openai", api_key="sk-secret", max_retries=0, timeout=5)
        memory = Memory(MemoryConfig(embedding_config=settings.model_copy(update={"max_retries": 1})))
        await memory.add(Fact(content="kept"))  # at the second try
        memory = Memory(MemoryConfig(embedding_config=settings))
        with pytest.raises(ModelError, match=r"embedding_config: the openai server .* answered 401: \*\*\* is no key"):
            await memory.add(Fact(content="lost"))
        for _ in range(3):
            with pytest.raises(ModelError, match="embedding_config"):
                await memory.add(Fact(content="lost"))
        memory = Memory(MemoryConfig(embedding_config=settings.model_copy(update={"timeout": 0.05})))
        with pytest.raises(ModelError, match=r"\(timeout\)"):
            await memory.add(Fact(content="lost"))
        assert await memory.recent() == []
    with pytest.raises(ModelError, match="could not be reached"):
        await build_embedder(settings).embed(["x"])


async def test_dimensions_are_checked() -> None:
    async with EmbeddingServer(dimensions=32) as server:
        memory = Memory(MemoryConfig(embedding_config=server.settings("ollama", dimensions=64)))
        with pytest.raises(ConfigError, match=r"dimensions=64, and hashed made 32"):
            await memory.add(Fact(content="x"))


async def test_another_model_is_refused_until_all_is_embedded_again(tmp_path: Path) -> None:
    settings = MemoryConfig(path=str(tmp_path / "m.db"))
    first = Memory(settings, embedder=HashedEmbedder("small"))
    await first.add(Fact(content="the car is red"), Fact(content="a doctor came"))
    await first.close()
    other = Memory(settings, embedder=HashedEmbedder("large", 96))
    with pytest.raises(ConfigError, match=r"vectors of 'small' \(64 dimensions\).*'large' \(96\).*embed_again"):
        await other.add(Fact(content="rain again"))
    for model in (other, Memory(settings, embedder=HashedEmbedder("twin"))):
        with pytest.raises(ConfigError, match=r"vectors of 'small'.*embed_again"):
            await model.search("automobile")
    assert await other.embed_again() == 2
    assert (await other.search("automobile"))[0].item.content == "the car is red"


async def test_what_was_added_without_a_model_gets_its_vectors_later(tmp_path: Path) -> None:
    settings = MemoryConfig(path=str(tmp_path / "m.db"))
    plain = Memory(settings)
    await plain.add(*(Fact(content=f"the car number {n}") for n in range(300)))
    await plain.close()
    memory = Memory(settings, embedder=HashedEmbedder())
    assert len(await memory.search("automobile", limit=300)) == 300


@pytest.mark.parametrize(("provider", "package"), [("huggingface", "sentence_transformers"), ("onnx", "onnxruntime")])
async def test_a_missing_package_is_named(provider: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    memory = Memory(MemoryConfig(embedding_config=EmbeddingsConfig(provider=provider, model_name="m")))
    with pytest.raises(ConfigError, match=f"provider='{provider}' needs {package.replace('_', '.')}.*pip install"):
        await memory.add(Fact(content="x"))


async def test_an_embedder_of_ones_own_has_a_name() -> None:
    register_embedder("hashed", lambda settings: HashedEmbedder(settings.model_name or "", settings.dimensions or 64))
    memory = Memory(MemoryConfig(embedding_config=EmbeddingsConfig(provider="hashed", model_name="h", dimensions=16)))
    await memory.add(Fact(content="the car is red"))
    assert len(await memory.search("vehicle")) == 1


TOPICS = ["garden", "violin", "bakery", "harbour", "camera", "bicycle", "painting", "mountain", "novel", "kitchen"]
DETAILS = ["car", "doctor", "lives", "home"]


def conversations(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Turns, and questions with the turn that answers each: by its words, by a synonym, or by the turn before it."""
    draw = random.Random(seed)
    turns: list[tuple[str, str]] = []
    questions: list[tuple[str, str]] = []
    other = {word: synonym for synonym, word in SYNONYMS.items()}
    for number in range(120):
        topic, detail = draw.choice(TOPICS), draw.choice(DETAILS)
        code, filler = f"x{draw.randrange(10**6)}", " ".join(draw.sample(TOPICS, 3))
        turns.append(("human", f"shall we talk of {topic} {code}"))
        turns.append(("ai", f"the {detail} there number {number} {filler}"))
        if number % 3 == 0:
            questions.append((f"number {number}", turns[-1][1]))
        elif number % 3 == 1:
            questions.append((f"{other[detail]} number {number}", turns[-1][1]))
        else:
            questions.append((f"{topic} {code} {other[detail]}", turns[-1][1]))
    return turns, questions


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_both_together_are_never_worse_than_the_better_half(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, questions = conversations(seed)
    memory = Memory(embedder=HashedEmbedder(dimensions=256))
    about = MessageMetadata(user_id="anna", session_id="s")
    makers = {"human": MemoryHumanMessage, "ai": MemoryAIMessage}
    await memory.add(*(makers[role](content=text, metadata=about) for role, text in turns))

    async def recall(**weights: float) -> float:
        monkeypatch.setattr("aworld.memory.retrieval.WEIGHTS", weights)
        hits = 0
        for question, evidence in questions:
            hits += evidence in [hit.item.content for hit in await memory.search(question, limit=5, user_id="anna")]
        return hits / len(questions)

    words, vectors = await recall(words=1.0), await recall(vector=1.0)
    both = await recall(words=1.0, around=0.5, vector=1.0, vector_around=0.5)
    assert both >= max(words, vectors)
    assert both == await recall(words=1.0, around=0.5, vector=1.0, vector_around=0.5)
    assert max(words, vectors) < 1.0  # or there would be nothing to win
