"""Checks that many rooms need: what they refuse, they refuse in the same words.

Each takes the error that it raises, so that a front door raises its own kind. The text names the setting and the
remedy. `typed` is the border of all front doors: what a caller gives must be of the annotated types.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from functools import cache, partial, wraps
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, Union, cast

from msgspec import StructMeta

from aworld.config.errors import hint as hint
from aworld.config.errors import known_keys as known_keys
from aworld.config.errors import nearest as nearest
from aworld.core.exceptions import AWorldError, ConfigError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class StructDoor(StructMeta):
    """Of structs that users make: `class Query(Struct, metaclass=StructDoor)` refuses wrong arguments in our words."""

    if not TYPE_CHECKING:  # for checkers an instance is made as any struct's is, of arguments that they know

        def __call__(cls, *args, **kwargs):  # noqa: D102 - how an instance is made
            for name, value in (*zip(cls.__struct_fields__, args), *kwargs.items()):
                if not _fits(value, kinds := _kinds_of_fields(cls).get(name)):
                    raise ConfigError(f"{cls.__name__}: {_refusal(name, value, kinds or ())}", setting=name)
            try:
                return super().__call__(*args, **kwargs)
            except TypeError as error:
                raise ConfigError(f"{cls.__name__}: {error}; it takes {', '.join(cls.__struct_fields__)}.") from None


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
    if not _is_number(value, whole) or value < 0 or (value == 0 and not zero):
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


def takes(what: str, function: Callable[..., Any], *arguments: str, error: type[AWorldError] = ConfigError) -> None:
    """Raise `error` for a function that cannot be called with these arguments; `what` begins the sentence."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as wrong:
        raise error(f"{what} is called as f({', '.join(arguments)}), which it does not take: {wrong}.") from wrong
    except ValueError:  # written in C, without a signature
        return


def guardrails_of(owner: str, functions: Sequence[F]) -> tuple[F, ...]:
    """The guardrails, if each has a name for its verdicts and takes a context and a value. Raises ConfigError."""
    for function in functions:
        if getattr(function, "__name__", "") == "<lambda>":
            raise ConfigError(f"A guardrail of {owner} is a lambda: its verdicts are recorded by name, so write a def.")
        takes(f"A guardrail of {owner}", function, "context", "value")
    return tuple(functions)


def is_text(value: Any) -> bool:
    """Whether something is text that can be written down: a lone surrogate cannot."""
    try:
        str.encode(value)
    except (UnicodeEncodeError, TypeError):
        return False
    return True


def as_text(value: str | None) -> str | None:
    """Text as a plain `str`, which is what a log can hold: subclasses (NumPy's, enums) become their text."""
    return None if value is None else str.__str__(value)


