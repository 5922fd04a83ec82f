"""The embedded policy against `transformers` and PyTorch: the same tokens, logits, text and gradients.

Run by `make test-trainers`, in an environment that has PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aworld.core.message import Message
from aworld.core.model import ModelRequest, ToolSchema
from aworld.models.embedded.checkpoint import PACKAGED, Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.models.embedded.transformer import Cache, Transformer
from aworld.training.embedded.gradients import Batch, grpo, imitation, loss_and_gradients

torch: Any = pytest.importorskip("torch", reason="PyTorch is in the trainers' own environment")
transformers: Any = pytest.importorskip("transformers")

NUMBER = {"type": "integer"}
TOOLS = tuple(
    ToolSchema(name, name, {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}})
    for name in ("add", "subtract", "multiply")
)
QUESTIONS = ("What is 37 plus 25?", "What is 90 minus 12?", "What is 44 times 31?", "What is 99 plus 10?")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """The packaged policy, off its polished weights, saved and opened again."""
    packaged = Policy.open()
    draw = np.random.default_rng(0)
    moved = {k: (v + draw.standard_normal(v.shape) * 0.05).astype(np.float32) for k, v in packaged.weights.items()}
    return Policy.open(packaged.with_weights(moved, "moved").save(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def reference(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = policy.save(tmp_path_factory.mktemp("reference"))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def conversation(*answers: Message) -> tuple[Message, ...]:
    return (Message("user", "What is 37 plus 25?"), *answers)


@pytest.mark.parametrize("folder", [PACKAGED])
async def test_tokenizer_and_template(folder: Path) -> None:
    """The prompts that are sent, with calls and results, are those of `apply_chat_template`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = EmbeddedModel(Policy.open(folder), params={"temperature": 0})
    messages = conversation()
    for _ in range(2):
        reply = await model.generate(ModelRequest(messages, TOOLS))
        assert reply.tokens is not None
        wire = [plain(message) for message in messages]
        tools = [{"type": "function", "function": {"name": t.name, "parameters": t.parameters}} for t in TOOLS]
        found = tokenizer.apply_chat_template(wire, tools=tools, add_generation_prompt=True, return_dict=False)
        assert tuple(found) == reply.tokens.prompt_ids
        assert len(tokenizer) == model.policy.config.vocab_size
        assert tokenizer.eos_token_id == model.policy.config.eos_token_id
        messages = (*messages, reply.message, Message("tool", "62", tool_call_id="call_0"))


def plain(message: Message) -> dict[str, Any]:
    calls = [{"function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
    return {"role": message.role, "content": message.content, **({"tool_calls": calls} if calls else {})}


def test_logits(policy: Policy, reference: Any) -> None:
    ids = np.random.default_rng(1).integers(0, policy.config.vocab_size, (5, 200))
    transformer = Transformer(policy.config, policy.weights)
    hidden = transformer.forward(ids, np.zeros(5, np.int64), Cache(policy.config, 5, 200))
    ours = transformer.logits(hidden.reshape(1000, -1)).reshape(5, 200, -1)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("question", QUESTIONS)
async def test_greedy_tokens_and_logprobs(policy: Policy, reference: Any, question: str) -> None:
    """Token by token what `generate` gives, and the log-probability of each."""
    model = EmbeddedModel(policy, params={"temperature": 0, "max_tokens": 40})
    reply = await model.generate(ModelRequest((Message("user", question),), TOOLS))
    assert reply.tokens is not None
    assert reply.tokens.prompt_ids is not None
    assert reply.tokens.completion_ids is not None
    prompt = torch.tensor([reply.tokens.prompt_ids])
    made = reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert tuple(made.sequences[0, prompt.shape[1] :].tolist()) == reply.tokens.completion_ids
    logprobs = [
        float(torch.log_softmax(logits[0], -1)[token])
        for logits, token in zip(made.logits, reply.tokens.completion_ids, strict=True)
    ]
    assert reply.tokens.logprobs == pytest.approx(logprobs, abs=1e-4)


async def test_sampled_logprobs(policy: Policy, reference: Any) -> None:
    """At another temperature, of the distribution that was sampled from."""
    model = EmbeddedModel(policy, params={"temperature": 0.8, "max_tokens": 40, "seed": 2})
    reply = await model.generate(ModelRequest((Message("user", QUESTIONS[0]),), TOOLS))
    assert reply.tokens is not None
    prompt, completion = reply.tokens.prompt_ids or (), reply.tokens.completion_ids or ()
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits / 0.8, -1)[range(len(completion)), list(completion)]
    assert reply.tokens.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("objective", ["grpo", "imitation"])
def test_gradients(policy: Policy, reference: Any, objective: str) -> None:
    """Every weight's gradient, against autograd on the same loss: relative error at most 1e-4."""
    draw = np.random.default_rng(2)
    lengths = [30, 44, 17, 60]
    ids = [draw.integers(0, policy.config.vocab_size, n).tolist() for n in lengths]
    mask = [[0, *(draw.random(n - 1) < 0.5).astype(int).tolist()] for n in lengths]
    batch = Batch.of(ids, mask, advantages=draw.standard_normal(4).tolist(), temperature=0.9)
    logits = reference(torch.from_numpy(batch.ids[:, :-1])).logits / 0.9
    new = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(batch.ids[:, 1:, None]))[..., 0]
    chosen, advantages = torch.from_numpy(batch.mask[:, 1:]), torch.from_numpy(batch.advantages[:, 1:]).float()
    batch.logprobs[:, 1:] = new.detach().numpy() + draw.standard_normal(new.shape) * 0.2
    old = torch.from_numpy(batch.logprobs[:, 1:]).float()
    if objective == "grpo":
        ratio = torch.exp(new - old)
        loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[chosen].mean()
    else:
        loss = -(new * advantages)[chosen].mean()
    reference.zero_grad()
    loss.backward()
    ours, gradients, _ = loss_and_gradients(
        policy.config, policy.weights, batch, grpo() if objective == "grpo" else imitation()
    )
    assert ours == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, parameter in reference.named_parameters():
        theirs = parameter.grad.numpy()
        if name.endswith("k_proj.bias"):  # shifts all scores of a position alike: zero but for rounding... of its sums
            assert np.abs(gradients[name] - theirs).max() < 1e-5
            continue
        error = np.linalg.norm(gradients[name] - theirs) / np.linalg.norm(theirs)
        assert error <= 1e-4, (name, error)
