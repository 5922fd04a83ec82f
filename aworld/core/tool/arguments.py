"""The arguments of a tool call: their JSON schema, their validation, and what a model is told when they are wrong.

Types are pydantic's. One `TypedDict` per function, made of the annotations, gives both the schema and the validator:
parameters may have any name (`schema`, `_x`), and an argument that was left out stays out, so that the function's own
default applies.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import reduce
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import Field as PydanticField
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, from_json, to_jsonable_python
from typing_extensions import TypedDict

from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.tool.schema import EMPTY, Field, Signature, UnresolvedError, bare, is_union

_SHOWN = 8
"""Faults told at once; a model that got more wrong than that reads the schema again."""

_CLIP = 80
"""Characters shown of a wrong value."""


class Arguments:
    """Schema and validator of a function's arguments. Raises `ToolError` that names a parameter without a schema."""

    dump: Callable[[Any], str]
    """The JSON text of a value, of those that are `of_type`."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        try:
            adapter = _adapter(signature.fields, signature.extra)
            schema = adapter.json_schema(schema_generator=_Schema)
        except (PydanticUserError, PydanticUndefinedAnnotation, TypeError) as error:
            raise _unfit(signature, error) from error
        self.schema = _finish(schema, signature.fields)
        """JSON schema of an object."""
        self._open = signature.extra is not EMPTY
        self._validate = adapter.validator.validate_json

    @classmethod
    def of_type(cls, type_: Any, owner: str) -> Arguments:
        """Of a type whose JSON form is an object: what is read is a value of it. Raises ConfigError."""
        try:
            adapter = TypeAdapter[Any](type_)
            schema = adapter.json_schema(schema_generator=_Schema)
        except (PydanticUserError, PydanticUndefinedAnnotation, TypeError) as error:
            raise ConfigError(f"{owner} cannot be offered to a model: {error}") from error
        if not isinstance(type_, type) or "properties" not in schema:
            remedy = "give a pydantic model, a dataclass or a TypedDict"
            raise ConfigError(f"{owner}: {type_!r} is no object with named fields; {remedy}.", remedy=remedy)
        arguments = cls.__new__(cls)
        arguments._open, arguments._validate, arguments.schema = False, adapter.validate_json, schema
        arguments.dump = lambda value: adapter.dump_json(value, by_alias=True).decode()
        return arguments

    def read(self, text: str) -> dict[str, Any]:
        """The JSON text as values of the annotated types; absent arguments are absent. Raises `ToolError`."""
        try:
            values = self._validate(text or "{}")
        except ValidationError as error:
            if text.strip() in ("", "null"):  # what some models send for no arguments
                return self.read("{}")
            raise ToolError(self._explain(text, error)) from None
        if self._open and not self._signature.reserved.isdisjoint(values):
            taken = ", ".join(sorted(self._signature.reserved.intersection(values)))
            raise ToolError(f"Wrong arguments.\n- {taken}: not allowed\nWanted: {signature_text(self.schema)}")
        return values

    def _explain(self, text: str, error: ValidationError) -> str:
        faults = error.errors(include_url=False, include_context=False)
        whole = signature_text(self.schema)
        first = faults[0]
        if first["type"] == "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            return f"The arguments are not valid JSON ({reason}): {_clip(text)}\nWanted: {whole}"
        if not first["loc"] and isinstance(from_json(text), dict):  # of a type that looks at the whole
            return f"Wrong arguments: {first['msg'].removeprefix('Value error, ')}: {_clip(text)}\nWanted: {whole}"
        if not first["loc"]:
            got = _json_kind(first["input"])
            return f"The arguments must be one JSON object, but are {got}: {_clip(text)}\nWanted: {whole}"
        data = from_json(text)
        wishes: dict[str, dict[str, None]] = {}
        for fault in faults:
            where = _path(fault["loc"], data, absent=fault["type"] == "missing")
            got, wanted = self._fault(fault["type"], fault["msg"], fault["input"], where)
            wishes.setdefault(f"- {where}: {got}", {})[wanted] = None
        lines = [got + " or ".join(wanted) for got, wanted in wishes.items()]
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"- and {len(lines) - _SHOWN} more"]
        return "\n".join(["Wrong arguments.", *lines, f"Wanted: {whole}"])

    def _fault(self, kind: str, message: str, got: Any, where: str) -> tuple[str, str]:
        """What was got and what was wanted; several wants for one thing are the branches of a union."""
        properties: dict[str, Any] = self.schema["properties"]
        if kind == "missing":
            wanted = kind_text(properties[where], self.schema.get("$defs", {})) if where in properties else ""
            return "missing", f", wanted {wanted}" if wanted else ""
        if kind == "extra_forbidden":
            there = ", ".join(properties) or "none"
            return "unknown", f", there are: {there}" if "." not in where else ""
        message = message.removeprefix("Input ").removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return f"got {_clip(_json(got))}, ", message


def signature_text(schema: dict[str, Any]) -> str:
    """A schema in one short line, such as `{"a": integer, "b"?: string}`."""
    required = schema.get("required", ())
    named = schema.get("$defs", {})
    items = [f'"{n}"{"" if n in required else "?"}: {kind_text(v, named)}' for n, v in schema["properties"].items()]
    if schema.get("additionalProperties"):
        items.append("…")
    return "{" + ", ".join(items) + "}"


def kind_text(schema: Any, named: dict[str, Any]) -> str:
    """The kind of value a schema asks for, in a few words; `named` holds the `$defs`."""
    if not isinstance(schema, dict):
        return "any"
    node = cast("dict[str, Any]", schema)
    if "enum" in node or "const" in node:
        return _clip(" | ".join(_json(v) for v in node.get("enum", [node.get("const")])))
    if options := node.get("anyOf") or node.get("oneOf"):
        return " | ".join(dict.fromkeys(kind_text(option, named) for option in options))
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return kind_text(named[name], named) if "enum" in named.get(name, ()) else name
    if node.get("type") == "array" and "items" in node:
        return f"array of {kind_text(node['items'], named)}"
    return str(node.get("type", "any"))


class _Schema(GenerateJsonSchema):
    """JSON schema without the titles that pydantic makes up, and without its warnings about defaults."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def emit_warning(self, kind: Any, detail: str) -> None:
        return


