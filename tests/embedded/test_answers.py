"""What the embedded model answers, and what it says of its tokens."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
import pytest

from aworld.core.exceptions import ModelError
from aworld.core.message import Image, Message, Tokens
from aworld.core.model import Delta, ModelReply, OutputSchema, TextDelta
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel

from .conftest import asked


def tokens_of(reply: ModelReply) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    tokens = reply.tokens
    assert tokens is not None
    assert tokens.prompt_ids is not None
    assert tokens.completion_ids is not None
    assert tokens.logprobs is not None
    assert len(tokens.logprobs) == len(tokens.completion_ids)
    return tokens.prompt_ids, tokens.completion_ids, tokens.logprobs


async def test_a_tool_call_with_exact_ids(model: EmbeddedModel) -> None:
    reply = await model.generate(asked("What is 37 plus 25?", temperature=0))
    (call,) = reply.message.tool_calls
    assert call.arguments == '{"a": 37, "b": 25}'
    assert (reply.message.content, reply.finish_reason) == (None, "tool_calls")
    prompt, completion, logprobs = tokens_of(reply)
    decode = model.policy.tokenizer.decode
    assert decode(prompt).endswith("What is 37 plus 25?<|im_end|>\n<|im_start|>assistant\n")
    assert decode(completion).startswith(f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}')
    assert completion[-1] == model.policy.config.eos_token_id
    assert all(value <= 0 for value in logprobs)
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (len(prompt), len(completion))


async def test_a_conversation_extends_its_own_ids(babbling: Policy) -> None:
    """Whatever was sampled, valid text or not: the next prompt begins with it."""
    model = EmbeddedModel(babbling)
    for seed in range(20):
        question = Message("user", "What is 37 plus 25?")
        request = asked(question, seed=seed, max_tokens=40)
        first = await model.generate(request)
        again = asked(question, first.message, Message("user", "And 4 times 5?"), seed=seed, max_tokens=10)
        second = await model.generate(again)
        prompt, completion, _ = tokens_of(first)
        assert tokens_of(second)[0][: len(prompt) + len(completion)] == prompt + completion


async def test_the_prompt_is_what_the_template_renders(model: EmbeddedModel) -> None:
    question = Message("user", "What is 37 plus 25?")
    first = await model.generate(asked(question, temperature=0))
    result = Message("tool", "62", tool_call_id=first.message.tool_calls[0].id)
    warm = await model.generate(asked(question, first.message, result, temperature=0))
    cold = await EmbeddedModel(model.policy).generate(asked(question, first.message, result, temperature=0))
    assert warm.message.text == "62"
    assert tokens_of(warm) == tokens_of(cold)
    assert warm.usage is not None
    assert (warm.usage.cached_tokens or 0) > len(tokens_of(first)[0])


async def test_seeds_and_greedy(model: EmbeddedModel) -> None:
    async def answers(**params: Any) -> set[tuple[int, ...]]:
        replies = [model.generate(asked("What is 90 minus 12?", **params)) for _ in range(12)]
        return {tokens_of(reply)[1] for reply in await asyncio.gather(*replies)}

    assert len(await answers(temperature=0)) == 1
    assert len(await answers(seed=7)) == 1
    assert len(await answers()) > 1
    assert len(await answers(temperature=1.0, top_p=0.01)) == 1
    assert await answers(temperature=3.0, top_k=1) == await answers(temperature=0)
    assert len(await answers(temperature=3.0, top_k=2)) > 1


async def test_logprobs_are_of_the_distribution_that_was_sampled(model: EmbeddedModel) -> None:
    """Sampled at another temperature, the same tokens get other log-probabilities; greedy ones are the model's own."""
    greedy = tokens_of(await model.generate(asked("What is 90 minus 12?", temperature=0)))
    sharp = tokens_of(await model.generate(asked("What is 90 minus 12?", temperature=0.01, seed=1)))
    assert greedy[1] == sharp[1]
    assert sum(sharp[2]) > -0.01 > sum(greedy[2])
    narrow = tokens_of(await model.generate(asked("What is 90 minus 12?", top_p=0.01, seed=1)))
    assert narrow[2] == pytest.approx([0.0] * len(narrow[2]))


