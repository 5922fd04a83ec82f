"""What trainers of single completions get: one row an episode; and pairs of better and worse episodes."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.environments.sums import sums
from aworld.training.completions import pairs_of, rows_of
from aworld.training.registry import engine_of
from aworld.training.samples import Sample
from aworld.training.trainer import AgentTrainer
from aworld.training.verl.verl_engine import problem_of, write_dataset
from aworld.trajectory.sequences import TokenSequence


def sample(id: str, *, said: int = 3, reward: float | None = 1.0, group: str = "g", **more: Any) -> Sample:
    """A prompt of two ids, `said` sampled ones, one that was read, and one more sampled."""
    mask = (0, 0, *([1] * said), 0, 1)
    tokens = TokenSequence(
        trajectory_id=id, agent="a", activation=more.pop("activation", 0), ids=more.pop("ids", tuple(range(len(mask)))),
        mask=mask, logprobs=tuple(-0.1 if m else None for m in mask), steps=(0,), score=reward, step_scores=(None,),
        policy_versions=(None,),
    )  # fmt: skip
    token_steps = tuple(0 if m else -1 for m in mask)
    return Sample(
        tokens=tokens,
        group_id=group,
        token_steps=token_steps,
        returns=(reward,),
        places=(0,),
        afterwards=reward,
        **more,
    )


def test_a_row_begins_with_the_first_sampled_token_and_masks_what_was_read() -> None:
    given = sample("t", advantages=(0.0, 0.0, 2.0, 2.0, 2.0, 0.0, 2.0))
    (row,) = rows_of(["t"], [given], {"t": 1.0}, end_id=9).rows
    assert row.prompt_ids == [0, 1]
    assert row.completion_ids == [2, 3, 4, 5, 6]
    assert row.env_mask == [1, 1, 1, 0, 1]
    assert row.logprobs == [-0.1, -0.1, -0.1, 0.0, -0.1]
    assert row.advantages == [2.0, 2.0, 2.0, 0.0, 2.0]


def test_an_episode_of_several_rows_gives_the_longest_that_is_trained_on() -> None:
    short = sample("t", said=2, advantages=(0.0,) * 6)
    long = sample("t", said=5, activation=1)
    found = rows_of(["t", "none"], [short, long], {"t": 1.0}, end_id=9)
    assert len(found.rows[0].completion_ids) == 4, "what was filtered out does not take the place"
    assert found.left_out == 1
    assert found.empty == 1
    assert found.rows[1].env_mask == [0], "an episode without tokens weighs nothing"
    assert found.fields()["score"] == [1.0, None]


def test_pairs_are_the_best_beside_the_worst_of_a_group() -> None:
    group = [sample(f"t{n}", said=2 + n, reward=float(n)) for n in range(4)]
    found = pairs_of([*group, sample("alone", group="h")])
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in found.pairs] == [("t3", "t0", 3.0), ("t2", "t1", 1.0)]
    assert found.pairs[0].prompt_ids == [0, 1]
    assert found.pairs[0].chosen_mask == [1, 1, 1, 1, 1, 0, 1]
    assert found.groups == 2
    assert found.undecided == 1
    assert len(pairs_of(group, margin=1.0).pairs) == 1


def test_what_cannot_be_compared_is_counted() -> None:
    other = sample("other", reward=0.0, said=3, ids=(7,) * 7)
    found = pairs_of([sample("t"), other, sample("unknown", reward=None), sample("u", reward=1.0)])
    assert found.pairs == []
    assert found.other_prompts == 1
    assert found.dropped == {"failed_rewards": 1}


def test_verls_parquet_holds_the_problems(tmp_path: Path) -> None:
    parquet: Any = import_module("pyarrow.parquet")
    environment = sums()
    assert write_dataset(environment, tmp_path / "train.parquet", n=20, seed=1) == 20
    read: Any = parquet.read_table(tmp_path / "train.parquet")
    rows: list[Any] = read.to_pylist()
    problems = environment.problems("train", 20, 1)
    assert [problem_of(row["extra_info"]) for row in rows] == problems
    assert [row["reward_model"]["ground_truth"] for row in rows] == [problem.answer for problem in problems]
    assert [row["extra_info"]["index"] for row in rows] == list(range(20))
    assert rows[0]["prompt"] == [{"role": "user", "content": problems[0].input}]


@pytest.mark.parametrize("engine", ["trl", "verl"])
def test_a_missing_trainer_is_named_with_what_to_install(engine: str, tmp_path: Path) -> None:
    if find_spec(engine) is not None:
        pytest.skip(f"{engine} is installed")
    with pytest.raises(ConfigError, match=rf"pip install .*{engine}=="):
        AgentTrainer(
            agent=Agent("a", model="embedded"), train_dataset=sums(), train_engine_name=engine, run_path=tmp_path / "r"
        )
    assert engine_of(engine).name == engine
