"""The front door: every argument is checked, and the message names it and says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig
from aworld.core.exceptions import ConfigError
from aworld.environments import Environment, Part, Problem, Rubric, ScoredEpisode
from aworld.models import ScriptedModel
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.runner import Runners
from aworld.training import AgentTrainer, TrainingJob, TrainingResult, register_processor, registry
from aworld.training.result import Evaluation, StepReport
from tests.training.small import QUICK, always, letters, says_low, small_agent, small_policy

ROWS = [{"input": "say 1", "level": 3}, {"input": "say 2"}]


class Watched:
    """An engine that does nothing, and shows what it was given."""

    name = "watched"
    jobs: list[TrainingJob] = []

    def check(self, job: TrainingJob) -> None:
        self.jobs.append(job)

    async def train(self, job: TrainingJob) -> TrainingResult:
        return TrainingResult(
            engine="watched",
            policy=str(job.policy_path),
            run_path=str(job.run_path),
            steps=1,
            history=(StepReport(step=1, episodes=4, score=0.5, success=0.5, samples=4),),
            evaluations=(Evaluation(step=0, mode="greedy", outcomes={"a": False}),),
        )


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_engines", dict(registry._engines))
    monkeypatch.setattr(Watched, "jobs", [])
    register_processor("watched", Watched)


def job_of(path: Path, **given: Any) -> TrainingJob:
    arguments: dict[str, Any] = {
        "agent": small_agent(), "config": QUICK, "train_dataset": letters(), "train_engine_name": "watched",
        "run_path": path, **given,
    }  # fmt: skip
    return AgentTrainer(**arguments).job


def pair(one: ScoredEpisode, other: ScoredEpisode) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"agent": "me"}, "agent takes"),
        ({"agent": Agent("a", AgentConfig(llm_provider="nobody"))}, "agent='a' cannot run"),
        ({"config": {"stepz": 1}}, "did you mean 'steps'"),
        ({"config": 3}, "config takes"),
        ({"config": {**QUICK, "samples": 1}}, "config.samples=1: .* one alone teaches nothing"),
        ({"config": {**QUICK, "samples": 1, "advantages": "raw"}}, "config.samples=1"),
        ({"train_dataset": None}, "train_dataset is missing"),
        ({"train_dataset": 7}, "train_dataset takes"),
        ({"train_dataset": {"input": "a"}}, "train_dataset takes"),
        ({"train_dataset": [], "reward_func": says_low}, "train_dataset is empty"),
        ({"train_dataset": [{"question": "a"}], "reward_func": says_low}, "needs at least an 'input'"),
        ({"train_dataset": "problems.csv", "reward_func": says_low}, ".jsonl or .parquet"),
        ({"train_dataset": "nowhere.jsonl", "reward_func": says_low}, "no such file"),
        ({"train_dataset": ROWS}, "reward_func is missing"),
        ({"train_dataset": Environment("bare", train=ROWS)}, "environment 'bare' has no rubric"),
        ({"train_dataset": Environment("bare", test=ROWS), "reward_func": says_low}, "no training problems"),
        ({"reward_func": 1.0}, "reward_func takes"),
        ({"reward_func": pair}, r"reward_func: .*one argument, the episode, and pair.* cannot be"),
        ({"reward_func": lambda: 1.0}, "called with one argument, the episode"),
        ({"test_dataset": 7}, "test_dataset takes"),
        ({"test_dataset": Environment("bare", test=ROWS)}, "'bare' has no rubric"),
        ({"test_dataset": Environment("bare", train=ROWS, rubric=says_low)}, "no held-out problems"),
        ({"train_engine_name": "watchd"}, "did you mean 'watched'"),
        ({"run_path": 3}, "run_path takes"),
        ({"run_path": ""}, "run_path takes"),
        ({"run_path": __file__}, "is a file"),
        ({"run_path": Path(__file__).parent}, "holds other things"),
        ({"on_event": 3}, "on_event=3; give a function"),
    ],
)
def test_an_argument_that_cannot_work_is_named(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        job_of(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_an_agent_that_asks_another_model_is_refused_by_the_embedded_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody here asks it"):
        job_of(tmp_path, agent=Agent("a", model=ScriptedModel(["x"])), train_engine_name="embedded")


def test_problems_that_are_held_out_too_are_refused(tmp_path: Path) -> None:
    again = [{"id": "another", "input": "  SAY 2 "}]
    with pytest.raises(ConfigError, match="held out too"):
        job_of(tmp_path, train_dataset=ROWS, test_dataset=again, reward_func=says_low)
    environment = Environment("other", test=[Problem("x", "say 3")], rubric=says_low)
    with pytest.raises(ConfigError, match="held out too"):
        job_of(tmp_path, train_dataset=letters(), test_dataset=environment)


def test_datasets_become_environments(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    for given in (ROWS, path, str(path), tuple(ROWS)):
        job = job_of(tmp_path / "run", train_dataset=given, test_dataset=[{"input": "say 9"}], reward_func=says_low)
        assert [problem.input for problem in job.environment.problems("train")] == ["say 1", "say 2"]
        assert job.environment.problems("train")[0].data == {"level": 3}
        assert job.held_out is not None
        assert [problem.input for problem in job.held_out.problems("test")] == ["say 9"]
        assert job.environment.rubric is not None


def test_a_dataset_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    table: Any = pa
    parquet.write_table(table.Table.from_pylist(ROWS), path)  # pyright: ignore[reportUnknownMemberType]
    job = job_of(tmp_path / "run", train_dataset=path, reward_func=says_low)
    assert [problem.input for problem in job.environment.problems("train")] == ["say 1", "say 2"]
    path.write_text("no parquet")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        job_of(tmp_path / "run", train_dataset=path, reward_func=says_low)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "a"}\n{"input"\n')
    with pytest.raises(ConfigError, match="line 2"):
        job_of(tmp_path / "run", train_dataset=path, reward_func=says_low)


def test_a_reward_function_goes_before_the_rubric_whose_parts_stay_as_figures(tmp_path: Path) -> None:
    job = job_of(tmp_path, reward_func=always)
    assert repr(job.environment.rubric) == "Rubric(always × 1, right × 0)"
    assert job.held_out is job.environment
    named = job_of(tmp_path, reward_func=Part("right", always))
    assert repr(named.environment.rubric) == "Rubric(right × 1, right of the environment × 0)"
    own = Rubric(says_low)
    assert job_of(tmp_path, reward_func=own).environment.rubric is own
    assert job_of(tmp_path).environment.rubric is not None


def test_a_reward_that_is_gamed_is_seen_on_held_out_problems(tmp_path: Path) -> None:
    """The reward is always earned; the environment's own says that half of what is said is wrong."""
    given: dict[str, Any] = {"train_dataset": letters(), "reward_func": always, "train_engine_name": "embedded"}
    result = AgentTrainer(small_agent(), {**QUICK, "steps": 0, "final_tasks": 6}, run_path=tmp_path, **given).train()
    (sampled,) = result.of_mode("sampled")
    assert (sampled.success, sampled.parts["always"]) == (1.0, 1.0)
    assert sampled.parts["right"] < 1.0


