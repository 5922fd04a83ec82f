"""ATIF 1.8, the Agent Trajectory Interchange Format: one document a trajectory.

Source: `harbor/models/trajectories` of https://github.com/laude-institute/harbor, whose models accept these documents.
The first activation is the document; every other one is an embedded sub-agent, referred to by the result of the
tool call that started it. ATIF has no field for rewards, statuses or errors: they stand in `extra`. Token ids of
prompts are given whole, as the format wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from aworld.core.event import ModelCalled, Rewarded
from aworld.core.message import Audio, Content, File, Image, Text, content_text
from aworld.core.trajectory import Activation, Node, Trajectory
from aworld.trajectory.formats import parsed, tools_of

SCHEMA_VERSION = "ATIF-v1.8"


def atif(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """The document of a trajectory; none when nothing was said in it."""
    activations = [a for a in trajectory.activations.values() if a.leaf is not None]
    if not activations:
        return
    # By the message, not the node: a reply may stand in several branches, and is the model's in each.
    replies = {id(trajectory.messages[c.reply].message): c for c in trajectory.calls.values() if c.reply is not None}
    documents = [_document(trajectory, activation, replies) for activation in activations]
    first = documents[0]
    first["trajectory_id"] = trajectory.id
    first["final_metrics"] = _final_metrics(trajectory, len(first["steps"]))
    first["extra"] = _present(
        status=trajectory.status,
        error=trajectory.error,
        score=trajectory.score,
        rewards=[_reward(reward) for reward in trajectory.rewards if reward.step is None],
        task_id=trajectory.task.id,
        task_name=trajectory.task.name,
        group_id=trajectory.task.group_id,
        labels=trajectory.labels,
    )
    if len(documents) > 1:
        first["subagent_trajectories"] = documents[1:]
    yield first


def _document(trajectory: Trajectory, activation: Activation, calls: dict[int, ModelCalled]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for number in trajectory.path_ids(activation.leaf):
        node = trajectory.messages[number]
        if node.message.role == "tool":
            _observe(trajectory, activation, steps, node)
        else:
            steps.append({"step_id": len(steps) + 1, "timestamp": _time(node.at), **_step(trajectory, node, calls)})
    models = [call.model for call in calls.values() if call.activation == activation.id and call.model]
    versions = trajectory.started.versions if trajectory.started else {}
    agent = _present(
        name=activation.agent,
        version=versions.get("aworld", "unknown"),
        model_name=models[-1] if models else None,
        tool_definitions=tools_of(trajectory, activation),
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "session_id": trajectory.task.session_id or trajectory.task.id,
        "trajectory_id": f"{trajectory.id}#{activation.id}",
        "agent": agent,
        "steps": steps,
    }


def _step(trajectory: Trajectory, node: Node, calls: dict[int, ModelCalled]) -> dict[str, Any]:
    message = node.message
    if message.role != "assistant":
        return {"source": message.role, "message": _content(message.content)}
    call = calls.get(id(message))
    tool_calls = [_tool_call(c.id, c.name, c.arguments) for c in message.tool_calls]
    step: dict[str, Any] = {"source": "agent", "message": _content(message.content), **_present(tool_calls=tool_calls)}
    if node.origin != "model":  # code wrote it: the format then allows neither metrics nor reasoning
        return {**step, "llm_call_count": 0}
    if call is None:  # in an earlier turn of the conversation, which has a record of its own
        return {**step, "llm_call_count": 1, **_present(reasoning_content=message.reasoning)}
    rewards = [_reward(reward) for reward in trajectory.rewards if reward.step == call.step]
    return {
        **step,
        "llm_call_count": 1,
        **_present(
            model_name=call.model,
            reasoning_content=message.reasoning,
            metrics=_metrics(trajectory, call),
            extra=_present(step=call.step, rewards=rewards),
        ),
    }


def _tool_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    value = parsed(arguments)
    call: dict[str, Any] = {"tool_call_id": id, "function_name": name}
    if isinstance(value, dict):
        return {**call, "arguments": value}
    return {**call, "arguments": {}, "extra": {"arguments_as_received": arguments}}


def _observe(trajectory: Trajectory, activation: Activation, steps: list[dict[str, Any]], node: Node) -> None:
    """Put a tool's result on the step that called it."""
    call_id = node.message.tool_call_id
    result = _present(source_call_id=call_id, content=_content(node.message.content))
    if node.message.is_error:
        result["extra"] = {"is_error": True}
    called = [
        {"trajectory_id": f"{trajectory.id}#{other.id}"}
        for other in trajectory.activations.values()
        if other.caller == activation.id and other.call_id == call_id and other.leaf is not None
    ]
    if called:
        result["subagent_trajectory_ref"] = called
    for step in reversed(steps):
        if any(call["tool_call_id"] == call_id for call in step.get("tool_calls", ())):
            step.setdefault("observation", {"results": []})["results"].append(result)
            return


