"""What holds for every log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aworld.core.event import Event, ModelCalled, decode_event, encode_event
from aworld.core.rows import rows
from aworld.core.trajectory import Trajectory
from aworld.trajectory.sequences import sequences
from aworld.trajectory.summary import Tally
from tests.strategies import LogBuilder, builders, logs

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
