"""A planner and four researchers answer 200 questions. Killed and started again, it does what is left."""

import asyncio
import os

from pydantic import BaseModel

from aworld import Agent, Runners
from aworld.config import RunConfig
from aworld.core.agent.swarm import TeamSwarm
from aworld.core.model import ModelRequest
from aworld.models.doubles import FunctionModel, Said, call

FIELDS = ("history", "nature", "people", "trade")


class Report(BaseModel):
    """What the planner hands in."""

    summary: str
    sources: int


def plan(request: ModelRequest) -> Said:
    if request.turn == 0:
        return [call(field, input=request.messages[-1].text) for field in FIELDS]
    return Report(summary=request.messages[-1].text, sources=len(FIELDS)).model_dump_json()


# Without a model, functions stand in for it.
models = (None, None) if os.environ.get("LLM_MODEL_NAME") else (FunctionModel(plan), FunctionModel(lambda _: "a fact"))
researchers = [Agent(field, desc=f"Knows the {field} of a place.", model=models[1]) for field in FIELDS]
planner = Agent("planner", system_prompt="Ask all four, then sum up.", output_type=Report, model=models[0])
questions = [f"Tell me about place {number}." for number in range(200)]
conf = RunConfig(store="sqlite:///survey.db", max_tokens=2_000_000)  # all together; max_cost=5.0 where prices are known
print(asyncio.run(Runners.run_many(questions, swarm=TeamSwarm(planner, *researchers), run="survey", run_conf=conf)))
# aworld trajectories export --store survey.db --label run=survey --format openai --output survey.jsonl
