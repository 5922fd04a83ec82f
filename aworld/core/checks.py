"""Checks that many rooms need: what they refuse, they refuse in the same words.

Each takes the error that it raises, so that a front door raises its own kind. The text names the setting and the
remedy. `typed` is the border of all front doors: what a caller gives must be of the annotated types.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from aworld.config.errors import hint as hint
from aworld.config.errors import known_keys as known_keys
from aworld.config.errors import nearest as nearest
from aworld.core.exceptions import AWorldError, ConfigError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def one_of(setting: str, value: T, names: Iterable[Any], error: type[AWorldError] = ConfigError) -> T:
    """`value`, if it is one of those. Raises `error`."""
    choices = list(names)
    if value not in choices:
        raise error(f"{setting}={value!r} is not known; {hint(value, map(str, choices))}", setting=setting)
    return value


def positive(
    setting: str, value: Any, *, zero: bool = False, whole: bool = False, error: type[AWorldError] = ConfigError
) -> Any:
    """`value`, if it is a finite number above zero (`zero`: or zero), with `whole` a whole one. Raises `error`."""
    kind = int if whole else Real
    if not isinstance(value, kind) or not _is_number(value) or value < 0 or (value == 0 and not zero):
        what = "a whole number" if whole else "a number"
        raise error(f"{setting}={value!r}: {what}, {'zero or more' if zero else 'more than zero'}.", setting=setting)
    return value


def unique(what: str, names: Iterable[T], error: type[AWorldError] = ConfigError) -> list[T]:
    """The names, if none is there twice. Raises `error`: `what` is such as `Two tasks have the id`."""
    seen: dict[T, None] = {}
    for name in names:
        if name in seen:
            raise error(f"{what} {name!r}; give each its own.")
        seen[name] = None
    return list(seen)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_text(value: object) -> bool:
    """Whether something is text that can be written down: a lone surrogate cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: str | None) -> str | None:
    """Text as a plain `str`, which is what a log can hold: subclasses (NumPy's, enums) become their text."""
    return None if value is None else str.__str__(value)


class Kind(NamedTuple):
    """What an argument may be: in words, how to test it, and the types that need no test."""

    words: str
    fits: Callable[[Any], bool]
    types: frozenset[type] = frozenset()
    items: tuple[list[Kind] | None, ...] = ()
    """Of a list what its items may be, of a dict its keys and values."""


Count: TypeAlias = Annotated[int, Kind("a whole number from 1", lambda value: type(value) is int and value > 0)]
Number: TypeAlias = Annotated[int, Kind("a whole number from 0", lambda value: type(value) is int and value >= 0)]
Seconds: TypeAlias = Annotated[
    float, Kind("a number of seconds above 0", lambda value: _is_number(value) and value > 0)
]
"""Types of arguments of a front door that count or measure something."""

UNCHECKED = Kind("anything", lambda _: True)
"""Marks an argument that its function looks at itself: `Annotated[..., UNCHECKED]`."""

_KINDS: dict[Any, Kind] = {
    str: Kind("text", is_text),
    int: Kind("a whole number", lambda value: isinstance(value, int) and value is not True and value is not False,
              frozenset({int})),
    float: Kind("a number", lambda value: _is_number(value)),
    type(None): Kind("None", lambda value: value is None, frozenset({type(None)})),
}  # fmt: skip


def typed(error: type[AWorldError] = ConfigError) -> Callable[[F], F]:
    """Make a function or constructor a front door: an argument that is not of its annotated type, text with a lone
    surrogate, and a keyword that does not exist are refused by `error`, in words, before anything is done.

    An annotation that says nothing (`Any`, a Protocol, a name known to type checkers alone) refuses nothing.
    """

    def decorate(function: F) -> F:
        def checked(*args: Any, **kwargs: Any) -> Any:
            places, kinds, several = _parameters(function)
            for name, value in (*zip(places, args), *kwargs.items()):
                options = kinds.get(name)
                if options is None:
                    if name not in kinds and not several:
                        known_keys(_owner(function, args, kwargs), [name], list(kinds)[1:], "argument", error)
                elif not any(type(value) in kind.types or kind.fits(value) for kind in options):
                    raise error(f"{_owner(function, args, kwargs)}: {_refusal(name, value, options)}", setting=name)
            return function(*args, **kwargs)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await checked(*args, **kwargs)

        wrapper = awaited if inspect.iscoroutinefunction(function) else checked
        return cast("F", functools.wraps(function)(wrapper))

    return decorate


def typed_class(kind: type[T]) -> type[T]:
    """`typed` for a class whose constructor is made for it."""
    kind.__init__ = typed()(kind.__init__)
    return kind


