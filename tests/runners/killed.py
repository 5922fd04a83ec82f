"""The process that the kill test kills: begins 200 tasks, or goes on with those of the store.

It prints a line for every tool call that took effect, and for every run that was acknowledged as ended.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import Any

from aworld.config import RunConfig
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import ToolContext
from aworld.core.tool.func_to_tool import tool
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.runners.scenes import thinking

TASKS = 200
STEPS = 4
STORE, EFFECTS = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def tell(line: str) -> None:
    """One write, so that a kill leaves whole lines."""
    os.write(1, f"{line}\n".encode())


@tool
def pay(amount: int, at: ToolContext) -> str:
    """Has an effect that must not happen twice."""
    os.write(EFFECTS, f"{at.trajectory_id} {at.step} {at.call_id} {amount}\n".encode())
    tell("effect")
    return f"paid {amount}"


@tool(idempotent=True)
async def look(number: int) -> str:
    """May happen twice."""
    await asyncio.sleep(0.001)
    return f"seen {number}"


async def think(request: ModelRequest) -> Any:
    """Pays and looks, four times; then says how often it was answered."""
    await asyncio.sleep(random.uniform(0.01, 0.08))
    if request.turn < STEPS:
        return [call("pay", amount=request.turn), call("look", number=request.turn)]
    return f"{sum(message.role == 'tool' for message in request.messages)} answers"


def done(response: TaskResponse) -> None:
    """Acknowledge."""
    tell(f"ended {response.id} {response.status}")
    if not response.success:
        tell(f"why {response.msg}")


async def main() -> None:
    """Begin, or go on."""
    agent = thinking(think, tools=[pay, look], name="payer")
    if sys.argv[3] == "begin":
        tasks = [Task(f"task {number}", agent, id=f"t{number}") for number in range(TASKS)]
        await Runners.run_task(tasks, RunConfig(store=STORE), on_done=done)
    else:
        report = await Runners.resume_all(STORE, [agent])
        for response in report.responses.values():
            done(response)
        tell(f"report {report.finished} {report.failed} {report.left}")


if __name__ == "__main__":
    asyncio.run(main())
