"""A trajectory: the fold of the events of one run and of the notes about it.

`apply` and `apply_note` are the only ways in. The running loop, a resumed process, a fork and a reader of old logs all
call them with the same entries and so hold the same state; a fold of any prefix is a valid state. Messages form a
graph: a node knows its parent, and the prompt of a call is the path to its leaf. Where a piece of another branch stands
in a path (a prompt with something put in, a hand-over with its history), one node stands for the whole piece, so that a
log grows linearly whatever is shown.

The next turn of a conversation shares the events of the turns before it, and its messages; everything else of the fold
(activations, steps, usage, rewards, state) begins anew with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any, ClassVar

from msgspec import Struct

from aworld.core import event as ev
from aworld.core.message import Message, Origin, Tokens, Usage


@dataclass(slots=True)
class Spending:
    """Tokens and money of a run, a running sum, so that limits cost the same at any length of it; and by whom neither
    was told. Unknown is not zero: a limit on it cannot be watched."""

    tokens: int = 0
    cost: float = 0.0
    """US dollars."""
    uncounted: tuple[str, int] | None = None
    """Who first reported no tokens, and in which step; None when all did."""
    unpriced: tuple[str, int] | None = None
    """The same of the cost."""

    def add(self, usage: Usage | None, who: str, step: int) -> None:
        """Count a call of a step."""
        usage = usage or Usage()
        if usage.total_tokens is None and usage.output_tokens is None:
            self.uncounted = self.uncounted or (who, step)
        self.tokens += usage.total_tokens or (usage.input_tokens or 0) + (usage.output_tokens or 0)
        if usage.cost is None:
            self.unpriced = self.unpriced or (who, step)
        self.cost += usage.cost or 0.0


@dataclass(slots=True, weakref_slot=True)
class Activation:
    """One agent at work in one branch of the conversation."""

    id: int
    agent: str
    caller: int | None = None
    call_id: str | None = None
    node: str | None = None
    began: int = 0
    """Number of the event with which it began."""
    input: int | None = None
    """Id of the message that says what is to be done; None before it."""
    leaf: int | None = None
    """Id of the last message of the branch; None before the first."""
    calls: list[ev.ToolCalled] = field(default_factory=list[ev.ToolCalled])
    """Tool calls of the last turn, in the order in which the model wrote them."""
    returned: dict[str, ev.ToolReturned] = field(default_factory=dict[str, ev.ToolReturned])
    """Closed tool calls of the last turn, by call id."""
    last: ev.ModelCalled | None = None
    steps: int = 0
    """Decisions taken."""
    finished: ev.AgentFinished | None = None

    @property
    def open_calls(self) -> list[ev.ToolCalled]:
        """Tool calls that are not closed."""
        calls, returned = self.calls, self.returned
        return [call for call in calls if call.call_id not in returned] if calls else calls


RUNTIME = "runtime"
"""The source of what the runtime itself notes in the log."""

OBEYED = ("answer", "cancel", "pause", "steer")
"""What it notes when it has taken in a note of this kind; the data is the note's number."""


class Node(Struct, frozen=True, gc=False):
    """A message in its place in the graph; or, with `last`, a whole piece of another branch."""

    id: int
    message: Message
    parent: int | None
    origin: Origin
    agent: str
    activation: int
    at: float
    first: int | None = None
    last: int | None = None
    """The piece of another branch that stands here: the path from `first` to `last`, both included."""


@dataclass(slots=True)
class Step:
    """One decision and what the world answered."""

    call: ev.ModelCalled
    tool_calls: list[ev.ToolCalled]
    results: dict[str, ev.ToolReturned]
    rewards: list[ev.Rewarded]
    pre_agent: str | None

    @property
    def number(self) -> int:
        """Number of the step, from 0."""
        return self.call.step


class Score:
    """Sum of weight times value of the rewards so far.

    A reward that could not be computed makes the score unknown, not smaller: it is None until a reward of the same name
    and step has a value. One of weight 0 is a mere figure, and changes nothing.
    """

    __slots__ = ("failed", "total")

    def __init__(self, total: float | None = None) -> None:
        self.total = total
        self.failed: set[tuple[str, int | None]] = set()
        """Name and step of each reward that has no value yet."""

    def add(self, reward: ev.Rewarded) -> None:
        """Take one more reward."""
        if reward.value is not None:
            self.total = (self.total or 0) + reward.weight * reward.value
            if self.failed:
                self.failed.discard((reward.name, reward.step))
        elif reward.weight:
            self.failed.add((reward.name, reward.step))

    @property
    def value(self) -> float | None:
        """The score; None when there is no reward, or one that counts has no value."""
        return None if self.failed else self.total


def score_of(rewards: Iterable[ev.Rewarded]) -> float | None:
    """The score of some rewards, in the order in which they were given."""
    score = Score()
    for reward in rewards:
        score.add(reward)
    return score.value


