"""Tool calls in the policy's text: read back as they were written, or left as text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aworld.core.message import Message, chat_format
from aworld.models.chat_tokens import parse_exact
from aworld.models.embedded.checkpoint import Policy

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TOKENIZER = Policy.open().tokenizer


def rendered(message: Message) -> str:
    """What the template makes of an answer."""
    plain: dict[str, Any] = chat_format(message)
    whole = TOKENIZER.apply_chat_template([plain], add_generation_prompt=False)
    assert whole.startswith("<|im_start|>assistant\n")
    assert whole.endswith("<|im_end|>\n")
    return whole.removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (CALL, None, ['{"a": 1}']),
        (f"I add.\n{CALL}", "I add.", ['{"a": 1}']),
        (f"{CALL}\n{CALL}", None, ['{"a": 1}', '{"a": 1}']),
        (CALL.replace('{"a": 1}', '{"a" :1,  "b": {"c": []}}'), None, ['{"a" :1,  "b": {"c": []}}']),
    ],
)
def test_calls(text: str, content: str | None, calls: list[str]) -> None:
    message = parse_exact(text, 3)
    assert message.content == content
    assert [call.arguments for call in message.tool_calls] == calls
    assert [call.id for call in message.tool_calls] == [f"call_3_{n}" for n in range(len(calls))]
    assert rendered(message) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "62",
        f"{CALL}.",
        f"{CALL}\n",
        f"\n{CALL}",
        CALL.removesuffix("</tool_call>"),
        CALL.replace("{", "{{"),
        CALL.replace('{"a": 1}', '{"a": 1'),
        CALL.replace('{"a": 1}', "[1]"),
        CALL.replace("add", "no such name"),
        CALL.replace('{"a": 1}', '"a"'),
        f"<tool_call>{CALL}",
        f"{CALL}\n<tool_call>\n",
    ],
)
def test_anything_else_stays_text(text: str) -> None:
    message = parse_exact(text)
    assert message == Message("assistant", text)
    assert rendered(message) == text


@given(
    st.lists(st.sampled_from([CALL, "\n", "<tool_call>", "</tool_call>", '{"name": "', "x", "}}", "1", " "])).map(
        "".join
    )
)
@example(f"\n\n{CALL}")
def test_whatever_is_written_is_rendered_back(text: str) -> None:
    assert rendered(parse_exact(text)) == text
