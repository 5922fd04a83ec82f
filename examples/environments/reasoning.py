"""Tasks of reasoning-gym with its own scorer: two sums a task, answered by a rule that adds and errs now and then.

    python examples/environments/reasoning.py

Needs no key. In place of the rule stands any model: `Agent("thinker")` asks the one in LLM_MODEL_NAME.
"""

from __future__ import annotations

import asyncio
import re

from aworld.agents.llm_agent import Agent
from aworld.core.model import ModelRequest
from aworld.environments import Report, rollouts
from aworld.environments.adapters.reasoning_gym import reasoning_gym_environment
from aworld.models.doubles import FunctionModel, Said

sums = reasoning_gym_environment("chain_sum", min_terms=2, max_terms=3, min_digits=1, max_digits=2)


def rule(request: ModelRequest) -> Said:
    """Adds what it reads, and takes every minus for a plus."""
    numbers = re.findall(r"\d+", request.messages[-1].text.partition(":")[2])
    return f"That is easy. <answer>{sum(map(int, numbers))}</answer>"


async def main() -> None:
    """Answer a hundred held-out questions, once each."""
    report = Report(sums)
    async for rollout in rollouts(sums, Agent("adder", model=FunctionModel(rule)), sums.problems("test", 100, seed=0)):
        report.add(rollout)
    print(f"{report.episodes} questions of {sums.name}, right in {report.pass_at(1):.0%}")


if __name__ == "__main__":
    asyncio.run(main())
