"""What tools return, as the content of a message."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections import OrderedDict, deque
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from aworld.core.exceptions import ToolError
from aworld.core.message import Audio, File, Image, Text
from aworld.core.tool import to_content

NAN: Any = float("nan")


class Colour(enum.Enum):
    RED = "red"


class Shade(str, enum.Enum):  # noqa: UP042 - the older spelling is what many programs have
    DARK = "dark"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    y: Any = 0


class Person(BaseModel):
    name: str
    born: dt.date | None = None


class Row(msgspec.Struct):
    id: int
    value: Any = None


class Pair(NamedTuple):
    left: int
    right: int


class LoudStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "loud"


class Scalar:
    """Stands for a number of NumPy and its like."""

    def tolist(self) -> float:
        return 1.5


class Matrix:
    def tolist(self) -> list[list[int]]:
        return [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ("", ""),
        (0, "0"),
        (None, "null"),
        (False, "false"),
        ([], "[]"),
        ({}, "{}"),
        (1.5, "1.5"),
        (2**200, str(2**200)),
        ({"n": 2**70}, f'{{"n":{2**70}}}'),
        ({"größe": "ä"}, '{"größe":"ä"}'),
        (Colour.RED, "red"),
        (Shade.DARK, "dark"),
        (Level.HIGH, "3"),
        ([Colour.RED, Shade.DARK, Level.HIGH], '["red","dark",3]'),
        (Point(1, Point(2)), '{"x":1,"y":{"x":2,"y":0}}'),
        (Person(name="Ada", born=dt.date(1815, 12, 10)), '{"name":"Ada","born":"1815-12-10"}'),
        ([Person(name="Ada")], '[{"name":"Ada","born":null}]'),
        (Row(1, Decimal("2.50")), '{"id":1,"value":"2.50"}'),
        (Pair(1, 2), "[1,2]"),
        (dt.datetime(2026, 1, 2, 3, 4, 5), '"2026-01-02T03:04:05"'),
        ({1}, "[1]"),
        (Path("a/b"), '"a/b"'),
        (deque([1, 2]), "[1,2]"),
        (range(3), "[0,1,2]"),
        ({"a": 1}.keys(), '["a"]'),
        (OrderedDict({"a": 1}), '{"a":1}'),
        (MappingProxyType({"a": 1}), '{"a":1}'),
        ({None: 1, True: 2, Colour.RED: 3, Path("p"): 4}, '{"null":1,"true":2,"red":3,"p":4}'),
        (Scalar(), "1.5"),
        ({"m": Matrix()}, '{"m":[[1,2],[3,4]]}'),
        (LoudStr("quiet"), "quiet"),
        ([LoudStr("quiet")], '["quiet"]'),
        (b"caf\xc3\xa9", "café"),
        (bytearray(b"x"), "x"),
        (memoryview(b"x"), "x"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        ([float("inf"), float("nan"), 1.0, None], '["Infinity","NaN",1.0,null]'),
        ({"x": -float("inf")}, '{"x":"-Infinity"}'),
        (Point(NAN, None), '{"x":"NaN","y":null}'),
        ({"null": Row(1, None)}, '{"null":{"id":1,"value":null}}'),
        ({None: [float("nan")]}, '{"null":["NaN"]}'),
        (Text("hello"), "hello"),
    ],
)
def test_value_as_text(value: Any, text: str) -> None:
    assert to_content(value, 1000) == text


def test_parts_stay_parts() -> None:
    image, audio, file = Image("https://x/y.png"), Audio("AAAA"), File(name="f", file_id="1")
    assert to_content(image, 10) == (image,)
    assert to_content(["see:", image, {"n": 1}], 100) == (Text("see:"), image, Text('{"n":1}'))
    assert to_content((audio, file), 10) == (audio, file)


def test_a_part_inside_a_dict_is_refused_as_no_model_would_see_it() -> None:
    with pytest.raises(ToolError, match=r"Image at 'shot'.*a list of text and parts"):
        to_content({"shot": Image("data:image/png;base64,AAAA")}, 100)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ToolError, match=r"3 bytes that are not UTF-8.*File or Image part"):
        to_content(b"\xff\xfe\x00", 100)


@pytest.mark.parametrize("value", ["a\ud83d", "\udc80"])
def test_lone_surrogates_become_valid_text(value: str) -> None:
    content = to_content(value, 100)
    assert isinstance(content, str)
    assert "\\ud" in content
    content.encode()
    nested = to_content({value: [value, float("nan")]}, 100)
    assert isinstance(nested, str)
    decoded: Any = json.loads(nested)
    assert decoded == {content: [content, "NaN"]}
    assert to_content([value, Image("https://x")], 100) == (Text(content), Image("https://x"))


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (object(), "result is of type object"),
        ({"items": [1, {"conn": object()}]}, r"result\['items'\]\[1\]\['conn'\] is of type object"),
        (Point(1, 3j), r"result\.y is of type complex"),
        (Row(1, [print]), r"result\.value\[0\] is of type builtin_function_or_method"),
        ({"a": {(1, 2): 3}}, r"result\['a'\] is a dict with a key of type tuple \(\(1, 2\)\)"),
        ((i for i in range(3)), "result is of type generator"),
        ([Person], r"result\[0\] is of type"),
    ],
)
def test_what_is_not_jsonable_is_named_with_its_place(value: Any, where: str) -> None:
    with pytest.raises(ToolError, match=where):
        to_content(value, 100)


def _cyclic() -> list[Any]:
    a: list[Any] = []
    a.append(a)
    b: dict[str, Any] = {}
    b["self"] = b
    c = Point(1)
    c.y = [c]
    d = Row(1)
    d.value = d
    e: list[Any] = ["\ud83d"]
    e.append(e)
    return [a, b, c, d, e]


@pytest.mark.parametrize("value", _cyclic(), ids=["list", "dict", "dataclass", "struct", "with surrogate"])
def test_a_structure_that_contains_itself_is_an_error_and_no_crash(value: Any) -> None:
    with pytest.raises(ToolError, match="contains itself"):
        to_content(value, 100)


def test_the_search_for_a_stranger_stays_out_of_what_contains_itself() -> None:
    value: dict[Any, Any] = {"first": [object()]}
    value["then"] = [value, value, [value]]
    with pytest.raises(ToolError, match=r"result\['first'\]\[0\] is of type object"):
        to_content(value, 100)
    value = {(1, 2): 0}
    value["then"] = [value, value]
    with pytest.raises(ToolError, match=r"result is a dict with a key of type tuple"):
        to_content(value, 100)


def test_a_stranger_deep_inside_is_an_error_and_no_crash() -> None:
    value: Any = object()
    for _ in range(400):
        value = [value]
    with pytest.raises(ToolError, match=r"result\[0\].*\[0\] is of type list"):
        to_content(value, 100)


def test_text_beyond_the_limit_is_cut_and_says_so() -> None:
    assert to_content("x" * 2000, 1500) == "x" * 1500 + "\n[cut: the first 1,500 of 2,000 characters are shown]"
    assert to_content("x" * 1500, 1500) == "x" * 1500
    content = to_content(list(range(100)), 10)
    assert isinstance(content, str)
    assert content.startswith("[0,1,2,3,4\n[cut: the first 10 of ")


def test_the_limit_holds_for_all_text_parts_together_and_leaves_media_whole() -> None:
    image = Image("data:image/png;base64," + "A" * 500)
    first, second, third = to_content(["x" * 8, image, "y" * 8], 10)
    assert first == Text("x" * 8)
    assert second == image
    assert isinstance(third, Text)
    assert third.text == "yy\n[cut: the first 2 of 8 characters are shown]"


def test_no_limit() -> None:
    assert to_content("x" * 100_000) == "x" * 100_000


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_json_values.filter(lambda v: not isinstance(v, str)))
def test_json_values_round_trip(value: Any) -> None:
    content = to_content(value)
    assert isinstance(content, str)
    assert json.loads(content) == value


@given(st.text(st.characters()))
def test_any_text_becomes_text_that_can_be_sent(value: str) -> None:
    content = to_content(value)
    assert isinstance(content, str)
    content.encode()
