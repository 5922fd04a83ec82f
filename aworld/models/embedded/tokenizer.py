"""Text to ids and back: the tokenizer and the chat template of a policy, the very files that other servers read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from aworld.core.exceptions import ConfigError

END = "<|im_end|>"
"""Ends a message. It is one token, so what stands before it is tokenised the same whatever follows."""

RENDER_TIME = 5.0
"""Seconds that a template may take for a conversation; ours takes a thousandth of one."""

_SEGMENTS = 4096  # messages whose ids are remembered: the system prompt and each question of a group come again


class PolicyTokenizer:
    """A tokenizer and its chat template, with the methods of a `transformers` tokenizer that `ChatTokens` uses.

    Args:
        data: Content of `tokenizer.json`.
        template: Content of `chat_template.jinja`.

    Raises:
        ConfigError: When one of them cannot be read, or the tokenizer has no `<|im_end|>`.
    """

    def __init__(self, data: str, template: str) -> None:
        self.data, self.chat_template = data, template
        try:
            self.backend_tokenizer: Any = Tokenizer.from_str(data)
        except Exception as error:  # noqa: BLE001 - the package raises nothing narrower
            raise ConfigError(f"tokenizer.json cannot be read: {error}") from None
        try:
            self._template = _environment().from_string(template)
        except (TemplateError, RecursionError) as error:
            raise ConfigError(f"chat_template.jinja cannot be read: {error}") from None
        self.size: int = self.backend_tokenizer.get_vocab_size()
        end = self.backend_tokenizer.token_to_id(END)
        if end is None:
            raise ConfigError(f"tokenizer.json has no token {END!r}, with which the embedded policy ends a message.")
        self.eos_token_id: int = end
        self._segment = lru_cache(maxsize=_SEGMENTS)(self._encode_segment)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of a text. Message by message, because a message that was seen before costs nothing."""
        ids: list[int] = []
        *ended, rest = text.split(END)
        for segment in ended:
            ids += self._segment(segment)
            ids.append(self.eos_token_id)
        return [*ids, *self._segment(rest)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, conversation: Sequence[dict[str, Any]], *, add_generation_prompt: bool, tools: Any = None, **_: Any
    ) -> str:
        """The text of a conversation, in the chat-completions shape; with `add_generation_prompt` the beginning of the
        next answer. Raises jinja2.TemplateError when the template refuses, or takes too long."""
        _deadline.set(time.monotonic() + RENDER_TIME)
        return self._template.render(
            messages=conversation, tools=tools or None, add_generation_prompt=add_generation_prompt
        )

    def _encode_segment(self, text: str) -> tuple[int, ...]:
        return tuple(self.backend_tokenizer.encode(text, add_special_tokens=False).ids)


_deadline: ContextVar[float] = ContextVar("_deadline")


class _Environment(ImmutableSandboxedEnvironment):
    """A template language for what strangers wrote: nothing of Python is reached, and it ends in time.

    The clock is looked at with each item of a loop and at each call; of what else goes on for long there are two
    operators.
    """

    intercepted_binops = frozenset({"*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "in_time", [], [], None, None)
        return template

    def call(self, *arguments: Any, **named: Any) -> Any:
        """Call what a template calls."""
        _look_at_the_clock()
        return super().call(*arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply numbers; a text times a number, or a power, may fill the memory."""
        if operator == "**" or not isinstance(left, int | float) or not isinstance(right, int | float):
            raise TemplateError(f"a chat template has no use for {operator!r} here")
        return super().call_binop(context, operator, left, right)


def _in_time(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _look_at_the_clock()
        yield value


def _look_at_the_clock() -> None:
    if time.monotonic() > _deadline.get():
        raise TemplateError(f"it takes longer than {RENDER_TIME:g} s")


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """The template language as `transformers` sets it up."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    cast("dict[str, Any]", environment.filters).update(tojson=_to_json, in_time=_in_time)
    cast("dict[str, Any]", environment.globals)["raise_exception"] = _refuse
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)