class Trajectory:
    """Everything that is known of one run. Build one from events with `Trajectory.of`; read, never write."""

    __slots__ = (
        "__weakref__", "_rewards", "_usages", "activations", "agents", "answer_before", "answered_at", "answers",
        "artifacts",
        "calls", "events", "finished", "first_message", "first_seq", "history", "id", "labels", "messages",
        "next_message", "next_step", "notes", "obeyed", "paused", "questions", "spending", "started", "state",
        "steps_by_agent", "task", "toolsets", "writers",
    )  # fmt: skip

    def __init__(self, id: str) -> None:
        self.id = id
        self.events: list[ev.Event] = []
        self.notes: list[ev.Note] = []
        self.started: ev.Started | None = None
        self.task = ev.TaskInfo(id=id)
        self.labels: dict[str, str] = {}
        """Those of the task, as notes have changed them."""
        self.agents: dict[str, Any] = {}
        self.messages: dict[int, Node] = {}
        self.toolsets: dict[str, tuple[dict[str, Any], ...]] = {}
        self.artifacts: dict[tuple[str, str], ev.ArtifactKept] = {}
        """The files that differ from what they were before, by folder and name; over all turns of a conversation."""
        self.next_message = 0
        self.history: int | None = None
        """Where the turn before ended, in the next turn of a conversation: the last message of who answered."""
        self.answer_before: Any = None
        """What it answered."""
        self._begin(0)

    def _begin(self, seq: int) -> None:
        """Whatever each turn of a conversation has for itself."""
        self.first_seq = seq
        """Number of the first event that is not of an earlier turn of the conversation."""
        self.first_message = self.next_message
        """The same of messages."""
        self.activations: dict[int, Activation] = {}
        self.calls: dict[int, ev.ModelCalled] = {}
        self.state: dict[str, Any] = {}
        self.writers: dict[str, list[int | None]] = {}
        """Activations that set a key of the state, by key, in the order in which they did."""
        self.questions: dict[str, ev.Asked] = {}
        self.answers: dict[str, str] = {}
        self.answered_at: dict[str, int] = {}
        self._usages: list[Usage] = []
        self.spending = Spending()
        """Their sum, as limits see it: also by whom it was not told."""
        self.finished: ev.Finished | None = None
        self.paused = False
        self._rewards: list[ev.Rewarded] = []
        self.obeyed = -1
        """Number of the last note that the run has taken in: an answer or a command."""
        self.next_step = 0
        self.steps_by_agent: dict[str, int] = {}

    @classmethod
    def of(cls, id: str, events: Iterable[ev.Event], notes: Iterable[ev.Note] = ()) -> Trajectory:
        """The fold of `events` and `notes`."""
        trajectory = cls(id)
        for event in events:
            trajectory.apply(event)
        for note in notes:
            trajectory.apply_note(note)
        return trajectory

    @property
    def own_events(self) -> list[ev.Event]:
        """The events, without those of earlier turns of the conversation."""
        return self.events[self.first_seq :] if self.first_seq else self.events

    @property
    def usage(self) -> Usage | None:
        """Sum of what the model calls reported; None when none did."""
        return reduce(Usage.__add__, self._usages) if self._usages else None

    @property
    def rewards(self) -> list[ev.Rewarded]:
        """All rewards: those of the run's own log, then those that others gave."""
        return self._rewards + [note for note in self.notes if isinstance(note, ev.Rewarded)]

    @property
    def status(self) -> ev.Status:
        """How the run stands; `running` also for one whose process died."""
        if self.finished is not None:
            return self.finished.status
        return "waiting" if self.paused or (self.questions and self.open_questions()) else "running"

    @property
    def answer(self) -> Any:
        """The answer as JSON-able data, None while there is none."""
        return self.finished.answer if self.finished else None

    @property
    def error(self) -> str | None:
        """Why the run did not finish well, None when it did or still runs."""
        return self.finished.error if self.finished else None

    @property
    def surroundings_failed(self) -> bool:
        """Whether the run failed for a reason that is not the agent's: it may be run again, and is no sample."""
        return self.finished is not None and self.finished.surroundings

    @property
    def score(self) -> float | None:
        """Sum of weight times value of all rewards, of steps and of the whole; None until one is given, and while one
        that counts could not be computed."""
        return score_of(self.rewards)

    @property
    def complete(self) -> bool:
        """Whether no model call is missing: step numbers are dense. Only complete trajectories are trained on."""
        return self.next_step == len(self.calls)

    def open_questions(self) -> list[ev.Asked]:
        """Questions that nobody has answered and that still matter: their call is open."""
        return [q for q in self.questions.values() if q.id not in self.answers and self._matters(q)]

    def questions_of(self, called: ev.ToolCalled) -> list[ev.Asked]:
        """What was asked for one tool call."""
        return [q for q in self.questions.values() if q.call_id == called.call_id and q.step == called.step]

    def _matters(self, question: ev.Asked) -> bool:
        activation = self.activations.get(question.activation)
        if question.call_id is None or activation is None:
            return True
        return any(c.call_id == question.call_id and c.step == question.step for c in activation.open_calls)

    def path(self, leaf: int | None) -> tuple[Message, ...]:
        """The messages from the root to `leaf`: the prompt of a call whose `prompt` is `leaf`."""
        return tuple([self.messages[id].message for id in self.path_ids(leaf)])

    def path_ids(self, leaf: int | None) -> list[int]:
        """The ids of the messages from the root to `leaf`; those of a piece of another branch are that branch's."""
        ids: list[int] = []
        while leaf is not None:
            node = self.messages[leaf]
            if node.last is None:
                ids.append(leaf)
            else:
                ids += self._piece(node)
            leaf = node.parent
        ids.reverse()
        return ids

    def links(self, leaf: int | None) -> list[tuple[int, int]]:
        """The nodes from the root to `leaf`, each with the number of messages up to it: places at which a branch can
        leave the path."""
        nodes: list[int] = []
        while leaf is not None:
            nodes.append(leaf)
            leaf = self.messages[leaf].parent
        links: list[tuple[int, int]] = []
        count = 0
        for id in reversed(nodes):
            node = self.messages[id]
            count += 1 if node.last is None else len(self._piece(node))
            links.append((id, count))
        return links

    def _piece(self, node: Node) -> list[int]:
        """The messages of the piece that a node stands for, the last one first. Pieces may hold others."""
        ids: list[int] = []
        walks = [(node.last, node.first)]
        while walks:  # no recursion: control may have passed on a thousand times
            id, first = walks.pop()
            while id is not None:
                inner = self.messages[id]
                if id != first and inner.parent is not None:
                    walks.append((inner.parent, first))
                if inner.last is None:
                    ids.append(id)
                    id = None
                else:
                    id, first = inner.last, inner.first
        return ids

    def steps(self) -> list[Step]:
        """One step for each decision, in order of step numbers."""
        steps: dict[int, Step] = {}
        for event in self.own_events:
            match event:
                case ev.ModelCalled():
                    steps[event.step] = Step(event, [], {}, [], None)
                case ev.ToolCalled():
                    calls = steps[event.step].tool_calls
                    if all(call.call_id != event.call_id for call in calls):
                        calls.append(event)
                case ev.ToolReturned():
                    steps[event.step].results[event.call_id] = event
                case _:
                    pass
        for reward in self.rewards:
            if reward.step is not None and reward.step in steps:
                steps[reward.step].rewards.append(reward)
        ordered = [steps[number] for number in sorted(steps)]
        for before, step in pairwise(ordered):  # replies of parallel agents may overtake each other
            step.pre_agent = before.call.agent
        return ordered

    def tokens(self, call: ev.ModelCalled) -> Tokens | None:
        """The tokens of a call with the whole prompt, its stored delta resolved."""
        tokens = call.tokens
        if tokens is None or tokens.base is None:
            return tokens
        pieces: list[tuple[int, ...]] = [tokens.prompt_ids or ()]
        base: int | None = tokens.base
        while base is not None:
            earlier = self.calls[base].tokens
            assert earlier is not None  # a delta is written only against a call that has tokens
            pieces += [earlier.completion_ids or (), earlier.prompt_ids or ()]
            base = earlier.base
        whole = tuple(token for piece in reversed(pieces) for token in piece)
        return Tokens(
            whole, tokens.completion_ids, tokens.logprobs, None,
            tokens.policy_version, tokens.tokenizer, tokens.chat_template,
        )  # fmt: skip

    def apply(self, event: ev.Event) -> None:
        """Take one more event. Raises ValueError when its number is not the next one."""
        if event.seq != len(self.events):
            raise ValueError(f"trajectory={self.id} | event {event.seq} came where {len(self.events)} was due")
        self.events.append(event)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(self, event)

    def apply_note(self, note: ev.Note) -> None:
        """Take one more note."""
        self.notes.append(note)
        if isinstance(note, ev.Answered):
            if note.id not in self.answers:
                self.answers[note.id], self.answered_at[note.id] = note.answer, len(self.events)
        elif isinstance(note, ev.Labelled):
            for name, value in note.labels.items():
                if value is None:
                    self.labels.pop(name, None)
                else:
                    self.labels[name] = value

    def __iter__(self) -> Iterator[ev.Event]:
        return iter(self.events)

    def __repr__(self) -> str:
        return f"<Trajectory {self.id} {self.status} steps={self.next_step} events={len(self.events)}>"

    def _repr_html_(self) -> str:
        from aworld.core.notebook import html_of

        return html_of(self)

    def _started(self, event: ev.Started) -> None:
        if event.after:
            root = self.activations.get(0)
            self.history = root.leaf if root is not None else self.history
            self.answer_before = self.answer
            self._begin(event.seq)
        self.started, self.task, self.finished = event, event.task, None
        self.labels = dict(event.task.labels)
        self.agents = {**self.agents, **event.agents}

    def _toolset(self, event: ev.ToolsetOffered) -> None:
        self.toolsets[event.digest] = event.tools

    def _message(self, event: ev.MessageAdded) -> None:
        message = event.message
        if message is None:
            message = self.messages[event.same_as or 0].message
        last = event.same_as if event.back_to is not None else None
        self.messages[event.id] = Node(
            event.id, message, event.parent, event.origin, event.agent, event.activation, event.at, event.back_to, last
        )
        if event.id >= self.next_message:
            self.next_message = event.id + 1
        if event.aside:
            return
        activation = self.activations.get(event.activation)
        if activation is not None and (event.origin != "tool" or event.same_as is not None):
            activation.leaf = event.id  # a tool's answer counts when all calls of its turn are closed
            if activation.input is None and event.message is not None and event.message.role == "user":
                activation.input = event.id

    def _model_call(self, event: ev.ModelCalled) -> None:
        self.calls[event.step] = event
        if event.step >= self.next_step:
            self.next_step = event.step + 1
        self.steps_by_agent[event.agent] = self.steps_by_agent.get(event.agent, 0) + 1
        if event.model is not None:
            if event.usage is not None:
                self._usages.append(event.usage)
            self.spending.add(event.usage, event.provider or "the model", event.step)
        activation = self.activations[event.activation]
        activation.last = event
        activation.steps += 1
        activation.calls, activation.returned = [], {}

    def _tool_call(self, event: ev.ToolCalled) -> None:
        calls = self.activations[event.activation].calls
        place = next((i for i, call in enumerate(calls) if call.call_id == event.call_id), None) if calls else None
        if place is None:
            calls.append(event)
        else:
            calls[place] = event  # it runs again, with a person's answer
        if event.result >= self.next_message:
            self.next_message = event.result + 1

    def _tool_result(self, event: ev.ToolReturned) -> None:
        activation = self.activations[event.activation]
        activation.returned[event.call_id] = event
        if event.usage is not None:
            self._usages.append(event.usage)
            self.spending.add(event.usage, f"a model that tool {event.name!r} asked", event.step)
        if len(activation.returned) == len(activation.calls):
            # Answers are chained in the order of the calls, a replaced one behind all of them: the last has the
            # highest id.
            results = activation.returned.values()
            activation.leaf = event.result if len(results) == 1 else max(result.result for result in results)

    def _agent_started(self, event: ev.AgentStarted) -> None:
        self.activations[event.activation] = Activation(
            event.activation, event.agent, event.caller, event.call_id, event.node, event.seq
        )

    def _agent_finished(self, event: ev.AgentFinished) -> None:
        self.activations[event.activation].finished = event

    def _reward(self, event: ev.Rewarded) -> None:
        self._rewards.append(event)

    def _state(self, event: ev.StateSet) -> None:
        self.state[event.key] = event.value
        writers = self.writers.setdefault(event.key, [])
        if not writers or writers[-1] != event.activation:
            writers.append(event.activation)

    def _asked(self, event: ev.Asked) -> None:
        self.questions[event.id] = event

    def _answered(self, event: ev.Answered) -> None:
        self.answers[event.id] = event.answer
        self.answered_at[event.id] = event.seq

    def _finished(self, event: ev.Finished) -> None:
        self.finished = event

    def _artifact(self, event: ev.ArtifactKept) -> None:
        if event.digest == event.before and event.executable is None:
            self.artifacts.pop((event.folder, event.name), None)  # as it was before
        else:
            self.artifacts[event.folder, event.name] = event

    def _noted(self, event: ev.Noted) -> None:
        if event.source == RUNTIME:
            self.paused = event.name == "pause"
            if event.name in OBEYED:
                self.obeyed = max(self.obeyed, event.data)

    _handlers: ClassVar[dict[type, Callable[[Trajectory, Any], None]]] = {
        ev.Started: _started,
        ev.ToolsetOffered: _toolset,
        ev.MessageAdded: _message,
        ev.ModelCalled: _model_call,
        ev.ToolCalled: _tool_call,
        ev.ToolReturned: _tool_result,
        ev.AgentStarted: _agent_started,
        ev.AgentFinished: _agent_finished,
        ev.Rewarded: _reward,
        ev.StateSet: _state,
        ev.Asked: _asked,
        ev.Answered: _answered,
        ev.ArtifactKept: _artifact,
        ev.Noted: _noted,
        ev.Finished: _finished,
    }
