"""Stored trajectories in other people's formats, as JSON-able dicts; `export` writes them.

A format of conversations gives one sample for each branch that ended: the final path of each activation that
finished, or of every activation when the run itself has ended. A path ends with the model's last word, also where the
run was cut off before the next: what the world answered to that teaches nobody, and trainers skip such samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

from aworld.core.event import ModelCalled
from aworld.core.message import Message, Tokens, chat_format
from aworld.core.model import function_format
from aworld.core.trajectory import Activation, Node, Trajectory, score_of

Format: TypeAlias = Callable[[Trajectory], Iterable[dict[str, Any]]]


def openai(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """OpenAI fine-tuning: `messages` and `tools`. What an assistant says that no model wrote has `weight` 0."""
    for activation, path in ended_branches(trajectory):
        messages = [_openai_message(node) for node in path]
        tools = tools_of(trajectory, activation)
        yield {"messages": messages, "tools": tools} if tools else {"messages": messages}


def _openai_message(node: Node) -> dict[str, Any]:
    fields = ("role", "content", "tool_calls", "tool_call_id")
    message = {key: value for key, value in chat_format(node.message).items() if key in fields}
    if node.message.role == "assistant" and node.origin != "model":
        message["weight"] = 0
    return message


def sharegpt(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """ShareGPT: `conversations` in which the world and the model take turns, `system` and `tools` as text.

    The format has no place for text beside a tool call, for pictures and sounds; several calls or results of one
    turn are a JSON list.
    """
    for activation, path in ended_branches(trajectory):
        system: list[str] = []
        turns: list[tuple[str, list[Any]]] = []
        for node in path:
            message = node.message
            if message.role == "system":
                system.append(message.text)
                continue
            speaker, pieces = _sharegpt_turn(message)
            if turns and turns[-1][0] == speaker:
                turns[-1][1].extend(pieces)
            else:
                turns.append((speaker, pieces))
        sample: dict[str, Any] = {
            "conversations": [{"from": who, "value": _joined(who, pieces)} for who, pieces in turns]
        }
        sample["system"] = "\n\n".join(system)
        sample["tools"] = json.dumps([tool["function"] for tool in tools_of(trajectory, activation)])
        yield sample


def _sharegpt_turn(message: Message) -> tuple[str, list[Any]]:
    if message.tool_calls:
        return "function_call", [
            {"name": call.name, "arguments": parsed(call.arguments)} for call in message.tool_calls
        ]
    speaker = {"user": "human", "assistant": "gpt", "tool": "observation"}[message.role]
    return speaker, [message.text]


def swift(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """ms-swift: `messages` with the roles system, user, assistant, tool_call and tool_response, and `tools` as text.

    Beside them stand `id` (the trajectory), `group_id`, `problem_id` (the label `problem`) and `score`, each where
    there is one. What an assistant says that no model wrote has `loss` false.
    """
    facts = {"id": trajectory.id, "group_id": trajectory.task.group_id, "score": trajectory.score}
    facts["problem_id"] = trajectory.labels.get("problem")
    for activation, path in ended_branches(trajectory):
        sample: dict[str, Any] = {"messages": [message for node in path for message in _swift_messages(node)]}
        tools = tools_of(trajectory, activation)
        if tools:
            sample["tools"] = json.dumps(tools, ensure_ascii=False)
        yield sample | {key: value for key, value in facts.items() if value is not None}


def _swift_messages(node: Node) -> Iterator[dict[str, Any]]:
    message = node.message
    unlearnt = {"loss": False} if message.role == "assistant" and node.origin != "model" else {}
    if message.text or not message.tool_calls:
        yield {"role": "tool_response" if message.role == "tool" else message.role, "content": message.text, **unlearnt}
    for call in message.tool_calls:
        arguments = parsed(call.arguments)
        if not isinstance(arguments, dict):  # ms-swift takes no other; nobody should learn to write this
            arguments, unlearnt = {"malformed": call.arguments}, {"loss": False}
        written: dict[str, Any] = {"name": call.name, "arguments": arguments}
        yield {"role": "tool_call", "content": json.dumps(written, ensure_ascii=False), **unlearnt}


def _joined(speaker: str, pieces: list[Any]) -> str:
    if speaker in ("human", "gpt"):
        return "\n\n".join(pieces)
    one = pieces[0] if len(pieces) == 1 else pieces
    return one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)


def ended_branches(trajectory: Trajectory) -> Iterator[tuple[Activation, list[Node]]]:
    """Each activation that ended with its final path, up to the last message of an assistant."""
    for activation in trajectory.activations.values():
        if activation.finished is None and trajectory.finished is None:
            continue
        path = [trajectory.messages[id] for id in trajectory.path_ids(activation.leaf)]
        while path and path[-1].message.role != "assistant":
            path.pop()
        if path:
            yield activation, path


def tools_of(trajectory: Trajectory, activation: Activation) -> list[dict[str, Any]]:
    """The tools that an activation was last offered, in the shape of the chat-completions API."""
    digest = None
    for call in trajectory.calls.values():
        if call.activation == activation.id and call.toolset is not None:
            digest = call.toolset
    tools = trajectory.toolsets.get(digest, ()) if digest else ()
    return [function_format(tool) for tool in tools]


def parsed(arguments: str) -> Any:
    """The arguments of a tool call as data; as the model's own text where they are no JSON."""
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments


