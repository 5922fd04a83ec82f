"""OpenEnv's `TrainingTrace`, version 1: one document a trajectory, which TRL's asynchronous trainer and harbor read.

Source: `openenv.core.harness.training` of https://github.com/huggingface/OpenEnv, whose class accepts these documents.
A turn is one call of a model: the ids of its prompt, the sampled ids, their log-probabilities, and a mask over both.
The format is strict and has no place for rewards (its readers ask a session's `verify`): score and rewards stand in
each turn's `metadata`, where `to_trace_entries` shows them.

A trajectory is exported if every call of a model in it was captured with ids and log-probabilities, and none is lost;
of any other there is no document, as the format has no "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aworld.core.event import ModelCalled
from aworld.core.message import Tokens, chat_format
from aworld.core.model import function_format
from aworld.core.trajectory import Trajectory, score_of

SCHEMA_VERSION = 1


def training_trace(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """The document of a trajectory; none when a call, its ids or its log-probabilities are missing."""
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
        yield {"schema_version": SCHEMA_VERSION, "turns": turns}


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
