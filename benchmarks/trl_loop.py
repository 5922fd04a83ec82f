"""TRL's own tool loop against ours: the same task, policy, trainer and settings; success for each CPU-second.

    .venvs/trl/bin/python benchmarks/trl_loop.py [--steps 50] [--seeds 5] [--arms tools,aworld,embedded]

`tools` is TRL's `GRPOTrainer(tools=[...])`, which generates, parses and calls tools by itself. `aworld` is the engine
`trl`: the same `GRPOTrainer`, with the episodes run (and recorded in SQLite) by our runtime. `embedded` is our own
trainer in NumPy, for comparison. Each arm and seed is a process of its own with one thread. CPU is that of the training
loop alone: no imports, no evaluation. Both arms of TRL are measured by the same code, on 400 held-out problems.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROBLEMS = 400
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How TRL is to read what the policy writes; it knows the templates of large models only."""


def add(a: int, b: int) -> int:
    """
    The sum of two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def subtract(a: int, b: int) -> int:
    """
    The first number less the second.

    Args:
        a: The first.
        b: The second.
    """
    return a - b


def multiply(a: int, b: int) -> int:
    """
    The product of two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


def exact(completions: list[list[dict[str, Any]]], answer: list[str], **_: Any) -> list[float]:
    """The reward of the environment `sums`: the number and nothing else, computed by a tool."""
    return [
        float(len(said) > 1 and any(m["role"] == "tool" for m in said) and said[-1].get("content") == right)
        for said, right in zip(completions, answer)
    ]


def settings(steps: int, seed: int) -> Any:
    """The settings of every arm."""
    from aworld.training import TrainingConfig

    return TrainingConfig(
        steps=steps, groups=16, seed=seed, learning_rate=3e-4, evaluate_every=0, final_tasks=PROBLEMS,
        checkpoint_every=0, max_completion_tokens=64,
    )  # fmt: skip


def with_tools(steps: int, seed: int) -> dict[str, Any]:
    """Train by TRL's own tool loop."""
    import datasets
    import trl

    from aworld.agents.llm_agent import Agent
    from aworld.environments.sums import sums
    from aworld.training.steps import problems_of
    from aworld.training.trl.trained_policy import policy_of
    from aworld.training.trl.trl_engine import grpo_arguments

    config, environment = settings(steps, seed), sums()
    agent: Any = Agent("calculator", model="embedded")
    with tempfile.TemporaryDirectory() as folder:
        policy = policy_of(agent.model, Path(folder, "start"))
        policy.tokenizer.response_template = RESPONSE_TEMPLATE
        policy.tokenizer.padding_side = "left"
        problems = [p for step in range(1, steps + 1) for p in problems_of(environment, config, step)]
        rows = {
            "prompt": [[{"role": "user", "content": problem.input}] for problem in problems],
            "answer": [problem.answer for problem in problems],
        }
        arguments = {
            **grpo_arguments(config, Path(folder), on_cpu=True),
            "max_completion_length": 160,  # both turns and what is read between them
            "max_tool_calling_iterations": 3,  # as the environment's `max_steps`
        }
        trainer = trl.GRPOTrainer(
            model=policy.module, args=trl.GRPOConfig(**arguments), train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=policy.tokenizer, reward_funcs=exact, tools=[add, subtract, multiply],
        )  # fmt: skip
        before = asyncio.run(measured(policy.model, seed))
        cpu, wall = time.process_time(), time.monotonic()
        trainer.train()
        spent = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
        policy.refresh("trained")
        after = asyncio.run(measured(policy.model, seed))
    return {"before": before, "after": after, **spent}


async def measured(model: Any, seed_of_run: int) -> dict[str, float]:
    """Success on the held-out problems, greedy and sampled."""
    from aworld.agents.llm_agent import Agent
    from aworld.environments.environment import derived_seed
    from aworld.environments.sums import sums
    from aworld.training.evaluation import evaluate, held_out_problems

    environment = sums()
    problems = held_out_problems(environment, PROBLEMS)
    agent = Agent("calculator", model=model)
    found: dict[str, float] = {}
    for mode in ("greedy", "sampled"):
        seed = derived_seed(seed_of_run, "evaluation")  # as the engines draw theirs
        found[mode] = (await evaluate(environment, agent, problems, mode=mode, seed=seed)).success
    return found


def by_engine(name: str) -> Callable[[int, int], dict[str, Any]]:
    """Train by one of our engines."""

    def run(steps: int, seed: int) -> dict[str, Any]:
        from aworld.agents.llm_agent import Agent
        from aworld.environments.sums import sums
        from aworld.training.result import Evaluated, Stepped
        from aworld.training.trainer import AgentTrainer

        marks: list[tuple[str, float, float]] = []

        def mark(event: object) -> None:
            kind = "evaluated" if isinstance(event, Evaluated) else "stepped" if isinstance(event, Stepped) else ""
            marks.append((kind, time.process_time(), time.monotonic()))

        with tempfile.TemporaryDirectory() as folder:
            result = AgentTrainer(
                agent=Agent("calculator", model="embedded"), config=settings(steps, seed), train_dataset=sums(),
                train_engine_name=name, run_path=folder, on_event=mark,
            ).train()  # fmt: skip
        last = max(place for place, found in enumerate(marks) if found[0] == "stepped")
        first = max(place for place, found in enumerate(marks[:last]) if found[0] == "evaluated")
        modes: Any = ("greedy", "sampled")
        return {
            "before": {mode: result.before(mode).success for mode in modes},  # type: ignore[union-attr]
            "after": {mode: result.after(mode).success for mode in modes},  # type: ignore[union-attr]
            "cpu": marks[last][1] - marks[first][1],
            "wall": marks[last][2] - marks[first][2],
        }

    return run


ARMS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "tools": with_tools,
    "aworld": by_engine("trl"),
    "embedded": by_engine("embedded"),
}


def one(arm: str, steps: int, seed: int) -> dict[str, Any]:
    """An arm with a seed, in a process of its own."""
    here = Path(__file__).resolve()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent.parent)}
    command = [sys.executable, str(here), "--arm", arm, "--steps", str(steps), "--seed", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arm}, seed {seed}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run every arm with every seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default="tools,aworld,embedded")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(ARMS[given.arm](given.steps, given.seed)))
        return
    print(f"{'arm':10}{'seed':>5}{'greedy':>16}{'sampled':>16}{'CPU s':>9}{'success gained a CPU-second':>30}")
    for arm in given.arms.split(","):
        for seed in range(given.seeds):
            found = one(arm, given.steps, seed)
            before, after = found["before"], found["after"]
            rate = (after["sampled"] - before["sampled"]) / found["cpu"]
            change = [f"{before[mode]:.3f} → {after[mode]:.3f}" for mode in ("greedy", "sampled")]
            print(f"{arm:10}{seed:>5}{change[0]:>16}{change[1]:>16}{found['cpu']:>9.1f}{rate:>30.4f}", flush=True)


if __name__ == "__main__":
    main()
