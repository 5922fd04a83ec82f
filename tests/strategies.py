"""Logs for tests: a builder that keeps the rules of a log, and Hypothesis strategies that drive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import strategies as st

from aworld.core import event as ev
from aworld.core.message import Message, Origin, Text, Tokens, ToolCall, Usage
from aworld.core.trajectory import Trajectory

E = TypeVar("E", bound=ev.Entry)

TOOLS: tuple[dict[str, Any], ...] = (
    {"name": "search", "description": "Look it up.", "parameters": {"type": "object", "properties": {}}},
)


class LogBuilder:
    """Writes a valid log: numbers, message ids, branches and the order of tool answers are seen to."""

    def __init__(self, id: str, task: ev.TaskInfo | None = None, *, at: float = 1_790_000_000.0) -> None:
        self.record = Trajectory(id)
        self.at = at
        self.sampled: list[int] = []
        """Every token that was sampled and captured, in order."""
        self._ids: dict[int, list[int]] = {}
        self._last: dict[int, int] = {}
        self._task = task or ev.TaskInfo(id)

    @property
    def events(self) -> list[ev.Event]:
        return self.record.events

    def add(self, kind: Callable[..., E], **fields: Any) -> E:
        self.at += 0.25
        event: Any = kind(seq=len(self.events), at=self.at, **fields)
        self.record.apply(event)
        return event

    def start(self, *, tools: bool = True, system: str = "Be brief.") -> LogBuilder:
        self.add(ev.Started, trajectory_id=self.record.id, task=self._task, agents={"lead": {"system_prompt": system}})
        if tools:
            self.add(ev.ToolsetOffered, digest="t1", tools=TOOLS)
        self.activate("lead")
        self.say(0, Message("system", system), "input")
        self.say(0, Message("user", "Why?"), "input")
        return self

    def activate(self, agent: str, caller: int | None = None, call_id: str | None = None) -> int:
        activation = len(self.record.activations)
        self.add(ev.AgentStarted, activation=activation, agent=agent, caller=caller, call_id=call_id)
        return activation

    def say(self, activation: int, message: Message, origin: Origin, *, id: int | None = None, parent: int = -1) -> int:
        where = self.record.activations[activation]
        id = self.record.next_message if id is None else id
        above = where.leaf if parent < 0 else parent
        self.add(
            ev.MessageAdded,
            id=id,
            parent=above,
            agent=where.agent,
            activation=activation,
            message=message,
            origin=origin,
        )
        return id

    def repeat(self, activation: int, same_as: int, parent: int | None) -> int:
        """Put a message that is stored already into a second branch, where the agent goes on."""
        where, node = self.record.activations[activation], self.record.messages[same_as]
        id = self.record.next_message
        self.add(
            ev.MessageAdded,
            id=id,
            parent=parent,
            agent=where.agent,
            activation=activation,
            same_as=same_as,
            origin=node.origin,
        )
        return id

    def decide(
        self,
        activation: int = 0,
        text: str | None = "Because.",
        calls: tuple[ToolCall, ...] = (),
        *,
        tokens: Tokens | None = None,
        usage: Usage | None = None,
        failed: str | None = None,
        reasoning: str | None = None,
    ) -> ev.ModelCalled:
        """A model call, and the tool calls that it asks for."""
        where = self.record.activations[activation]
        prompt, step = where.leaf, self.record.next_step
        reply = None
        if failed is None:
            message = Message("assistant", text, tool_calls=calls, reasoning=reasoning)
            reply = self.say(activation, message, "model")
        call = self.add(
            ev.ModelCalled,
            step=step,
            agent=where.agent,
            activation=activation,
            prompt=prompt,
            toolset="t1" if "t1" in self.record.toolsets else None,
            provider="scripted",
            model="model-1",
            params={"temperature": 1.0},
            reply=reply,
            error=failed,
            finish_reason=None if failed else "tool_calls" if calls else "stop",
            usage=usage,
            tokens=tokens,
            started=self.at,
            first_token=self.at + 0.1,
            ended=self.at + 0.2,
        )
        if failed is None:
            for asked in calls:
                self.add(
                    ev.ToolCalled,
                    step=step,
                    activation=activation,
                    call_id=asked.id,
                    name=asked.name,
                    arguments=asked.arguments,
                    result=self.record.next_message,
                )
        return call

    def answer(self, call: ev.ToolCalled, text: str = "It is so.", *, error: str | None = None) -> None:
        """Close a tool call, in any order."""
        where = self.record.activations[call.activation]
        place = where.calls.index(call)
        assert where.last is not None
        assert where.last.reply is not None
        above = where.calls[place - 1].result if place else where.last.reply
        message = Message("tool", text, tool_call_id=call.call_id, name=call.name, is_error=error is not None)
        self.say(call.activation, message, "tool", id=call.result, parent=above)
        self.add(
            ev.ToolReturned,
            step=call.step,
            activation=call.activation,
            call_id=call.call_id,
            name=call.name,
            result=call.result,
            error=error,
            duration=0.05,
        )

    def tokens(self, activation: int, read: list[int], wrote: list[int], *, drift: bool, delta: bool) -> Tokens:
        """Tokens of the next call: what was there, what was `read` since, and what it `wrote`."""
        before = [] if drift else self._ids.get(activation, [])
        base = self._last.get(activation) if delta and not drift else None
        prompt = tuple(read) if base is not None else (*before, *read)
        self._ids[activation] = [*before, *read, *wrote]
        self._last[activation] = self.record.next_step
        self.sampled += wrote
        return Tokens(prompt, tuple(wrote), tuple(-0.5 - token / 100 for token in wrote), base, policy_version="v1")

    def finish(self, status: ev.Status = "finished", answer: Any = "Because.", error: str | None = None) -> LogBuilder:
        for activation in self.record.activations.values():
            if activation.finished is None:
                self.add(ev.AgentFinished, activation=activation.id, agent=activation.agent, answer=answer)
        self.add(ev.Finished, status=status, answer=answer, error=error)
        return self


def run_of(
    id: str,
    task: ev.TaskInfo | None = None,
    *,
    steps: int = 1,
    status: ev.Status = "finished",
    score: float | None = None,
    at: float = 1_790_000_000.0,
    answer: Any = "Because.",
) -> list[ev.Event]:
    """The log of a plain run: `steps` decisions, each but the last with one tool call."""
    log = LogBuilder(id, task, at=at).start()
    for step in range(steps):
        if step == steps - 1:
            log.decide(usage=Usage(100, 10))
        else:
            log.decide(text=None, calls=(ToolCall(f"c{step}", "search", '{"q": "why"}'),), usage=Usage(100, 10))
            log.answer(log.record.activations[0].calls[0])
    if status != "running":
        log.finish(status, answer=answer if status == "finished" else None)
    if score is not None:
        log.add(ev.Rewarded, value=score, name="correct")
    return log.events


def fork_of(parent: list[ev.Event], id: str, at_seq: int, *, of: str = "parent", steps: int = 1) -> list[ev.Event]:
    """The own events of a fork: those of a run that goes on after the first `at_seq` events of trajectory `of`."""
    log = LogBuilder(id, at=parent[at_seq - 1].at)
    for event in parent[:at_seq]:
        log.record.apply(event)
    log.add(ev.Started, trajectory_id=id, task=ev.TaskInfo(id), forked_from=ev.Fork(of, at_seq))
    if not log.record.activations:
        log.activate("lead")
    for _ in range(steps):
        if not log.record.activations[0].open_calls:
            log.decide(usage=Usage(7, 3))
    log.finish()
    return log.events[at_seq:]


words = st.text(max_size=12)
token_ids = st.lists(st.integers(0, 50), max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)
usages = st.none() | st.builds(Usage, st.none() | st.integers(0, 999), st.none() | st.integers(0, 999))
statuses: st.SearchStrategy[ev.Status] = st.sampled_from(
    ("finished", "failed", "timeout", "cancelled", "limit_reached", "interrupted")
)


@st.composite
def builders(draw: st.DrawFn, id: str = "run", *, max_turns: int = 5, with_tokens: bool = True) -> LogBuilder:
    """A builder that has written a random valid log, with sub-agents, parallel calls, failures and rewards."""
    task = ev.TaskInfo(id, draw(st.none() | words), draw(st.none() | words), None, draw(st.none() | words))
    log = LogBuilder(id, task, at=draw(st.floats(1e9, 2e9))).start(tools=draw(st.booleans()), system=draw(words))
    for _ in range(draw(st.integers(0, max_turns))):
        _turn(draw, log, 0, with_tokens)
    ending = draw(st.sampled_from(("finished", "open", "ended")))
    if ending != "open":
        log.finish("finished" if ending == "finished" else draw(statuses), draw(json_values), draw(st.none() | words))
    for _ in range(draw(st.integers(0, 3))):
        step = draw(st.none() | st.integers(0, 3))
        value = draw(st.none() | st.floats(-2, 2))
        log.add(
            ev.Rewarded,
            value=value,
            name=draw(st.sampled_from(("reward", "judge"))),
            weight=draw(st.sampled_from((1.0, 0.5, 0.0))),
            step=step,
            error="no value" if value is None else None,
        )
    return log


def logs(id: str = "run") -> st.SearchStrategy[list[ev.Event]]:
    """Random valid logs."""
    return builders(id).map(lambda log: log.events)


def _turn(draw: st.DrawFn, log: LogBuilder, activation: int, with_tokens: bool, depth: int = 0) -> None:
    if draw(st.integers(0, 5)) == 0:
        _aside(draw, log, activation)
    if draw(st.integers(0, 7)) == 0:
        log.decide(activation, failed="500 Internal Server Error")
        return
    count = draw(st.sampled_from((0, 0, 1, 2, 3)))
    step = log.record.next_step
    calls = tuple(
        ToolCall(f"c{step}.{n}", "search", draw(st.sampled_from(("{}", '{"q": 1}', "{broken")))) for n in range(count)
    )
    tokens = None
    if with_tokens and draw(st.integers(0, 4)):
        tokens = log.tokens(
            activation, draw(token_ids), draw(token_ids), drift=draw(st.integers(0, 5)) == 0, delta=draw(st.booleans())
        )
    text = draw(st.none() | words)
    log.decide(activation, text, calls, tokens=tokens, usage=draw(usages), reasoning=draw(st.none() | words))
    for call in draw(st.permutations(list(log.record.activations[activation].calls))):
        if depth == 0 and draw(st.integers(0, 3)) == 0:
            child = log.activate("helper", activation, call.call_id)
            log.say(child, Message("user", (Text(draw(words)),)), "agent")
            _turn(draw, log, child, with_tokens, depth + 1)
            log.add(ev.AgentFinished, activation=child, agent="helper", answer=draw(json_values))
        log.answer(call, draw(words), error=draw(st.none() | words))


def _aside(draw: st.DrawFn, log: LogBuilder, activation: int) -> None:
    """Something that is no decision: state, a question to a person, a person's word."""
    match draw(st.sampled_from(("state", "question", "open question", "word", "compaction"))):
        case "state":
            log.add(ev.StateSet, key=draw(words), value=draw(json_values))
        case "compaction":
            first = next(id for id, node in log.record.messages.items() if node.activation == activation)
            root = log.repeat(activation, first, None)
            log.say(activation, Message("user", draw(words)), "memory", parent=root)
        case "word":
            log.say(activation, Message("user", draw(words)), "human")
        case kind:
            id = f"q{len(log.record.questions)}"
            log.add(ev.Asked, id=id, question=draw(words), activation=activation)
            if kind == "question":
                log.add(ev.Answered, id=id, answer=draw(words))
