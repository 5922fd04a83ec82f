"""A policy that has learnt nothing yet, and an environment in which it learns something within a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from aworld.core.message import Message
from aworld.environments import Environment, Problem, ScoredEpisode, Session
from aworld.models.embedded.checkpoint import Policy
from aworld.training.embedded.make_policy import make_policy

TURNS = 3


@cache
def pupil() -> Policy:
    """Random weights behind the tokenizer and template of the packaged policy."""
    return make_policy(steps=0)


class Conversation(Session):
    """Goes on for three turns."""

    said = 0

    async def respond(self, message: Message) -> str | None:
        self.said += 1
        return f"And then, after {self.said}?" if self.said < TURNS else None


def words(episode: ScoredEpisode) -> float:
    """Share of small letters in what the policy wrote, which random weights can only find by chance."""
    said = [node.message.text for node in episode.record.messages.values() if node.message.role == "assistant"]
    text = "".join(said)
    return sum(letter.islower() for letter in text) / max(1, len(text))


def unsure(episode: ScoredEpisode) -> float:
    """The same, but every fourth problem cannot be judged."""
    if int(episode.problem.id) % 4 == 0:
        raise RuntimeError("the judge is away")
    return words(episode)


def problems(seed: int) -> Iterator[Problem]:
    number = 1_000_000 * seed
    while True:
        yield Problem(id=str(number), input=f"Tell me about {number}.")
        number += 1


def chatter(rubric: object = words) -> Environment:
    return Environment("chatter", train=problems, session=Conversation, rubric=rubric, system_prompt="Write words.")  # pyright: ignore[reportArgumentType]
