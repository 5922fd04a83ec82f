"""Sessions: tools with state, rewards of steps, endings, and what happens when one dies."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from aworld.agents.llm_agent import Agent
from aworld.config.conf import RunConfig
from aworld.core.agent.swarm import Swarm
from aworld.core.exceptions import EnvironmentFailed, ModelError, TaskError
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.core.output import RunFinished
from aworld.core.rows import rows
from aworld.core.tool.base import ToolContext
from aworld.core.trajectory import Trajectory
from aworld.environments import Environment, Part, Problem, Session
from aworld.environments.environment import derived_seed
from aworld.models import FunctionModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.runners.replay import replay
from aworld.trajectory import TrajectoryStore
from aworld.trajectory.store import Query
from tests.environments.shop import Shop, agent_of, buying, correct, problem, run, said, saying, shop


@pytest.fixture(autouse=True)
def nobody_has_left() -> None:
    Shop.closed.clear()


async def test_each_episode_has_a_session_of_its_own() -> None:
    environment = shop()
    tasks = [environment.task(problem(number), agent_of()) for number in range(50)]
    responses = await Runners.run_task(tasks)
    assert [response.answer for response in responses.values()] == [str(3 * number) for number in range(50)]
    assert sorted(Shop.closed, key=int) == [str(number) for number in range(50)]


async def test_hidden_state_does_not_enter_the_log(store: TrajectoryStore) -> None:
    secret = Problem("p", "What does it cost?", "answer-734511", {"price": 9922337, "note": "secret-5512"})
    response = await run(shop().task(secret, saying("I do not ask.")), store=store)
    log = b"".join(msgspec.json.encode(event) for event in await store.read(response.id))
    assert not [word for word in (b"734511", b"9922337", b"5512") if word in log]


async def test_schemas_are_built_once_for_the_class() -> None:
    environment = shop()
    first, second = [await run(environment.task(problem(n), agent_of())) for n in (1, 2)]
    assert first.record.toolsets.keys() == second.record.toolsets.keys()
    assert Shop(problem(1)).tools()[0].parameters is Shop(problem(2)).tools()[0].parameters
    names = [tool["name"] for tool in next(iter(first.record.toolsets.values()))]
    assert names == ["ask_price", "praise", "leave"]


async def test_a_session_rewards_the_step_in_which_it_does() -> None:
    both = [call("praise", word="good"), call("praise", word="kind")]
    record = (await run(shop().task(problem(1), saying(call("ask_price", item="it"), both, "3")))).record
    given = [(r.name, r.value, r.step, r.source) for r in record.rewards]
    assert given == [
        ("kindness", 0.25, 1, "session"), ("kindness", 0.25, 1, "session"), ("correct", 1.0, None, "rubric"),
    ]  # fmt: skip
    assert record.score == 1.5
    assert [row["reward"]["score"] for row in rows(record)] == [None, 0.5, 1.0]


async def test_a_session_gives_only_finite_rewards_and_only_while_it_runs() -> None:
    class Odd(Session):
        async def respond(self, message: Message) -> str | None:
            with pytest.raises(ValueError, match="finite number"):
                self.reward(float("nan"))
            return None

    made: list[Odd] = []

    def make(of: Problem) -> Odd:
        made.append(Odd(of))
        return made[-1]

    response = await run(Environment("odd", session=make).task(problem(1), saying("x")))
    assert (response.status, response.record.rewards) == ("finished", [])
    with pytest.raises(EnvironmentFailed, match="has not begun"):
        made[0].reward(1.0)


async def test_a_session_may_end_the_episode() -> None:
    record = (await run(shop().task(problem(1), saying(call("leave"), "never said")))).record
    assert (record.status, record.answer, len(record.calls)) == ("finished", "bye", 1)
    assert (await replay(record)).same


async def test_a_session_may_speak_first_and_answer_what_the_agent_says() -> None:
    class Guess(Session):
        async def start(self) -> str:
            return f"Guess, seed {self.seed}."

        async def respond(self, message: Message) -> str | None:
            if message.text == "7":
                return None
            self.reward(-0.1)
            return "higher" if int(message.text) < 7 else "lower"

    environment = Environment("guess", session=Guess, rubric=Part("right", lambda e: e.text == "7"))
    record = (await run(environment.task(problem(1), saying("3", "9", "7"), seed=5))).record
    assert said(record.path(record.activations[0].leaf)) == [
        ("user", "Guess, seed 5."), ("assistant", "3"), ("user", "higher"), ("assistant", "9"), ("user", "lower"),
        ("assistant", "7"),
    ]  # fmt: skip
    assert [(r.value, r.step) for r in record.rewards] == [(-0.1, 0), (-0.1, 1), (1.0, None)]
    assert (await replay(record)).same


async def test_an_exception_of_a_tool_is_the_models_to_read() -> None:
    think = saying(call("ask_price", item="nothing"), "I give up")
    record = (await run(shop().task(problem(1), think))).record
    assert (record.status, record.surroundings_failed, record.score) == ("finished", False, 0.0)
    assert "the clerk does not understand" in record.path(record.calls[1].prompt)[-1].text


async def test_a_session_that_dies_in_mid_episode_ends_it_without_a_score(store: TrajectoryStore) -> None:
    think = saying(call("ask_price", item="it"), call("ask_price", item="fire"), "never said")
    response = await run(shop().task(problem(1), think), store=store)
    assert (response.status, response.error) == ("failed", "the shop has burnt down")
    stored = Trajectory.of(response.id, await store.read(response.id))
    assert stored.surroundings_failed
    assert (stored.rewards, stored.score, len(stored.calls)) == ([], None, 2)
    assert Shop.closed == ["1"]
    assert all(not activation.open_calls for activation in stored.activations.values())


@pytest.mark.parametrize("place", ["make", "start", "respond"])
async def test_a_session_that_fails_elsewhere_ends_it_too(place: str, store: TrajectoryStore) -> None:
    class Broken(Shop):
        def __init__(self, problem: Problem) -> None:
            if place == "make":
                raise OSError("no room")
            super().__init__(problem)

        async def start(self) -> None:
            if place == "start":
                raise OSError("no room")

        async def respond(self, message: Message) -> None:
            raise OSError("no room")

    response = await run(shop(session=Broken).task(problem(1), saying("x")), store=store)
    assert response.status == "failed"
    assert "OSError: no room" in response.msg
    assert response.record.surroundings_failed
    assert (await store.query())[0].status == "failed"
    assert Shop.closed == ([] if place == "make" else ["1"])
    assert Trajectory.of(response.id, await store.read(response.id)).status == "failed"


@pytest.mark.parametrize(("status", "surroundings"), [(None, True), (503, True), (401, True), (400, False)])
async def test_whose_fault_a_failed_model_call_is(status: int | None, surroundings: bool) -> None:
    def refuse(request: ModelRequest) -> str:
        raise ModelError("no", status=status)

    record = (await run(shop().task(problem(1), agent_of(refuse)))).record
    assert (record.status, record.surroundings_failed) == ("failed", surroundings)
    assert record.score == (None if surroundings else 0.0)


async def test_sessions_are_closed_on_every_ending() -> None:
    async def slow(request: ModelRequest) -> Any:
        await asyncio.sleep(30)

    environment = shop()
    await run(environment.task(problem(1), saying("x")))
    await run(shop(conf={"timeout": 0.02}).task(problem(2), agent_of(slow)))
    await run(shop(conf={"max_steps": 1}).task(problem(3), agent_of()))
    running = asyncio.create_task(run(environment.task(problem(4), agent_of(slow))))
    await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert Shop.closed == ["1", "2", "3", "4"]


async def test_a_session_that_cannot_be_closed_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Shop):
        async def close(self) -> None:
            raise OSError("the door is stuck")

    response = await run(shop(session=Stuck).task(problem(1), agent_of()))
    assert (response.status, response.record.score) == ("finished", 1.0)
    assert "close of" in caplog.text
    assert "the door is stuck" in caplog.text


async def test_an_episode_cannot_be_resumed_without_its_session(store: TrajectoryStore) -> None:
    response = await run(shop().task(problem(1), agent_of()), store=store)
    events = await store.read(response.id)
    store.append("half", [msgspec.structs.replace(events[0], trajectory_id="half"), *events[1:4]])
    await store.flush()
    with pytest.raises(TaskError, match="episode of environment 'shop'"):
        await Runners.resume("half", agent_of(), store=store)
    resumed = await Runners.resume_all(store, [agent_of()])
    assert resumed.left == 1
    assert await store.count(Query(status=("running",))) == 1


async def test_the_system_prompt_comes_before_the_agents_own() -> None:
    environment = shop(system_prompt="You are in a shop.")
    bare, own = agent_of(), agent_of(system_prompt="Be polite.")
    assert said((await run(environment.task(problem(1), bare))).record.path(1))[0] == ("system", "You are in a shop.")
    record = (await run(environment.task(problem(1), own))).record
    assert said(record.path(1))[0] == ("system", "You are in a shop.\n\nBe polite.")
    assert record.agents["buyer"]["system_prompt"] == "You are in a shop.\n\nBe polite."
    assert (bare.system_prompt, own.system_prompt) == (None, "Be polite.")

    def role(context: ToolContext) -> str:
        return f"You are a {context.agent}."

    record = (await run(environment.task(problem(1), agent_of(system_prompt=role)))).record
    assert said(record.path(record.calls[1].prompt))[0] == ("system", "You are in a shop.\n\nYou are a buyer.")


async def test_each_request_has_a_seed_of_its_own() -> None:
    records = [(await run(shop().task(problem(1), agent_of(), seed=seed))).record for seed in (1, 1, 2)]
    seeds = [[call.params["seed"] for call in record.calls.values()] for record in records]
    assert seeds[0] == seeds[1] == [derived_seed(1, "buyer", turn) for turn in (0, 1)]
    assert len({*seeds[0], *seeds[2]}) == 4
    assert "seed" not in (await run(shop().task(problem(1), agent_of()))).record.calls[0].params


async def test_stateless_tools_of_the_environment_and_the_agent_are_offered_too() -> None:
    def look(at: str) -> str:
        """Look."""
        return at

    def think(where: str) -> str:
        """Think."""
        return where

    environment = shop(Part("correct", correct), tools=[look])
    record = (await run(environment.task(problem(1), agent_of(tools=[think])))).record
    names = [tool["name"] for tool in next(iter(record.toolsets.values()))]
    assert names == ["think", "look", "ask_price", "praise", "leave"]


async def test_a_session_that_never_starts_is_no_sample_of_the_agent() -> None:
    class Asleep(Shop):
        async def start(self) -> None:
            await asyncio.sleep(30)

    record = (await run(shop(session=Asleep, conf={"timeout": 0.05}).task(problem(1), agent_of()))).record
    assert (record.status, record.surroundings_failed, record.score) == ("timeout", True, None)
    assert Shop.closed == ["1"]


async def test_a_team_plays_too() -> None:
    environment = shop(system_prompt="You are in a shop.")
    asks = agent_of(buying)
    says = Agent("teller", model=FunctionModel(lambda request: request.messages[-1].text))
    record = (await run(environment.task(problem(4), Swarm(asks, says), seed=1))).record
    assert (record.status, record.answer, record.score) == ("finished", "12", 1.0)
    assert "You are in a shop.\n\nWhat does item 4 cost?" in [text for _, text in said(record.path(1))]
    leaves = agent_of(lambda request: call("leave"))
    record = (await run(environment.task(problem(4), Swarm(leaves, says)))).record
    assert (record.status, record.answer, [call.agent for call in record.calls.values()]) == (
        "finished",
        "bye",
        ["buyer"],
    )


async def test_an_episode_is_stepped_and_streamed_like_any_run() -> None:
    task = shop().task(problem(4), agent_of())
    over, observation, _ = await Runners.step(task)
    assert (over, observation.results[0].content) == (False, "12")
    over, _, response = await Runners.step(task)
    assert (over, response.record.score) == (True, 1.0)
    outputs = [output async for output in Runners.streaming_run_task(shop().task(problem(4), agent_of()))]
    assert isinstance(outputs[-1], RunFinished)
    assert outputs[-1].response.record.score == 1.0


async def test_a_fork_of_an_episode_is_refused_by_the_name_that_was_given(store: TrajectoryStore) -> None:
    await Runners.run_task(shop().task(problem(1), agent_of(), id="named"), RunConfig(store=store))
    with pytest.raises(TaskError, match="Trajectory named is an episode of environment 'shop'"):
        await Runners.fork("named", agent_of(), at=1, store=store)
