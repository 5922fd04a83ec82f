"""What is remembered: added, changed by deltas, searched by owner, forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aworld.config.errors import ConfigError
from aworld.core.exceptions import StoreError, TaskError
from aworld.core.memory import MemoryConfig, MemoryItem
from aworld.memory.main import Memory
from aworld.memory.models import (
    AgentExperience,
    Fact,
    MemoryAIMessage,
    MemoryHumanMessage,
    MessageMetadata,
    UserProfile,
)
from tests.memory.hashed import HashedEmbedder

ANNA, BOB = MessageMetadata(user_id="anna", session_id="s1"), MessageMetadata(user_id="bob", session_id="s1")


@pytest.fixture(params=["memory", "file", "vectors"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Memory:
    """The same promises hold in this process, in a file, and with vectors."""
    path = None if request.param == "memory" else str(tmp_path / "deep" / "memory.db")
    return Memory(MemoryConfig(path=path), embedder=HashedEmbedder() if request.param == "vectors" else None)


async def contents(memory: Memory, query: str, **which: object) -> list[str]:
    return [hit.item.content for hit in await memory.search(query, **which)]  # type: ignore[arg-type]


async def test_words_are_found_in_other_forms(memory: Memory) -> None:
    await memory.add(
        Fact(content="Anna enjoys swimming in lakes", metadata=ANNA), Fact(content="One hat", metadata=BOB)
    )
    assert (await contents(memory, "does she swim in a lake?"))[0] == "Anna enjoys swimming in lakes"
    await memory.add(Fact(content="安娜住在巴黎", metadata=ANNA))
    assert (await contents(memory, "巴黎"))[0] == "安娜住在巴黎"
    hits = await contents(memory, '" OR * NEAR( swimming text: -')  # no query is a program
    assert hits[0] == "Anna enjoys swimming in lakes"


async def test_without_vectors_what_shares_no_word_is_not_found() -> None:
    memory = Memory()
    await memory.add(Fact(content="Anna enjoys swimming"))
    assert await memory.search("???") == await memory.search("cooking") == []


async def test_an_owner_is_shown_its_own_and_what_is_global(memory: Memory) -> None:
    await memory.add(
        Fact(content="likes tea a", metadata=ANNA), Fact(content="likes tea b", metadata=BOB),
        Fact(content="all like tea", scope="global"), Fact(content="nobody's tea"),
        MemoryHumanMessage(content="tea please", metadata=ANNA), UserProfile(content="tea person", metadata=ANNA),
        AgentExperience(content="tea was refused", metadata=MessageMetadata(agent_id="tutor")),
    )  # fmt: skip
    anna = await contents(memory, "tea", user_id="anna")
    assert sorted(anna) == ["all like tea", "likes tea a", "tea person", "tea please"]
    assert await contents(memory, "tea", user_id="anna", kinds=["profile"]) == ["tea person"]
    assert await contents(memory, "tea", user_id="anna", kinds=["fact"], scopes=["user"]) == ["likes tea a"]
    assert await contents(memory, "tea", agent_id="tutor", kinds=["experience"]) == ["tea was refused"]
    assert await contents(memory, "tea", user_id="nobody") == ["all like tea"]
    assert [item.content for item in await memory.recent(1, user_id="bob", scopes=["user"])] == ["likes tea b"]


async def test_a_turn_brings_the_turns_beside_it(memory: Memory) -> None:
    turns = ["Where shall we eat?", "At the Italian place in Mill Street.", "Good, at eight then."]
    for number, turn in enumerate(turns):
        await memory.add((MemoryHumanMessage, MemoryAIMessage)[number % 2](content=turn, metadata=ANNA))
        await memory.add(MemoryHumanMessage(content=f"something else {number}", metadata=BOB))
    hit = (await memory.search("Italian", user_id="anna", neighbours=1))[0]
    assert (hit.item.content, [item.content for item in hit.around]) == (turns[1], [turns[0], turns[2]])
    question = await memory.search("eat", user_id="anna")
    assert [hit.item.content for hit in question[:2]] == turns[:2]  # the answer, for the question before it


async def test_who_finds_a_global_turn_is_not_shown_the_conversation(memory: Memory) -> None:
    await memory.add(MemoryHumanMessage(content="my pin is 4711", metadata=ANNA))
    await memory.add(MemoryAIMessage(content="banks never ask for it", metadata=ANNA, scope="global"))
    await memory.add(MemoryHumanMessage(content="thanks, 4711 stays mine", metadata=ANNA))
    hits = await memory.search("4711 banks", user_id="bob", neighbours=2)
    assert [(hit.item.content, hit.around) for hit in hits] == [("banks never ask for it", ())]


async def test_an_item_is_changed_by_deltas_and_its_history_is_kept(memory: Memory) -> None:
    old = await memory.add(
        Fact(content="Anna lives in Paris", metadata=ANNA, trajectory="run-1", step=3, confidence=0.9)
    )
    new = await memory.add(Fact(content="Anna lives in Rome", metadata=ANNA, supersedes=(old.id,)))
    assert await contents(memory, "where does Anna live", user_id="anna") == ["Anna lives in Rome"]
    assert [(c.action, c.reason) for c in await memory.history(old.id)] == [("added", None), ("superseded", new.id)]
    assert (await memory.get(old.id)).trajectory == "run-1"

    edited = await memory.edit(new.id, content="Anna lives in Milan", confidence=0.5, reason="she said so")
    assert (edited.version, edited.confidence) == (2, 0.5)
    assert "Anna lives in Rome" not in await contents(memory, "Rome")
    assert [c.item.content for c in await memory.history(new.id)] == ["Anna lives in Rome", "Anna lives in Milan"]

    other = await memory.add(Fact(content="Anna has a dog", metadata=ANNA))
    merged = await memory.merge([new.id, other.id], "Anna lives in Milan with a dog")
    assert await contents(memory, "dog Milan", user_id="anna") == ["Anna lives in Milan with a dog"]
    assert (await memory.history(other.id))[-1].reason == merged.id

    await memory.retire(merged.id, "wrong")
    assert await memory.search("dog", user_id="anna") == []
    assert (await memory.history(merged.id))[-1].reason == "wrong"


async def test_changes_at_once_are_all_made(memory: Memory) -> None:
    item = await memory.add(Fact(content="0", metadata=ANNA))
    await asyncio.gather(*(memory.edit(item.id, content=str(n)) for n in range(8)))
    assert (await memory.get(item.id)).version == 9
    assert [change.item.version for change in await memory.history(item.id)] == list(range(1, 10))


async def test_what_cannot_be_is_refused_and_nothing_is_lost(memory: Memory) -> None:
    item = await memory.add(Fact(content="a fact", metadata=ANNA))
    with pytest.raises(TaskError, match="there already"):
        await memory.add(Fact(content="beside it"), item)
    with pytest.raises(TaskError, match="no memory item 'nowhere'"):
        await memory.add(Fact(content="new", supersedes=("nowhere",)))
    with pytest.raises(TaskError, match="no memory item 'nowhere'"):
        await memory.history("nowhere")
    with pytest.raises(TaskError, match="two different ids"):
        await memory.merge([item.id, item.id], "x")
    with pytest.raises(ConfigError, match="did you mean 'content'"):
        await memory.edit(item.id, contnt="x")
    with pytest.raises(ConfigError, match="content"):
        await memory.edit(item.id, content=3)
    with pytest.raises(ConfigError, match=r"confidence=1\.5; give a number from 0 to 1"):
        await memory.edit(item.id, confidence=1.5)
    with pytest.raises(ConfigError, match="data= is no JSON"):
        await memory.add(Fact(content="x", data={"it": object()}))
    with pytest.raises(ConfigError, match="kind"):
        MemoryItem(content="x", kind="dream")  # type: ignore[arg-type]
    assert [hit.content for hit in await memory.recent()] == ["a fact"]


async def test_items_expire(tmp_path: Path) -> None:
    memory = Memory(MemoryConfig(path=str(tmp_path / "m.db"), ttl=1000))
    await memory.add(Fact(content="old news", created_at=1.0), Fact(content="fresh news"))
    await memory.add(Fact(content="kept news", created_at=1.0, expires_at=1e12))
    assert sorted(await contents(memory, "news")) == ["fresh news", "kept news"]
    assert await memory.expire() == 1
    await memory.close()
    assert all(b"old news" not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("vectors", [False, True])
async def test_an_erased_user_is_in_no_byte_of_any_file(tmp_path: Path, vectors: bool) -> None:
    embedder = HashedEmbedder() if vectors else None
    memory = Memory(MemoryConfig(path=str(tmp_path / "m.db")), embedder=embedder)
    for number in range(120):
        about = (ANNA, BOB)[number % 2]
        word = "Zanzibar" if about is ANNA else "Lisbon"
        await memory.add(MemoryHumanMessage(content=f"{word} trip number {number}", metadata=about))
    first = (await memory.recent(200, user_id="anna"))[-1]
    await memory.edit(first.id, content="Zanzibar edited")
    await memory.search("Zanzibar trip", user_id="anna")
    packed = first.content.encode()
    assert any(b"Zanzibar" in file.read_bytes() for file in tmp_path.iterdir())

    assert await memory.erase("anna") == 60
    for closed in (False, True):
        if closed:
            await memory.close()
        for file in tmp_path.iterdir():
            data = file.read_bytes().lower()
            assert b"zanzibar" not in data
            assert b"anna" not in data
            assert packed.lower() not in data
    assert await memory.search("Zanzibar", user_id="anna") == []
    assert len(await memory.search("Lisbon trip", limit=100, user_id="bob")) == 60
    with pytest.raises(TaskError, match="no memory item"):
        await memory.history(first.id)


async def test_forgetting_one_item_leaves_its_neighbours(memory: Memory) -> None:
    items = [
        await memory.add(MemoryHumanMessage(content=f"turn {word}", metadata=ANNA)) for word in ("one", "two", "six")
    ]
    await memory.search("two")
    await memory.forget(items[1].id)
    hit = (await memory.search("one", user_id="anna", neighbours=1))[0]
    assert [item.content for item in hit.around] == ["turn six"]
    assert "turn two" not in await contents(memory, "two")
    if memory.config.path:
        await memory.close()
        assert all(b"turn two" not in file.read_bytes() for file in Path(memory.config.path).parent.iterdir())


async def test_files_of_others_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    import sqlite3

    damaged, foreign, locked = tmp_path / "damaged.db", tmp_path / "foreign.db", tmp_path / "locked.db"
    damaged.write_bytes(b"no database " * 1000)
    with pytest.raises(StoreError, match=r"damaged\.db \| .*give another path="):
        await Memory(MemoryConfig(path=str(damaged))).add(Fact(content="x"))
    assert damaged.read_bytes() == b"no database " * 1000
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        await Memory(MemoryConfig(path=str(foreign))).recent()
    with pytest.raises(StoreError, match=r"path="):
        await Memory(MemoryConfig(path=str(tmp_path))).recent()

    memory = Memory(MemoryConfig(path=str(locked), timeout=0.05))
    await memory.add(Fact(content="first"))
    other = sqlite3.connect(locked, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="raise timeout="):
        await memory.add(Fact(content="second"))
    other.execute("ROLLBACK")
    other.close()
    await memory.add(Fact(content="third"))
    assert sorted(item.content for item in await memory.recent()) == ["first", "third"]
