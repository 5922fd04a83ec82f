"""YAML that knows the lines of its values, so that an error about a file says where to look.

Only plain data is read (the safe tags), keys are text, and a key that stands twice in a mapping is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from aworld.core.exceptions import ConfigError


class YamlText:
    """A YAML text: its `data`, and the lines (from 1) on which the data stand.

    A path is made of keys and indices; what it names beyond the data is passed over.
    """

    def __init__(self, text: str, source: str) -> None:
        """Raises ConfigError that names `source` and the line."""
        self._source = source
        self._values: dict[int, Any] = {}
        self._root: Any = None
        try:
            self._loader: Any = yaml.SafeLoader(text)
            self._root = self._loader.get_single_node()
            self.data: Any = None if self._root is None else self._value(self._root)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ConfigError(f"{source}{where}: this is not YAML: {problem}.") from error
        except RecursionError as error:
            raise ConfigError(f"{source}: nested too deep.") from error

    def line(self, path: Sequence[Any] = (), *, value: bool = False) -> int:
        """The line of the key or item at the end of a path; with `value`, on which its value begins."""
        key, node = self._node(path)
        return _line(node if value else key)

    def line_of(self, value: Any, path: Sequence[Any]) -> int:
        """The line of the first key or single value below a path that is this; the path's own without one."""
        key, node = self._node(path)
        waiting, seen = [node], set[int]()
        while waiting:
            node = waiting.pop()
            if isinstance(node, yaml.ScalarNode):
                if self._loader.construct_object(node) == value:
                    return _line(node)
            elif id(node) not in seen:
                seen.add(id(node))  # an alias leads to what was looked through
                pairs = isinstance(node, yaml.MappingNode)
                below: list[Any] = [part for pair in node.value for part in pair] if pairs else node.value
                waiting += reversed(below)
        return _line(key)

    def _node(self, path: Sequence[Any]) -> tuple[yaml.Node, yaml.Node]:
        """What stands at the end of a path: the key, or the item itself, and the value."""
        key = node = self._root
        for step in path:
            children: Any = node.value
            if isinstance(node, yaml.MappingNode):
                key, node = next((pair for pair in children if pair[0].value == step), (key, node))
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(children):
                key = node = children[step]
        return key, node

    def _value(self, node: yaml.Node) -> Any:
        """A node as data. What an alias stands for is read once, however often it is used."""
        if isinstance(node, yaml.ScalarNode):
            return self._loader.construct_object(node)
        if id(node) in self._values:
            if self._values[id(node)] is None:
                raise self._error(node, "an alias refers to what it is part of")
            return self._values[id(node)]
        self._values[id(node)] = None
        mapping = isinstance(node, yaml.MappingNode)
        value = self._values[id(node)] = self._mapping(node) if mapping else [self._value(n) for n in node.value]
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key: Any = self._value(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self._error(key_node, "merge keys (<<) are not read; write the keys out")
            if not isinstance(key, str):
                raise self._error(key_node, f"a key must be text: put {getattr(key_node, 'value', 'this')} in quotes")
            if key in data:
                raise self._error(key_node, f"{key!r} stands here twice, first in line {lines[key]}")
            data[key], lines[key] = self._value(value_node), _line(key_node)
        return data

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{self._source}, line {_line(node)}: {text}.")


def _line(node: yaml.Node | None) -> int:
    return 1 if node is None else node.start_mark.line + 1