def _is_number(value: Any, whole: bool = False, above: float = -math.inf) -> bool:
    kind = int if whole else Real
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    try:
        return above < (cast("int", value) if whole else float(cast("float", value))) < math.inf
    except OverflowError:  # a whole number beyond all that a float can be
        return False


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value is of this class; text is no list of texts."""
    return isinstance(value, kind) and not (isinstance(value, str | bytes) and kind not in (str, bytes, object))


class Kind(NamedTuple):
    """What an argument may be, in words, and how to test it."""

    words: str
    fits: Callable[[Any], bool]
    items: tuple[Kinds, ...] = ()
    """Of a list what its items may be, of a dict its keys and values."""
    by_class: bool = False
    """Whether the type of a value says it all; of text, whether all of it is ASCII."""

    def wrong_item(self, value: Any) -> tuple[str, Any, Kinds] | None:
        """The first item that a list or dict may not hold: its place, itself, and what it may be."""
        keyed = isinstance(value, Mapping)
        pairs: Any = cast("Any", value).items() if keyed else enumerate(value)
        for key, item in pairs if self.items else ():
            if keyed and not _fits(key, self.items[0]):
                return "a key of {}", key, self.items[0]
            if not _fits(item, self.items[-1]):
                return f"{{}}[{key!r:.60}]", item, self.items[-1]
        return None


Kinds: TypeAlias = tuple[Kind, ...] | None
"""What an argument may be; None when its annotation does not say."""


def _fits(value: Any, kinds: Kinds) -> bool:
    return kinds is None or any(kind.fits(value) and not (kind.items and kind.wrong_item(value)) for kind in kinds)


Count: TypeAlias = Annotated[int, Kind("a whole number from 1", partial(_is_number, whole=True, above=0))]
Number: TypeAlias = Annotated[int, Kind("a whole number from 0", partial(_is_number, whole=True, above=-1))]
Seconds: TypeAlias = Annotated[float, Kind("a number of seconds above 0", partial(_is_number, above=0))]
"""Types of arguments of a front door that count or measure something."""

LIST = Kind("a list", partial(_is_a, Sequence), by_class=True)
"""Marks a list whose items may be anything: `Annotated[Sequence[...], LIST]`."""

UNCHECKED = Kind("anything", partial(_is_a, object), by_class=True)
"""Marks an argument that its function looks at itself: `Annotated[..., UNCHECKED]`."""

_KINDS: dict[Any, Kind] = {
    str: Kind("text", is_text, by_class=True),
    int: Kind("a whole number", partial(_is_number, whole=True)),
    float: Kind("a finite number", _is_number),
    type(None): Kind("None", partial(_is_a, type(None)), by_class=True),
}


def typed(error: type[AWorldError] = ConfigError) -> Callable[[F], F]:
    """Make a function or constructor a front door: an argument that is not of its annotated type, text with a lone
    surrogate, and a keyword that does not exist are refused by `error`, in words, before anything is done.

    An annotation that says nothing (`Any`, a Protocol, a name known to type checkers alone) refuses nothing.
    """

    def decorate(function: F) -> F:
        code: Any = function.__code__
        places = code.co_varnames[: code.co_argcount]
        most = sys.maxsize if code.co_flags & inspect.CO_VARARGS else len(places)
        needed = _needed(function)
        last = max((place for place, _ in needed), default=-1)
        passed = set[tuple[str, type]]()
        """Names with types that have been found to be right: what is tested once is not tested again."""

        def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for name, value in (*zip(places, args), *kwargs.items()):
                if (name, type(value)) in passed and (type(value) is not str or value.isascii()):
                    continue
                if trouble := _trouble(function, name, value, passed):
                    raise error(f"{_owner(function, places, args, kwargs)}{trouble}", setting=name)
            if not last < len(args) <= most and (trouble := _miscount(needed, places, most, args, kwargs)):
                raise error(f"{_owner(function, places, args, kwargs)} {trouble}")

        def checked(*args: Any, **kwargs: Any) -> Any:
            check(args, kwargs)
            return function(*args, **kwargs)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            check(args, kwargs)
            return await function(*args, **kwargs)

        wrapper = awaited if inspect.iscoroutinefunction(function) else checked
        return cast("F", wraps(function)(wrapper))

    return decorate


def _trouble(function: Any, name: str, value: Any, passed: set[tuple[str, type]]) -> str:
    """What is wrong with an argument; empty when nothing is."""
    kinds, several = _parameters(function)
    if name not in kinds and not several:
        return f" has no argument {name!r}; {hint(name, [place for place in kinds if place != 'self'])}"
    options = kinds.get(name)
    if not _fits(value, options):
        return f": {_refusal(name, value, options or ())}"
    by_class = options is None or any(kind.by_class and kind.fits(value) for kind in options)
    kind = value.__class__
    if by_class and (kind is str or not isinstance(value, str)) and len(passed) < 1000:  # classes may be made in a loop
        passed.add((name, kind))
    return ""


def _needed(function: Any) -> list[tuple[int, str]]:
    """Arguments without a default, and their places; one that goes by its name alone has none."""
    parameters = inspect.signature(function).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        (sys.maxsize if p.kind is p.KEYWORD_ONLY else place, p.name)
        for place, p in enumerate(parameters)
        if p.default is p.empty and p.kind not in several
    ]


def _miscount(needed: Sequence[tuple[int, str]], places: Sequence[str], most: int, args: Any, kwargs: Any) -> str:
    """What is wrong with the number of arguments; empty when nothing is."""
    missing = [name for place, name in needed if place >= len(args) and name not in kwargs]
    if missing:
        return f"needs {', '.join(f'{name}=' for name in missing)}."
    bound = places[:1] == ("self",)
    many = f"takes {len(places) - bound} by place and got {len(args) - bound}; give the others by name."
    return many if len(args) > most else ""


def typed_class(kind: type[T]) -> type[T]:
    """`typed` for a class whose constructor is made for it."""
    kind.__init__ = typed()(kind.__init__)
    return kind


def _owner(function: Any, places: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Whose argument it is, by the name that it was given or that of the first argument, as far as that is text."""
    label = function.__qualname__
    if label.endswith(("__init__", "_build")):
        label = type(args[0]).__name__
    named = {**dict(zip(places, args)), **kwargs}
    first = next((named[place] for place in places if place in named and place != "self"), None)
    name = named.get("name") or getattr(first, "name", None)
    return f"{label} {name!r}" if is_text(name) else label


