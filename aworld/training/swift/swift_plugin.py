# pyright: basic, reportMissingImports=false
# Runs inside ms-swift, whose packages are not installed where AWorld is type-checked.
"""The plugin that joins ms-swift to AWorld: `--external_plugins swift_plugin.py`, and no patch.

AWorld runs the episodes (agent loop, tools, limits, rubric, log) in its own process. This file carries model calls to
swift's engine and the answers back by HTTP: a JSON object there, a JSON object back.
Nothing of AWorld is imported, so swift's environment needs no AWorld.

It registers, all by the name `aworld`:

- a multi-turn scheduler, which asks AWorld what the model is told next;
- a template, for which a conversation is the exact ids that were read and sampled. The prompt is rendered by the
  policy's own chat template, and what the model wrote is never tokenised again;
- a reward (ORM): the score that AWorld's rubric gave;
- a callback, which reports the figures of each step.

`AWORLD_BRIDGE` (as `http://127.0.0.1:4242`) and `AWORLD_BRIDGE_TOKEN` say where AWorld listens. Checked with ms-swift
4.6.0.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from swift.callbacks import TrainerCallback, callbacks_map
from swift.rewards import ORM, orms
from swift.rollout import MultiTurnScheduler, multi_turns
from swift.template import Template, TemplateMeta, register_template
from tokenizers import Tokenizer

NAME = "aworld"


async def ask(op: str, **fields: Any) -> dict[str, Any]:
    """One exchange with AWorld. Raises RuntimeError when it is gone or refuses.

    HTTP by hand: an answer may take as long as an agent's tools, and for each of the many episodes at once a blocking
    client of the standard library would hold a thread.
    """
    address = urlsplit(os.environ["AWORLD_BRIDGE"])
    body = json.dumps(fields).encode()
    head = (
        f"POST /{op} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {os.environ['AWORLD_BRIDGE_TOKEN']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        reply = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    status, _, content = reply.partition(b"\r\n\r\n")
    if not content:
        raise RuntimeError(f"AWorld closed the connection at {op!r}: its process has ended, or is being stopped.")
    answer = json.loads(content)
    if status.split(b" ", 2)[1] != b"200":
        raise RuntimeError(f"AWorld refuses {op!r}: {answer['detail']}")
    return answer


class ExactTokenizer:
    """Text to ids and back by `tokenizer.json`, the very file: transformers may read it by rules of its own (every
    `qwen2` checkpoint by those of Qwen2), and then the ids would be others than elsewhere."""

    def __init__(self, tokenizer: Any) -> None:
        path = os.path.join(str(tokenizer.name_or_path), "tokenizer.json")
        self._file = Tokenizer.from_file(path) if os.path.exists(path) else None
        self._other = tokenizer

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        if self._file is None:
            return self._other.encode(text, add_special_tokens=False)
        return self._file.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return (self._file or self._other).decode(ids, skip_special_tokens=False)


class TokenConversation:
    """One conversation as ids: what was read and what was sampled, in order."""

    def __init__(self, tokenizer: Any, text: ExactTokenizer) -> None:
        self.tokenizer, self.text = tokenizer, text
        self.ids: list[int] = []
        self.read: list[int] = []
        """What the model is to read next."""
        self.ended: dict[str, Any] | None = None
        """How the episode ended, when it has."""

    def begin(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
        """The first prompt: all of it is rendered."""
        self._reads(self._render(messages, tools, True))

    def go_on(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
        """A further prompt: only what stands after the model's last words is rendered and tokenised.

        Rendered up to those words and rendered whole, the texts differ by what is new; where they differ earlier, the
        chat template rewrites the past, and no single row of ids could be trained on.
        """
        last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
        before = self._render(messages[: last + 1], tools, False)
        whole = self._render(messages, tools, True)
        if not whole.startswith(before):
            raise RuntimeError(
                "The chat template of the policy rewrites earlier turns, so that its prompts are not prefixes of each "
                "other. Give the policy a template that leaves earlier turns as they were."
            )
        end = self.tokenizer.eos_token
        place = before.rfind(end)
        if place < 0 or before[place + len(end) :].strip():
            raise RuntimeError(
                f"The chat template does not end an assistant's turn with the tokenizer's eos_token ({end!r}). "
                "Set eos_token to the token that ends a turn."
            )
        whole_turn = self.ids and self.ids[-1] == self.tokenizer.eos_token_id
        # What was cut short lacks its end of turn; then that is read, not sampled.
        self._reads(before[place + len(end) if whole_turn else place :] + whole[len(before) :])

    def _reads(self, text: str) -> None:
        self.read = self.text.encode(text)
        self.ids += self.read

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], open_turn: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=open_turn
        )


class AWorldScheduler(MultiTurnScheduler):
    """Lets AWorld's agent loop decide what the model is asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open: dict[str, TokenConversation] = {}
        self._text: ExactTokenizer | None = None

    async def on_trajectory_start(self, requests: list[Any]) -> None:
        """Begin an episode for each request, and take over the first prompt of its agent."""
        await asyncio.gather(*(self._begin(request) for request in requests))

    async def _begin(self, request: Any) -> None:
        self._text = self._text or ExactTokenizer(self.tokenizer)
        conversation = self._open[request.uuid] = TokenConversation(self.tokenizer, self._text)
        answer = await ask("begin", id=request.uuid, problem=str((request.data_dict or {}).get("problem_id")))
        if "end" in answer:  # it broke before the model was asked; swift generates all the same, and nobody listens
            conversation.ended = answer["end"]
            conversation.begin(request.messages, [])
        else:
            conversation.begin(answer["messages"], answer["tools"])
        request.messages = [{"role": "user", "content": conversation.read}]

    async def on_turn_end(self, infer_request: Any, response_choice: Any, current_turn: int) -> dict[str, Any]:
        """Tell AWorld what the model said, and hear what comes next."""
        conversation = self._open[infer_request.uuid]
        prompt, sampled = list(conversation.ids), list(response_choice.token_ids or [])
        conversation.ids += sampled
        end, ended = conversation.tokenizer.eos_token_id, conversation.ended
        if ended is None:
            answer = await ask(
                "said",
                id=infer_request.uuid,
                text=conversation.text.decode(sampled[:-1] if sampled[-1:] == [end] else sampled),
                prompt_ids=prompt,
                completion_ids=sampled,
                logprobs=self._extract_logprobs_from_choice(response_choice) or None,
                finish_reason=response_choice.finish_reason,
            )
            ended = answer.get("end")
            if ended is None:
                conversation.go_on(answer["messages"], answer["tools"])
                return {"done": False}
        del self._open[infer_request.uuid]
        return {"done": True, "rollout_infos": {NAME: ended}}

    def step(self, infer_request: Any, response_choice: Any, current_turn: int) -> dict[str, Any]:
        """Append what the model reads next."""
        read = self._open[infer_request.uuid].read
        infer_request.messages.append({"role": "user", "content": read})
        return {"infer_request": infer_request}