def test_a_run_folder_is_its_owners_alone(tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return path.stat().st_mode & 0o777

    given: dict[str, Any] = {"train_dataset": letters()}
    (tmp_path / "there").mkdir(mode=0o755)
    for path in (tmp_path / "runs" / "one", tmp_path / "there"):
        AgentTrainer(small_agent(), {**QUICK, "steps": 0}, run_path=path, **given).train()
        assert mode(path) == 0o700
        assert (mode(path / "episodes.db"), mode(path / "run.lock")) == (0o600, 0o600)
    assert mode(tmp_path / "runs") == 0o700
    path.chmod(0o750)  # who opens it to others finds it open when the run goes on
    AgentTrainer(small_agent(), {**QUICK, "steps": 0}, run_path=path, **given).train()
    assert mode(path) == 0o750


def test_samples_of_one_are_taken_where_nothing_is_compared(tmp_path: Path) -> None:
    taken: list[dict[str, Any]] = [{"advantages": "raw", "filters": []}, {"algorithm": "sft"}, {"steps": 0}]
    for settings in taken:
        assert job_of(tmp_path, config={**QUICK, "samples": 1, **settings}).config.samples == 1


def test_what_is_measured_less_than_one_may_think_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given: dict[str, Any] = {"train_dataset": letters(), "train_engine_name": "watched"}
    AgentTrainer(small_agent(), {"final_tasks": 6}, run_path=tmp_path / "a", **given).train()
    AgentTrainer(small_agent(), {}, run_path=tmp_path / "b", **given).train()
    assert caplog.messages == []
    AgentTrainer(small_agent(), {"final_tasks": 7}, run_path=tmp_path / "c", **given).train()
    given["train_dataset"] = ROWS
    AgentTrainer(small_agent(), {}, says_low, run_path=tmp_path / "d", **given).train()
    only, nothing = caplog.messages
    assert only == "final_tasks=7 | there are only 6 held-out problems; each is used once"
    assert nothing.startswith("test_dataset=None | ")


def test_without_held_out_problems_nothing_is_evaluated(tmp_path: Path) -> None:
    assert job_of(tmp_path, train_dataset=ROWS, reward_func=says_low).held_out is None
    result = AgentTrainer(small_agent(), {**QUICK, "steps": 1}, says_low, ROWS, run_path=tmp_path).train()
    assert (result.evaluations, result.comparisons, result.before()) == ((), (), None)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    trainer = AgentTrainer(
        small_agent(), QUICK, train_dataset=letters(), train_engine_name="watched", run_path=tmp_path / "a b%c"
    )
    result = trainer.train()
    path = Path(result.run_path)
    left = ["curve.json", "curve.svg", "result.json", "run.json", "run.lock"]
    assert sorted(each.name for each in path.iterdir()) == left
    assert TrainingResult.open(path / "result.json") == result
    assert json.loads((path / "curve.json").read_text())["training"][0]["success"] == 0.5
    with pytest.raises(ConfigError, match="engine 'watched'"):
        job_of(path, train_engine_name="embedded")


def test_a_folder_of_its_own_when_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(tmp_path, run_path=None)
    assert job.run_path.parent == tmp_path / ".aworld" / "training"


async def test_it_trains_inside_a_running_loop_too(tmp_path: Path) -> None:
    trainer = AgentTrainer(
        small_agent(), {**QUICK, "steps": 1}, train_dataset=letters(), run_path=tmp_path / "with space"
    )
    assert trainer.train().steps == 1


async def test_the_trained_policy_is_put_back_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_path = tmp_path / "run"
    result = await AgentTrainer(small_agent(), QUICK, train_dataset=letters(), run_path=run_path).train_async()
    trained = Policy.open(result.policy)
    monkeypatch.chdir(tmp_path)
    for given in (run_path, str(run_path), "run", "./run", Path("run"), f"embedded:{run_path}", result.policy):
        agent = Agent("back", AgentConfig(llm_max_tokens=4), model=given)
        assert isinstance(agent.model, EmbeddedModel)
        assert agent.model.policy.version == trained.version
    response = await Runners.run("say 1", Agent(model=run_path), conf={"max_steps": 1})
    tokens = response.record.calls[0].tokens
    assert tokens is not None
    assert tokens.policy_version == trained.version


@pytest.mark.parametrize("given", ["./nowhere", Path("nowhere"), "/nowhere"])
def test_a_folder_without_a_policy_is_named_when_the_agent_runs(given: str | Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.* is no folder of a policy"):
        Agent("a", model=given).check()


def test_a_model_that_cannot_be_one() -> None:
    with pytest.raises(ConfigError, match="model=7; give a Model"):
        Agent("a", model=7)  # pyright: ignore[reportArgumentType]


def test_a_tokenizer_of_another_policy_is_refused(tmp_path: Path) -> None:
    folder = small_policy().save(tmp_path / "mixed")
    (folder / "tokenizer.json").write_text(Policy.open().tokenizer.data)
    with pytest.raises(ConfigError, match=r"agent='a' cannot run: .*the tokenizer has"):
        job_of(tmp_path / "run", agent=Agent("a", model=folder), train_engine_name="embedded")
