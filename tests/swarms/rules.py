"""Functions and types that files name: what a reader would have in a module of his own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from aworld.core.tool.func_to_tool import tool


class Report(BaseModel):
    """A typed answer."""

    title: str
    score: int = 0


def lookup(word: str) -> str:
    """Look a word up."""
    return f"{word} is a word"


@tool(name="add_numbers", inline=True)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool(tool_name="swarm-files", inline=True)
def registered(text: str) -> str:
    """Found by name."""
    return text


def shout(text: str) -> str:
    return text.upper()


def good(state: Mapping[str, Any], output: Any) -> bool:
    return "good" in str(output)


def not_empty(state: Mapping[str, Any], output: Any) -> bool:
    return bool(output)


def lines(text: str) -> list[str]:
    return text.splitlines()


def first(outputs: list[Any]) -> Any:
    return outputs[0]


def all_of(outputs: dict[str, Any]) -> str:
    return " + ".join(f"{name}: {value}" for name, value in outputs.items())


def yes(answer: Any) -> bool:
    return "yes" in str(answer)


def longer(task: Any, output: Any) -> str:
    return f"{task} after {output}"


def union(one: Any, other: Any) -> Any:
    return sorted({*one, *other})
