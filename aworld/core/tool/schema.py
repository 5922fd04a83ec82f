"""What a model may pass to a function, read from its signature and docstring.

`read_signature` looks at names and annotations only and costs some microseconds, so that a module full of `@tool`
functions imports fast.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from aworld.core.context.base import Context
from aworld.core.exceptions import ToolError
from aworld.core.tool.base import ToolContext

EMPTY: Any = inspect.Parameter.empty
"""Stands for "no default"."""

_PLAIN = frozenset({str, int, float, bool, type(None), Any, list, dict})
_JSON_TYPES: tuple[type, ...] = (bool, int, float, str, list, dict)


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter that the model fills."""

    name: str
    annotation: Any
    default: Any = EMPTY
    """The default in the signature, or `EMPTY`."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a function by who fills them."""

    label: str
    """The function as errors name it."""
    fields: tuple[Field, ...]
    """Filled by the model, in the order of the signature."""
    injected: tuple[tuple[str, bool], ...]
    """Filled by the runtime: the name, and whether it takes the `ToolContext` (else its `Context`)."""
    positional: tuple[tuple[str, Any], ...]
    """Those that can be passed by position only, with their defaults."""
    reserved: frozenset[str]
    """Names that `**kwargs` must not take from a model: what the developer or the runtime has filled."""
    extra: Any = EMPTY
    """The type of what `**kwargs` takes; `EMPTY` without `**kwargs`."""

    @property
    def plain(self) -> bool:
        """Whether every type is one that surely has a schema, so that building it may wait."""
        types_ = [f.annotation for f in self.fields] + ([] if self.extra is EMPTY else [self.extra])
        return all(map(_is_plain, types_)) and all(type(f.default).__name__ != "FieldInfo" for f in self.fields)


class UnresolvedError(ToolError):
    """An annotation names something that is not defined, or not yet."""


def read_signature(function: Callable[..., Any], label: str, *, skip_first: bool = False) -> Signature:
    """Sort the parameters of `function` by who fills them; `label` names it in errors.

    `skip_first` leaves out the first one (`self`). Raises `ToolError` that names the parameter and the remedy.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError) as error:
        raise ToolError(
            f"{label} cannot be a tool: Python knows no signature of it. Wrap it in an annotated function."
        ) from error
    if skip_first:
        parameters = parameters[1:]
    fixed = _fixed_keywords(function)
    parameters = [p for p in parameters if p.name not in fixed]
    types_ = _resolve({p.name: p.annotation for p in parameters if p.annotation is not EMPTY}, function, label)
    fields: list[Field] = []
    injected: list[tuple[str, bool]] = []
    extra: Any = EMPTY
    for p in parameters:
        annotation = types_.get(p.name, EMPTY)
        if p.kind is inspect.Parameter.VAR_POSITIONAL:
            raise ToolError(
                f"{label}: a model names its arguments, so it cannot fill *{p.name}. Take a list, {p.name}: list[str]."
            )
        if p.kind is inspect.Parameter.VAR_KEYWORD:
            extra = Any if annotation is EMPTY else annotation
        elif annotation is not EMPTY and (wanted := _injectable(annotation)):
            injected.append((p.name, wanted is ToolContext))
        else:
            fields.append(Field(p.name, _annotation(annotation, p, label), p.default))
    positional = tuple((p.name, p.default) for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY)
    reserved = frozenset[str]() if extra is EMPTY else _filled_elsewhere(function, {f.name for f in fields})
    return Signature(label, tuple(fields), tuple(injected), positional, reserved, extra)


def _filled_elsewhere(function: Any, fields: set[str]) -> frozenset[str]:
    """Named parameters that are no field: `self`, what a `partial` has filled, what the runtime fills."""
    inner = inspect.signature(definition(function)).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return (_fixed_keywords(function) | {p.name for p in inner if p.kind not in variable}) - fields


def _annotation(annotation: Any, parameter: inspect.Parameter, label: str) -> Any:
    """The type of a parameter: as annotated, else that of its default."""
    name, default = parameter.name, parameter.default
    if annotation is not EMPTY:
        return annotation
    if default is None:
        return Any
    kind: Any = cast("Any", type(default))
    if kind in _JSON_TYPES:
        return kind
    raise ToolError(
        f"{label}: parameter {name!r} has no annotation, so a model cannot know what to pass. "
        f"Annotate it, for example {name}: str."
    )


def bare(annotation: Any) -> Any:
    """The type without what `Annotated` says of it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def is_union(annotation: Any) -> bool:
    """Whether the type is `A | B`, `Union[A, B]` or `Optional[A]`."""
    return get_origin(annotation) in (Union, types.UnionType)


