"""A text game, scored on the way. In this folder (`--model local` plays without a key):
aworld rollout dungeon:dungeon --agent dungeon:bot --samples 4
"""

import os

from aworld import Agent, tool
from aworld.environments import Environment, Problem, ScoredEpisode, Session
from aworld.models.doubles import FunctionModel, call

WAYS = {"hall": {"east": "cave", "north": "attic"}, "cave": {"west": "hall", "down": "vault"}, "attic": {}, "vault": {}}


class Dungeon(Session):
    """Where the player stands."""

    room = "hall"

    @tool(inline=True)
    def go(self, way: str) -> str:
        """Go east, west, north or down, as the rooms have ways."""
        self.room = WAYS[self.room][way]  # an unknown way is told to the player
        self.reward(0.1 if self.room in ("cave", "vault") else -0.1, name="explored")
        return f"You are in the {self.room}. It has {self.problem.answer if self.room == 'vault' else 'nothing'}."

    @tool(inline=True)
    def take(self, thing: str) -> None:
        """Take something out of the room; it ends the game."""
        self.finish(thing if self.room == "vault" else "nothing")


def solved(episode: ScoredEpisode) -> bool:
    return episode.text == episode.problem.answer


GAMES = [Problem(it, f"You are in the hall. Find the {it}, and take it.", it) for it in ("gold", "lamp", "map")]
dungeon = Environment("dungeon", train=GAMES[:2], test=GAMES[2:], session=Dungeon, rubric=solved)
moves = [[call("go", way="east")], [call("go", way="down")], [call("take", thing="gold")]]  # never the lamp
bot = Agent("bot", model=None if os.environ.get("LLM_MODEL_NAME") else FunctionModel(lambda r: moves[r.turn]))
