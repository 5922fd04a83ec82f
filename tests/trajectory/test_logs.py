"""What holds for every log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aworld.core.event import (
    AgentStarted,
    Answered,
    Asked,
    Commanded,
    Event,
    Fork,
    Labelled,
    ModelCalled,
    Noted,
    Rewarded,
    Started,
    TaskInfo,
    decode_event,
    encode_event,
)  # fmt: skip
from aworld.core.message import Usage
from aworld.core.rows import rows
from aworld.core.trajectory import Trajectory
from aworld.trajectory.sequences import sequences
from aworld.trajectory.summary import Tally
from tests.strategies import LogBuilder, builders, logs, run_of

VERSION_2 = Path(__file__).with_name("schema_2.jsonl")


def state(trajectory: Trajectory) -> dict[str, Any]:
    return {name: getattr(trajectory, name) for name in Trajectory.__slots__ if name != "__weakref__"}


@given(logs(), st.data())
def test_a_fold_of_a_prefix_and_then_the_rest_is_the_fold_of_the_whole(log: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    resumed = Trajectory.of("run", log[:cut])
    assert resumed.status in ("running", "waiting", resumed.finished and resumed.finished.status)
    rows(resumed)
    for event in log[cut:]:
        resumed.apply(event)
    assert state(resumed) == state(Trajectory.of("run", log))


@given(logs())
def test_an_event_is_the_same_after_it_was_stored(log: list[Event]) -> None:
    assert [decode_event(encode_event(event)) for event in log] == log


@given(logs(), st.data())
def test_the_tally_says_what_the_trajectory_says(log: list[Event], data: st.DataObject) -> None:
    log = log[: data.draw(st.integers(1, len(log)))]
    summary, whole = Tally.of("run", log).summary(), Trajectory.of("run", log)
    assert (summary.status, summary.score, summary.steps) == (whole.status, whole.score, whole.next_step)
    assert (summary.task_id, summary.group_id, summary.events) == (whole.task.id, whole.task.group_id, len(log))
    usage = whole.usage
    assert summary.input_tokens == (usage and usage.input_tokens)
    assert summary.output_tokens == (usage and usage.output_tokens)
    assert summary.updated_at == log[-1].at


def test_a_log_of_version_2_is_read() -> None:
    """What version 2 brought: a reward without a value, and the environment. This test stays as it is."""
    log = [decode_event(line) for line in VERSION_2.read_bytes().splitlines()]
    trajectory = Trajectory.of("version-2", log)
    assert trajectory.started is not None
    assert (trajectory.started.schema, trajectory.started.environment) == (2, "shop")
    assert (trajectory.status, trajectory.answer, trajectory.score) == ("finished", "3", None)
    assert [(r.name, r.value, r.weight, r.step, r.error) for r in trajectory.rewards] == [
        ("kindness", 0.25, 1.0, 0, None),
        ("correct", 1.0, 1.0, None, None),
        ("judge", None, 0.5, None, "TimeoutError: the judge is away"),
    ]
    assert [row["reward"]["score"] for row in rows(trajectory)] == [0.25, None]
    assert Tally.of("version-2", log).summary().score is None


def test_notes_are_part_of_the_tally() -> None:
    log = run_of("run", TaskInfo("run", labels={"run": "r", "split": "train"}), score=0.5)
    notes = [
        Rewarded(seq=0, at=2e9, value=1.0, weight=0.5),
        Labelled(seq=1, at=2e9, labels={"split": None, "mark": "good"}),
        Noted(seq=2, at=2e9, source="ann", name="comment", data="well done"),
        Commanded(seq=3, at=2e9, action="cancel"),
    ]
    summary = Tally.of("run", log, notes).summary()
    assert (summary.score, summary.notes, summary.events, summary.updated_at) == (1.0, 4, len(log), 2e9)
    assert summary.labels == {"run": "r", "mark": "good"}


def test_an_answer_in_a_note_ends_the_waiting() -> None:
    log = LogBuilder("run").start()
    log.add(Asked, id="q", question="Which?")
    assert Tally.of("run", log.events).summary().status == "waiting"
    assert Tally.of("run", log.events, [Answered(seq=0, at=2e9, id="q", answer="a")]).summary().status == "running"


def test_the_next_turn_of_a_conversation_has_figures_of_its_own() -> None:
    log = run_of("turn-1", steps=2, score=1.0)
    definitions = {"lead": "d2"}
    after = [
        Started(seq=len(log), at=2e9, trajectory_id="turn-2", task=TaskInfo("turn-2", session_id="ann"),
                definitions=definitions, forked_from=Fork("turn-1", len(log)), after=True),
        AgentStarted(seq=len(log) + 1, at=2e9, activation=0, agent="lead"),
    ]  # fmt: skip
    summary = Tally.of("turn-2", [*log, *after]).summary()
    figures = (summary.steps, summary.score, summary.input_tokens, summary.answer, summary.model, summary.cost)
    assert figures == (0, None, None, None, None, None)
    assert (summary.events, summary.agent, summary.version) == (len(log) + 2, "lead", "d2")
    assert (summary.session_id, summary.status, summary.duration) == ("ann", "running", None)


def test_cost_and_duration_and_the_first_model() -> None:
    log = LogBuilder("run").start()
    log.decide(usage=Usage(1, 1))
    assert Tally.of("run", log.events).summary().cost is None
    log.decide(usage=Usage(1, 1, cost=0.25))
    log.decide(usage=Usage(1, 1, cost=0.5))
    log.finish()
    summary = Tally.of("run", log.events).summary()
    assert (summary.cost, summary.model) == (0.75, "model-1")
    assert summary.duration == log.events[-1].at - log.events[0].at


@given(builders())
def test_every_tool_call_is_closed_before_the_next_model_call_of_its_agent(log: LogBuilder) -> None:
    follower = Trajectory("run")
    for event in log.events:
        if isinstance(event, ModelCalled):
            assert follower.activations[event.activation].open_calls == []
        follower.apply(event)


@given(builders())
def test_the_mask_marks_exactly_the_sampled_tokens_in_order(log: LogBuilder) -> None:
    derived = sequences(log.record)
    by_step: dict[int, list[tuple[int, float | None]]] = {}
    for row in derived.rows:
        assert len(row.ids) == len(row.mask) == len(row.logprobs)
        assert len(row.steps) == len(row.step_scores) == len(row.policy_versions)
        marked = [(id, logprob) for id, mask, logprob in zip(row.ids, row.mask, row.logprobs) if mask]
        assert all(logprob is None for mask, logprob in zip(row.mask, row.logprobs) if not mask)
        for step in row.steps:
            tokens = log.record.calls[step].tokens
            assert tokens is not None
            wrote = len(tokens.completion_ids or ())
            by_step[step], marked = marked[:wrote], marked[wrote:]
        assert marked == []
    assert [id for step in sorted(by_step) for id, _ in by_step[step]] == log.sampled
    assert all(logprob == -0.5 - id / 100 for pairs in by_step.values() for id, logprob in pairs)


@given(builders())
def test_a_row_begins_with_what_every_one_of_its_calls_was_sent(log: LogBuilder) -> None:
    """The rule of rows, checked against the definition: the whole prompt, with all deltas resolved."""
    for row in sequences(log.record).rows:
        for step in row.steps:
            tokens = log.record.tokens(log.record.calls[step])
            assert tokens is not None
            whole = (tokens.prompt_ids or ()) + (tokens.completion_ids or ())
            assert row.ids[: len(whole)] == whole
