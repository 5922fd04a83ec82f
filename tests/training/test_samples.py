"""Samples: exactly what was sampled, credited, compared and filtered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message, Tokens, ToolCall
from aworld.core.model import ModelRequest
from aworld.core.trajectory import Trajectory
from aworld.runner import Runners
from aworld.training import credit, filters
from aworld.training.samples import Sample, SampleSet, derive, samples_of
from aworld.trajectory import MemoryStore
from tests.strategies import LogBuilder, builders
from tests.training.speaking import Policy

CALL = (ToolCall("c", "search", "{}"),)


def unmasked(derived: SampleSet) -> list[int]:
    return sorted(id for sample in derived.samples for id in sample.sampled)


@settings(max_examples=150, deadline=None)
@given(builders())
def test_of_any_log_the_unmasked_tokens_are_those_that_were_sampled(log: LogBuilder) -> None:
    derived = samples_of(log.record)
    assert unmasked(derived) == sorted(log.sampled)
    for sample in derived.samples:
        tokens = sample.tokens
        assert len(tokens.ids) == len(tokens.mask) == len(tokens.logprobs) == len(sample.token_steps)
        assert [place >= 0 for place in sample.token_steps] == [bool(mask) for mask in sample.tokens.mask]
        for place, step in enumerate(sample.tokens.steps):
            tokens = log.record.calls[step].tokens
            own = tuple(id for id, owner in zip(sample.tokens.ids, sample.token_steps) if owner == place)
            assert tokens is not None
            assert own == tokens.completion_ids


def completion(record: Trajectory, step: int) -> tuple[int, ...]:
    tokens = record.calls[step].tokens
    return (tokens and tokens.completion_ids) or ()


def lookup(what: str) -> str:
    """Look it up."""
    return f"on {what}"


def words_of(script: list[int]) -> Any:
    """What the policy says: turn by turn a text (0), one or two tool calls, or the helper."""

    def words(request: ModelRequest) -> Message:
        kind = script[request.turn] if request.turn < len(script) else 0
        if kind == 3 and request.agent == "lead":
            return Message("assistant", "", tool_calls=(ToolCall("", "helper", '{"input": "go"}'),))
        calls = tuple(ToolCall("", "lookup", f'{{"what": "{n}"}}') for n in range(min(kind, 2)))
        return Message("assistant", "well", tool_calls=calls)

    return words


@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(st.integers(1, 3), max_size=4),
    failing=st.sets(st.integers(0, 12), max_size=4),
    drifting=st.sets(st.integers(0, 12), max_size=3),
    data=st.data(),
)
def test_whatever_forks_retries_and_sub_agents_happen(
    script: list[int], failing: set[int], drifting: set[int], data: st.DataObject
) -> None:
    """Every sampled id is unique, so a token in the wrong place, missing or counted twice shows."""
    policy = Policy(words_of(script), fails=failing.__contains__, drifts=drifting.__contains__)
    helper = Agent("helper", model=policy.model(), tools=[lookup])
    lead = Agent("lead", model=policy.model(), tools=[lookup, helper])

    async def main() -> tuple[Trajectory, Trajectory, int]:
        store = MemoryStore()
        first = await Runners.run("go", lead, run_conf=RunConfig(store=store))
        at = data.draw(st.integers(0, first.record.next_step))
        forked = await Runners.fork(first.id, lead, at=at, store=store)
        return first.record, forked.record, at

    first, forked, at = asyncio.run(main())
    own = [id for ids in policy.sampled[first.id] for id in ids]
    assert unmasked(samples_of(first)) == sorted(own)
    shared = [id for step in range(at) for id in completion(first, step)]
    new = [id for ids in policy.sampled.get(forked.id, []) for id in ids]
    assert unmasked(samples_of(forked)) == sorted([*shared, *new])
    by_agent = [id for name in ("lead", "helper") for id in unmasked(samples_of(first, agents=[name]))]
    assert sorted(by_agent) == sorted(own)


def run_of(
    id: str,
    rewards: list[dict[str, Any]],
    *,
    group: str | None = "g",
    tokens: tuple[bool, bool] = (True, True),
    status: ev.Status = "finished",
) -> Trajectory:
    """Two steps of one agent, rewarded."""
    log = LogBuilder(id, ev.TaskInfo(id, group_id=group)).start()
    log.decide(calls=CALL, tokens=Tokens((1, 2), (3, 4), (-0.1, -0.2), policy_version="v1") if tokens[0] else None)
    log.answer(log.record.activations[0].calls[0])
    log.decide(tokens=Tokens((1, 2, 3, 4, 5), (6,), (-0.3,), policy_version="v1") if tokens[1] else None)
    log.finish(status)
    for reward in rewards:
        log.add(ev.Rewarded, **reward)
    return log.record


def test_a_sample_of_a_conversation() -> None:
    (sample,) = samples_of(run_of("a", [{"value": 1.0}])).samples
    assert (sample.tokens.ids, sample.tokens.mask) == ((1, 2, 3, 4, 5, 6), (0, 0, 1, 1, 0, 1))
    assert sample.token_steps == (-1, -1, 0, 0, -1, 1)
    assert sample.tokens.logprobs == (None, None, -0.1, -0.2, None, -0.3)
    assert (sample.tokens.score, sample.returns, sample.group_id) == (1.0, (1.0, 1.0), "g")
    assert (sample.tokens.policy_version, sample.truncated, sample.complete) == ("v1", False, True)


def test_a_sample_says_by_labels_which_one_it_is() -> None:
    labels = {"run": "first", "problem": "7", "sample": "2"}
    log = LogBuilder("any-id", ev.TaskInfo("any-id", labels=labels)).start()
    log.decide(tokens=Tokens((1,), (2,)))
    assert [sample.labels for sample in samples_of(log.record).samples] == [labels]


def test_a_judge_without_ids_spoils_no_sample_of_the_policy() -> None:
    log = LogBuilder("run").start()
    log.decide(calls=CALL, tokens=Tokens((1,), (2,)))
    judge = log.activate("judge", 0, "c")
    log.say(judge, Message("user", "Is it good?"), "agent")
    log.decide(judge)
    assert [sample.complete for sample in samples_of(log.record).samples] == [True]
    assert [sample.complete for sample in samples_of(log.record, agents=["lead", "judge"]).samples] == [False]


def test_credit_by_rule() -> None:
    rewards = [{"value": 1.0}, {"value": 0.5, "step": 0}, {"value": 2.0, "step": 1, "weight": 0.5}]
    record = run_of("a", rewards)

    def returns(rule: Any, discount: float = 1.0) -> tuple[float | None, ...]:
        (sample,) = samples_of(record, credit=rule, discount=discount).samples
        return sample.returns

    assert returns(credit.trajectory_reward) == (2.5, 2.5)
    assert returns(credit.step_rewards) == (2.5, 2.0)
    assert returns(credit.step_rewards, 0.5) == (1.0 + 0.5 + 0.5 * 1.0, 2.0)
    assert returns(credit.agent_reward, 0.5) == (2.0, 2.0)


def test_each_agent_is_credited_with_what_it_earned() -> None:
    log = LogBuilder("run").start()
    log.decide(calls=CALL, tokens=Tokens((1,), (2,)))
    child = log.activate("helper", 0, "c")
    log.say(child, Message("user", "Help."), "agent")
    log.decide(child, tokens=Tokens((7,), (8,)))
    log.add(ev.Rewarded, value=1.0)
    log.add(ev.Rewarded, value=0.25, detail={"agent": "helper"})
    log.add(ev.Rewarded, value=4.0, step=0)
    derived = samples_of(log.record, credit=credit.agent_reward)
    assert {s.tokens.agent: s.returns for s in derived.samples} == {"lead": (5.0,), "helper": (1.25,)}
    assert [s.tokens.agent for s in samples_of(log.record, agents=["helper"]).samples] == ["helper"]


def test_a_failed_reward_is_unknown_and_dropped_by_name() -> None:
    records = [run_of("a", [{"value": 1.0}]), run_of("b", [{"value": None, "error": "boom"}]), run_of("c", [])]
    derived = derive(records)
    assert [s.tokens.score for s in derived.samples] == [1.0, None, None]
    for rule in credit.CREDITS.values():
        assert samples_of(records[1], credit=rule).samples[0].returns == (None, None)
    kept, dropped = filters.apply(derived.samples, ())
    assert [s.tokens.trajectory_id for s in kept] == ["a"]
    assert dropped == {"failed_rewards": 2}
    with pytest.raises(ConfigError, match="failed_rewards"):
        credit.with_advantages(derived.samples)


def test_what_lacks_tokens_is_counted_and_never_trained_on() -> None:
    half, none = run_of("half", [{"value": 1.0}], tokens=(True, False)), run_of("none", [], tokens=(False, False))
    derived = derive([half, none])
    assert (derived.trajectories, derived.without_tokens, derived.empty) == (2, 3, 1)
    kept, dropped = filters.apply(derived.samples)
    assert (kept, dropped) == ([], {"incomplete": 1})


def test_an_incomplete_trajectory_is_dropped_by_name() -> None:
    record = run_of("a", [{"value": 1.0}])
    record.next_step += 1
    assert filters.apply(samples_of(record).samples) == ([], {"incomplete": 1})


def test_drift_is_counted() -> None:
    log = LogBuilder("run").start()
    log.decide(calls=CALL, tokens=Tokens((1, 2), (3, 4)))
    log.answer(log.record.activations[0].calls[0])
    log.decide(tokens=Tokens((1, 2, 9), (6,)))
    derived = samples_of(log.record)
    assert (derived.drift, len(derived.samples)) == (1, 2)


def group_of(*scores: float, group: str = "g") -> list[Sample]:
    records = [run_of(f"{group}{n}", [{"value": score}], group=group) for n, score in enumerate(scores)]
    return list(derive(records).samples)


def test_advantages_are_relative_to_the_group() -> None:
    samples = credit.with_advantages(group_of(1, 0, 0, 0), credit.group_centred)
    assert samples[0].advantages == (0, 0, 0.75, 0.75, 0, 0.75)
    assert samples[1].advantages == (0, 0, -0.25, -0.25, 0, -0.25)
    normalised = credit.with_advantages(group_of(1, 0, 0, 0), credit.group_normalised)
    assert normalised[0].advantages[2] == pytest.approx(0.75 / (0.1875**0.5 + credit.EPSILON))
    assert credit.with_advantages(group_of(1, 0), credit.raw)[0].advantages[-1] == 1.0


def test_an_episode_counts_once_however_many_rows_it_has() -> None:
    log = LogBuilder("rows", ev.TaskInfo("rows", group_id="g")).start()
    for turn in range(3):
        log.decide(calls=CALL, tokens=Tokens((turn + 50,), (3,)))  # nothing is shared: a row each
        log.answer(log.record.activations[0].calls[0])
    log.add(ev.Rewarded, value=1.0)
    samples = [*samples_of(log.record).samples, *group_of(0.0)]
    assert [s.advantages[-1] for s in credit.with_advantages(samples, credit.group_centred)] == [0.5, 0.5, 0.5, -0.5]


@st.composite
def groups_of_alike(draw: st.DrawFn) -> list[Trajectory]:
    """Episodes of one problem that are alike in all but their ids: so many calls, so rewarded."""
    calls = draw(st.integers(1, 5))
    value = st.sampled_from([-1.0, 0.0, 0.1, 0.3, 1.0])
    earned: list[dict[str, Any]] = [
        {"value": draw(value), "step": draw(st.none() | st.integers(0, calls - 1))}
        for _ in range(draw(st.integers(1, 6)))
    ]
    return [calling(f"e{number}", calls, earned) for number in range(draw(st.integers(2, 4)))]


def calling(id: str, calls: int, earned: list[dict[str, Any]]) -> Trajectory:
    """An episode of so many calls of one agent; its prompts drift, so that each call is a row of its own."""
    log = LogBuilder(id, ev.TaskInfo(id, group_id="g")).start()
    for turn in range(calls):
        log.decide(calls=CALL if turn < calls - 1 else (), tokens=Tokens((turn + 50,), (3, 4), (-0.1, -0.1)))
        if turn < calls - 1:
            log.answer(log.record.activations[0].calls[0])
    log.finish()
    for reward in earned:
        log.add(ev.Rewarded, **reward)
    return log.record


@settings(max_examples=60, deadline=None)
@given(
    records=groups_of_alike(),
    rule=st.sampled_from(sorted(credit.CREDITS)),
    advantage=st.sampled_from(["group_normalised", "group_centred"]),
    discount=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_episodes_that_are_alike_teach_nothing(
    records: list[Trajectory], rule: str, advantage: str, discount: float
) -> None:
    samples = derive(records, credit=credit.CREDITS[rule], discount=discount).samples
    for sample in credit.with_advantages(samples, credit.ADVANTAGES[advantage]):
        assert max(map(abs, sample.advantages)) < 1e-9
    assert filters.apply(samples) == ([], {"no_variance": len(samples)})


def test_a_step_is_compared_with_the_same_place_of_the_others() -> None:
    """Three calls at 0.1 each beside one call, and both fail: what the longer one still earned is all that it gains."""
    long = calling("long", 3, [{"value": 0.0}, *({"value": 0.1, "step": step} for step in range(3))])
    short = calling("short", 1, [{"value": 0.0}, {"value": 0.1, "step": 0}])
    samples = derive([long, short], credit=credit.step_rewards).samples
    found = {
        (sample.tokens.trajectory_id, sample.places): sample.advantages[-1]
        for sample in credit.with_advantages(samples, credit.group_centred)
    }
    expected = {("long", (0,)): 0.1, ("long", (1,)): 0.1, ("long", (2,)): 0.05, ("short", (0,)): -0.1}
    assert found == pytest.approx(expected)


def test_groups_without_variance_teach_nothing() -> None:
    samples = [*group_of(1, 1, 1, group="same"), *group_of(0, 1, group="mixed"), *group_of(1, group="alone")]
    kept, dropped = filters.apply(samples)
    assert {s.group_id for s in kept} == {"mixed"}
    assert dropped == {"no_variance": 4}


def test_a_group_of_one_has_no_advantage_even_unfiltered() -> None:
    (sample,) = credit.with_advantages(group_of(1))
    assert set(sample.advantages) == {0.0}


def test_an_empty_batch_is_empty() -> None:
    assert filters.apply(derive([]).samples) == ([], {})
    assert credit.with_advantages([]) == []


def test_truncated_episodes_are_dropped_when_asked() -> None:
    cut = samples_of(run_of("cut", [{"value": 0.0}], status="limit_reached")).samples
    assert filters.apply(cut, ())[0] == list(cut)
    assert filters.apply(cut, ("truncated",)) == ([], {"truncated": 1})


def test_an_episode_whose_surroundings_failed_is_no_sample_of_the_policy() -> None:
    log = LogBuilder("run").start()
    log.decide(tokens=Tokens((1,), (2,)))
    log.add(ev.Rewarded, value=0.0)
    log.add(ev.Finished, status="failed", error="the simulator died", surroundings=True)
    assert filters.apply(samples_of(log.record).samples) == ([], {"surroundings": 1})


def test_an_unknown_filter_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'no_variance'"):
        filters.apply([], ["novariance"])
