"""Environments: problems, the tools and state of an episode, its reward and its limits, in one value.

An environment holds no run state: each task gets a session of its own, so one environment serves any number of
episodes at once. Run its tasks with `Runners`, many of them with `aworld.environments.rollouts`, or drive an episode
by hand with `aworld.environments.EpisodeEnv`.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import Annotated, Any, ParamSpec, cast

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology
from aworld.core.checks import UNCHECKED, one_of, positive, typed
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Content, Text
from aworld.core.model import ModelRequest
from aworld.core.run_environment import Remake
from aworld.core.task import Task
from aworld.environments.problem import (
    SAMPLE,
    SPLITS,
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
    different,
    digest_of,
    ends,
    never_meet,
    taken,
)
from aworld.environments.rubric import Part, Rubric, Scorer, as_rubric
from aworld.environments.session import Caller, ProblemEnvironment, Session

__all__ = ["Environment", "Problem", "Session"]

P = ParamSpec("P")
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

    @typed()
    def __init__(
        self,
        name: str,
        *,
        train: Annotated[Problems, UNCHECKED] = (),
        test: Annotated[Problems, UNCHECKED] = (),
        session: Callable[[Problem], Session] | None = None,
        tools: Sequence[Any] = (),
        rubric: Annotated[Rubric | Part | Scorer | Sequence[Part | Scorer] | None, UNCHECKED] = None,
        system_prompt: str | None = None,
        conf: TaskConfig | dict[str, Any] | None = None,
        key: Key = content_key,
    ) -> None:
        if not name:
            raise ConfigError(f"An environment needs a name; got {name!r}.")
        if session is not None:
            check_takes_one(session, f"Environment {name!r}, session", "the problem")
        self.origin: Origin | None = None
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
        self._prompted: weakref.WeakKeyDictionary[BaseAgent[Any, Any], BaseAgent[Any, Any]] = (
            weakref.WeakKeyDictionary()
        )
        if not callable(self.train) and not callable(self.test):  # of streams, when problems are drawn
            self.check_disjoint()

    def source(self, split: Split) -> Source:
        """Where the problems of a split come from. Raises ConfigError."""
        return self.train if one_of("split", split, SPLITS) == "train" else self.test

    def problems(
        self, split: Split = "train", n: int | None = None, seed: int | None = None, *, fewer: bool = False
    ) -> list[Problem]:
        """`n` problems of a split; the same ones for the same seed.

        A list is given in its order, or shuffled by `seed`; `n` None means all of it. Raises ConfigError when there are
        not enough, unless `fewer` will do, or when a problem to learn from is also held out.
        """
        source = self.source(split)
        if n is not None:
            positive("n", n, zero=True, whole=True)
        problems = taken(source, n, seed, f"{split} of environment {self.name!r}", fewer=fewer)
        if split == "train" and callable(source):
            self._refuse_held_out(problems)
        return problems

    def stream(self, split: Split, seed: int | None) -> Iterator[Problem]:
        """The problems of a split one by one, as `problems` gives them: for who wants them in pieces."""
        source = self.source(split)
        if not callable(source):
            yield from self.problems(split, None, seed)
            return
        for problem in different(source(seed or 0)):
            if split == "train":
                self._refuse_held_out([problem])
            yield problem

    def split_of(self, problem: Problem) -> Split | None:
        """The split that a problem is of, by its content; None for one of neither, and where a stream cannot tell."""
        for split in SPLITS:
            source = self.source(split)
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

    def check_disjoint(self) -> None:
        """Refuse a training set that has a problem of the held-out set. Of streams, the first 1000 are looked at.

        Raises ConfigError that shows one.
        """
        if not self._checked:
            self._refuse_held_out(self._looked_at("train"))
            self._checked = True

    def _refuse_held_out(self, problems: Sequence[Problem]) -> None:
        if never_meet(self.train, self.test):
            return
        held_out = self._digests_of("test")
        twice = [problem for problem in problems if digest_of(problem, self.key) in held_out]
        if twice:
            shown = msgspec.json.encode(twice[0].input, enc_hook=repr).decode()
            raise ConfigError(
                f"Environment {self.name!r}: {len(twice)} of {len(problems)} training problems are held out too, such "
                f"as {twice[0].id!r}: {shown:.300}. Take them out of one of the two, or make both with split_by_hash."
            )

    def _digests_of(self, split: Split) -> set[bytes]:
        """The digests of a split: of a list of all problems, of a stream of those that are looked at first."""
        if split not in self._digests:
            self._digests[split] = {digest_of(problem, self.key) for problem in self._looked_at(split)}
        return self._digests[split]

    def _looked_at(self, split: Split) -> Sequence[Problem]:
        source = self.source(split)
        return (
            taken(source, SAMPLE, 0, f"{split} of environment {self.name!r}", fewer=True)
            if callable(source)
            else source
        )

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
        tools = tuple(fields.pop("tools", ()))
        environment = ProblemEnvironment(self, problem, seed, Caller(agent, tools, tuple(hooks)))
        unit, content = self._prompt(agent, problem.input)
        return Task(
            content if isinstance(content, str) else list(content),
            swarm=unit,
            conf=fields.pop("conf", None) or self.conf,
            id=id,
            name=fields.pop("name", None) or f"{self.name}/{problem.id}",
            group_id=group_id,
            tools=[*self.tools, *tools, *((environment,) if self.session is not None else ())],
            hooks=[*hooks, *((Seeds(seed),) if seed is not None else ())],
            environment=environment,
            **fields,
        )

    def remake(self, problem: Problem, seed: int | None, caller: Caller) -> Remake:
        """How another process makes the task of a problem. Raises TaskError that says what cannot travel."""
        if not _is_data(problem):
            raise TaskError(
                f"Problem {problem.id!r} cannot travel to another process: its answer and data must be what JSON has "
                "(text, numbers, lists, objects with text as keys). Write them so, or run on one event loop."
            )
        made = {**self._reference(), "problem": msgspec.to_builtins(problem), "seed": seed}
        return Remake(f"{__name__}:task_again", made, *caller)

    def _reference(self) -> dict[str, Any]:
        """The import path of this environment, or of the function that makes it, and the arguments of that."""
        from aworld.runners.worker_processes import path_of  # most programs start no other process

        origin = self.origin
        if origin is None or any(one is not other for one, other in zip(origin.parts, parts_of(self))):
            try:
                return {"path": path_of(self, f"environment {self.name!r}"), "args": [], "kwargs": {}}
            except TaskError as nowhere:
                raise TaskError(
                    f"Environment {self.name!r} cannot travel to another process: no module has it under a name, and "
                    "no function marked @factory made it as it is now. Put it at the top of a module, or mark the "
                    "function that makes it (from aworld.environments import factory), or run on one event loop."
                ) from nowhere
        maker, args, kwargs = getattr(origin.make, "__name__", "it"), _listed(origin.args), _listed(origin.kwargs)
        if not _is_data([args, kwargs]):
            raise TaskError(
                f"Environment {self.name!r} cannot travel to another process: the arguments of {maker} are no plain "
                "data (text, numbers, lists, objects). Put the environment at the top of a module."
            )
        return {"path": path_of(origin.make, f"function {maker!r}"), "args": args, "kwargs": kwargs}

    def _prompt(self, agent: Any, input: Content) -> tuple[Any, Content]:
        """The agent with the system prompt of the environment; a team is told it before the input."""
        prompt = self.system_prompt
        if not prompt:
            return agent, input
        if isinstance(agent, Topology):
            return agent, f"{prompt}\n\n{input}" if isinstance(input, str) else (Text(f"{prompt}\n\n"), *input)
        prompted = self._prompted.get(agent)
        if prompted is None:
            agents_prompt = agent.system_prompt
            text = f"{prompt}\n\n{agents_prompt}" if agents_prompt else prompt
            prompted = agent.with_system_prompt(text, agent.instructions)
            self._prompted[agent] = prompted
        return prompted, input

    def __repr__(self) -> str:
        return f"<Environment {self.name!r}>"


@dataclass(frozen=True, slots=True)
class Origin:
    """What made an environment, so that another process can make it again."""

    make: Callable[..., Environment]
    args: list[Any]
    kwargs: dict[str, Any]
    parts: tuple[Any, ...]
    """What it was then: one that was changed afterwards is another."""


def parts_of(environment: Environment) -> tuple[Any, ...]:
    """All but the limits, which are the task's."""
    of = environment
    return (of.name, of.train, of.test, of.session, of.tools, of.rubric, of.system_prompt, of.key)


