"""Trajectory rows: one JSON-able dict a step, for every agent of the run in order of time.

A row shows exactly what the model was sent: `state.messages` is the path of the call in the message graph.
Rewards of the whole run stand on the last row, as an outcome reward does in reinforcement learning.
"""

from __future__ import annotations

from typing import Any

import msgspec

from aworld.core.event import Rewarded
from aworld.core.message import chat_format, content_text, tool_call_format
from aworld.core.trajectory import Step, Trajectory, score_of


def rows(trajectory: Trajectory) -> list[dict[str, Any]]:
    """All rows of a trajectory."""
    steps = trajectory.steps()
    shown: dict[int, dict[str, Any]] = {}
    outcome = [reward for reward in trajectory.rewards if reward.step is None]
    return [_row(trajectory, step, shown, step.rewards + (outcome if step is steps[-1] else [])) for step in steps]


def step_row(trajectory: Trajectory, number: int) -> list[dict[str, Any]]:
    """The row of one step, in a list; empty when there is no such step."""
    return [_row(trajectory, step, {}, step.rewards) for step in trajectory.steps() if step.number == number]


def _row(
    trajectory: Trajectory, step: Step, shown: dict[int, dict[str, Any]], rewards: list[Rewarded]
) -> dict[str, Any]:
    call, task = step.call, trajectory.task
    reply = trajectory.messages[call.reply].message if call.reply is not None else None
    messages: list[dict[str, Any]] = []
    for id in trajectory.path_ids(call.prompt):
        if id not in shown:
            shown[id] = chat_format(trajectory.messages[id].message)
        messages.append(shown[id])
    users = [m for m in messages if m["role"] == "user"]
    tools = trajectory.toolsets.get(call.toolset, ()) if call.toolset else ()
    tokens = trajectory.tokens(call)
    activation = trajectory.activations[call.activation]
    caller = activation.caller  # the agent or team at work that this one works for, None for the root
    finished = activation.finished is not None and activation.last is call
    return {
        "id": f"{trajectory.id}-{call.step}",
        "meta": {
            "trajectory_id": trajectory.id,
            "task_id": task.id,
            "task_name": task.name,
            "session_id": task.session_id,
            "agent": call.agent,
            "agent_id": f"{call.agent}#{call.activation}",
            "step": call.step,
            "execute_time": call.started,
            "pre_agent": step.pre_agent,
            "caller": None if caller is None else f"{trajectory.activations[caller].agent}#{caller}",
        },
        "state": {
            "input": users[0]["content"] if users else None,
            "messages": messages,
            "tools": [{"type": "function", "function": tool} for tool in tools],
        },
        "action": {
            "content": content_text(reply.content) if reply and reply.content is not None else None,
            "reasoning": reply.reasoning if reply else None,
            "tool_calls": [tool_call_format(c) for c in reply.tool_calls] if reply else [],
            "is_agent_finished": bool(reply and not reply.tool_calls and finished),
        },
        "observation": [_observation(trajectory, step, c.call_id) for c in step.tool_calls],
        "reward": {
            "score": score_of(rewards),
            "rewards": [_reward(reward) for reward in rewards],
        },
        "model": {
            "provider": call.provider,
            "name": call.model,
            "params": call.params,
            "finish_reason": call.finish_reason,
            "usage": msgspec.to_builtins(call.usage),
            "latency": call.ended - call.started,
            "first_token_latency": None if call.first_token is None else call.first_token - call.started,
            "attempts": len(call.attempts) + (call.error is None),
        },
        "tokens": None
        if tokens is None
        else {
            "prompt_ids": _list(tokens.prompt_ids),
            "completion_ids": _list(tokens.completion_ids),
            "logprobs": _list(tokens.logprobs),
        },
    }


def _reward(reward: Rewarded) -> dict[str, Any]:
    shown = {"name": reward.name, "value": reward.value, "weight": reward.weight, "source": reward.source}
    return shown if reward.error is None else {**shown, "error": reward.error}


def _observation(trajectory: Trajectory, step: Step, call_id: str) -> dict[str, Any]:
    result = step.results.get(call_id)
    name = next(c.name for c in step.tool_calls if c.call_id == call_id)
    if result is None:
        return {"tool_call_id": call_id, "name": name, "content": None, "error": None, "duration": None}
    message = chat_format(trajectory.messages[result.result].message)
    return {
        "tool_call_id": call_id,
        "name": name,
        "content": message["content"],
        "error": result.error,
        "duration": result.duration,
    }


def _list(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)
