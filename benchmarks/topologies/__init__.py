"""The same teams of agents, written once for each framework.

Each module here offers `async def run_one(base_url, shape) -> str`, which runs a team and returns its answer, and may
offer `run_many(base_url, shape, tasks, in_flight) -> list[str]` and `close()`. Agents, graphs and clients are made
once, so that what is measured is running them.
"""

from __future__ import annotations

from dataclasses import dataclass

from model_server import model_name

QUESTION = "Do the work that is described here, and say what you did."
KEY = "no-key"


@dataclass(frozen=True)
class Shape:
    """A topology and what its agents ask for."""

    kind: str
    """`single`, `chain`, `graph` (one, then all but two side by side, then one) or `team` (leader first)."""
    agents: int = 10
    latency: float = 0
    """Seconds that the server takes for a reply."""

    @property
    def calls(self) -> int:
        """Model calls of one run. A leader makes two: it asks its members, and answers."""
        return self.agents + (self.kind == "team")

    @property
    def ideal(self) -> float:
        """Wall seconds if the client took no time."""
        return self.latency * {"single": self.agents, "chain": self.agents, "graph": 3, "team": 3}[self.kind]

    @property
    def model(self) -> str:
        """Of an agent that answers at once."""
        return model_name(0, self.latency)

    @property
    def first_model(self) -> str:
        """Of the single agent, which makes a call a turn, or of the leader, which calls all its members in one."""
        return model_name(self.agents - 1, self.latency, team=self.kind == "team")


SHAPES: dict[str, Shape] = {
    "single": Shape("single"),
    "chain": Shape("chain"),
    "graph": Shape("graph"),
    "team": Shape("team"),
    "teams": Shape("team", agents=5, latency=1),
}