def _metrics(trajectory: Trajectory, call: ModelCalled) -> dict[str, Any]:
    usage, tokens = call.usage, trajectory.tokens(call)
    return _present(
        prompt_tokens=usage and usage.input_tokens,
        completion_tokens=usage and usage.output_tokens,
        cached_tokens=usage and usage.cached_tokens,
        cost_usd=usage and usage.cost,
        prompt_token_ids=tokens and tokens.prompt_ids,
        completion_token_ids=tokens and tokens.completion_ids,
        logprobs=tokens and tokens.logprobs,
        extra={"latency": call.ended - call.started},
    )


def _final_metrics(trajectory: Trajectory, steps: int) -> dict[str, Any]:
    usage = trajectory.usage
    return _present(
        total_prompt_tokens=usage and usage.input_tokens,
        total_completion_tokens=usage and usage.output_tokens,
        total_cached_tokens=usage and usage.cached_tokens,
        total_cost_usd=usage and usage.cost,
        total_steps=steps,
    )


def _content(content: Content | None) -> str | list[dict[str, Any]]:
    """Text, or parts when there are pictures or sounds. Documents and unknown media types become a line of text."""
    if content is None or isinstance(content, str):
        return content or ""
    if all(isinstance(part, Text) for part in content):
        return content_text(content)
    return [_part(part) for part in content]


def _part(part: Text | Image | Audio | File) -> dict[str, Any]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image(url=url) if _image_type(url) is not None:
            return {"type": "image", "source": {"media_type": _image_type(url), "path": url}}
        case Audio(data=data, format=format) if format in _AUDIO_TYPES:
            path = f"data:{_AUDIO_TYPES[format]};base64,{data}"
            return {"type": "audio", "source": {"media_type": _AUDIO_TYPES[format], "path": path}}
        case _:
            name = part.name if isinstance(part, File) else None
            return {"type": "text", "text": f"[{type(part).__name__.lower()} {name or ''}]".replace(" ]", "]")}


_AUDIO_TYPES = {
    "wav": "audio/wav", "mp3": "audio/mpeg", "mp4": "audio/mp4", "m4a": "audio/mp4", "aac": "audio/aac",
    "ogg": "audio/ogg", "flac": "audio/flac", "webm": "audio/webm", "aiff": "audio/aiff",
}  # fmt: skip
_IMAGE_TYPES = {"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp"}


def _image_type(url: str) -> str | None:
    if url.startswith("data:"):
        named = url[5:].partition(";")[0]
        return named if named in _IMAGE_TYPES.values() else None
    return _IMAGE_TYPES.get(url.partition("?")[0].rpartition(".")[2].lower())


def _reward(reward: Rewarded) -> dict[str, Any]:
    return _present(
        name=reward.name, value=reward.value, weight=reward.weight, source=reward.source, error=reward.error
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _present(**fields: Any) -> dict[str, Any]:
    """What is known: the format leaves out what is not, and empty lists say nothing."""
    return {key: value for key, value in fields.items() if value is not None and value not in ([], {}, ())}