async def test_limits_of_an_answer(model: EmbeddedModel) -> None:
    short = await model.generate(asked("What is 37 plus 25?", max_tokens=3))
    assert (short.finish_reason, len(tokens_of(short)[1])) == ("length", 3)
    stopped = await model.generate(asked("Hello", tools=(), temperature=0, stop=["tools"]))
    assert (stopped.message.text, stopped.finish_reason) == ("I only know the ", "stop")


async def test_streamed_text_is_the_answer(model: EmbeddedModel) -> None:
    pieces: list[Delta] = []
    reply = await model.stream(asked("Hello", tools=(), temperature=0), pieces.append)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == reply.message.text
    assert len(pieces) > 3
    calls: list[Delta] = []
    reply = await model.stream(asked("What is 37 plus 25?", temperature=0), calls.append)
    assert reply.message.tool_calls
    assert calls == []


async def test_streamed_babble_is_the_answer(babbling: Policy) -> None:
    model = EmbeddedModel(babbling)
    for seed in range(10):
        pieces: list[Delta] = []
        reply = await model.stream(asked("What?", seed=seed, max_tokens=60), pieces.append)
        assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == reply.message.text


async def test_hot_swap(model: EmbeddedModel, babbling: Policy) -> None:
    question = asked("What is 37 plus 25?", seed=1, max_tokens=60)
    under_way = asyncio.ensure_future(model.generate(question))
    await asyncio.sleep(0)
    model.load(babbling.weights, "2")
    new, old = await model.generate(question), await under_way
    assert (version(old.tokens), version(new.tokens)) == ("0", "2")
    assert tokens_of(old)[1] == tokens_of(await EmbeddedModel(Policy.open()).generate(question))[1]
    assert tokens_of(new)[1] == tokens_of(await EmbeddedModel(babbling).generate(question))[1]


def version(tokens: Tokens | None) -> str | None:
    return None if tokens is None else tokens.policy_version


async def test_cancelled_requests_leave_the_batch(model: EmbeddedModel) -> None:
    alone = await model.generate(asked("What is 37 plus 25?", seed=4))
    others = [asyncio.ensure_future(model.generate(asked(f"What is {n} plus 25?", seed=n))) for n in range(40)]
    kept = asyncio.ensure_future(model.generate(asked("What is 37 plus 25?", seed=4)))
    for _ in range(4):
        await asyncio.sleep(0)
    for other in others:
        other.cancel()
    assert tokens_of(await kept)[1:] == tokens_of(alone)[1:]
    assert {isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*others, return_exceptions=True)}


def test_one_model_serves_several_loops(model: EmbeddedModel) -> None:
    replies = [asyncio.run(model.generate(asked("What is 37 plus 25?", seed=4))) for _ in range(3)]
    assert len({tokens_of(reply)[1] for reply in replies}) == 1


async def test_refusals_say_why(model: EmbeddedModel) -> None:
    with pytest.raises(ModelError, match="takes 1024 at most"):
        await model.generate(asked("12345 " * 200))
    with pytest.raises(ModelError, match="output_type"):
        await model.generate(msgspec.structs.replace(asked("x"), output=OutputSchema("answer", {})))
    with pytest.raises(ModelError, match="reads text only"):
        await model.generate(asked(Message("user", (Image("https://example.org/a.png"),))))
    refused: list[dict[str, Any]] = [
        {"temperature": -1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"seed": "x"},
        {"temperature": math.nan},
    ]
    for bad in refused:
        with pytest.raises(ModelError):
            await model.generate(asked("x", **bad))
    broken = {name: weight * math.nan for name, weight in model.policy.weights.items()}
    model.load(broken, "broken")
    with pytest.raises(ModelError, match="no finite probabilities"):
        await model.generate(asked("x"))


async def test_a_long_answer_ends_at_the_last_position(babbling: Policy) -> None:
    model = EmbeddedModel(babbling)
    reply = await model.generate(asked("1 " * 490, seed=2, max_tokens=5000, tools=()))
    prompt, completion, _ = tokens_of(reply)
    assert reply.finish_reason == "length"
    assert len(prompt) + len(completion) == 1024
