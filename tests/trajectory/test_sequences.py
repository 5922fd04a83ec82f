"""Training rows, case by case."""

from __future__ import annotations

from aworld.core import event as ev
from aworld.core.message import Message, Tokens, ToolCall
from aworld.trajectory.sequences import sequences
from tests.strategies import LogBuilder

CALL = (ToolCall("c", "search", "{}"),)


def two_turns(second: Tokens) -> LogBuilder:
    log = LogBuilder("run").start()
    log.decide(calls=CALL, tokens=Tokens((1, 2), (3, 4), (-0.1, -0.2), policy_version="v1"))
    log.answer(log.record.activations[0].calls[0])
    log.decide(tokens=second)
    return log


def test_a_conversation_is_one_row() -> None:
    log = two_turns(Tokens((1, 2, 3, 4, 5), (6,), (-0.3,), policy_version="v1"))
    log.finish()
    log.add(ev.Rewarded, value=1.0)
    log.add(ev.Rewarded, value=0.5, step=1)
    derived = sequences(log.record)
    (row,) = derived.rows
    assert row.ids == (1, 2, 3, 4, 5, 6)
    assert row.mask == (0, 0, 1, 1, 0, 1)
    assert row.logprobs == (None, None, -0.1, -0.2, None, -0.3)
    assert (row.steps, row.score, row.step_scores, row.policy_version) == ((0, 1), 1.5, (None, 0.5), "v1")
    assert row.prompt_length == 2
    assert (derived.drift, derived.without_tokens, derived.complete) == (0, 0, True)


def test_a_stored_delta_gives_the_same_row() -> None:
    whole = sequences(two_turns(Tokens((1, 2, 3, 4, 5), (6,), (-0.3,))).record).rows[0]
    delta = sequences(two_turns(Tokens((5,), (6,), (-0.3,), base=0)).record).rows[0]
    assert (delta.ids, delta.mask, delta.logprobs) == (whole.ids, whole.mask, whole.logprobs)


def test_a_prompt_that_lost_a_token_begins_a_new_row_and_counts_as_drift() -> None:
    derived = sequences(two_turns(Tokens((1, 2, 3, 5), (6,))).record)
    assert [row.ids for row in derived.rows] == [(1, 2, 3, 4), (1, 2, 3, 5, 6)]
    assert derived.drift == 1
    assert derived.rows[1].logprobs == (None,) * 5


def test_a_policy_that_changed_within_a_row_has_no_one_version() -> None:
    (row,) = sequences(two_turns(Tokens((5,), (6,), base=0, policy_version="v2")).record).rows
    assert row.policy_versions == ("v1", "v2")
    assert row.policy_version is None


def test_text_without_ids_is_in_no_row() -> None:
    derived = sequences(two_turns(Tokens(None, None, (-0.1,))).record)
    assert [row.steps for row in derived.rows] == [(0,)]
    assert derived.without_tokens == 1


def test_a_sub_agent_has_a_row_of_its_own_and_is_no_drift() -> None:
    log = LogBuilder("run").start()
    log.decide(calls=CALL, tokens=Tokens((1,), (2,)))
    child = log.activate("helper", 0, "c")
    log.say(child, Message("user", "Help."), "agent")
    log.decide(child, tokens=Tokens((1, 2), (9,)))
    derived = sequences(log.record)
    assert [(row.agent, row.ids) for row in derived.rows] == [("lead", (1, 2)), ("helper", (1, 2, 9))]
    assert derived.drift == 0


def test_a_lost_call_marks_the_trajectory_incomplete() -> None:
    log = LogBuilder("run").start()
    log.decide(tokens=Tokens((1,), (2,)))
    log.record.next_step += 1
    log.decide(tokens=Tokens((1, 2, 3), (4,)))
    assert not sequences(log.record).complete