def _owner(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Whose argument it is, by the name that it was given or that of the first argument, as far as that is text."""
    label = function.__qualname__
    if label.endswith(("__init__", "_build")):
        label = type(args[0]).__name__
    places = _parameters(function)[0]
    named = {**dict(zip(places, args)), **kwargs}
    first = next((named[place] for place in places if place in named and place != "self"), None)
    name = named.get("name") or getattr(first, "name", None)
    return f"{label} {name!r}" if is_text(name) else label


def _refusal(name: str, value: Any, kinds: list[Kind]) -> str:
    """What is wrong, down to the item that is."""
    inner = next((kind.items for kind in kinds if kind.items), ())
    if inner and isinstance(value, Mapping | list | tuple):
        pairs: Any = value.items() if isinstance(value, Mapping) else enumerate(cast("Sequence[Any]", value))
        for key, item in pairs:
            if isinstance(value, Mapping) and not _all([key], inner[0]):
                return _refusal(f"a key of {name}", key, inner[0] or [])
            if not _all([item], inner[-1]):
                return _refusal(f"{name}[{key!r:.60}]", item, inner[-1] or [])
    words = " or ".join(kind.words for kind in kinds)
    if isinstance(value, str) and not is_text(value):
        return f"{name} has a lone surrogate, which is no text: {value!r:.60}; give {words}."
    simple = isinstance(value, str | int | float | type | None)  # others may show what is nobody's business
    return f"{name}={f'{value!r:.60}' if simple else type(value).__name__ + '(...)'}; give {words}."


@functools.cache
def _parameters(function: Any) -> tuple[list[str], dict[str, list[Kind] | None], bool]:
    """Names of what may be given by position, what each parameter may be, and whether any keyword is taken."""
    parameters = inspect.signature(function).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    kinds = {p.name: _kinds(_type_of(function, p.annotation)) for p in parameters if p.kind not in several}
    return places, kinds, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _type_of(function: Any, annotation: Any) -> Any:
    try:
        hints = types.SimpleNamespace(__annotations__={"it": annotation})
        return get_type_hints(hints, function.__globals__, include_extras=True)["it"]
    except NameError:  # known to type checkers alone
        return Any


def _kinds(annotation: Any) -> list[Kind] | None:
    """What a value of this type may be; None when that cannot be told."""
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if annotation in _KINDS:
        return [_KINDS[annotation]]
    if origin is Annotated:
        return [mark for mark in args[1:] if isinstance(mark, Kind)] or _kinds(args[0])
    if origin is Literal:
        return [Kind(", ".join(map(repr, args)), args.__contains__)]
    if origin in (Union, types.UnionType):
        options = [_kinds(option) for option in args]
        return None if None in options else [kind for option in options for kind in option or ()]
    if origin is Callable:
        return [Kind("a function", callable)]
    protocol = getattr(origin, "_is_protocol", False) and not getattr(origin, "_is_runtime_protocol", False)
    if not isinstance(origin, type) or protocol or origin in (Any, inspect.Parameter.empty):
        return None
    if origin is Iterable or issubclass(origin, Mapping | Sequence):
        return [_container(origin, [_kinds(item) for item in args if item is not ...])]
    name = _NAMES.get(origin.__name__, f"{'an' if origin.__name__[0] in 'AEIOU' else 'a'} {origin.__name__}")
    return [Kind(name, lambda value: isinstance(value, origin), frozenset({origin}))]


_NAMES = {"bool": "True or False", "Path": "a path", "BaseAgent": "an agent", "Topology": "a swarm"}
"""Classes in words."""


def _container(origin: Any, inner: list[list[Kind] | None]) -> Kind:
    """A list or dict whose items are looked at; text is no list of texts."""

    def fits(value: Any) -> bool:
        if not isinstance(value, origin) or isinstance(value, str | bytes):
            return False
        if isinstance(value, Mapping):
            return all(_all(part, kinds) for part, kinds in zip(zip(*value.items()), inner))
        return not isinstance(value, Sequence) or not inner or _all(value, inner[0])

    words = ["anything" if kinds is None else " or ".join(kind.words for kind in kinds) for kinds in inner]
    if issubclass(origin, Mapping):
        return Kind("a dict" + (f" of {words[0]} to {words[1]}" if any(inner) else ""), fits, items=tuple(inner))
    return Kind("a list" + (f" of {words[0]}" if any(inner) else ""), fits, items=tuple(inner))


def _all(values: Iterable[Any], kinds: list[Kind] | None) -> bool:
    return kinds is None or all(any(kind.fits(value) for kind in kinds) for value in values)
