"""The embedded engine: it learns, it is exact, and it goes on where it was killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import Swarm
from aworld.core.exceptions import ConfigError, TrainingError
from aworld.core.trajectory import Trajectory
from aworld.environments import Environment, EnvironmentFailed, Part, Rubric, ScoredEpisode, Session
from aworld.environments.environment import derived_seed
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.runners.local import store_of
from aworld.training import AgentTrainer, TrainingResult
from aworld.training.result import (
    Evaluated,
    Saved,
    Stepped,
    StepReport,
    TrainingEvent,
    TrainingProgress,
    TrainingStarted,
)
from aworld.training.samples import derive
from aworld.trajectory import Query
from tests.training.small import QUICK, always, letters, never, says_low, small_agent, small_policy


def trained(path: Path, environment: Environment | None = None, agent: Any = None, **settings: Any) -> TrainingResult:
    given = environment or letters()
    return AgentTrainer(agent or small_agent(), {**QUICK, **settings}, None, given, run_path=path).train()


def success(report: StepReport) -> float:
    assert report.success is not None
    return report.success


def weights_of(path: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in Policy.open(path / "policy").weights.items()}


def weights_of_small() -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in small_policy().weights.items()}


def facts(result: TrainingResult) -> list[Any]:
    """What two equal runs have in common: everything but times and places."""
    timed = ("episodes_per_second",)
    history = [
        (r.step, r.episodes, r.score, r.success, r.samples, r.dropped,
         {name: value for name, value in r.statistics.items() if name not in timed})
        for r in result.history
    ]  # fmt: skip
    return [history, [(e.step, e.mode, e.outcomes, e.score) for e in result.evaluations], result.stopped]


def test_it_learns_what_is_rewarded_and_the_control_does_not(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 40, "groups": 8, "samples": 8, "checkpoint_every": 0}
    result = trained(tmp_path / "learnt", **settings)
    assert success(result.history[0]) < 0.4 < 0.7 < max(map(success, result.history[-3:]))
    control = trained(tmp_path / "control", shuffle_rewards=True, **settings)
    assert max(map(success, control.history[-3:])) < 0.6


def test_a_weight_of_kl_keeps_the_policy_near_the_first_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 30, "groups": 8, "samples": 8, "checkpoint_every": 0}
    near = trained(tmp_path / "near", kl=2.0, **settings).history
    free = trained(tmp_path / "free", kl=1e-9, **settings).history
    assert near[0].statistics["kl_to_start"] == pytest.approx(0.0, abs=1e-4)
    assert 2 * near[-1].statistics["kl_to_start"] < free[-1].statistics["kl_to_start"]


def test_imitation_of_successes_learns_too(tmp_path: Path) -> None:
    result = trained(tmp_path, steps=25, groups=8, samples=8, algorithm="sft", checkpoint_every=0)
    assert success(result.history[-1]) > success(result.history[0]) + 0.3
    assert result.history[0].dropped["not_solved"] + result.history[0].samples == 64


async def test_every_episode_is_stored_and_its_log_probabilities_are_the_trainers(tmp_path: Path) -> None:
    result = await AgentTrainer(small_agent(), QUICK, None, letters(), run_path=tmp_path).train_async()
    assert all(report.statistics.get("logprob_difference", 0.0) < 1e-4 for report in result.history)
    assert result.store is not None
    store = store_of(result.store)
    found = await store.query(Query(limit=1000))
    assert len(found) == 3 * 8 + 2 * 2 * 4  # steps, and evaluations before and after in two modes
    first = [s.id for s in found if s.id.startswith("step-00001")]
    records = [Trajectory.of(id, await store.read(id)) for id in first]
    derived = derive(records)
    versions = {sample.tokens.policy_version for sample in derived.samples}
    assert len(derived.samples) == 8
    assert len(versions) == 1
    assert str(versions.pop()).startswith("0-")
    labels = [sample.labels for sample in derived.samples]
    assert {(each["step"], each["sample"]) for each in labels} == {("1", str(number)) for number in range(4)}
    evaluated = await store.query(Query(labels={"mode": "greedy", "step": "3"}))
    assert len(evaluated) == 4
    assert {record.task.group_id is not None for record in records} == {True}


def test_a_training_policy_that_is_not_the_acting_one_is_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    from aworld.training.embedded.actor import Actor

    monkeypatch.setattr(Actor, "load", str)  # new weights never reach the agent
    with pytest.raises(TrainingError, match="logprob_tolerance"):
        trained(tmp_path, learning_rate=0.05)


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "one"), trained(tmp_path / "other")
    assert facts(one) == facts(other)
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "other")
    different = trained(tmp_path / "different", seed=1)
    assert facts(different) != facts(one)


def test_the_agent_that_was_given_is_left_as_it_was(tmp_path: Path) -> None:
    agent = small_agent()
    trained(tmp_path, agent=agent)
    assert isinstance(agent.model, EmbeddedModel)
    assert agent.model.policy.weights is small_policy().weights


def killed(path: Path, events: int) -> int:
    command = [sys.executable, "-m", "tests.training.killed", str(path), str(events)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return int(done.stdout or 0) if done.returncode == 0 else -1


def test_a_run_killed_at_a_random_moment_reaches_the_same_result_bit_for_bit(tmp_path: Path) -> None:
    events = killed(tmp_path / "whole", 0)
    whole = TrainingResult.open(tmp_path / "whole" / "result.json")
    path = tmp_path / "killed"
    draw = random.Random(7)
    for _ in range(3):  # each restart is killed too
        killed(path, draw.randint(2, events // 2))
    killed(path, 0)
    assert facts(TrainingResult.open(path / "result.json")) == facts(whole)
    assert weights_of(path) == weights_of(tmp_path / "whole")


def test_one_process_trains_in_a_folder_and_its_death_frees_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.killed", str(tmp_path), "1", "SIGSTOP"]
    shaping: dict[str, Any] = {"minibatches": 2, "epochs": 2}
    held = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        os.waitid(os.P_PID, held.pid, os.WSTOPPED)  # in the middle of its training
        with pytest.raises(ConfigError, match=r"another training is at work in this folder\. Wait until it ends, or"):
            trained(tmp_path, **shaping)
        assert not (tmp_path / "result.json").exists()
    finally:
        held.kill()
        held.wait()
    assert trained(tmp_path, **shaping, steps=1).steps == 1


def test_a_checkpoint_that_was_cut_off_in_writing_is_passed_over(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", steps=4)
    path = tmp_path / "cut"
    trained(path, steps=2)
    scratch = path / "checkpoints" / ".step-00003.99"
    scratch.mkdir()
    (scratch / "training.json").write_text("{")
    again = trained(path, steps=4)
    assert [report.step for report in again.history] == [1, 2, 3, 4]
    assert again.history[-1].statistics["loss"] == whole.history[-1].statistics["loss"]
    assert not scratch.exists()


def test_a_finished_run_comes_back_as_it_was(tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = trained(tmp_path)
    assert facts(again) == facts(first)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    trained(tmp_path)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".svg", ".db", ".db-wal", ".db-shm", ".lock"}


def test_going_on_with_other_settings_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run with learning_rate=0\.005, now it is 0\.0001"):
        trained(tmp_path, learning_rate=1e-4)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_protected_too(tmp_path: Path) -> None:
    killed(tmp_path, 2)
    assert not (tmp_path / "checkpoints").exists()
    shaping: dict[str, Any] = {"minibatches": 2, "epochs": 2}
    with pytest.raises(ConfigError, match="holds a run with seed=0, now it is 5"):
        trained(tmp_path, **shaping, seed=5)
    with pytest.raises(ConfigError, match="with environment='letters', now it is 'other'"):
        trained(tmp_path, Environment("other", train=[{"input": "a"}, {"input": "b"}], rubric=says_low), **shaping)
    with pytest.raises(ConfigError, match="holds a run with policy="):
        trained(tmp_path, agent=Agent("speaker", model=EmbeddedModel(small_policy(1))), **shaping)
    assert trained(tmp_path, **shaping, steps=2, checkpoint_every=0).steps == 2


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    trained(tmp_path, steps=4, keep_checkpoints=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00003", "step-00004"]


def test_a_checkpoint_is_a_policy(tmp_path: Path) -> None:
    trained(tmp_path)
    policy = Policy.open(tmp_path / "checkpoints" / "step-00003")
    assert policy.version.startswith("3-")
    assert {n: w.tobytes() for n, w in policy.weights.items()} == weights_of(tmp_path)


def test_it_stops_at_the_target(tmp_path: Path) -> None:
    result = trained(tmp_path, letters(always), steps=6, evaluate_every=2, target=0.9)
    assert (result.stopped, result.steps) == ("target", 2)


def test_it_warns_and_then_ends_where_nothing_varies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = trained(tmp_path, letters(never), steps=40, checkpoint_every=0)
    assert (result.stopped, result.steps) == ("nothing_to_learn", 8)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("aworld.training")]
    assert warning.startswith("step=1 | nothing to learn from: of 8 episodes no sample is left (8 no_variance)")
    assert result.advice is not None
    assert "pass@4 is 0.0%. Such as step-00008-" in result.advice
    assert "Try easier problems" in result.advice
    assert result.history[0].pass_at_k == 0.0


def test_a_short_run_that_learnt_nothing_says_so_and_goes_on_when_it_is_longer(tmp_path: Path) -> None:
    first = trained(tmp_path, letters(always), steps=2)
    assert (first.stopped, first.steps) == ("nothing_to_learn", 2)
    assert "every one solved its problem" in str(first.advice)
    longer = trained(tmp_path, letters(says_low), steps=3)
    assert (longer.stopped, longer.steps, longer.advice) == ("steps", 3, None)


def test_it_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    result = trained(tmp_path, letters(never), steps=9, evaluate_every=1, patience=2)
    assert (result.stopped, result.steps) == ("patience", 2)


def test_nothing_to_learn_changes_nothing(tmp_path: Path) -> None:
    result = trained(tmp_path, letters(always))
    assert [report.samples for report in result.history] == [0, 0, 0]
    assert {report.dropped["no_variance"] for report in result.history} == {8}
    assert weights_of(tmp_path) == weights_of_small()


def broken(episode: ScoredEpisode) -> float:
    raise RuntimeError("no idea")


def no_number(episode: ScoredEpisode) -> float:
    return float("nan")


def text(episode: ScoredEpisode) -> Any:
    return "good"


@pytest.mark.parametrize("reward", [broken, no_number, text])
def test_training_stops_when_no_reward_is_known(tmp_path: Path, reward: Any) -> None:
    events: list[TrainingEvent] = []
    trainer = AgentTrainer(small_agent(), QUICK, None, letters(reward), run_path=tmp_path, on_event=events.append)
    with pytest.raises(TrainingError, match=r"evaluation greedy .* none of 4 .* reward 'right': .*episodes.db"):
        trainer.train()
    (evaluation,) = [event.evaluation for event in events if isinstance(event, Evaluated)]
    assert (evaluation.success, evaluation.unknown, evaluation.interval) == (None, 4, (0.0, 1.0))
    with pytest.raises(TrainingError, match=r"step=1 .* of none of 8 episodes .* \(trajectory step-00001-"):
        trained(tmp_path / "unmeasured", letters(reward, test=0))


def broken_for_some(episode: ScoredEpisode) -> float:
    if episode.problem.id in ("train-0", "test-0"):
        raise RuntimeError("no idea")
    return says_low(episode)


def test_a_failed_reward_is_counted_and_teaches_nothing(tmp_path: Path) -> None:
    result = trained(tmp_path, letters(broken_for_some, train=2), steps=1)
    (report,) = result.history
    assert report.dropped["failed_rewards"] == 4
    assert report.reason is not None
    assert report.reason.startswith("reward 'right': RuntimeError: no idea (trajectory step-00001-")
    for evaluation in result.evaluations:
        assert (evaluation.tasks, evaluation.unknown) == (4, 1)
        assert evaluation.success == evaluation.successes / 3
    assert [(each.tasks, each.unknown) for each in result.comparisons] == [(3, 1), (3, 1)]


def test_a_team_shares_one_policy(tmp_path: Path) -> None:
    model = EmbeddedModel(small_policy(), params={"max_tokens": 4})
    team = Swarm(Agent("first", model=model), Agent("second", model=model))
    both = trained(tmp_path / "both", agent=team, steps=2)
    assert both.history[0].samples + both.history[0].dropped.get("no_variance", 0) == 16
    one = trained(tmp_path / "one", agent=team, steps=1, agents=["second"])
    assert one.history[0].samples + one.history[0].dropped.get("no_variance", 0) == 8
    assert {n: w.tobytes() for n, w in model.policy.weights.items()} == weights_of_small()  # given back


def test_agents_of_different_policies_are_not_trained_as_one(tmp_path: Path) -> None:
    first = Agent("first", model=EmbeddedModel(small_policy()))
    second = Agent("second", model=EmbeddedModel(small_policy(1)))
    with pytest.raises(ConfigError, match="different policies"):
        trained(tmp_path, agent=Swarm(first, second))
    with pytest.raises(ConfigError, match="third"):
        trained(tmp_path, agent=Swarm(first, second), agents=["third"])


def test_what_happens_is_told_in_order(tmp_path: Path) -> None:
    events: list[TrainingEvent] = []
    AgentTrainer(small_agent(), QUICK, None, letters(), run_path=tmp_path, on_event=events.append).train()
    kinds = [type(event) for event in events if not isinstance(event, TrainingProgress)]
    step = [Stepped, Saved]
    assert kinds == [TrainingStarted, Evaluated, Evaluated, *step, *step, *step, Evaluated, Evaluated, Saved, Saved]


def test_who_watches_cannot_stop_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fall(_: TrainingEvent) -> None:
        raise RuntimeError("no")

    result = AgentTrainer(
        small_agent(), {**QUICK, "steps": 1}, says_low, letters(), run_path=tmp_path, on_event=fall
    ).train()
    assert result.steps == 1
    assert "on_event raised" in caplog.text


def test_other_options_are_refused(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"options": {"x": 1}}, "options"), ({"credit": "x"}, "credit"), ({"groups": 9}, "groups"),
    ]  # fmt: skip
    for settings, said in wrong:
        with pytest.raises(ConfigError, match=said):
            trained(tmp_path, **settings)


class Fragile(Session):
    """Dies as it starts, for all samples of one problem but one."""

    async def start(self) -> None:
        if self.problem.id == "train-0" and self.seed in Fragile.dying:
            raise EnvironmentFailed("the simulator is gone")

    dying: set[int | None] = set()


def test_an_environment_that_dies_and_a_group_with_one_finished_sample(tmp_path: Path) -> None:
    environment = letters(session=Fragile, train=2)
    seeds = [derived_seed(derived_seed(0, "rollouts", 1), "train-0", sample) for sample in range(4)]
    Fragile.dying = set(seeds[:3])
    result = trained(tmp_path, environment, steps=1, retries=0)
    (report,) = result.history
    # What is left of the broken group is one episode: nothing to compare it with.
    assert report.dropped["empty"] == 3
    assert report.samples + report.dropped.get("no_variance", 0) == 5
    assert report.dropped["no_variance"] in (1, 5)


async def hang(episode: ScoredEpisode) -> float:
    await asyncio.sleep(3600)
    return 1.0


def test_a_reward_function_that_hangs_is_a_failed_reward(tmp_path: Path) -> None:
    reward = Rubric(Part("slow", hang, timeout=0.05))
    trainer = AgentTrainer(small_agent(), {**QUICK, "steps": 1, "final_tasks": 1}, reward, letters(), run_path=tmp_path)
    with pytest.raises(TrainingError, match=r"reward 'slow': No value within 0.05 s"):
        trainer.train()
