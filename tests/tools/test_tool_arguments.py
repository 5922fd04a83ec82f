"""The arguments of a call: JSON text to Python values, or an error that a model can act on."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

from aworld.core.exceptions import ToolError
from aworld.core.tool import ToolContext, tool


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


class Person(BaseModel):
    name: str
    age: int = 0


@dataclass
class Point:
    x: int
    y: int = 0


async def call(function: Callable[..., Any], arguments: str, context: ToolContext) -> Any:
    return await tool(inline=True)(function).invoke(arguments, context)


async def fault(function: Callable[..., Any], arguments: str, context: ToolContext) -> str:
    with pytest.raises(ToolError) as caught:
        await call(function, arguments, context)
    assert "pydantic" not in str(caught.value)
    assert "http" not in str(caught.value)
    return str(caught.value)


def everything(
    unit: Unit,
    person: Person,
    points: list[Point],
    when: dt.date,
    number: int | None = None,
    mode: Literal["a", "b"] = "a",
) -> tuple[Any, ...]:
    return unit, person, points, when, number, mode


async def test_arguments_become_values_of_the_annotated_types(context: ToolContext) -> None:
    text = '{"unit": "celsius", "person": {"name": "Ada"}, "points": [{"x": 1}], "when": "2026-01-02"}'
    assert await call(everything, text, context) == (
        Unit.C,
        Person(name="Ada"),
        [Point(1, 0)],
        dt.date(2026, 1, 2),
        None,
        "a",
    )


async def test_the_functions_own_default_applies_to_what_was_left_out(context: ToolContext) -> None:
    default: list[int] = [1]

    def f(a: list[int] = default, b: int = Field(3, ge=1), c: Annotated[int, Field(ge=1)] = 2) -> Any:
        return a, b, c

    a, b, c = await call(f, "{}", context)
    assert a is default
    assert (b, c) == (3, 2)


@pytest.mark.parametrize("text", ["", "{}", " ", "null", "\n"])
async def test_no_arguments(text: str, context: ToolContext) -> None:
    def f(a: int = 5) -> int:
        return a

    assert await call(f, text, context) == 5


async def test_every_kind_of_parameter_is_passed(context: ToolContext) -> None:
    def f(a: int, b: int = 2, c: int = 3, /, d: int = 4, *, e: int, **more: int) -> Any:
        return a, b, c, d, e, more

    assert await call(f, '{"a": 1, "c": 9, "e": 5, "z": 7}', context) == (1, 2, 9, 4, 5, {"z": 7})


def plain(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> None: ...


WANTED = 'Wanted: {"city": string, "days"?: integer, "unit"?: "C" | "F"}'


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("{}", ["Wrong arguments.", "- city: missing, wanted string", WANTED]),
        ("", ["Wrong arguments.", "- city: missing, wanted string", WANTED]),
        (
            '{"city": "Rome", "days": "two"}',
            [
                "Wrong arguments.",
                '- days: got "two", should be a valid integer, unable to parse string as an integer',
                WANTED,
            ],
        ),
        (
            '{"city": 3, "unit": "K", "town": "Rome"}',
            [
                "Wrong arguments.",
                "- city: got 3, should be a valid string",
                "- unit: got \"K\", should be 'C' or 'F'",
                "- town: unknown, there are: city, days, unit",
                WANTED,
            ],
        ),
        (
            '{"city": "Ro',
            [
                'The arguments are not valid JSON (EOF while parsing a string at line 1 column 12): {"city": "Ro',
                WANTED,
            ],
        ),
        ('["Rome"]', ['The arguments must be one JSON object, but are an array: ["Rome"]', WANTED]),
        ('"Rome"', ['The arguments must be one JSON object, but are a string: "Rome"', WANTED]),
        ("17", ["The arguments must be one JSON object, but are a number: 17", WANTED]),
        ("true", ["The arguments must be one JSON object, but are a boolean: true", WANTED]),
    ],
)
async def test_the_error_says_what_was_got_and_what_is_wanted(
    arguments: str, lines: list[str], context: ToolContext
) -> None:
    assert (await fault(plain, arguments, context)).split("\n") == lines


async def test_a_fault_deep_inside_is_named_by_its_path(context: ToolContext) -> None:
    text = '{"unit": "celsius", "person": {}, "points": [{"x": 1}, {"x": {}}], "when": "soon", "number": "x"}'
    told = await fault(everything, text, context)
    assert "- person.name: missing\n" in told
    assert "- points.1.x: got {}, should be a valid integer\n" in told
    assert '- when: got "soon"' in told
    assert '- number: got "x", should be a valid integer' in told


async def test_the_branches_of_a_union_are_told_together(context: ToolContext) -> None:
    def f(a: int | list[str]) -> None: ...

    told = await fault(f, '{"a": {}}', context)
    assert "- a: got {}, should be a valid integer or should be a valid array\n" in told
    assert told.endswith('Wanted: {"a": integer | array of string}')


async def test_a_long_value_and_many_faults_are_cut_short(context: ToolContext) -> None:
    def f(a: int, **more: int) -> None: ...

    told = await fault(f, json.dumps({"a": "x" * 5000} | {f"k{i}": "y" for i in range(50)}), context)
    assert "… (5002 characters)" in told
    assert "- and 43 more\n" in told
    assert len(told) < 1500


async def test_the_words_of_a_validator_reach_the_model(context: ToolContext) -> None:
    def even(value: int) -> int:
        if value % 2:
            raise ValueError("give an even number")
        return value

    def f(a: Annotated[int, AfterValidator(even)]) -> int:
        return a

    assert "- a: got 3, give an even number\n" in await fault(f, '{"a": 3}', context)
    assert await call(f, '{"a": 4}', context) == 4


async def test_a_model_cannot_fill_what_the_runtime_or_the_developer_fills(context: ToolContext) -> None:
    def f(call: ToolContext, key: str, **more: str) -> Any:
        return call, key, more

    secured = partial(f, key="developer")
    assert "- key: not allowed" in await fault(secured, '{"key": "model"}', context)
    assert "- call: not allowed" in await fault(secured, '{"call": "model"}', context)
    assert await call(secured, '{"other": "x", "more": "y"}', context) == (
        context,
        "developer",
        {"other": "x", "more": "y"},
    )


async def test_lone_surrogates_and_deep_nesting_are_errors_and_no_crash(context: ToolContext) -> None:
    def f(a: Any) -> Any:
        return a

    assert "not valid JSON" in await fault(f, '{"a": "\\ud83d"}', context)
    assert "not valid JSON" in await fault(f, '{"a": ' + "[" * 100_000, context)


class Kind(NamedTuple):
    """A type, values of it, and JSON values that are not of it."""

    annotation: Any
    good: st.SearchStrategy[Any]
    bad: st.SearchStrategy[Any]


_integers = st.integers(-(2**53), 2**53)
_words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def _values(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


_not_numbers = _values("x", "", [], {}, None, "1e")
_simple = [
    Kind(int, _integers, _not_numbers | st.just(1.5)),
    Kind(float, st.floats(allow_nan=False, allow_infinity=False), _not_numbers),
    Kind(str, _words, _values(1, 1.5, True, None, [], {})),
    Kind(bool, st.booleans(), _values("maybe", 3, None, [], {})),
    Kind(Literal["a", "b"], st.sampled_from(["a", "b"]), _values("c", 1, None, [])),
    Kind(Unit, st.sampled_from(["celsius", "fahrenheit"]), _values("kelvin", 1, None)),
]
_kinds = st.sampled_from(_simple)
_kinds = st.one_of(
    _kinds,
    _kinds.map(lambda k: Kind(list[k.annotation], st.lists(k.good, max_size=3), k.bad.map(lambda v: [v]))),
    _kinds.map(lambda k: Kind(k.annotation | None, k.good | st.none(), k.bad.filter(lambda v: v is not None))),
    _kinds.map(lambda k: Kind(dict[str, k.annotation], st.dictionaries(_words, k.good, max_size=3), _values(1, "x"))),
)


class Case(NamedTuple):
    """A function, good arguments for it, and the same with one of them wrong."""

    function: Callable[..., dict[str, Any]]
    good: dict[str, Any]
    bad: dict[str, Any]
    wrong: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = draw(st.lists(st.sampled_from(["a", "b", "schema", "_x", "self_", "größe"]), min_size=1, unique=True))
    kinds = {name: draw(_kinds) for name in names}
    optional = draw(st.integers(0, len(names)))
    heads = [name if i < len(names) - optional else f"{name}=None" for i, name in enumerate(names)]
    space: dict[str, Any] = {}
    exec(f"def f({', '.join(heads)}): return dict(locals())", space)
    space["f"].__annotations__.update({name: kind.annotation for name, kind in kinds.items()})
    passed = {n for i, n in enumerate(names) if i < len(names) - optional or draw(st.booleans())}
    good = {name: draw(kind.good) for name, kind in kinds.items() if name in passed}
    wrong = draw(st.sampled_from(names))
    bad_values = kinds[wrong].bad
    if names.index(wrong) >= len(names) - optional:  # a default of None allows null
        bad_values = bad_values.filter(lambda v: v is not None)
    return Case(space["f"], good, {**good, wrong: draw(bad_values)}, wrong)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda v: v.value))


@given(cases())
async def test_valid_arguments_round_trip_and_invalid_ones_are_tool_errors(case: Case) -> None:
    made = tool(inline=True)(case.function)
    context: Any = None
    got = await made.invoke(json.dumps(case.good), context)
    assert _as_json(got) == {name: case.good.get(name) for name in got}
    with pytest.raises(ToolError) as caught:
        await made.invoke(json.dumps(case.bad), context)
    assert f"- {case.wrong}" in str(caught.value)
    with pytest.raises(ToolError, match="- nobody: unknown"):
        await made.invoke(json.dumps({**case.good, "nobody": 1}), context)
    required = made.parameters.get("required", [])
    for name in required:
        with pytest.raises(ToolError, match=f"- {name}: missing"):
            await made.invoke(json.dumps({k: v for k, v in case.good.items() if k != name}), context)


@given(st.text() | st.binary().map(repr))
async def test_any_text_is_read_or_refused_with_a_tool_error(text: str) -> None:
    context: Any = None
    with contextlib.suppress(ToolError):
        await tool(inline=True)(plain).invoke(text, context)