def training_trace(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """OpenEnv's `TrainingTrace`, version 1: one document a trajectory, for TRL's asynchronous trainer and harbor.

    Source: `openenv.core.harness.training` of https://github.com/huggingface/OpenEnv, whose class accepts these.
    A turn is one call of a model: the ids of its prompt, the sampled ids, their log-probabilities, and a mask over
    both. The format is strict and has no place for rewards (its readers ask a session's `verify`): score and rewards
    stand in each turn's `metadata`, where `to_trace_entries` shows them. It has no "unknown" either: there is no
    document when a call, its ids or its log-probabilities are missing.
    """
    if not trajectory.complete:
        return
    turns: list[dict[str, Any]] = []
    for step in sorted(trajectory.calls):
        call = trajectory.calls[step]
        if call.model is None or call.reply is None:  # code decided, or every try failed: nothing was sampled
            continue
        tokens = trajectory.tokens(call)
        if tokens is None or not _trainable(tokens):
            return
        turns.append(_turn(trajectory, call, tokens))
    if turns:
        yield {"schema_version": 1, "turns": turns}


def _trainable(tokens: Tokens) -> bool:
    sampled, logprobs = tokens.completion_ids, tokens.logprobs
    return bool(tokens.prompt_ids) and sampled is not None and logprobs is not None and len(sampled) == len(logprobs)


def _turn(trajectory: Trajectory, call: ModelCalled, tokens: Tokens) -> dict[str, Any]:
    prompt, sampled = list(tokens.prompt_ids or ()), list(tokens.completion_ids or ())
    tools = trajectory.toolsets.get(call.toolset, ()) if call.toolset else ()
    message = trajectory.messages[call.reply or 0].message
    return {
        "node_id": f"{trajectory.id}#{call.step}",
        "prompt_token_ids": prompt,
        "completion_token_ids": sampled,
        # A log-softmax in 32 bits rounds to some 1e-8 above 0, which the reader refuses.
        "per_token_logps": [min(float(value), 0.0) for value in tokens.logprobs or ()],
        "loss_mask": [0] * len(prompt) + [1] * len(sampled),
        "request": {
            "messages": [chat_format(each) for each in trajectory.path(call.prompt)],
            "tools": [function_format(tool) for tool in tools],
        },
        "response": {"choices": [{"message": chat_format(message), "finish_reason": call.finish_reason}]},
        "metadata": _metadata(trajectory, call, tokens),
    }


def _metadata(trajectory: Trajectory, call: ModelCalled, tokens: Tokens) -> dict[str, Any]:
    rewards = [reward for reward in trajectory.rewards if reward.step == call.step]
    return {
        "index": call.step,
        "model": call.model,
        "sampling_params": call.params,
        "trajectory_id": trajectory.id,
        "task_id": trajectory.task.id,
        "group_id": trajectory.task.group_id,
        "labels": trajectory.labels,
        "agent": call.agent,
        "activation": call.activation,
        "policy_version": tokens.policy_version,
        "score": trajectory.score,
        "step_score": score_of(rewards),
        "rewards": {reward.name: reward.value for reward in trajectory.rewards if reward.step is None},
    }
