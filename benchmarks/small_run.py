"""What the smallest run takes: an agent, one tool, an answer; a scripted model, the log in memory.

    python benchmarks/small_run.py [--list]

Prints the Python calls inside the package (each function that is entered; a coroutine that goes on and a comprehension
are none) and the modules that they are in. `--list` says which.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from types import FrameType

from aworld.agents.llm_agent import Agent
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def counted(agent: Agent) -> Counter[tuple[str, str]]:
    """Module and name of each call of one run."""
    frames: dict[int, FrameType] = {}  # kept, so that no two have the same address

    def entered(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/aworld/" in frame.f_code.co_filename and not frame.f_code.co_name.endswith("comp>"):
            frames[id(frame)] = frame

    sys.setprofile(entered)
    try:
        await Runners.run("1 + 2?", agent)
    finally:
        sys.setprofile(None)
    codes = [frame.f_code for frame in frames.values()]
    return Counter((code.co_filename.rpartition("/aworld/")[2], code.co_qualname) for code in codes)


async def main() -> None:
    """Run once to warm up, once to count."""
    agent = Agent("adder", model=ScriptedModel([call("add", a=1, b=2), "3"]), tools=[add])
    await Runners.run("1 + 2?", agent)
    calls = await counted(agent)
    if "--list" in sys.argv:
        for (module, name), times in sorted(calls.items(), key=lambda item: (item[0][0], -item[1])):
            print(f"{times:4} {module}  {name}")
    print(f"{calls.total()} calls in {len({module for module, _ in calls})} modules")


asyncio.run(main())
