"""The JSON schema of a function: types, defaults, descriptions, and who fills which parameter."""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Optional, TypedDict, cast

import pytest
from pydantic import BaseModel, ConfigDict, Field

from aworld.core.context.base import Context
from aworld.core.exceptions import ToolError
from aworld.core.tool import FunctionTool, ToolContext, as_tools, tool

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTheChecker


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


class Address(BaseModel):
    """Where somebody lives."""

    street: str = Field(description="Street and number")
    title: str = "none"


class Tree(BaseModel):
    kids: list[Tree] = []


class Titled(BaseModel):
    model_config = ConfigDict(title="A proper title")
    x: int


@dataclass
class Point:
    x: int
    y: int = 0


class Query(TypedDict):
    text: str
    limit: NotRequired[int]


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    (made,) = as_tools(function)
    assert isinstance(made, FunctionTool)
    return made.parameters


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    return parameters(function)["properties"]


def test_simple_types_and_defaults() -> None:
    def f(a: int, b: str = "x", c: float | None = None, d: list[str] = [], e: bool = False) -> None: ...  # noqa: B006

    assert parameters(f) == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "string", "default": "x"},
            "c": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
            "d": {"type": "array", "items": {"type": "string"}, "default": []},
            "e": {"type": "boolean", "default": False},
        },
        "required": ["a"],
        "additionalProperties": False,
    }


def test_no_parameters() -> None:
    def f() -> None: ...

    assert parameters(f) == {"type": "object", "properties": {}, "additionalProperties": False}


