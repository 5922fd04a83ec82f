"""Chat messages to ids and back for any tokenizer of `transformers`; here with that of the packaged policy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest

from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.message import Message, ToolCall
from aworld.core.model import Delta, ModelRequest, TextDelta, ToolSchema
from aworld.models import build_model, chat_tokens
from aworld.models.chat_tokens import ChatTokens, Prompt, parse
from aworld.models.embedded.checkpoint import Policy
from aworld.models.token_model import Completion, GrowingText, Sampling, TokenModel

ADD = ToolSchema("add", "Adds.", {"type": "object", "properties": {"a": {}, "b": {}}})


class Recital(TokenModel):
    """Says ids that it was given, one list a call."""

    provider = "recital"

    def __init__(self, said: Sequence[Sequence[int]], **settings: Any) -> None:
        tokenizer = Policy.open().tokenizer
        super().__init__(ChatTokens(tokenizer), name="recital", ends=frozenset([tokenizer.eos_token_id]), **settings)
        self.said = list(said)
        self.prompts: list[tuple[int, ...]] = []
        self.asked: list[Sampling] = []

    async def complete(
        self, prompt: Prompt, sampling: Sampling, request: ModelRequest, text: GrowingText
    ) -> Completion:
        self.prompts.append(prompt.ids)
        self.asked.append(sampling)
        ids = tuple(self.said.pop(0))
        return Completion(ids, (-0.5,) * len(ids), "7")


def letters(text: str, *, end: bool = True) -> list[int]:
    """A text as no tokenizer would write it: a token a letter."""
    tokenizer = Policy.open().tokenizer
    ids = [id for letter in text for id in tokenizer.encode(letter)]
    return [*ids, tokenizer.eos_token_id] if end else ids


async def test_what_was_sampled_is_never_tokenised_again() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a":1,  "b":2}}\n</tool_call>'
    model = Recital([letters(call), letters("3")])
    messages = (Message("user", "What is 1 plus 2?"),)
    first = await model.generate(ModelRequest(messages, (ADD,), trajectory_id="t", agent="a"))
    assert first.message.tool_calls == (ToolCall("call_0_0", "add", '{"a":1,  "b":2}'),)
    assert first.finish_reason == "tool_calls"

    messages += (first.message, Message("tool", "3", tool_call_id="call_0_0", name="add"))
    second = await model.generate(ModelRequest(messages, (ADD,), turn=1, trajectory_id="t", agent="a"))
    assert first.tokens is not None
    assert second.tokens is not None
    before = (first.tokens.prompt_ids or ()) + (first.tokens.completion_ids or ())
    assert (second.tokens.prompt_ids or ())[: len(before)] == before
    assert second.message.text == "3"
    assert second.finish_reason == "stop"
    assert second.tokens.policy_version == "7"


async def test_another_run_with_the_same_text_has_tokens_of_its_own() -> None:
    model = Recital([letters("one two"), Policy.open().tokenizer.encode("one two"), letters("x")])
    start = (Message("user", "Say it."),)
    one = await model.generate(ModelRequest(start, trajectory_id="one", agent="a"))
    two = await model.generate(ModelRequest(start, trajectory_id="two", agent="a"))
    assert one.message.text == two.message.text
    more = (*start, one.message, Message("user", "Again."))
    again = await model.generate(ModelRequest(more, turn=1, trajectory_id="one", agent="a"))
    assert one.tokens is not None
    assert again.tokens is not None
    known = (one.tokens.prompt_ids or ()) + (one.tokens.completion_ids or ())
    assert (again.tokens.prompt_ids or ())[: len(known)] == known


async def test_a_run_that_goes_on_from_another_keeps_its_tokens() -> None:
    """A fork, a resumed conversation, a client over HTTP that names no run."""
    model = Recital([letters("one two"), letters("x"), letters("y")])
    start = (Message("user", "Say it."),)
    one = await model.generate(ModelRequest(start, trajectory_id="one", agent="a"))
    assert one.tokens is not None
    whole = (one.tokens.prompt_ids or ()) + (one.tokens.completion_ids or ())
    more = (*start, one.message, Message("user", "Again."))
    for trajectory in ("fork", ""):
        again = await model.generate(ModelRequest(more, turn=1, trajectory_id=trajectory, agent="a"))
        assert again.tokens is not None
        assert (again.tokens.prompt_ids or ())[: len(whole)] == whole


async def test_what_is_forgotten_is_tokenised_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_tokens, "REMEMBERED", 1)
    model = Recital([letters("one two"), letters("x")])
    start = (Message("user", "Say it."),)
    one = await model.generate(ModelRequest(start, trajectory_id="t", agent="a"))
    more = (*start, one.message, Message("user", "Again."))
    await model.generate(ModelRequest(more, turn=1, trajectory_id="t", agent="a"))
    assert model.prompts[1][: len(model.prompts[0])] == model.prompts[0]
    assert tuple(letters("one two")) != model.prompts[1][len(model.prompts[0]) :][: len(letters("one two"))]


async def test_a_stop_text_cuts_the_answer_and_not_its_tokens() -> None:
    model = Recital([letters("one. two"), letters("x")], params={"stop": [".", "w"]})
    start = (Message("user", "Say it."),)
    deltas: list[Delta] = []
    cut = await model.stream(ModelRequest(start, trajectory_id="t", agent="a"), deltas.append)
    assert (cut.message.text, cut.finish_reason) == ("one", "stop")
    assert deltas == [TextDelta("one")]
    assert cut.tokens is not None
    assert cut.tokens.completion_ids == tuple(letters("one. two"))
    # The conversation goes on from the text that everybody saw, so its tokens are others.
    more = (*start, cut.message, Message("user", "Again."))
    await model.generate(ModelRequest(more, turn=1, trajectory_id="t", agent="a"))
    tokenizer = Policy.open().tokenizer
    assert "two" not in tokenizer.decode(model.prompts[1])


async def test_an_answer_that_was_cut_off_says_so_and_is_gone_on_from() -> None:
    model = Recital([letters("abc", end=False), letters("d")])
    start = (Message("user", "Say it."),)
    cut = await model.generate(ModelRequest(start, trajectory_id="t", agent="a"))
    assert cut.finish_reason == "length"
    more = (*start, cut.message, Message("user", "Go on."))
    on = await model.generate(ModelRequest(more, turn=1, trajectory_id="t", agent="a"))
    assert cut.tokens is not None
    assert on.tokens is not None
    known = (cut.tokens.prompt_ids or ()) + (cut.tokens.completion_ids or ())
    assert (on.tokens.prompt_ids or ())[: len(known)] == known


async def test_sampling_settings_reach_the_policy() -> None:
    model = Recital([letters("a")] * 3, params={"temperature": 0.5, "max_tokens": 9}, context=64)
    start = (Message("user", "Say it."),)
    await model.generate(ModelRequest(start))
    await model.generate(ModelRequest(start, params={"temperature": 0, "top_p": 0.9, "seed": 3, "top_k": -1}))
    await model.generate(ModelRequest(start, params={"max_tokens": 1000}))
    assert model.asked[0] == Sampling(temperature=0.5, max_tokens=9)
    assert model.asked[1] == Sampling(temperature=0.0, top_p=0.9, seed=3, max_tokens=9)
    assert model.asked[2].max_tokens == 64 - len(model.prompts[2])
    with pytest.raises(ModelError, match="takes 64"):
        await model.generate(ModelRequest((Message("user", "word " * 80),)))
    with pytest.raises(ModelError, match="setting does not fit"):
        await model.generate(ModelRequest(start, params={"temperature": "hot"}))


@pytest.mark.parametrize(
    "written",
    [
        "<tool_call>{broken</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        "no call at all",
    ],
)
def test_what_is_no_call_stays_text(written: str) -> None:
    message = parse(written, True)
    assert message.tool_calls == ()
    assert message.text == written


def test_calls_are_read_as_they_were_written() -> None:
    message = parse('Now. <tool_call>{"name": "add", "arguments": {"a": "é"}}</tool_call>', True, turn=2)
    assert message.tool_calls == (ToolCall("call_2_0", "add", '{"a": "é"}'),)
    assert message.text == "Now."
    assert parse('<tool_call>{"name": "f"}</tool_call>', True).tool_calls[0].arguments == "{}"
    assert parse('<tool_call>{"name": "f"}</tool_call>', False).tool_calls == ()


@pytest.mark.skipif(find_spec("transformers") is not None, reason="the package is here")
def test_a_missing_package_is_named_with_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"needs transformers; install it with pip install \"torch\" \"transformers"):
        build_model("transformers:/nowhere")
