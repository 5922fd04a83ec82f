"""Tool calls of a turn: run side by side, answered in order, whatever goes wrong told to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import msgspec

from aworld.core import event as ev
from aworld.core.common import ActionResult
from aworld.core.exceptions import DeniedError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Content, Message, ToolCall, Usage
from aworld.core.output import QuestionOutput, ToolCallOutput, ToolNoteOutput, ToolResultOutput
from aworld.core.tool.base import Question, ToolContext
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation

if TYPE_CHECKING:
    from aworld.runners.episode import Episode

INTERRUPTED = "interrupted"


async def run_tools(episode: Episode, activation: Activation, offer: Offer) -> None:
    """Run the open calls of an activation and close each with its result."""
    calls = [c for c in activation.open_calls if not episode.cast.runs_itself(c, offer) and not episode.unanswered(c)]
    if not calls:
        return
    if len(calls) == 1:
        await _run_call(episode, activation, offer, calls[0])
        return
    tasks = [asyncio.create_task(_run_call(episode, activation, offer, call)) for call in calls]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _run_call(episode: Episode, activation: Activation, offer: Offer, called: ev.ToolCalled) -> None:
    call = announce(episode, activation, called)
    if episode.answers_to(called):  # on record before it has an effect, as when it was first called
        called = episode.journal.add(
            ev.ToolCalled,
            step=called.step,
            activation=called.activation,
            call_id=called.call_id,
            name=called.name,
            arguments=called.arguments,
            result=called.result,
            idempotent=called.idempotent,
        )
        await episode.journal.commit()
    used: str | None = None
    try:
        if episode.task.hooks:
            result, used = await _with_hooks(episode, activation, offer, called, call)
        else:
            result = await _act(episode, activation, offer, called, call)
    except Question as question:
        ask(episode, called, question.text)
        return
    close_call(episode, activation, called, result, used)
    episode.journal.hand_over()


async def _with_hooks(
    episode: Episode, activation: Activation, offer: Offer, called: ev.ToolCalled, call: ToolCall
) -> tuple[ActionResult, str | None]:
    """The result, and the arguments that were used where a hook rewrote them."""
    at = HookContext(episode.record, episode.context, activation.agent, called.step)
    entered: list[Hooks] = []
    result: ActionResult | None = None
    broken: BaseException | None = None
    try:
        for hook in episode.task.hooks:
            entered.insert(0, hook)
            changed = await hook.before_tool(at, call)
            if isinstance(changed, ActionResult):
                result = changed
                break
            call = changed or call
        if result is None:
            result = await _act(episode, activation, offer, called, call)
    except DeniedError as denied:
        result = ActionResult(called.call_id, called.name, f"Denied: {denied}", str(denied))
    except BaseException as raised:  # noqa: BLE001 - raised again when every hook knows of it
        broken = raised
        result = ActionResult(called.call_id, called.name, "", f"{type(raised).__name__}: {raised}")
    for hook in entered:
        try:
            result = await hook.after_tool(at, call, result) or result
        except Exception as raised:  # noqa: BLE001 - the same
            broken = broken or raised
    if broken is not None:
        raise broken
    used = None if call.arguments == called.arguments else call.arguments
    return msgspec.structs.replace(result, tool_call_id=called.call_id, name=called.name), used


async def _act(
    episode: Episode, activation: Activation, offer: Offer, called: ev.ToolCalled, call: ToolCall
) -> ActionResult:
    context = ToolContext(
        episode.record.id,
        activation.agent,
        called.step,
        called.call_id,
        episode.state.context_of(activation),
        episode.answers_to(called),
        _notifier(episode, activation, called),
    )
    result = await episode.world.act(offer, call, context, episode.conf)
    if context.spent:
        result = msgspec.structs.replace(result, usage=reduce(Usage.__add__, context.spent))
    return result


def _notifier(episode: Episode, activation: Activation, called: ev.ToolCalled) -> Callable[[str, Any], None] | None:
    emit = episode.journal.emit
    if emit is None:
        return None

    def notify(kind: str, data: Any) -> None:
        emit(
            ToolNoteOutput(
                trajectory_id=episode.record.id,
                agent=activation.agent,
                step=called.step,
                call_id=called.call_id,
                kind=kind,
                data=data,
            )
        )

    return notify


def announce(episode: Episode, activation: Activation, called: ev.ToolCalled) -> ToolCall:
    """Tell readers of the stream that a call is about to be carried out."""
    call = ToolCall(called.call_id, called.name, called.arguments)
    emit = episode.journal.emit
    if emit is not None:
        emit(ToolCallOutput(trajectory_id=episode.record.id, agent=activation.agent, step=called.step, call=call))
    return call


def close_call(
    episode: Episode, activation: Activation, called: ev.ToolCalled, result: ActionResult, used: str | None = None
) -> None:
    """Write the answer to a call, in the place that was kept for it."""
    place = next(i for i, call in enumerate(activation.calls) if call.call_id == called.call_id)
    parent = activation.calls[place - 1].result if place else activation.leaf
    message = tool_message(result)
    journal = episode.journal
    journal.add(
        ev.MessageAdded,
        id=called.result,
        parent=parent,
        agent=activation.agent,
        activation=activation.id,
        message=message,
        origin="tool",
    )
    journal.add(
        ev.ToolReturned,
        step=called.step,
        activation=activation.id,
        call_id=called.call_id,
        name=called.name,
        result=called.result,
        arguments=used,
        error=result.error,
        duration=result.duration,
        usage=result.usage,
    )
    if journal.emit is not None:
        journal.emit(
            ToolResultOutput(trajectory_id=episode.record.id, agent=activation.agent, step=called.step, result=result)
        )


def interrupt_call(episode: Episode, activation: Activation, called: ev.ToolCalled, why: str) -> None:
    """Close a call whose outcome nobody will know."""
    text = f"The call was interrupted ({why}). It may or may not have taken effect."
    close_call(episode, activation, called, ActionResult(called.call_id, called.name, text, INTERRUPTED))


def replace_results(episode: Episode, activation: Activation, results: dict[str, Content]) -> None:
    """Put other answers in the place of those of the last turn: a branch from the first that differs."""
    journal, record = episode.journal, episode.record
    parent: int | None = None
    for called in activation.calls:
        before = activation.returned.get(called.call_id)
        given = results.get(called.call_id)
        if before is None:
            if given is not None:
                close_call(episode, activation, called, ActionResult(called.call_id, called.name, given))
            continue
        if given is None and parent is None:
            continue
        if parent is None:
            parent = record.messages[before.result].parent
        message = record.messages[before.result].message
        if given is not None:
            message = tool_message(ActionResult(called.call_id, called.name, given))
        id = record.next_message
        journal.add(
            ev.MessageAdded,
            id=id,
            parent=parent,
            agent=activation.agent,
            activation=activation.id,
            message=message,
            origin="tool" if given is None else "human",
        )
        journal.add(
            ev.ToolReturned,
            step=called.step,
            activation=activation.id,
            call_id=called.call_id,
            name=called.name,
            result=id,
            error=before.error if given is None else None,
            duration=before.duration,
        )
        parent = id


def ask(episode: Episode, called: ev.ToolCalled, question: str) -> None:
    """Put a question of a tool to a person; the call stays open until the answer comes."""
    id, number = called.call_id, 0
    while id in episode.record.questions:
        number += 1
        id = f"{called.call_id}-{number}"
    episode.journal.add(
        ev.Asked, id=id, question=question, step=called.step, activation=called.activation, call_id=called.call_id
    )
    if episode.journal.emit is not None:
        agent = episode.record.activations[called.activation].agent
        episode.journal.emit(
            QuestionOutput(trajectory_id=episode.record.id, agent=agent, step=called.step, id=id, question=question)
        )


def tool_message(result: ActionResult) -> Message:
    """A result as the message that the model reads."""
    return Message(
        "tool", result.content, tool_call_id=result.tool_call_id, name=result.name, is_error=result.error is not None
    )