def _refusal(name: str, value: Any, kinds: tuple[Kind, ...]) -> str:
    """What is wrong, down to the item that is."""
    inner = next((kind for kind in kinds if kind.items and kind.fits(value)), None)
    if inner is not None and (wrong := inner.wrong_item(value)) is not None:
        place, item, options = wrong
        return _refusal(place.format(name), item, options or ())
    words = _either(kinds)
    if isinstance(value, str) and not is_text(value):
        return f"{name} has a lone surrogate, which is no text: {value!r:.60}; give {words}."
    simple = isinstance(value, str | int | float | type | None)  # others may show what is nobody's business
    shown = repr(value) if simple else f"{type(value).__name__}(...)"
    return f"{name}={shown:.60}; give {words}."


def _either(kinds: tuple[Kind, ...]) -> str:
    *names, last = [kind.words for kind in kinds]
    return f"{', '.join(names)} or {last}" if names else last


@cache
def _parameters(function: Any) -> tuple[dict[str, Kinds], bool]:
    """What each parameter may be, and whether any keyword is taken."""
    parameters = inspect.signature(function).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kinds = {p.name: _kinds(_type_of(function, p.annotation)) for p in parameters if p.kind not in several}
    return kinds, any(p.kind is p.VAR_KEYWORD for p in parameters)


@cache
def _kinds_of_fields(struct: type) -> dict[str, Kinds]:
    return {name: _kinds(hint) for name, hint in typing.get_type_hints(struct, include_extras=True).items()}


def _type_of(function: Any, annotation: Any) -> Any:
    try:
        hints = types.SimpleNamespace(__annotations__={"it": annotation})
        return typing.get_type_hints(hints, function.__globals__, include_extras=True)["it"]
    except NameError:  # known to type checkers alone
        return Any


def _kinds(annotation: Any) -> Kinds:
    """What a value of this type may be."""
    origin, args = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if annotation in _KINDS:
        return (_KINDS[annotation],)
    if origin is Annotated:
        return tuple(mark for mark in args[1:] if isinstance(mark, Kind)) or _kinds(args[0])
    if origin is Literal:
        return (Kind(f"one of {', '.join(map(repr, args))}", args.__contains__),)
    if origin in (Union, types.UnionType):
        options = [_kinds(option) for option in args]
        return None if None in options else tuple(kind for option in options for kind in option or ())
    if origin is Callable:
        return (Kind("a function", callable, by_class=True),)
    protocol = getattr(origin, "_is_protocol", False) and not getattr(origin, "_is_runtime_protocol", False)
    if not isinstance(origin, type) or protocol or origin in (Any, inspect.Parameter.empty):
        return None
    name = origin.__name__
    if origin not in (Iterable, Collection) and not issubclass(origin, Mapping | Sequence | Set):
        words = _NAMES.get(name, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
        return (Kind(words, partial(_is_a, origin), by_class=True),)
    items = () if origin is Iterable else tuple(_kinds(item) for item in args if item is not ...)
    names = [_either(item or ()) for item in items if None not in items]
    words = "a dict" if issubclass(origin, Mapping) else "a list"
    is_one = partial(_is_a, Sequence if origin in (list, tuple) else origin)
    return (Kind(f"{words} of {' to '.join(names)}" if names else words, is_one, items),)


_NAMES = {"bool": "True or False", "Path": "a path", "BaseAgent": "an agent", "Topology": "a swarm"}
"""Classes in words."""
