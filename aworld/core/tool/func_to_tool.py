"""Functions as tools: `@tool`, its alias `@be_tool`, and `as_tools` for whatever stands in `tools=[…]`.

The decorated object is still the function for its callers, and a tool for a model. What the model is told comes from
the signature and the docstring (`aworld.core.tool.schema`). Synchronous functions run in threads, so that they never
hold up the event loop; `inline=True` keeps a tiny pure one on the loop.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import cached_property, partial, update_wrapper
from types import FunctionType, LambdaType, MethodType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from aworld.core.checks import UNCHECKED, Number, Seconds, guardrails_of, hint, typed
from aworld.core.context.base import RunScope
from aworld.core.event import Attempt, now
from aworld.core.exceptions import ConfigError, EnvironmentFailed, ToolError
from aworld.core.tool.base import Guardrail, Question, Tool, ToolContext, Toolset, is_toolset
from aworld.core.tool.schema import Signature, UnresolvedError, definition, docstring_of, read_signature, unpartial

if TYPE_CHECKING:
    from aworld.core.tool.arguments import Arguments

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

_Binds: TypeAlias = Literal["self", "cls"] | None

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_registry: dict[str, dict[str, Tool]] = {}


class FunctionTool(Tool, Generic[P, R]):
    """A function that is also a tool.

    `name` and `description` are what the model sees (default: the function's name and docstring); `timeout` is in
    seconds; `inline` runs a synchronous function on the event loop instead of in a thread. Raises `ConfigError` for a
    name that providers refuse, and `ToolError` for a parameter that a model cannot fill.
    """

    __name__: str
    __wrapped__: Callable[..., Any]
    _binds: _Binds

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = None,
        idempotent: bool = False,
        inline: bool = False,
        guardrails: Sequence[Guardrail] = (),
        retries: int = 0,
        retry_on: type[Exception] | Sequence[type[Exception]] = (),
    ) -> None:
        target, self._binds = _unwrapped(function)
        inner = unpartial(target)
        self.__name__ = getattr(inner, "__name__", None) or type(inner).__name__
        self.name = checked_name(name or self.__name__, f"function {_label(target)}")
        self.timeout = timeout
        self.idempotent = idempotent
        self.guardrails = guardrails_of(f"tool {self.name!r}", guardrails)
        self.retries, self.retry_on = retries, _retried(self.name, retries, retry_on, idempotent)
        self._description = description
        self._otherwise = ""
        self._inline = inline
        self._spec = _Spec(target, _label(target), skip_first=self._binds is not None)
        self._function = target
        call = type(target).__call__
        self._awaits = inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(call)
        update_wrapper(cast("Any", self), target, updated=())

    @property
    def description(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - read-only, and built late
        """What the model is told of the tool."""
        return (self._spec.doc[0] or self._otherwise) if self._description is None else self._description

    @property
    def parameters(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride] - as above
        """JSON schema of the arguments."""
        return self._spec.parameters

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, as if it were not decorated."""
        return self._function(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> FunctionTool[P, R]: ...
    @overload
    def __get__(
        self: FunctionTool[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> FunctionTool[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """The tool of one object (or class), as attribute access binds a method."""
        subject = owner or type(instance) if self._binds == "cls" else instance
        if self._binds is None or subject is None:
            return self
        return self._bound_to(self._function, subject)

    def _bound_to(self, function: Callable[..., Any], subject: object) -> FunctionTool[..., Any]:
        bound = cast("FunctionTool[..., Any]", copy(self))
        bound._binds = None
        bound._function = bound.__wrapped__ = MethodType(function, subject)
        return bound

    @property
    def for_run(self) -> Callable[[RunScope], Tool]:
        """A method of an object that has `for_run` is, in a run, the method of the run's own copy of that object.

        All other functions are shared by all runs, and do not have this: AttributeError.
        """
        subject = cast("Any", self._function).__self__
        _ = subject.for_run
        return lambda scope: self._bound_to(cast("Any", self._function).__func__, scope.own(subject))

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        """Run with the JSON text `arguments`. Raises `ToolError` for wrong ones, and what the function raises."""
        spec = self._spec
        values = spec.arguments.read(arguments)
        signature = spec.signature
        for name, whole in signature.injected:
            values[name] = context if whole else context.context
        args = tuple(values.pop(name, default) for name, default in signature.positional)
        while True:
            try:
                if self._awaits:
                    return await self._function(*args, **values)
                if self._inline:
                    result = self._function(*args, **values)
                else:
                    from aworld.core.tool.threads import THREADS  # asyncio is not imported before it is needed

                    result = await THREADS.run(partial(self._function, *args, **values), context.clock)
                if inspect.isawaitable(result):
                    context.clock.ended = None
                    return await result
                return result
            except SystemExit as error:
                raise ToolError(f"{self.name} tried to end the program (exit code {error.code}).") from error
            except self.retry_on as error:
                if len(context.attempts) >= self.retries or isinstance(error, ToolError | Question | EnvironmentFailed):
                    raise
                await _wait_after(error, context)

    def require(self) -> None:
        """Check now what is otherwise built at the first use. Raises `ToolError`."""
        if self._binds is not None:
            raise ToolError(
                f"{_label(self._function)} is a method: which object it works on is open. "
                f"Give the method of an object, such as my_object.{self.name}."
            )
        self._spec.require()


class _Spec:
    """What a model is told of a function, and how its arguments are read. Shared by a method and its bound copies.

    The JSON schema and the validation need pydantic, the descriptions may need griffe: both are loaded and built when
    they are first asked for, or at once where only pydantic can say whether a type has a schema at all.

    Raises `ToolError` where a parameter cannot be offered to a model; an annotation whose name is not defined yet
    (a class further down in the module) is left for the first use.
    """

    def __init__(self, function: Callable[..., Any], label: str, *, skip_first: bool) -> None:
        self._function = function
        self._label = label
        self._skip_first = skip_first
        try:
            if not self.signature.plain:
                self.require()
        except UnresolvedError:
            return

    def require(self) -> None:
        """Build everything now. Raises `ToolError`."""
        _ = self.arguments.schema

    @cached_property
    def signature(self) -> Signature:
        """The parameters of the function."""
        return read_signature(self._function, self._label, skip_first=self._skip_first)

    @cached_property
    def arguments(self) -> Arguments:
        """Schema and validation by types, without what the docstring says."""
        from aworld.core.tool.arguments import Arguments

        return Arguments(self.signature)

    @cached_property
    def doc(self) -> tuple[str, dict[str, str]]:
        """The description of the tool, and of its parameters by name, from the docstring."""
        from aworld.core.tool.docstring import read_docstring

        return read_docstring(docstring_of(self._function))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema as it is offered: by types, with the descriptions of the docstring."""
        schema = self.arguments.schema
        described = self.doc[1]
        properties = {
            name: {**value, "description": described[name]}
            if name in described and "description" not in value
            else value
            for name, value in schema["properties"].items()
        }
        return {**schema, "properties": properties}


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    desc: str | None = None,
    timeout: float | None = None,
    idempotent: bool = False,
    inline: bool = False,
    guardrails: Sequence[Guardrail] = (),
    retries: int = 0,
    retry_on: type[Exception] | Sequence[type[Exception]] = (),
    tool_name: str | None = None,
    tool_desc: str | None = None,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
@typed()
def tool(
    function: Annotated[Callable[..., Any], UNCHECKED] | None = None,
    /,
    *,
    name: str | None = None,
    desc: str | None = None,
    timeout: Seconds | None = None,
    idempotent: bool = False,
    inline: bool = False,
    guardrails: Sequence[Guardrail] = (),
    retries: Number = 0,
    retry_on: type[Exception] | Sequence[type[Exception]] = (),
    tool_name: str | None = None,
    tool_desc: str | None = None,
) -> Any:
    """Make a function a tool, as `@tool` or `@tool(name=…)`.

    `name` and `desc` are what the model sees (default: the function's name and docstring). `timeout` is in seconds.
    `idempotent` lets the tool run again when the process died while it ran. `inline` runs a synchronous function on
    the event loop, for tiny ones that never wait. `guardrails` are functions of the `ToolContext` and the arguments (a
    dict) that return None to let a call pass, or the reason why not. `retries` are tries after the first, within the
    time-out: after exceptions that `retry_on` names, or after any where the tool is idempotent. `tool_name` registers
    the tool, so that `find_tools(tool_name)` finds it; `tool_desc` describes it where there is neither `desc` nor
    docstring.

    Raises `ConfigError` for a name that providers refuse, and `ToolError` for a parameter that a model cannot fill.
    """

    def decorate(function: Callable[..., Any]) -> FunctionTool[..., Any]:
        decorated = FunctionTool(
            function, name=name, description=desc, timeout=timeout, idempotent=idempotent, inline=inline,
            guardrails=guardrails, retries=retries, retry_on=retry_on,
        )  # fmt: skip
        decorated._otherwise = tool_desc or ""
        if tool_name is not None:
            _register(tool_name, decorated)
        return decorated

    return decorate if function is None else decorate(function)


be_tool = tool


@typed()
def find_tools(tool_name: str) -> list[Tool]:
    """The tools registered under `tool_name`, in the order of definition. Raises `ConfigError` for an unknown name."""
    registered = _registry.get(tool_name)
    if registered is None:
        raise ConfigError(
            f"No tool is registered as {tool_name!r}; {hint(tool_name, sorted(_registry))} A tool is registered when "
            "the module with its @tool(tool_name=…) is imported."
        )
    return list(registered.values())


def as_tools(items: Any) -> list[Tool | Toolset]:
    """Functions, tools, toolsets and what has `as_tool`, such as agents, as tools and toolsets, in order; takes one of
    them or a sequence, nested or not.

    Raises `ToolError` for a function that a model cannot call, naming the function, the parameter and the remedy.
    """
    single = callable(items) or isinstance(items, (Tool, str, dict)) or is_toolset(items) or hasattr(items, "as_tool")
    if not single and isinstance(items, Iterable):
        return [tool for item in cast("Iterable[Any]", items) for tool in as_tools(item)]
    return [_as_tool(items)]


async def _wait_after(error: Exception, context: ToolContext) -> None:
    """Put a failed try on record, and wait before the next one: a tenth of a second, then twice as long each time."""
    from asyncio import sleep

    from aworld.core.bounded import described

    wait = 0.1 * 2 ** len(context.attempts)
    context.attempts.append(Attempt(now(), described(error)[:1000], waited=wait))
    context.clock.ended = None
    await sleep(wait)
    context.clock.again()


def _retried(name: str, retries: int, retry_on: Any, idempotent: bool) -> tuple[type[Exception], ...]:
    """The exceptions after which a tool is tried again. Raises ConfigError where that might do a thing twice."""
    kinds: tuple[Any, ...] = (retry_on,) if isinstance(retry_on, type) else tuple(retry_on)
    if strangers := [kind for kind in kinds if not issubclass(kind, Exception)]:
        raise ConfigError(f"retry_on of tool {name!r} names {strangers[0]!r}, which is no class of exceptions.")
    if retries and not kinds and not idempotent:
        raise ConfigError(
            f"retries={retries} of tool {name!r} might do a thing twice: say idempotent=True, or name in retry_on= the "
            "exceptions that are raised before anything is done."
        )
    return kinds or (Exception,) if retries else ()


def checked_name(name: str, owner: str) -> str:
    """The name, if every provider takes it. Raises `ConfigError` otherwise."""
    if _NAME.fullmatch(name):
        return name
    suggested = re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_")[:64] or "my_tool"
    raise ConfigError(
        f"{name!r} cannot be the name of a tool ({owner}): providers take 1 to 64 of a-z, A-Z, 0-9, _ and -. "
        f"Give another one, such as @tool(name={suggested!r})."
    )


def _as_tool(item: Any) -> Tool | Toolset:
    if isinstance(item, MethodType) and isinstance(item.__func__, FunctionTool):  # @classmethod above @tool
        item = cast("FunctionTool[..., Any]", item.__func__).__get__(item.__self__, type(item.__self__))
    if isinstance(item, FunctionTool):
        cast("FunctionTool[..., Any]", item).require()
        return cast("FunctionTool[..., Any]", item)
    if isinstance(item, Tool) or (is_toolset(item) and not isinstance(item, type)):
        return item
    as_tool: Any = getattr(item, "as_tool", None)
    if as_tool is not None and not isinstance(item, type):
        return as_tool()
    if isinstance(item, str):
        raise ConfigError(f"{item!r} is a name. Registered tools are given by name in tool_names=[{item!r}].")
    function_tool = FunctionTool(item)
    function_tool.require()
    return function_tool


def _register(tool_name: str, function_tool: FunctionTool[..., Any]) -> None:
    name = function_tool.name
    if function_tool._binds is not None:
        raise ConfigError(
            f"tool_name={tool_name!r}: {name} is a method, and found by name it would have no object. "
            f"Leave tool_name out and give my_object.{name} in tools=[…]."
        )
    _registry.setdefault(tool_name, {})[name] = function_tool


def _unwrapped(function: Any) -> tuple[Callable[..., Any], _Binds]:
    """The function below `staticmethod` and the like, and what its first parameter is bound to by attribute access."""
    if isinstance(function, staticmethod):
        return cast("staticmethod[..., Any]", function).__func__, None
    if isinstance(function, classmethod):
        return cast("classmethod[Any, ..., Any]", function).__func__, "cls"
    if isinstance(function, FunctionTool):
        inner = cast("FunctionTool[..., Any]", function)
        return inner._function, inner._binds
    if not callable(function):
        raise ToolError(f"{function!r} is not callable, so it cannot be a tool. Give a function, a Tool or a Toolset.")
    if isinstance(function, type):
        raise ToolError(
            f"{function.__qualname__} is a class. Give a function, or an object with an annotated __call__."
        )
    if isinstance(function, LambdaType) and function.__name__ == "<lambda>":
        raise ToolError("A lambda has no name and no annotations. Write a def with annotated parameters.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ToolError(f"{_label(function)} yields, but a tool gives one result. Return a list.")
    plain = cast("Callable[..., Any]", function)
    return (plain, "self") if _is_method(plain) else (plain, None)


def _is_method(function: Any) -> bool:
    """Whether a function was written in a class body, with a first parameter that stands for the object."""
    if not isinstance(function, FunctionType):
        return False
    around = function.__qualname__.rpartition(".")[0]
    if not around or around.endswith("<locals>"):
        return False
    inner = definition(function)
    if not isinstance(inner, FunctionType) or not inner.__code__.co_argcount:
        return False
    first = inner.__code__.co_varnames[0]
    return first in ("self", "cls") or first not in inner.__annotations__


def _label(function: Any) -> str:
    function = unpartial(function)
    name: str = getattr(function, "__qualname__", None) or type(function).__qualname__
    return name.rpartition("<locals>.")[2]