def _is_plain(annotation: Any) -> bool:
    try:
        if annotation in _PLAIN:
            return True
    except TypeError:  # not hashable
        return False
    origin = get_origin(annotation)
    if origin is Literal:
        return True
    return (origin in (list, dict) or is_union(annotation)) and all(map(_is_plain, get_args(annotation)))


def _injectable(annotation: Any) -> type[ToolContext] | type[Context] | None:
    """`ToolContext` or `Context` when the runtime fills a parameter of this type, also where it is optional."""
    annotation = bare(annotation)
    options = get_args(annotation) if is_union(annotation) else (annotation,)
    classes = [kind for option in options if isinstance(kind := get_origin(option) or option, type)]
    if any(issubclass(option, ToolContext) for option in classes):
        return ToolContext
    return Context if any(issubclass(option, Context) for option in classes) else None


def _fixed_keywords(function: Any) -> frozenset[str]:
    """Parameters that a `partial` has filled: they are the developer's (keys, clients), not the model's."""
    fixed: set[str] = set()
    while isinstance(function, partial):
        fixed.update(function.keywords)
        function = function.func
    return frozenset(fixed)


def unpartial(function: Any) -> Any:
    """What lies below `partial`s."""
    while isinstance(function, partial):
        function = cast("Any", function).func
    return function


def docstring_of(function: Any) -> str | None:
    """The docstring of what a `partial` wraps, of a function, or of the `__call__` of an object (else its class)."""
    function = unpartial(function)
    if inspect.isroutine(function) or hasattr(function, "__wrapped__"):
        return function.__doc__
    kind = cast("type[Any]", type(function))
    text: str | None = kind.__call__.__doc__ or kind.__doc__
    return None if text and text.startswith(f"{kind.__name__}(") else text  # what a dataclass writes of itself


def definition(function: Any) -> Any:
    """The innermost `def`, whose module and closure give the annotations their meaning."""
    while True:
        if isinstance(function, partial):
            function = cast("Any", function).func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.isroutine(function):
            return function
        else:
            function = cast("Any", type(function)).__call__


def _resolve(annotations: dict[str, Any], function: Any, label: str) -> dict[str, Any]:
    """Annotations as types, whether written as such, as strings, or in a module with `from __future__`."""
    inner = definition(function)
    space: dict[str, Any] = getattr(inner, "__globals__", {})
    local = _closure(inner)
    try:
        return _hints(annotations, space, local)
    except NameError:
        local = {**_enclosing(inner), **local}
        for kind in (ToolContext, Context):  # often imported for the type checker only
            if kind.__name__ not in space:
                local.setdefault(kind.__name__, kind)
    out: dict[str, Any] = {}
    for name, annotation in annotations.items():
        try:
            out.update(_hints({name: annotation}, space, local))
        except NameError as error:
            raise UnresolvedError(
                f"{label}: the annotation of parameter {name!r} cannot be understood: {error}. "
                f"Define or import it in the function's module (not under TYPE_CHECKING)."
            ) from error
    return out


def _hints(annotations: dict[str, Any], space: dict[str, Any], local: Mapping[str, Any]) -> dict[str, Any]:
    return get_type_hints(SimpleNamespace(__annotations__=annotations), space, local, include_extras=True)


def _closure(inner: Any) -> dict[str, Any]:
    """What the function sees of the functions around it."""
    code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None)
    out: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars if code else (), cells or ()):
        try:
            out[name] = cell.cell_contents
        except ValueError:  # defined further down
            continue
    return out


def _enclosing(inner: Any) -> dict[str, Any]:
    """Local names of the functions and classes in whose midst the function is being defined right now.

    A type that is only named in an annotation is not in the closure; where the definition is still under way, the
    frames that run it know the name. Asked for only when a name was not found otherwise.
    """
    outer: list[str] = []
    name = getattr(inner, "__qualname__", "").rpartition(".")[0]
    while name:
        outer.append(name.removesuffix(".<locals>"))
        name = name.removesuffix(".<locals>").rpartition(".")[0]
    out: dict[str, Any] = {}
    space = getattr(inner, "__globals__", None)
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_qualname in outer and frame.f_globals is space:
            out = {**frame.f_locals, **out}
        frame = frame.f_back
    return out
