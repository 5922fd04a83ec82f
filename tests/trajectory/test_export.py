"""Exports: what is in them, whether their readers would take them, and how much memory they take."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.exceptions import ConfigError, StoreError
from aworld.core.message import Audio, File, Image, Message, Text, Tokens, ToolCall, Usage
from aworld.core.rows import rows
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore, Query, TrajectoryStore, open_store
from aworld.trajectory.atif import atif
from aworld.trajectory.export import FORMATS, export
from aworld.trajectory.formats import openai, sharegpt, swift
from tests.runners.scenes import server_of
from tests.strategies import TOOLS, LogBuilder, builders, run_of

TWO = (ToolCall("c1", "search", '{"q": "a"}'), ToolCall("c2", "search", "not json"))


def team() -> LogBuilder:
    """A lead that thinks, makes two calls, one of which is answered by a helper agent, and answers."""
    log = LogBuilder("team", ev.TaskInfo("team", "Ask", "session-1", None, "group-1")).start()
    picture = Image("https://example.org/a.png")
    log.say(0, Message("user", (Text("Look:"), picture, Audio("AAAA"), File(name="a.pdf"))), "human")
    first = Tokens((1, 2), (3,), (-0.5,), policy_version="v1")
    log.decide(
        text="Let me see.", calls=TWO, tokens=first, usage=Usage(10, 2, cached_tokens=4, cost=0.5), reasoning="Hm."
    )
    one, two = log.record.activations[0].calls
    child = log.activate("helper", 0, "c2")
    log.say(child, Message("user", "Find it."), "agent")
    log.decide(child, "Found.", usage=Usage(5, 1))
    log.add(ev.AgentFinished, activation=child, agent="helper", answer="Found.")
    log.answer(two, "Found.")
    log.answer(one, "Nothing.", error="nothing")
    log.add(ev.Rewarded, value=0.5, name="progress", step=0, source="judge")
    log.decide(
        text="It is there.", tokens=Tokens((9,), (10,), (-0.25,), base=0, policy_version="v1"), usage=Usage(20, 3)
    )
    log.finish(answer="It is there.")
    log.add(ev.Rewarded, value=1.0, name="correct", weight=2.0)
    return log


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    store = open_store(str(tmp_path / "runs.db"))
    for n in range(5):
        status: Any = "failed" if n == 3 else "finished"
        await store.append(f"run-{n}", run_of(f"run-{n}", steps=2, score=n / 4, status=status, at=1e9 + n))
    await store.append("team", team().events)
    yield store
    await store.close()


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_those_of_the_response(store: TrajectoryStore, tmp_path: Path) -> None:
    assert export(store, "rows", tmp_path / "rows.jsonl", Query(ids=("team",))) == 3
    assert lines(tmp_path / "rows.jsonl") == json.loads(json.dumps(rows(team().record)))


def test_filters_choose_what_is_exported(store: TrajectoryStore, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out.jsonl"
    assert export(store, "openai", out, Query(status=("finished",), min_score=0.25, max_score=1.0)) == 3
    assert export(store, "openai", out, Query(min_score=0.25, order="best", limit=1)) == 2  # the team's two branches
    assert len(lines(out)) == 2


def test_openai_fine_tuning() -> None:
    lead, helper = openai(team().record)
    assert [message["role"] for message in lead["messages"]] == [
        "system", "user", "user", "assistant", "tool", "tool", "assistant",
    ]  # fmt: skip
    assert lead["messages"][3] == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "a"}'}},
            {"id": "c2", "type": "function", "function": {"name": "search", "arguments": "not json"}},
        ],
    }
    assert lead["messages"][4] == {"role": "tool", "content": "Nothing.", "tool_call_id": "c1"}
    assert lead["messages"][-1] == {"role": "assistant", "content": "It is there."}
    assert lead["tools"] == [{"type": "function", "function": TOOLS[0]}]
    assert [message["content"] for message in helper["messages"]] == ["Find it.", "Found."]


def test_what_no_model_wrote_is_not_learnt() -> None:
    log = LogBuilder("run").start()
    log.say(0, Message("assistant", "An example answer."), "agent")
    log.say(0, Message("user", "And now?"), "human")
    log.decide(text="Now I answer.")
    log.say(0, Message("user", "Thanks."), "human")
    (sample,) = openai(log.finish().record)
    assert [message.get("weight") for message in sample["messages"]] == [None, None, 0, None, None]
    assert sample["messages"][-1]["content"] == "Now I answer."


def test_what_a_model_said_is_learnt_wherever_it_stands() -> None:
    """Memory puts a message in front of a conversation; the nodes that are used again keep their origin."""
    log = LogBuilder("run").start()
    log.decide(text="The first answer.", usage=Usage(1, 1))
    said = log.record.calls[0].reply
    assert said is not None
    recalled = log.say(0, Message("user", "You know this user."), "memory", parent=log.repeat(0, 0, None))
    log.repeat(0, said, recalled)
    log.say(0, Message("assistant", "Said by code."), "agent")
    log.say(0, Message("user", "And now?"), "human")
    log.decide(text="The second answer.")
    log.finish()
    (sample,) = openai(log.record)
    assert [m.get("weight") for m in sample["messages"] if m["role"] == "assistant"] == [None, 0, None]
    (sample,) = swift(log.record)
    assert [m.get("loss") for m in sample["messages"] if m["role"] == "assistant"] == [None, False, None]
    (document,) = atif(log.record)
    check_atif(json.loads(json.dumps(document)))
    steps = [step for step in document["steps"] if step["source"] == "agent"]
    assert [step["llm_call_count"] for step in steps] == [1, 0, 1]
    assert [step.get("model_name") for step in steps] == ["model-1", None, "model-1"]


def test_labels_are_in_the_exports(tmp_path: Path) -> None:
    labels = {"problem": "7", "split": "train"}
    log = LogBuilder("run", ev.TaskInfo("run", "shop/another name", labels=labels)).start()
    log.decide(tokens=Tokens((1,), (2,), (-0.5,)))
    log.finish()
    (sample,) = swift(log.record)
    assert sample["problem_id"] == "7"
    (document,) = atif(log.record)
    assert document["extra"]["labels"] == labels
    other = LogBuilder("run", ev.TaskInfo("run", "shop/8")).start()  # a name is no label
    other.decide()
    assert ["problem_id" in sample for sample in swift(other.finish().record)] == [False]


def test_a_branch_that_did_not_end_is_no_sample() -> None:
    log = LogBuilder("run").start(tools=False)
    log.decide()
    assert list(openai(log.record)) == []
    (sample,) = openai(log.finish("limit_reached").record)
    assert "tools" not in sample


def test_sharegpt() -> None:
    lead, helper = sharegpt(team().record)
    assert lead["system"] == "Be brief."
    assert json.loads(lead["tools"]) == list(TOOLS)
    said = [(turn["from"], turn["value"]) for turn in lead["conversations"]]
    assert said[0] == ("human", "Why?\n\nLook:")
    assert (said[1][0], json.loads(said[1][1])) == (
        "function_call",
        [{"name": "search", "arguments": {"q": "a"}}, {"name": "search", "arguments": "not json"}],
    )
    assert (said[2][0], json.loads(said[2][1])) == ("observation", ["Nothing.", "Found."])
    assert said[3] == ("gpt", "It is there.")
    assert [turn["from"] for turn in helper["conversations"]] == ["human", "gpt"]
    (plain,) = sharegpt(Trajectory.of("run", run_of("run", steps=2)))
    assert json.loads(plain["conversations"][1]["value"]) == {"name": "search", "arguments": {"q": "why"}}
    assert plain["conversations"][2] == {"from": "observation", "value": "It is so."}


def test_sharegpt_of_a_run_that_was_cut_off_ends_with_what_the_model_said() -> None:
    """LLaMA-Factory skips samples whose number of turns is odd: the last is what is learnt."""
    log = LogBuilder("run").start()
    log.decide(calls=(ToolCall("c1", "search", "{}"),))
    (call,) = log.record.activations[0].calls
    log.answer(call, "It is so.")
    (sample,) = sharegpt(log.finish("limit_reached", answer=None).record)
    assert [turn["from"] for turn in sample["conversations"]] == ["human", "function_call"]


def test_swift() -> None:
    lead, helper = swift(team().record)
    assert [message["role"] for message in lead["messages"]] == [
        "system", "user", "user", "assistant", "tool_call", "tool_call", "tool_response", "tool_response", "assistant",
    ]  # fmt: skip
    assert json.loads(lead["messages"][4]["content"]) == {"name": "search", "arguments": {"q": "a"}}
    assert lead["messages"][5]["loss"] is False  # its arguments are no JSON
    assert lead["messages"][6] == {"role": "tool_response", "content": "Nothing."}
    assert json.loads(lead["tools"]) == [{"type": "function", "function": TOOLS[0]}]
    assert (lead["id"], lead["group_id"]) == ("team", "group-1")
    assert [message["role"] for message in helper["messages"]] == ["user", "assistant"]


# The fields of ATIF 1.8, as harbor's models take them; anything else they forbid.
ATIF_FIELDS = {
    "root": {
        "schema_version", "session_id", "trajectory_id", "agent", "steps", "notes", "final_metrics",
        "continued_trajectory_ref", "extra", "subagent_trajectories",
    },
    "agent": {"name", "version", "model_name", "tool_definitions", "extra"},
    "step": {
        "step_id", "timestamp", "source", "model_name", "reasoning_effort", "message", "reasoning_content",
        "tool_calls", "observation", "metrics", "is_copied_context", "llm_call_count", "extra",
    },
    "tool_call": {"tool_call_id", "function_name", "arguments", "extra"},
    "result": {"source_call_id", "content", "subagent_trajectory_ref", "extra"},
    "metrics": {
        "prompt_tokens", "completion_tokens", "cached_tokens", "cost_usd", "prompt_token_ids", "completion_token_ids",
        "logprobs", "extra",
    },
    "final_metrics": {
        "total_prompt_tokens", "total_completion_tokens", "total_cached_tokens", "total_cost_usd", "total_steps",
        "extra",
    },
}  # fmt: skip


def check_atif(document: dict[str, Any], *, embedded: bool = False) -> None:
    assert document.keys() <= ATIF_FIELDS["root"]
    assert document["schema_version"] == "ATIF-v1.8"
    assert document["agent"].keys() <= ATIF_FIELDS["agent"]
    assert {"name", "version"} <= document["agent"].keys()
    assert [step["step_id"] for step in document["steps"]] == list(range(1, len(document["steps"]) + 1))
    assert document["steps"] or embedded
    for step in document["steps"]:
        assert step.keys() <= ATIF_FIELDS["step"]
        assert isinstance(step["message"], (str, list))
        if step["source"] != "agent":
            assert not step.keys() & {"model_name", "reasoning_content", "tool_calls", "metrics"}
        if step.get("llm_call_count") == 0:
            assert not step.keys() & {"metrics", "reasoning_content"}
        assert step.get("metrics", {}).keys() <= ATIF_FIELDS["metrics"]
        called = {call["tool_call_id"] for call in step.get("tool_calls", ())}
        assert all(isinstance(call["arguments"], dict) for call in step.get("tool_calls", ()))
        assert all(call.keys() <= ATIF_FIELDS["tool_call"] for call in step.get("tool_calls", ()))
        for result in step.get("observation", {}).get("results", ()):
            assert result.keys() <= ATIF_FIELDS["result"]
            assert result["source_call_id"] in called
    assert document.get("final_metrics", {}).keys() <= ATIF_FIELDS["final_metrics"]
    others = document.get("subagent_trajectories", [])
    assert len({other["trajectory_id"] for other in others}) == len(others)
    for other in others:
        check_atif(other, embedded=True)


def test_atif() -> None:
    (document,) = atif(team().record)
    check_atif(json.loads(json.dumps(document)))
    assert (document["trajectory_id"], document["session_id"]) == ("team", "session-1")
    system, user, word, first, last = document["steps"]
    assert [step["source"] for step in document["steps"]] == ["system", "user", "user", "agent", "agent"]
    assert (system["message"], user["message"]) == ("Be brief.", "Why?")
    assert [part["type"] for part in word["message"]] == ["text", "image", "audio", "text"]
    assert word["message"][3]["text"] == "[file a.pdf]"
    assert first["reasoning_content"] == "Hm."
    assert first["tool_calls"][0]["arguments"] == {"q": "a"}
    assert first["tool_calls"][1]["extra"] == {"arguments_as_received": "not json"}
    wrong, helped = first["observation"]["results"]
    assert wrong == {"source_call_id": "c1", "content": "Nothing.", "extra": {"is_error": True}}
    assert helped["subagent_trajectory_ref"] == [{"trajectory_id": "team#1"}]
    assert [other["trajectory_id"] for other in document["subagent_trajectories"]] == ["team#1"]
    metrics = first["metrics"]
    assert (metrics["prompt_tokens"], metrics["cached_tokens"], metrics["cost_usd"]) == (10, 4, 0.5)
    assert list(last["metrics"]["prompt_token_ids"]) == [1, 2, 3, 9]
    assert first["extra"]["rewards"] == [{"name": "progress", "value": 0.5, "weight": 1.0, "source": "judge"}]
    assert document["final_metrics"]["total_prompt_tokens"] == 35
    assert (document["extra"]["score"], document["extra"]["status"]) == (2.5, "finished")
    assert document["extra"]["rewards"] == [{"name": "correct", "value": 1.0, "weight": 2.0}]


@given(builders())
@settings(max_examples=50)
def test_every_log_can_be_exported(log: LogBuilder) -> None:
    for document in atif(log.record):
        check_atif(document)
    for sample in openai(log.record):
        assert sample["messages"][-1]["role"] == "assistant"
    for sample in sharegpt(log.record):
        speakers = [turn["from"] for turn in sample["conversations"]]
        assert all(one != other for one, other in pairwise(speakers))
        assert all(isinstance(turn["value"], str) for turn in sample["conversations"])
    for sample in swift(log.record):
        assert sample["messages"][-1]["role"] in ("assistant", "tool_call")
        assert all(isinstance(message["content"], str) for message in sample["messages"])


def test_parquet_of_token_sequences(store: TrajectoryStore, tmp_path: Path) -> None:
    assert export(store, "parquet", tmp_path / "tokens.parquet") == 1  # the others were captured without ids
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    (row,) = parquet.read_table(tmp_path / "tokens.parquet").to_pylist()
    assert (row["trajectory_id"], row["group_id"], row["agent"], row["status"]) == (
        "team",
        "group-1",
        "lead",
        "finished",
    )
    assert (row["ids"], row["mask"]) == ([1, 2, 3, 9, 10], [0, 0, 1, 0, 1])
    assert row["logprobs"] == [None, None, -0.5, None, -0.25]
    assert (row["steps"], row["score"], row["step_scores"]) == ([0, 2], 2.5, [0.5, None])
    assert (row["policy_versions"], row["prompt_length"], row["drift"]) == (["v1", "v1"], 2, 0)


async def test_an_incomplete_trajectory_is_not_trained_on(tmp_path: Path) -> None:
    log = LogBuilder("run").start()
    log.record.next_step = 1  # the first call was lost
    log.decide(tokens=Tokens((1,), (2,)))
    store = MemoryStore()
    await store.append("run", log.finish().events)
    assert export(store, "parquet", tmp_path / "tokens.parquet") == 0
    assert export(store, "openai", tmp_path / "text.jsonl") == 1


async def test_no_key_gets_into_the_store_or_an_export(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "runs.db"))
    server = server_of(call("add", a=1, b=2), "Three.")
    async with server:
        response = await Runners.run("How much?", server.agent(), run_conf=RunConfig(store=store))
        assert response.success
        assert server.headers[0]["Authorization"] == "Bearer sk-of-the-test"
    for format in FORMATS:
        await asyncio.to_thread(export, store, format, tmp_path / format)
    await store.close()
    assert "How much?" in (tmp_path / "rows").read_text()
    assert all(b"sk-of-the-test" not in path.read_bytes() for path in tmp_path.iterdir())


def test_parquet_without_pyarrow_names_the_extra(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'pip install "pyarrow>=18"'):
        export(store, "parquet", tmp_path / "tokens.parquet")
    assert not (tmp_path / "tokens.parquet").exists()


def test_formats_and_outputs_that_cannot_be(store: TrajectoryStore, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="format='csv' is not known; use one of rows, openai, sharegpt, swift, atif, openenv, parquet",
    ):
        export(store, "csv", tmp_path / "out")
    with pytest.raises(ConfigError, match="not to standard output"):
        export(store, "parquet", "-")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="nothing is left"):
        export(store, "rows", tmp_path / "file" / "out")
    assert len(FORMATS) == 7


async def test_an_export_that_fails_leaves_the_old_file(store: TrajectoryStore, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")
    broken = MemoryStore()
    await broken.append("good", run_of("good", at=2e9))
    await broken.append("bad", run_of("bad"))
    broken._logs["bad"].events.pop(0)
    with pytest.raises(ValueError, match="came where 0 was due"):
        export(broken, "rows", out)
    assert out.read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))) == ["out.jsonl"]
    export(store, "rows", out)
    assert len(lines(out)) > 3


def test_a_device_is_written_and_not_replaced(store: TrajectoryStore) -> None:
    assert export(store, "rows", "/dev/null") > 0
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("format", ["rows", "openai", "parquet"])
def test_memory_does_not_grow_with_the_store(tmp_path: Path, format: str) -> None:
    """Three thousand runs must not take more memory than three hundred."""

    async def fill(count: int) -> Path:
        path = tmp_path / f"{count}.db"
        store = open_store(str(path))
        log = LogBuilder("run").start()
        log.decide(tokens=Tokens(tuple(range(50)), tuple(range(50))), text="Because. " * 20)
        rest = log.finish().events[1:]
        for n in range(count):
            started = ev.Started(seq=0, at=1e9 + n, trajectory_id=f"run-{n}", task=ev.TaskInfo(f"run-{n}"))
            store.append(f"run-{n}", [started, *rest], wait=False)
        await store.flush()
        await store.close()
        return path

    def peak(count: int) -> int:
        store = open_store(str(asyncio.run(fill(count))))
        tracemalloc.start()
        assert export(store, format, tmp_path / "out") == count
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        asyncio.run(store.close())
        return highest

    few, many = peak(300), peak(1500)
    assert many < few + (2_000_000 if format != "parquet" else 8_000_000)


def test_the_room_imports_pyarrow_only_to_write_parquet() -> None:
    code = "import sys, aworld.trajectory.export, aworld.trajectory.sqlite; print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
