"""OpenEnv's `TrainingTrace`: exact ids, one turn a call, nothing where anything is unknown.

`tests/trainers/test_openenv_package.py` hands the same documents to the class of the real package.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings

from aworld.core import event as ev
from aworld.core.message import Tokens, ToolCall
from aworld.trajectory.formats import training_trace
from aworld.trajectory.sequences import sequences
from tests.strategies import LogBuilder, builders

CALL = (ToolCall("c1", "search", '{"q": "a"}'),)


def two_turns(second: Tokens | None) -> LogBuilder:
    log = LogBuilder("run", ev.TaskInfo("task", group_id="group-1")).start()
    log.decide(calls=CALL, tokens=Tokens((1, 2), (3, 4), (-0.5, 1e-8), policy_version="v1"))
    log.answer(log.record.activations[0].calls[0])
    log.add(ev.Rewarded, value=0.5, name="progress", step=0)
    log.decide(tokens=second)
    log.finish()
    log.add(ev.Rewarded, value=1.0, name="correct", weight=2.0)
    return log


def document(log: LogBuilder) -> dict[str, Any]:
    (found,) = training_trace(log.record)
    return found


def test_each_call_is_a_turn_with_its_whole_prompt_and_a_mask_over_both() -> None:
    first, second = document(two_turns(Tokens((5,), (6,), (-0.25,), base=0, policy_version="v1")))["turns"]
    assert first["prompt_token_ids"] == [1, 2]
    assert second["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert second["completion_token_ids"] == [6]
    assert second["loss_mask"] == [0, 0, 0, 0, 0, 1]
    assert first["per_token_logps"] == [-0.5, 0.0], "rounding above 0, which the format refuses, is rounded off"
    assert [turn["node_id"] for turn in (first, second)] == ["run#0", "run#1"]
    assert [message["role"] for message in second["request"]["messages"]] == ["system", "user", "assistant", "tool"]
    assert first["request"]["tools"][0]["function"]["name"] == "search"
    assert first["response"]["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "search"


def test_rewards_stand_in_the_metadata() -> None:
    first, second = document(two_turns(Tokens((5,), (6,), (-0.25,), base=0)))["turns"]
    assert first["metadata"]["score"] == 2.5
    assert first["metadata"]["step_score"] == 0.5
    assert second["metadata"]["step_score"] is None
    assert second["metadata"]["rewards"] == {"correct": 1.0}
    assert second["metadata"]["group_id"] == "group-1"


def test_there_is_no_document_where_ids_or_logprobs_are_unknown() -> None:
    assert list(training_trace(two_turns(None).record)) == []
    assert list(training_trace(two_turns(Tokens((5,), (6,), None)).record)) == []
    assert list(training_trace(two_turns(Tokens((5,), (6, 7), (-0.25,))).record)) == []


def test_a_failed_call_sampled_nothing_and_is_left_out() -> None:
    log = LogBuilder("run").start()
    log.decide(failed="HTTP 500")
    log.decide(tokens=Tokens((1,), (2,), (-0.5,)))
    assert [turn["node_id"] for turn in document(log.finish())["turns"]] == ["run#1"]


@given(builders())
@settings(max_examples=50)
def test_the_sampled_ids_are_those_of_the_token_sequences(log: LogBuilder) -> None:
    sampled = [
        id for found in training_trace(log.record) for turn in found["turns"] for id in turn["completion_token_ids"]
    ]
    if sampled:
        rows = sequences(log.record).rows
        assert sorted(sampled) == sorted(id for row in rows for id, own in zip(row.ids, row.mask) if own)
