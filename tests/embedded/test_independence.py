"""What a request gets does not depend, bit for bit, on what else is in flight or was asked before."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.decoding import DecodingEngine
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.models.embedded.transformer import Cache, Ids, Transformer

from .conftest import asked
from .test_answers import tokens_of


def requests(count: int, seed: int) -> list[ModelRequest]:
    """Questions of many lengths, each with its own seed and way of sampling."""
    draw = random.Random(seed)
    return [
        asked(
            " ".join(str(draw.randint(0, 999)) for _ in range(draw.randint(1, 30))),
            seed=n,
            temperature=draw.choice([0.0, 0.7, 1.0, 1.5]),
            top_p=draw.choice([1.0, 0.9]),
            max_tokens=draw.randint(1, 50),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_alone_or_in_company(babbling: Policy, seed: int) -> None:
    questions = requests(60, seed)
    alone = [tokens_of(await EmbeddedModel(babbling).generate(question)) for question in questions]
    together = EmbeddedModel(babbling)

    async def late(question: ModelRequest, turns: int) -> ModelRequest:
        for _ in range(turns):
            await asyncio.sleep(0)
        return question

    async def ask(question: ModelRequest, turns: int) -> object:
        return tokens_of(await together.generate(await late(question, turns)))

    draw = random.Random(seed)
    assert await asyncio.gather(*(ask(q, draw.randint(0, 30)) for q in questions)) == alone


async def test_with_and_without_memory(babbling: Policy) -> None:
    """A conversation whose earlier turns are remembered, and one that is read anew in another process."""
    model = EmbeddedModel(babbling)
    question = Message("user", "What is 12 plus 13?")
    first = await model.generate(asked(question, seed=1, max_tokens=30))
    request = asked(question, first.message, Message("user", "And now?"), seed=2, max_tokens=30)
    warm = await model.generate(request)
    model.load(babbling.weights, "again")  # forgets keys and values, but not the ids
    cold = await model.generate(request)
    assert tokens_of(warm) == tokens_of(cold)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 33])
def test_pieces_and_wholes(babbling: Policy, rows: int) -> None:
    config, transformer = babbling.config, Transformer(babbling.config, babbling.weights)
    draw = np.random.default_rng(rows)
    ids: Ids = draw.integers(0, config.vocab_size, (rows, 75))
    whole = transformer.forward(ids, np.zeros(rows, np.int64), Cache(config, rows, 75))
    row = rows // 2
    cache = Cache(config, 1, 300)  # longer, and read in pieces
    pieces = [
        transformer.forward(ids[row : row + 1, a:b], np.array([a]), cache)
        for a, b in ((0, 1), (1, 2), (2, 40), (40, 41), (41, 75))
    ]
    assert np.array_equal(np.concatenate(pieces, axis=1)[0], whole[row])
    logits = transformer.logits(whole[:, -1])
    assert np.array_equal(transformer.logits(whole[row : row + 1, -1])[0], logits[row])


async def test_a_small_batch_and_a_small_memory(babbling: Policy) -> None:
    """More requests than places, and nothing remembered: the same answers."""
    questions = requests(40, 9)
    expected = await asyncio.gather(*(EmbeddedModel(babbling).generate(q) for q in questions))
    model = EmbeddedModel(babbling)
    engine = DecodingEngine(Transformer(babbling.config, babbling.weights), batch=3, memory=1)
    model._engines[asyncio.get_running_loop()] = engine
    found = await asyncio.gather(*(model.generate(q) for q in questions))
    assert [tokens_of(reply) for reply in found] == [tokens_of(reply) for reply in expected]
    assert len(engine.memory) == 1
