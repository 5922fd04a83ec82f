"""Tasksets of verifiers for the tests: boxes with hidden digits, and kinds that cannot be carried over."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

vf: Any = import_module("verifiers.v1")


class Data(vf.TaskData):
    answer: str = ""


class Seen(vf.State):
    looked: int = 0


class Box(vf.Toolset[vf.ToolsetConfig, Seen]):
    """A tool server with a secret of the task, and a count in the state of the rollout."""

    async def setup_task(self, task: Any) -> None:
        self.secret = task.answer

    @vf.tool
    def look(self, place: int) -> str:
        """Look at a place.

        Args:
            place: From 0.
        """
        self.state.looked += 1
        return self.secret[place]


class Find(vf.Task[Data, Seen]):
    async def setup(self, trace: Any) -> None:
        trace.info["prepared"] = True

    @vf.reward(weight=2.0)
    async def correct(self, trace: Any) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward
    async def polite(self, task: Any, trace: Any) -> float:
        assert trace.info["prepared"]
        if task.answer == trace.last_reply[::-1]:
            raise ValueError("backwards")
        return 0.5

    @vf.metric
    async def looked(self, trace: Any) -> float:
        assert len(trace.tool_messages) == trace.state.looked
        assert trace.num_turns == len(trace.assistant_messages)
        return trace.state.looked

    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return [Box(vf.ToolsetConfig())]


class Boxes(vf.Taskset[Find]):
    def load(self) -> Iterator[Any]:
        for number in range(60):
            yield Find(Data(prompt=f"What is in box {number}?", answer=f"{number:02}"), self.config.task)


class Endless(vf.Taskset[Find]):
    INFINITE = True

    def load(self) -> Iterator[Any]:
        number = 0
        while True:
            number += 1
            yield Find(Data(prompt=f"What is in box {number}?", answer=f"{number:02}"), self.config.task)


class Stopping(Find):
    @vf.stop
    async def enough(self, trace: Any) -> bool:
        return trace.num_turns > 3


class Grading(Find):
    @vf.reward
    async def graded(self, trace: Any, runtime: Any) -> float:
        return 1.0


class Boxed(Find):
    NEEDS_CONTAINER = True


class Elsewhere(Find):
    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return [Box(vf.ToolsetConfig(url="http://127.0.0.1:1"))]


def taskset(kind: Any = Find, **fields: Any) -> Any:
    """A taskset of one task of some kind, with further fields of its data."""

    class Own(vf.Taskset[kind]):
        def load(self) -> Iterator[Any]:
            yield kind(Data(**{"prompt": "What?", "answer": "1", **fields}), self.config.task)

    return Own(vf.TasksetConfig(id="own"))


__all__ = ["Boxes"]