def _adapter(fields: Iterable[Field], extra: Any) -> TypeAdapter[dict[str, Any]]:
    members: dict[str, Any] = {}
    for field in fields:
        annotation = _described(_modern(field.annotation))
        if isinstance(field.default, FieldInfo):  # def f(x: int = Field(3, description=…))
            annotation = Annotated[annotation, field.default]
        elif field.default is not EMPTY:
            annotation = NotRequired[_optional(annotation) if field.default is None else annotation]
        members[field.name] = annotation
    make = cast("Any", TypedDict)  # a checker knows only literal members
    if extra is not EMPTY:
        return TypeAdapter(make("Arguments", members, extra_items=_modern(extra)))
    arguments = make("Arguments", members)
    arguments.__pydantic_config__ = {"extra": "forbid"}
    return TypeAdapter(arguments)


def _optional(annotation: Any) -> Any:
    """`x: int = None` means that None is allowed."""
    inner = bare(annotation)
    if inner is Any or inner is None or (is_union(inner) and type(None) in get_args(inner)):
        return annotation
    if inner is annotation:
        return annotation | None
    return Annotated[inner | None, *annotation.__metadata__]


def _described(annotation: Any) -> Any:
    """`Annotated[int, "how many"]` and PEP 727's `Doc("how many")` describe a parameter too."""
    if get_origin(annotation) is not Annotated:
        return annotation
    for item in annotation.__metadata__:
        text = item if isinstance(item, str) else getattr(item, "documentation", None)
        if isinstance(text, str):
            return Annotated[annotation.__origin__, PydanticField(description=text), *annotation.__metadata__]
    return annotation


