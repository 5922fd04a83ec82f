"""A vLLM server of the embedded policy: exact ids, log-probabilities as ours, new weights while it runs.

Needs vLLM in an environment of its own, which `AWORLD_VLLM_PYTHON` names; docs/trainers.md says how it is made.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message
from aworld.core.model import ModelReply, ModelRequest
from aworld.models.embedded.checkpoint import Policy
from aworld.training.embedded.gradients import Batch, log_probabilities
from aworld.training.embedded.make_policy import initial_weights
from aworld.training.vllm_server import INSTALL, VllmModel, VllmServer
from tests.trainers.pupil import pupil

PYTHON = os.environ.get("AWORLD_VLLM_PYTHON")

pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason=f"AWORLD_VLLM_PYTHON is not set; {INSTALL}"),
    pytest.mark.asyncio(loop_scope="module"),
]

CLOSE = 1e-4
"""Nats between two implementations in float32; they differ by 4e-6 at most."""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Policy]:
    """Two policies of the same shape, saved where their `version` says."""
    folder = tmp_path_factory.mktemp("policies")
    made: list[Policy] = []
    for seed in (0, 1):
        policy = pupil().with_weights(initial_weights(pupil().config, seed), str(folder / str(seed)))
        policy.save(policy.version)
        made.append(policy)
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(policies: list[Policy], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmServer]:
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    async with VllmServer.start(
        policies[0].version, version=policies[0].version, log=log, arguments=["--max-model-len", "512"]
    ) as server:
        yield server


async def ask(model: VllmModel, number: int = 37) -> ModelReply:
    return await model.generate(ModelRequest((Message("user", f"What is {number} plus 25?"),)))


def difference(policy: Policy, reply: ModelReply) -> float:
    """The largest difference between the log-probabilities that came with a reply and those of our own forward pass."""
    tokens = reply.tokens
    assert tokens is not None
    prompt, said = tokens.prompt_ids or (), tokens.completion_ids or ()
    batch = Batch.of([[*prompt, *said]], [[0] * len(prompt) + [1] * len(said)])
    own = log_probabilities(policy.config, policy.weights, batch)[0, len(prompt) :]
    return float(np.abs(own - np.array(tokens.logprobs)).max())


async def test_ids_and_log_probabilities_are_ours(server: VllmServer, policies: list[Policy]) -> None:
    model = server.model(max_tokens=16, temperature=1.0)
    replies = await asyncio.gather(*(ask(model, number) for number in range(10, 18)))
    tokenizer = policies[0].tokenizer
    for number, reply in zip(range(10, 18), replies):
        assert reply.tokens is not None
        question = {"role": "user", "content": f"What is {number} plus 25?"}
        text = tokenizer.apply_chat_template([question], add_generation_prompt=True)
        assert reply.tokens.prompt_ids == tuple(tokenizer.encode(text))
        assert reply.tokens.policy_version == policies[0].version
        assert difference(policies[0], reply) < CLOSE


async def test_new_weights_while_it_runs(server: VllmServer, policies: list[Policy]) -> None:
    first, second = policies
    model = server.model(max_tokens=16, temperature=1.0)
    for policy, other in ((second, first), (first, second)):
        await server.reload(policy.version, version=policy.version)
        reply = await ask(model)  # the same prompt each time: what was cached of it belongs to the other weights
        assert reply.tokens is not None
        assert reply.tokens.policy_version == policy.version
        assert difference(policy, reply) < CLOSE
        assert difference(other, reply) > 0.1


async def test_answers_under_way_end_on_the_old_weights(server: VllmServer, policies: list[Policy]) -> None:
    first, second = policies
    await server.reload(first.version, version=first.version)
    model = server.model(max_tokens=200, temperature=1.0, ignore_eos=True)
    begun = asyncio.Event()
    request = ModelRequest((Message("user", "Tell me more."),))
    under_way = asyncio.create_task(model.stream(request, lambda _: begun.set()))
    await asyncio.wait_for(begun.wait(), 60)
    await server.reload(second.version, version=second.version)
    reply = await under_way
    assert difference(first, reply) < CLOSE
    assert difference(second, await ask(model)) < CLOSE


async def test_an_agent_is_served(server: VllmServer) -> None:
    from aworld.runner import Runners
    from aworld.trajectory.sequences import sequences

    response = await Runners.run("What is 37 plus 25?", Agent("pupil", model=server.model(max_tokens=8)))
    assert response.success
    assert (len(sequences(response.record).rows), sequences(response.record).complete) == (1, True)


async def test_what_does_not_fit_touches_nothing(server: VllmServer, policies: list[Policy], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No policy in"):
        await server.reload(tmp_path)
    wide = pupil().config.__class__(vocab_size=pupil().config.vocab_size, eos_token_id=2, intermediate_size=64)
    Policy(wide, initial_weights(wide), pupil().tokenizer).save(tmp_path / "wide")
    with pytest.raises(ConfigError, match="does not fit the server's"):
        await server.reload(tmp_path / "wide")
    tied = policies[0].save(tmp_path / "tied") / "config.json"
    tied.write_text(tied.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    with pytest.raises(ConfigError, match="keep the old output layer"):
        await server.reload(tmp_path / "tied")
    assert (await ask(server.model(max_tokens=4))).tokens is not None
