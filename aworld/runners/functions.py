"""The functions that an agent's author gave: what a run asks of them, and what it makes of their answers.

Instructions are asked before each call of the model. Guardrails judge an agent's input, its answer and the arguments of
its tools: they return None, or the reason for which they refuse; each verdict is on record, and one that fails refuses.

One that does not await runs in a thread: a look into a file or a database would hold up all other runs, and neither a
time-out nor a cancellation could end it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from aworld.core import event as ev
from aworld.core.bounded import bounded, own_failure
from aworld.core.checks import is_text
from aworld.core.exceptions import AWorldError, DeniedError, EnvironmentFailed, TaskError
from aworld.core.output import GUARDRAIL
from aworld.core.tool.base import Guardrail, ToolContext
from aworld.core.tool.threads import THREADS
from aworld.core.trajectory import Activation

if TYPE_CHECKING:
    from aworld.runners.run import Run

T = TypeVar("T")

On: TypeAlias = Literal["input", "answer", "call"]
"""What a guardrail judges."""


async def system_message(agent: Any, context: ToolContext, limit: float) -> str:
    """What an agent is told before everything else in one call: its fixed prompt, then what its function returns.

    Raises TaskError that names the function when it fails, takes longer than `limit` seconds, or returns no text.
    """
    label = f"Instructions {name_of(agent.instructions)!r} of agent {agent.name!r}"
    text = await _asked(agent.instructions, context, label=label, limit=limit)
    if not isinstance(text, str) or not is_text(text):
        raise TaskError(f"{label} returned {text!r:.60}; return text, which the model is told before everything else.")
    return "\n\n".join(part for part in (agent.system_prompt, text) if part)


async def refusal_of(
    run: Run, at: Activation, context: ToolContext, on: On, value: Any, guardrails: Sequence[Guardrail]
) -> str | None:
    """Ask guardrails in order, up to the first that refuses a value: why it does.

    Raises TaskError for one that fails, and so says neither.
    """
    for guardrail in guardrails:
        name, began, broken = name_of(guardrail), time.perf_counter(), None
        try:
            reason = await run.world.judge(guardrail, context, value, on, at.id, run.conf.tool_timeout)
        except TaskError as error:
            reason, broken = str(error), error
        data: dict[str, Any] = {"on": on, "passed": reason is None, "seconds": time.perf_counter() - began}
        more = {"reason": reason, "broken": broken is not None, "call_id": context.call_id}
        data |= {key: item for key, item in more.items() if item}
        step = None if on == "input" else context.step  # before an input is let pass there is no step
        run.journal.add(ev.Noted, source=GUARDRAIL, name=name, data=data, step=step, activation=at.id)
        if broken is not None:
            raise broken
        if reason is not None:
            return f"Guardrail {name!r} refused the {on}: {reason}"
    return None


async def check_input(run: Run, at: Activation, agent: Any) -> None:
    """Ask the guardrails whether an agent may be asked. Raises DeniedError."""
    value = run.record.messages[at.input].message.content if at.input is not None else ""
    context = run.context_for(at, run.record.next_step)
    refusal = await refusal_of(run, at, context, "input", value, agent.input_guardrails)
    if refusal is not None:
        raise DeniedError(refusal)


async def reason_of(guardrail: Guardrail, context: ToolContext, value: Any, limit: float) -> str | None:
    """Why a guardrail refuses a value, None when it lets it pass. Raises TaskError for one that fails."""
    label = f"Guardrail {name_of(guardrail)!r} of agent {context.agent!r}"
    try:
        reason = await _asked(guardrail, context, value, label=label, limit=limit)
    except TaskError as error:
        if not isinstance(error.__cause__, DeniedError):
            raise
        reason = str(error.__cause__)
    if reason is not None and not (isinstance(reason, str) and is_text(reason) and reason.strip()):
        raise TaskError(f"{label} returned {reason!r:.60}; return None to let pass, or the reason why not.")
    return reason


async def _asked(function: Callable[..., Any], *args: Any, label: str, limit: float) -> Any:
    """What a function returns. Raises TaskError for whatever it raises that is not meant for the runtime."""
    try:
        return await bounded(theirs(THREADS.call(function, *args), f"{label} raised", TaskError), limit)
    except TimeoutError as late:
        raise TaskError(f"{label} had no answer. {late} Raise TaskConfig(tool_timeout=...).") from late


async def theirs(call: Awaitable[T], failure: str, error: type[AWorldError]) -> T:
    """What a call of somebody else's code returns. Raises `error` in the place of its failures, whatever they are: one
    that leaves a task as SystemExit takes the event loop with it."""
    try:
        return await call
    except EnvironmentFailed:
        raise
    except BaseException as raised:
        raise error(f"{failure} {own_failure(raised)}") from raised


def name_of(function: Any) -> str:
    """What a function is called on record."""
    return getattr(function, "__name__", None) or type(function).__name__