def _unfit(signature: Signature, error: Exception) -> ToolError:
    """The error that names the parameter whose type has no schema."""
    fields = signature.fields
    for field in fields if signature.extra is EMPTY else (*fields, Field("**kwargs", signature.extra)):
        try:
            _adapter([Field("x", field.annotation, field.default)], EMPTY).json_schema(schema_generator=_Schema)
        except (PydanticUserError, PydanticUndefinedAnnotation, TypeError) as reason:
            error = reason
            type_ = field.annotation.__qualname__ if isinstance(field.annotation, type) else field.annotation
            owner = f"{signature.label}: parameter {field.name!r} of type {type_}"
            break
    else:
        owner = signature.label
    why = str(error).split("\n", 1)[0].split(". ", 1)[0].rstrip(".")
    if isinstance(error, PydanticUndefinedAnnotation) or getattr(error, "code", None) == "class-not-fully-defined":
        return UnresolvedError(f"{owner}: {why}. Define or import what its type names at the level of the module.")
    return ToolError(
        f"{owner} cannot be offered to a model: {why}. Use a JSON type, an enum, a dataclass, a TypedDict or a "
        f"pydantic model, or fill it yourself with functools.partial."
    )


def _finish(schema: dict[str, Any], fields: Iterable[Field]) -> dict[str, Any]:
    """The schema in a fixed order of keys, with the function's defaults and without made-up titles."""
    properties: dict[str, Any] = schema.get("properties", {})
    for field in fields:
        if field.default is EMPTY or field.name not in properties or isinstance(field.default, FieldInfo):
            continue
        try:
            properties[field.name]["default"] = to_jsonable_python(field.default)
        except (PydanticSerializationError, ValueError):  # a marker object: the model only sees that it may be left out
            continue
    _drop_titles(schema, "Arguments")
    schema["properties"] = properties
    order = ("type", "properties", "required", "additionalProperties", "$defs")
    return {key: schema[key] for key in order if key in schema}


def _drop_titles(schema: Any, name: str = "") -> None:
    """Drop the titles that repeat the name of a type, everywhere below `schema`."""
    if isinstance(schema, list):
        for item in cast("list[Any]", schema):
            _drop_titles(item)
    if not isinstance(schema, dict):
        return
    node = cast("dict[str, Any]", schema)
    title = node.get("title")
    if isinstance(title, str) and re.sub(r"[^\w.-]", "_", title) == name.rpartition("__")[2]:
        del node["title"]
    for key in ("items", "additionalProperties", "propertyNames", "anyOf", "oneOf", "allOf", "prefixItems"):
        _drop_titles(node.get(key))
    for key in ("properties", "patternProperties", "$defs"):
        for inner, value in node.get(key, {}).items():
            _drop_titles(value, inner if key == "$defs" else "")


def _modern(annotation: Any) -> Any:
    """`typing.TypedDict` as `typing_extensions.TypedDict`, which pydantic asks for before Python 3.12."""
    if sys.version_info >= (3, 12):
        return annotation
    if is_typeddict(annotation) and type(annotation).__module__ == "typing":
        members: dict[str, Any] = {}
        for name, hint in get_type_hints(annotation, include_extras=True).items():
            mark = Required if name in annotation.__required_keys__ else NotRequired
            if get_origin(hint) in (Required, NotRequired):  # as strings they are not in `__required_keys__`
                mark, hint = get_origin(hint), get_args(hint)[0]
            members[name] = mark[_modern(hint)]
        modern = cast("Any", TypedDict)(annotation.__name__, members)
        modern.__doc__, modern.__module__ = annotation.__doc__, annotation.__module__
        return modern
    origin, old = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal or not old:
        return annotation
    if origin is Annotated:
        return Annotated[_modern(old[0]), *annotation.__metadata__]
    new = tuple(_modern(item) for item in old)
    if new == old:
        return annotation
    return reduce(lambda a, b: a | b, new) if is_union(annotation) else origin[new]


def _path(loc: tuple[int | str, ...], data: Any, *, absent: bool) -> str:
    """Where a fault lies, as `people.0.name`; the branches of unions that pydantic names are left out."""
    out = [str(loc[0])]
    data = data.get(loc[0])
    for step in loc[1:]:
        if isinstance(data, dict) and step in data:
            data = cast("dict[Any, Any]", data)[step]
        elif isinstance(data, list) and isinstance(step, int):
            data = cast("list[Any]", data)[step]
        elif not (absent and step == loc[-1]):
            continue
        out.append(str(step))
    return ".".join(out)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _json_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    return "an array" if isinstance(value, list) else "null" if value is None else "a string"


def _clip(text: str) -> str:
    return text if len(text) <= _CLIP else f"{text[:_CLIP]}… ({len(text)} characters)"