class AWorldTemplate(Template):
    """Encodes a conversation of ids by putting them one after the other: exactly what was read and sampled."""

    def _swift_encode(self, inputs: Any) -> tuple[list[Any], list[float], int]:
        if any(message["role"] == "user" and isinstance(message["content"], str) for message in inputs.messages):
            return self._jinja_encode(inputs)  # a row of the dataset, before any episode
        contexts: list[list[int]] = []
        scales: list[float] = []
        for message in inputs.messages:
            content = message["content"]
            if content is None:
                continue
            ids, mask = content, [int(message["role"] == "assistant")] * len(content)
            if isinstance(content, dict):
                ids, mask = content["token_ids"], content["loss_scale"]
            elif isinstance(content, str):
                ids = self._tokenize(content)
                mask = [1] * len(ids)
            place = 0
            for trained, run in groupby(mask):
                length = len(list(run))
                contexts.append(ids[place : place + length])
                scales.append(float(trained))
                place += length
        return contexts, scales, 0

    @staticmethod
    def _add_dynamic_eos(*_: Any) -> None:
        """An end of turn that was read after a reply that was cut short is not the policy's: it is not trained on."""


class AWorldReward(ORM):
    """The score of each episode. One whose score is unknown gets the mean of its group: it teaches nothing."""

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        """The reward of each completion."""
        infos = [(info or {}).get(NAME) or {} for info in columns["rollout_infos"]]
        scores = list(zip(columns["prompt_id"], [info.get("score") for info in infos]))
        groups: dict[Any, list[float]] = {group: [] for group, _ in scores}
        for group, score in scores:
            groups[group] += [] if score is None else [score]
        means = {group: sum(values) / max(1, len(values)) for group, values in groups.items()}
        rewards = [means[group] if score is None else score for group, score in scores]
        if os.environ.get("AWORLD_SHUFFLE_REWARDS"):  # the control: nothing may be learnt from these
            random.shuffle(rewards)
        return rewards


class AWorldCallback(TrainerCallback):
    """Reports the figures of each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Send what swift logs."""
        if state.is_world_process_zero:
            figures = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
            asyncio.run(ask("log", step=state.global_step, figures=figures))


multi_turns[NAME] = AWorldScheduler
orms[NAME] = AWorldReward
callbacks_map[NAME] = AWorldCallback
register_template(
    TemplateMeta(
        NAME,
        prefix=[],
        prompt=["{{QUERY}}"],
        chat_sep=[],
        system_prefix=["{{SYSTEM}}"],
        agent_template="hermes",
        template_cls=AWorldTemplate,
    )
)
