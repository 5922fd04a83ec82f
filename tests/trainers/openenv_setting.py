"""Servers of the real OpenEnv for the tests: a counter with an action of its own, and a shelf with tools by MCP."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

types: Any = import_module("openenv.core.env_server.types")
interfaces: Any = import_module("openenv.core.env_server.interfaces")
http_server: Any = import_module("openenv.core.env_server.http_server")

GOAL = {"train": [3, 4, 5], "test": [6, 7]}


class Add(types.Action):
    amount: int


class Count(types.Observation):
    count: int
    goal: int


class Counter(interfaces.Environment):
    """Reach the goal by adding to the count."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    count = 0
    goal = 0

    def reset(self, seed: int | None = None, split: str | None = None, index: int | None = None, **_: Any) -> Any:
        self.count = 0
        self.goal = GOAL[split][index or 0] if split else (seed or 0) % 5 + 1
        return Count(count=0, goal=self.goal)

    def step(self, action: Any, timeout_s: float | None = None, **_: Any) -> Any:
        if action.amount == 13:
            raise RuntimeError("thirteen breaks the counter")
        self.count += action.amount
        done = self.count >= self.goal
        return Count(
            count=self.count, goal=self.goal, done=done, reward=float(self.count == self.goal) if done else 0.0
        )

    @property
    def state(self) -> Any:
        return types.State(step_count=self.count)


class Tasks(Counter):
    """The same, with tasks."""

    def list_splits(self) -> list[str]:
        return list(GOAL)

    def list_tasks(self, split: str) -> list[Any]:
        return [{"id": f"{split}-{n}", "goal": goal} for n, goal in enumerate(GOAL[split])]

    def num_tasks(self, split: str) -> int:
        return len(GOAL[split])

    def get_task(self, split: str, index: int) -> Any:
        return self.list_tasks(split)[index]

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[Any]:
        return self.list_tasks(split)[start:stop]


class Exam(Tasks):
    """The same, with nothing to learn from."""

    def list_splits(self) -> list[str]:
        return ["test"]


def shelf() -> Any:
    """An environment whose tools are those of an MCP server."""
    fastmcp, mcp_environment = import_module("fastmcp"), import_module("openenv.core.env_server.mcp_environment")

    class Shelf(mcp_environment.MCPEnvironment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            server = fastmcp.FastMCP("shelf")
            things: list[str] = []

            def put(thing: str) -> list[str]:
                """Put a thing on the shelf."""
                things.append(thing)
                return list(things)

            def drop() -> str:
                """Drop it all."""
                raise ValueError("it is screwed to the wall")

            for function in (put, drop):
                server.tool(function)
            mcp_environment.MCPEnvironment.__init__(self, server)

        def reset(self, seed: int | None = None, **_: Any) -> Any:
            return types.Observation(metadata={"shelf": "empty"})

        def _step_impl(self, action: Any, timeout_s: float | None = None, **_: Any) -> Any:
            raise ValueError("only tools")

        @property
        def state(self) -> Any:
            return types.State()

    return Shelf


def serve(kind: str, port: int) -> None:
    """Serve one of them until the process is ended."""
    mcp_types = import_module("openenv.core.env_server.mcp_types")
    if kind == "shelf":
        app = http_server.create_fastapi_app(
            shelf(), mcp_types.CallToolAction, mcp_types.CallToolObservation, max_concurrent_envs=50
        )
    else:
        app = http_server.create_fastapi_app(
            {"counter": Counter, "tasks": Tasks, "exam": Exam}[kind], Add, Count, max_concurrent_envs=50
        )
    import_module("uvicorn").run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
