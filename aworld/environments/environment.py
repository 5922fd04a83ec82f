"""Environments: problems, the tools and state of an episode, its reward and its limits, in one value.

An environment holds no run state: each task gets a session of its own, so one environment serves any number of
episodes at once. Run its tasks with `Runners`, many of them with `aworld.environments.rollouts`, or drive an episode
by hand with `aworld.environments.EpisodeEnv`.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.exceptions import ConfigError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Content, Text
from aworld.core.model import ModelRequest
from aworld.core.task import Task
from aworld.environments.problem import (
    SAMPLE,
    Generator,
    HashSide,
    Key,
    Problem,
    Source,
    Split,
    as_problem,
    as_source,
    check_takes_one,
    content_key,
    digest_of,
    ends,
    never_meet,
    taken,
)
from aworld.environments.rubric import Part, Rubric, Scorer, as_rubric
from aworld.environments.session import ProblemEnvironment, Session

__all__ = ["Environment", "Problem", "Session"]

Problems = Iterable[Problem | dict[str, Any]] | Generator


class Environment:
    """Problems, tools, state, reward and limits.

    Args:
        name: Names the environment in the log.
        train: The problems to learn from: a list, or a function of a seed that makes them, endless or not.
        test: The held-out problems, likewise. None of them may be in `train`.
        session: Makes the state of an episode from a problem, such as a subclass of `Session`.
        tools: Tools without state, the same for every episode; added to those of the agent and of the session.
        rubric: How an episode is rewarded: a rubric, a part, or a function of the episode.
        system_prompt: Put before the agent's own.
        conf: Limits of an episode.
        key: What makes two problems the same; by default what is asked and the data behind it.
    """

    def __init__(
        self,
        name: str,
        *,
        train: Problems = (),
        test: Problems = (),
        session: Callable[[Problem], Session] | None = None,
        tools: Sequence[Any] = (),
        rubric: Rubric | Part | Scorer | Sequence[Part | Scorer] | None = None,
        system_prompt: str | None = None,
        conf: TaskConfig | dict[str, Any] | None = None,
        key: Key = content_key,
    ) -> None:
        if not name or not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"An environment needs a name; got {name!r}.")
        if session is not None and not callable(session):
            raise ConfigError(
                f"Environment {name!r}: session takes a class or function of a problem, of which each episode makes a "
                f"session of its own; got {session!r}."
            )
        if session is not None:
            check_takes_one(session, f"Environment {name!r}, session", "the problem")
        self.name = name
        self.train: Source = as_source(train, f"train of environment {name!r}")
        if not callable(self.train) and not self.train and train != ():
            raise ConfigError(f"train of environment {name!r} is empty; give at least one problem, or leave it out.")
        self.test: Source = as_source(test, f"test of environment {name!r}")
        self.session = session
        self.tools = tuple(tools)
        try:
            self.rubric = as_rubric(rubric)
        except ConfigError as error:
            raise ConfigError(f"Environment {name!r}, rubric: {error}") from None
        self.system_prompt = system_prompt
        self.conf = TaskConfig(**conf) if isinstance(conf, dict) else (conf or TaskConfig())
        self.key = key
        self._digests: dict[Split, set[bytes]] = {}
        self._checked = False
        self._prompted: weakref.WeakKeyDictionary[BaseAgent, BaseAgent] = weakref.WeakKeyDictionary()
        if not callable(self.train) and not callable(self.test):  # of streams, when problems are drawn
            self.check_disjoint()

    def problems(
        self, split: Split = "train", n: int | None = None, seed: int | None = None, *, fewer: bool = False
    ) -> list[Problem]:
        """`n` problems of a split; the same ones for the same seed.

        A list is given in its order, or shuffled by `seed`; `n` None means all of it. Raises ConfigError when there are
        not enough, unless `fewer` will do, or when a problem to learn from is also held out.
        """
        if split not in ("train", "test"):
            raise ConfigError(f"split={split!r}: an environment has 'train' and 'test'.")
        if n is not None and n < 0:
            raise ConfigError(f"problems(n={n}): not a number of problems.")
        source = self.train if split == "train" else self.test
        problems = taken(source, n, seed, f"{split} of environment {self.name!r}", fewer=fewer)
        if split == "train" and callable(source) and not never_meet(self.train, self.test):
            self._refuse_held_out(problems)
        return problems

    def split_of(self, problem: Problem) -> Split | None:
        """The split that a problem is of, by its content; None for one of neither, and where a stream cannot tell."""
        sources: dict[Split, Source] = {"test": self.test, "train": self.train}
        for split, source in sources.items():
            if isinstance(source, HashSide):
                if problem in source:
                    return split
            elif not callable(source) and digest_of(problem, self.key) in self._digests_of(split):
                return split
        return None

    @cached_property
    def endless(self) -> bool:
        """Whether nobody has seen the training problems come to an end: a function's first 1000 are looked at."""
        return not ends(self.train)

    def check_disjoint(self, n: int = SAMPLE, seed: int = 0) -> None:
        """Refuse a training set that has a problem of the held-out set. Of streams, at most `n` are looked at.

        Raises ConfigError that shows one.
        """
        if self._checked or never_meet(self.train, self.test):
            return
        self._refuse_held_out(self._looked_at("train", n, seed), n, seed)
        self._checked = True

    def _refuse_held_out(self, problems: Sequence[Problem], n: int = SAMPLE, seed: int = 0) -> None:
        held_out = self._digests_of("test", n, seed)
        twice = [problem for problem in problems if digest_of(problem, self.key) in held_out]
        if twice:
            shown = msgspec.json.encode(twice[0].input, enc_hook=repr).decode()
            raise ConfigError(
                f"Environment {self.name!r}: {len(twice)} of {len(problems)} training problems are held out too, such "
                f"as {twice[0].id!r}: {shown:.300}. Take them out of one of the two, or make both with split_by_hash."
            )

    def _digests_of(self, split: Split, n: int = SAMPLE, seed: int = 0) -> set[bytes]:
        """The digests of a split: of a list of all problems, of a stream of those that are looked at first."""
        if split not in self._digests:
            self._digests[split] = {digest_of(problem, self.key) for problem in self._looked_at(split, n, seed)}
        return self._digests[split]

    def _looked_at(self, split: Split, n: int, seed: int) -> Sequence[Problem]:
        source = self.train if split == "train" else self.test
        where = f"{split} of environment {self.name!r}"
        return taken(source, n, seed, where, fewer=True) if callable(source) else source

    def task(
        self,
        problem: Problem | dict[str, Any],
        agent: Any,
        *,
        id: str | None = None,
        group_id: str | None = None,
        seed: int | None = None,
        hooks: Sequence[Hooks] = (),
        **fields: Any,
    ) -> Task:
        """A task: this problem, in a session of its own, under the limits of the environment, scored at its end.

        `agent` is an agent or a swarm. `seed` goes to the session and, one derived for each turn, with every request to
        the model. `fields` are further arguments of `Task`; `conf` takes the place of the environment's.
        """
        problem = as_problem(problem)
        environment = ProblemEnvironment(self, problem, seed)
        unit, content = self._prompt(agent, problem.input)
        return Task(
            content if isinstance(content, str) else list(content),
            swarm=unit,
            conf=fields.pop("conf", None) or self.conf,
            id=id,
            name=fields.pop("name", None) or f"{self.name}/{problem.id}",
            group_id=group_id,
            tools=[*self.tools, *fields.pop("tools", ()), *((environment,) if self.session is not None else ())],
            hooks=[*hooks, *((Seeds(seed),) if seed is not None else ())],
            environment=environment,
            **fields,
        )

    def _prompt(self, agent: Any, input: Content) -> tuple[Any, Content]:
        """The agent with the system prompt of the environment; a team is told it before the input."""
        prompt = self.system_prompt
        if not prompt:
            return agent, input
        if not isinstance(agent, BaseAgent):
            return agent, f"{prompt}\n\n{input}" if isinstance(input, str) else (Text(f"{prompt}\n\n"), *input)
        prompted = self._prompted.get(agent)
        if prompted is None:
            agents_prompt = agent.system_prompt
            prompted = agent.with_system_prompt(f"{prompt}\n\n{agents_prompt}" if agents_prompt else prompt)
            self._prompted[agent] = prompted
        return prompted, input

    def __repr__(self) -> str:
        return f"<Environment {self.name!r}>"


class Seeds(Hooks):
    """Sends a seed with every request to a model, derived from the seed of the episode, the agent and the turn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
        """Add the seed."""
        seed = derived_seed(self.seed, request.agent, request.turn)
        return msgspec.structs.replace(request, params={**request.params, "seed": seed})


def derived_seed(*parts: object) -> int:
    """A number of 31 bits that depends on all parts and nothing else."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") & 0x7FFFFFFF