def test_enums_and_literals_are_kept() -> None:
    def f(unit: Unit, mode: Literal["fast", "slow"] = "fast", best: Unit = Unit.C) -> None: ...

    schema = parameters(f)
    assert schema["$defs"] == {"Unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}
    assert schema["properties"]["unit"] == {"$ref": "#/$defs/Unit"}
    assert schema["properties"]["mode"] == {"type": "string", "enum": ["fast", "slow"], "default": "fast"}
    assert schema["properties"]["best"] == {"$ref": "#/$defs/Unit", "default": "celsius"}


def test_nested_types_keep_their_definitions_and_lose_made_up_titles() -> None:
    def f(a: Address, p: Point, q: Query, t: Tree, u: Titled) -> None: ...

    schema = parameters(f)
    assert schema["$defs"]["Address"] == {
        "type": "object",
        "description": "Where somebody lives.",
        "properties": {
            "street": {"type": "string", "description": "Street and number"},
            "title": {"type": "string", "default": "none"},
        },
        "required": ["street"],
    }
    assert schema["$defs"]["Point"]["required"] == ["x"]
    assert "title" not in schema["$defs"]["Point"]
    assert schema["$defs"]["Query"]["required"] == ["text"]
    assert schema["$defs"]["Tree"]["properties"]["kids"]["items"] == {"$ref": "#/$defs/Tree"}
    assert schema["$defs"]["Titled"]["title"] == "A proper title"


def test_a_typeddict_of_typing_may_lie_anywhere() -> None:
    def f(a: list[Query], b: "Optional[Query]" = None, c: Annotated[dict[str, Query], "d"] | None = None) -> None:  # noqa: UP037, UP045
        ...

    assert set(parameters(f)["$defs"]) == {"Query"}
    assert parameters(f)["$defs"]["Query"]["required"] == ["text"]


def test_descriptions_come_from_field_annotation_or_docstring_in_that_order() -> None:
    def f(
        a: Annotated[int, Field(ge=1, description="from Field")],
        b: Annotated[int, "from the annotation"],
        c: int,
        d: Annotated[int, "weak", Field(description="strong")],
        e: int = Field(3, description="from the default"),
    ) -> None:
        """Do it.

        Args:
            a: from the docstring
            b: from the docstring
            c: from the docstring
        """

    made = tool(f)
    assert made.description == "Do it."
    assert {name: p["description"] for name, p in made.parameters["properties"].items()} == {
        "a": "from Field",
        "b": "from the annotation",
        "c": "from the docstring",
        "d": "strong",
        "e": "from the default",
    }
    assert made.parameters["properties"]["a"]["minimum"] == 1
    assert made.parameters["properties"]["e"]["default"] == 3
    assert made.parameters["required"] == ["a", "b", "c", "d"]


def test_none_as_default_allows_null() -> None:
    def f(a: str = None, b: Annotated[list[int], "numbers"] = None, c: Literal["x"] = None) -> None: ...  # pyright: ignore[reportArgumentType] # noqa: RUF013

    found = properties(f)
    assert found["a"] == {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    assert found["b"]["anyOf"][1] == found["c"]["anyOf"][1] == {"type": "null"}
    assert found["b"]["description"] == "numbers"


def test_a_parameter_without_annotation_takes_the_type_of_its_default() -> None:
    def f(a=1, b="x", c=(), d=None): ...  # pyright: ignore

    with pytest.raises(ToolError, match=r"f: parameter 'c' has no annotation.*c: str"):
        as_tools(f)
    found = properties(partial(f, c=1))
    assert found == {
        "a": {"type": "integer", "default": 1},
        "b": {"type": "string", "default": "x"},
        "d": {"default": None},
    }


def test_a_default_that_json_does_not_know_only_makes_the_parameter_optional() -> None:
    marker: Any = object()

    def f(a: int = marker) -> None: ...

    assert parameters(f) == {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": False,
    }


def test_parameters_may_have_names_that_pydantic_models_refuse() -> None:
    def f(schema: int, model_config: int, _x: int, copy: int, self_: int) -> None: ...

    assert list(properties(f)) == ["schema", "model_config", "_x", "copy", "self_"]


def test_contexts_are_filled_by_the_runtime() -> None:
    def f(a: int, call: ToolContext, state: Context, maybe: ToolContext | None = None) -> None: ...

    assert list(properties(f)) == ["a"]


def test_keywords_of_a_partial_are_the_developers_and_stay_secret() -> None:
    def f(text: str, key: str, size: int = 1) -> None:
        """Send it."""

    made = as_tools(partial(f, key="SECRET"))[0]
    assert isinstance(made, FunctionTool)
    assert made.name == "f"
    assert made.description == "Send it."
    assert list(made.parameters["properties"]) == ["text", "size"]
    assert "SECRET" not in str(made.parameters)
    assert list(properties(partial(f, "hello", size=2))) == ["key"]


def test_keyword_arguments_make_additional_properties() -> None:
    def typed(a: int, **more: int) -> None: ...
    def free(**more: Any) -> None: ...

    assert parameters(typed)["additionalProperties"] == {"type": "integer"}
    assert parameters(free)["additionalProperties"] in (True, {})


def test_positional_varargs_are_refused_with_the_remedy() -> None:
    def f(*items: str) -> None: ...

    with pytest.raises(ToolError, match=r"f: .*\*items\. Take a list, items: list\[str\]"):
        tool(f)


class Opaque:
    pass


@pytest.mark.parametrize(
    ("annotation", "said"),
    [(Opaque, "of type Opaque"), (Callable[[], int], "Callable"), (list[Opaque], "Opaque"), (5, "of type 5")],
)
def test_a_type_without_schema_is_refused_at_construction(annotation: Any, said: str) -> None:
    def f(fine: int, bad: str) -> None: ...

    f.__annotations__["bad"] = annotation
    with pytest.raises(ToolError, match=r"f: parameter 'bad'") as caught:
        tool(f)
    assert said in str(caught.value)
    assert "functools.partial" in str(caught.value)
    assert "pydantic.dev" not in str(caught.value)


def test_annotations_of_nested_functions_and_local_types() -> None:
    class Local(BaseModel):
        x: int

    @dataclass
    class Other:
        y: int

    @tool
    def decorated(a: Local, b: list[Other]) -> None: ...

    def plain(a: list[Local]) -> None: ...

    assert set(decorated.parameters["$defs"]) == {"Local", "Other"}
    assert set(parameters(plain)["$defs"]) == {"Local"}


def _make(captured: type) -> Callable[..., Any]:
    def f(a: captured) -> None:  # pyright: ignore
        print(captured)  # noqa: T201 - puts the name into the closure

    return cast("Callable[..., Any]", f)


def test_an_annotation_is_found_in_the_closure_after_the_function_around_has_ended() -> None:
    assert properties(_make(Point))["a"] == {"$ref": "#/$defs/Point"}


def test_annotations_written_as_strings_inside_types() -> None:
    def f(a: list["Point"], b: "dict[str, Point]") -> None: ...  # noqa: UP037

    f.__annotations__.update(a=list["Point"], b="dict[str, Point]")
    assert set(parameters(f)["$defs"]) == {"Point"}


@tool
def early(a: Late) -> int:
    """Names a class that is defined further down."""
    return a.x


class Late(BaseModel):
    x: int


def test_a_type_defined_further_down_is_read_at_the_first_use() -> None:
    assert early.parameters["$defs"]["Late"]["properties"] == {"x": {"type": "integer"}}


class Parcel(BaseModel):
    content: Item


@tool
def send(parcel: Parcel) -> str:
    return parcel.content.name


class Item(BaseModel):
    name: str


def test_a_model_whose_fields_are_defined_further_down_is_read_at_the_first_use() -> None:
    assert set(send.parameters["$defs"]) == {"Parcel", "Item"}


def test_an_unknown_name_is_an_error_that_names_it() -> None:
    def f(a: OnlyForTheChecker) -> None: ...

    with pytest.raises(ToolError, match=r"f: the annotation of parameter 'a'.*OnlyForTheChecker.*TYPE_CHECKING"):
        as_tools(f)


def test_contexts_imported_for_the_checker_only_are_understood() -> None:
    space: dict[str, Any] = {}
    exec("def f(a: int, c: 'ToolContext', s: 'Context'): ...", space)  # as in a module that lacks the import
    assert list(properties(space["f"])) == ["a"]


def test_a_return_annotation_that_cannot_be_read_does_no_harm() -> None:
    def f(a: int) -> OnlyForTheChecker: ...

    assert list(properties(f)) == ["a"]


def test_a_wrapped_function_shows_the_signature_below() -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @tool
    @logged
    def f(p: Point) -> int:
        """Wrapped."""
        return p.x

    assert f.description == "Wrapped."
    assert f.parameters["properties"] == {"p": {"$ref": "#/$defs/Point"}}


def test_the_docstring_of_a_callable_object() -> None:
    @dataclass
    class Adder:
        n: int

        def __call__(self, a: int) -> int:
            """Add n."""
            return a + self.n

    @dataclass
    class Silent:
        n: int

        def __call__(self, a: int) -> int:
            return a

    assert tool(Adder(1)).description == "Add n."
    assert tool(Silent(1)).description == ""


def test_plain_signatures_build_nothing_before_they_are_used() -> None:
    """So that a module full of tools imports fast: the schema costs 0.4 ms, the signature some microseconds."""

    def f(a: int, b: dict[str, list[str]] | None = None, c: Literal["x"] = "x") -> None: ...

    made = tool(f)
    assert "arguments" not in vars(made._spec)
    _ = made.parameters
    assert "arguments" in vars(made._spec)


def test_the_signature_of_the_tool_is_that_of_the_function() -> None:
    def f(a: int, b: str = "x") -> bool:
        return bool(a or b)

    assert inspect.signature(tool(f)) == inspect.signature(f)
    assert typing.get_type_hints(tool(f).__wrapped__) == {"a": int, "b": str, "return": bool}