def factory(make: Callable[P, Environment]) -> Callable[P, Environment]:
    """Mark a function that makes environments: what it makes can travel to worker processes, by the function's name
    and its arguments, which are plain data.

        @factory
        def shop(items: int = 8) -> Environment: ...
    """

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Environment:
        environment = make(*args, **kwargs)
        environment.origin = Origin(made, list(args), kwargs, parts_of(environment))
        return environment

    return made


def task_again(made: dict[str, Any], swarm: Any, **fields: Any) -> Task:
    """In a worker process: the task of a problem, as its `Remake` says."""
    arguments = msgspec.json.encode([made["args"], made["kwargs"]])
    problem = msgspec.convert(made["problem"], Problem)
    return _made_again(made["path"], arguments).task(problem, swarm, seed=made["seed"], **fields)


@lru_cache(maxsize=16)
def _made_again(path: str, arguments: bytes) -> Environment:
    from aworld.runners.worker_processes import object_at

    value = object_at(path)
    if isinstance(value, Environment):
        return value
    args, kwargs = msgspec.json.decode(arguments)
    return value(*args, **kwargs)


def _is_data(value: Any) -> bool:
    """Whether a value comes back from JSON as it was."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value), type=cast("type[Any]", type(value))) == value
    except (TypeError, ValueError, msgspec.MsgspecError):
        return False


def _listed(value: Any) -> Any:
    """Arguments with lists in place of tuples, which JSON does not have."""
    if isinstance(value, list | tuple):
        return [_listed(item) for item in cast("Sequence[Any]", value)]
    return (
        {key: _listed(item) for key, item in cast("dict[Any, Any]", value).items()}
        if isinstance(value, dict)
        else value
    )


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
