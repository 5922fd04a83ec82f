"""What a run works with and the log never holds: a database, a client, the settings of a tenant.

`deps=` is that, or a function that makes it for one run, in whichever process works on it. The log names the function,
so that who goes on with the run has it made again. A log may come from a stranger: a name out of it is called only
where the program has imported its module, and the function says that it returns what the agent declares by `deps_type`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, get_args, get_origin, get_type_hints

from aworld.agents.references import find
from aworld.core.checks import takes
from aworld.core.context.base import RunScope
from aworld.core.definition import Description, why_not
from aworld.core.exceptions import ConfigError, DependencyError, TaskError
from aworld.core.task import Task
from aworld.core.tool.threads import THREADS
from aworld.core.trajectory import Trajectory
from aworld.runners.functions import _asked
from aworld.runners.run import units_of_task

FUNCTIONS: tuple[type, ...] = (FunctionType, MethodType, BuiltinFunctionType, partial, type)
"""What makes dependencies. Anything else is them, whether it can be called or not."""
_REFERENCE = re.compile(r"[\w.]+:[\w.]+")


@dataclass(slots=True)
class Dependencies:
    """What a run works with, from when it is made until the run rests or ends."""

    source: Any
    """The dependencies, or the function that makes them."""
    is_function: bool
    reference: str
    """What the log calls it."""
    wanted: Mapping[str, Any]
    """The type that each agent declares, by its name."""
    yielding: Any = None
    """The generator that waits for the end of the run."""

    def for_run(self, scope: RunScope) -> Dependencies:
        """Those of one run, which are let go of with what else it holds."""
        return replace(self)

    async def make(self, limit: float) -> Any:
        """The dependencies. Raises DependencyError when the function fails, is slower than `limit`, or makes others."""
        if not self.is_function:
            return self.source
        label = f"deps= ({self.reference})"
        try:
            value = await _asked(self.source, label=label, limit=limit)
            if inspect.isasyncgen(value) or inspect.isgenerator(value):
                self.yielding = value
                value = await _asked(self._next, label=label, limit=limit)
        except TaskError as error:
            raise DependencyError(f"{str(error).rstrip('.')}.") from error
        if trouble := _misfit(value, self.wanted):
            raise DependencyError(f"{label} made {trouble}.")
        return value

    async def _next(self) -> Any:
        if inspect.isasyncgen(self.yielding):
            return await anext(self.yielding, None)
        return await THREADS.run(partial(next, self.yielding, None))

    async def end_run(self) -> None:
        """Do what stands behind the `yield`."""
        if self.yielding is not None:
            await self._next()
            self.yielding = None

    rest = end_run


def dependencies(task: Task, record: Trajectory | None = None) -> Dependencies | None:
    """What a run of this task shall work with, None for nothing; `record` is what it goes on from.

    Raises TaskError when agents need what is not there, or something else.
    """
    units = units_of_task(task.agent, task.tools).items()
    wanted = {name: unit.deps_type for name, unit in units if unit.deps_type is not None}
    source, reference, began = task.deps, "", task.prefix.trajectory if task.prefix is not None else record
    if source is None and began is not None and began.started is not None and began.started.deps is not None:
        source = _recorded(began.started.deps, wanted)
    if source is None:
        for name, kind in wanted.items():
            raise TaskError(
                f"Agent {name!r} works with {kind.__name__} (deps_type): give the run deps=, a {kind.__name__} or a "
                "function that makes one."
            )
        return None
    if isinstance(source, str):
        if not _REFERENCE.fullmatch(source):  # it may be an address with a password, so it is not shown
            raise TaskError("deps= is a text: write MODULE:NAME, such as my_module:my_function, or give an object.")
        try:
            source, reference = find(source, "deps="), source
        except ConfigError as error:
            raise TaskError(str(error)) from error
    is_function = isinstance(source, FUNCTIONS) and not any(_is(isinstance, source, kind) for kind in wanted.values())
    if is_function:
        takes("deps=", source, error=TaskError)
        kind = _returned(source)
        for name, other in wanted.items() if isinstance(kind, type) else ():
            if not (_is(issubclass, kind, other) or _is(issubclass, other, kind)):
                raise TaskError(
                    f"deps= makes {kind.__name__}, and agent {name!r} works with {other.__name__} (deps_type)."
                )
    elif trouble := _misfit(source, wanted):
        raise TaskError(f"deps= is {trouble}.")
    if not is_function:
        reference = reference or f"{type(source).__module__}:{type(source).__qualname__}<value>"
    return Dependencies(source, is_function, reference or Description().code(source, "deps="), wanted)


def _recorded(reference: str, wanted: Mapping[str, Any]) -> Any:
    """The function that a log names. Raises TaskError when it is not one that could be called."""
    trouble = why_not(reference)
    if trouble is None and reference.partition(":")[0] not in sys.modules:
        trouble = "in a module that this program has not imported"
    if trouble is None:
        try:
            function = find(reference, "deps=")
        except ConfigError as error:
            trouble = f"not there: {error}"
        else:
            kind = _returned(function)
            if wanted and all(kind is other or _is(issubclass, kind, other) for other in wanted.values()):
                return reference
            trouble = "not annotated to return what deps_type of the agents says"
    raise TaskError(f"The run began with deps={reference!r}, which is {trouble}; give deps= again to go on.")


def _returned(function: Any) -> Any:
    """What a function says that it makes."""
    try:
        kind = function if isinstance(function, type) else get_type_hints(function).get("return")
    except (NameError, TypeError):  # known to type checkers alone, or no function
        return None
    return get_args(kind)[0] if get_origin(kind) in (AsyncIterator, AsyncGenerator, Iterator, Generator) else kind


def _misfit(value: Any, wanted: Mapping[str, Any]) -> str:
    """What is wrong with dependencies; empty when nothing is."""
    for name, kind in wanted.items():
        if not _is(isinstance, value, kind):
            return f"of type {type(value).__name__}, and agent {name!r} works with {kind.__name__} (deps_type)"
    return ""


def _is(test: Callable[[Any, Any], bool], value: Any, kind: Any) -> bool:
    """What `isinstance` or `issubclass` says."""
    try:
        return test(value, kind)
    except TypeError:  # no class, or a protocol that only type checkers can check
        return test is isinstance
