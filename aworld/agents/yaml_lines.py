"""YAML whose values know their lines, so that an error about a file says where to look.

Only plain data is read (the safe tags), keys are text, and a key that stands twice in a mapping is an error.
"""

from __future__ import annotations

from typing import Any

import yaml

from aworld.core.exceptions import ConfigError


class Mapped(dict[str, Any]):
    """A mapping with the line of each key, from 1, and its own."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class ListedItems(list[Any]):
    """A list with the line of each item, and its own."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []


def parse(text: str, source: str) -> Any:
    """The document in `text`. Raises ConfigError that names `source` and the line."""
    try:
        loader: Any = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, source).value(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{source}{place}: this is not YAML: {problem}.") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deep.") from error


class _Reader:
    def __init__(self, loader: Any, source: str) -> None:
        self._loader = loader
        self._source = source
        self._made: dict[int, Any] = {}

    def value(self, node: yaml.Node) -> Any:
        """A node as data. What an alias stands for is read once, however often it is used."""
        if id(node) in self._made:
            made = self._made[id(node)]
            if made is None:
                raise self._error(node, "an alias refers to what it is part of")
            return made
        if isinstance(node, yaml.MappingNode):
            self._made[id(node)] = None
            made = self._mapping(node)
        elif isinstance(node, yaml.SequenceNode):
            self._made[id(node)] = None
            made = ListedItems(_line(node))
            for item in node.value:
                made.append(self.value(item))
                made.lines.append(_line(item))
        else:
            return self._loader.construct_object(node)
        self._made[id(node)] = made
        return made

    def _mapping(self, node: yaml.MappingNode) -> Mapped:
        made = Mapped(_line(node))
        for key_node, value_node in node.value:
            key: Any = self.value(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self._error(key_node, "merge keys (<<) are not read; write the keys out")
            if not isinstance(key, str):
                written = getattr(key_node, "value", "this")
                raise self._error(key_node, f"a key must be text: put {written} in quotes")
            if key in made:
                raise self._error(key_node, f"{key!r} stands here twice, first in line {made.lines[key]}")
            made[key] = self.value(value_node)
            made.lines[key] = _line(key_node)
        return made

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{self._source}, line {_line(node)}: {text}.")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
