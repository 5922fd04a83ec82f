"""Tasks as references: what travels to a worker process, and what comes back.

Code is named by where it is imported from; everything else is data. An object is found by its identity: whatever a
module holds under a name can travel as `module:name`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial, reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from aworld.agents.files import dump, load
from aworld.config.conf import TaskConfig
from aworld.core.agent.base import plain
from aworld.core.agent.flow import Unit
from aworld.core.event import Status
from aworld.core.exceptions import AWorldError, ConfigError, TaskError
from aworld.core.message import Content, Message
from aworld.core.run_environment import Travelling
from aworld.core.task import Task, TaskResponse

MAIN = "__aworld_main__"
"""The name under which a worker imports the program's own file: what stands behind `if __name__ == "__main__":` does
not run there."""


class Begin(Struct, omit_defaults=True):
    """A task on its way to a worker. Code stands as `module:name` or `file.py:name`."""

    id: str
    input: Content
    unit: str
    conf: dict[str, Any] = {}
    history: tuple[Message, ...] = ()
    name: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    group_id: str | None = None
    labels: dict[str, str] = {}
    context: dict[str, Any] = {}
    tools: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    after: str | None = None
    by: str | None = None
    """The function that makes the task, where it has an environment; see `Remake`."""
    arguments: dict[str, Any] = {}
    again: bool = False
    """Whether another worker may have begun it."""


class RunEnded(Struct, omit_defaults=True):
    """How a run ended in a worker; its log is in the store."""

    id: str
    status: Status = "running"
    error: str | None = None
    seconds: float = 0.0
    misuse: str | None = None
    """Why it could not be begun."""


def reference_to(task: Task) -> Begin:
    """A task as it travels. Raises TaskError that names what cannot."""
    environment = task.environment
    if environment is not None and not isinstance(environment, Travelling):
        raise TaskError(
            f"Task {task.id!r} has an environment that only its own process has: run it with engine 'local'."
        )
    remake = None if environment is None else environment.remake()
    if task.prefix is not None:
        raise TaskError(f"Task {task.id!r} is a fork; forks are run with engine 'local'.")
    after = task.after
    try:
        context = plain(task.context)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TaskError(f"The context of task {task.id!r} cannot travel to another process: {error}.") from error
    bare = task if remake is None else remake
    return Begin(
        id=task.id,
        input=task.input if remake is None else "",
        unit=_unit_path(bare.agent),
        conf=task.conf.model_dump(mode="json", exclude_defaults=True),
        history=task.history,
        name=task.name,
        session_id=task.session_id,
        user_id=task.user_id,
        group_id=task.group_id,
        labels=task.labels,
        context=context,
        tools=_paths(bare.tools, "tool"),
        hooks=_paths(bare.hooks, "hooks"),
        by=None if remake is None else remake.by,
        arguments={} if remake is None else remake.arguments,
        after=after if isinstance(after, str) or after is None else _id_of(after),
    )


def task_of(begin: Begin) -> Task:
    """The task of a reference. Raises TaskError when code is not where it should be."""
    content = begin.input if isinstance(begin.input, str) else list(begin.input)
    make: Callable[..., Task] = (
        partial(Task, content) if begin.by is None else partial(object_at(begin.by), begin.arguments)
    )
    task = make(
        swarm=_unit_at(begin.unit),
        conf=TaskConfig(**begin.conf),
        id=begin.id,
        name=begin.name,
        session_id=begin.session_id,
        user_id=begin.user_id,
        group_id=begin.group_id,
        labels=begin.labels,
        after=begin.after,
        tools=[object_at(path) for path in begin.tools],
        context=begin.context,
        hooks=[object_at(path) for path in begin.hooks],
    )
    task.history = task.history or begin.history
    return task


DEFINED = "definition:"
"""How a reference begins that is the text of a definition."""

_paths_found: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
"""Where objects were last time: to look through all modules for each of many tasks would take milliseconds."""


def _unit_path(unit: Unit) -> str:
    """Where an agent or a team is imported from; or its definition, where no module has it."""
    try:
        return path_of(unit, f"agent {unit.name!r}")
    except TaskError as nowhere:
        try:
            path = _paths_found[unit] = DEFINED + dump(unit)
        except ConfigError as unnamed:
            raise TaskError(f"{nowhere} It cannot be written as a definition either: {unnamed}") from unnamed
        return path


@lru_cache(maxsize=64)
def _unit_at(path: str) -> Any:
    return load(path.removeprefix(DEFINED)) if path.startswith(DEFINED) else object_at(path)


def _id_of(after: Any) -> str:
    return after.trajectory_id if isinstance(after, TaskResponse) else after.id


def _paths(objects: Sequence[Any], what: str) -> tuple[str, ...]:
    return tuple(path_of(item, f"{what} {getattr(item, 'name', item)!r}") for item in objects)


def path_of(item: object, what: str) -> str:
    """Where an object is imported from. Raises TaskError when no module has it."""
    with suppress(TypeError):  # some cannot be keys
        if item in _paths_found:
            return _paths_found[item]
        _paths_found[item] = path = _looked_up(item, what)
        return path
    return _looked_up(item, what)


def _looked_up(item: object, what: str) -> str:
    origin = getattr(item, "function", None)  # a tool made of a function may be named by the function
    modules = sorted(sys.modules.items(), key=lambda entry: entry[0] == "__main__")  # the program's own file last
    for module_name, module in modules:
        for name, value in list(getattr(module, "__dict__", {}).items()):  # some put other objects there
            if value is item or (origin is not None and value is origin):
                return f"{_importable(module_name, module, what)}:{name}"
    raise TaskError(
        f"{what[:1].upper()}{what[1:]} cannot travel to another process: no module has it under a name. Put it at the "
        "top of a module, so that it is module:name there, or run with engine 'local'."
    )


def _importable(name: str, module: ModuleType, what: str) -> str:
    if name != "__main__":
        return name
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    if spec is not None:  # python -m module
        return spec.name
    if file is None:
        raise TaskError(f"{what} was made at a prompt; put it into a file for engine 'processes', or use 'local'.")
    return str(Path(file).resolve())


def object_at(path: str) -> Any:
    """What an import path names. Raises TaskError when it is not there."""
    where, _, name = path.rpartition(":")
    try:
        module = _main(where) if where.endswith(".py") else importlib.import_module(where)
        return reduce(getattr, name.split("."), module)
    except AWorldError:
        raise
    except Exception as error:
        guard = ' What a program does belongs behind `if __name__ == "__main__":`.' if where.endswith(".py") else ""
        raise TaskError(
            f"A worker process could not import {path!r}: {type(error).__name__}: {error}.{guard}"
        ) from error


def _main(path: str) -> ModuleType:
    """The program's own file, imported once."""
    if MAIN not in sys.modules:
        spec = importlib.util.spec_from_file_location(MAIN, path)
        assert spec is not None  # a path that ends in .py has one
        assert spec.loader is not None
        module = sys.modules[MAIN] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[MAIN]
