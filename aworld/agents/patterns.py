"""Ready patterns: solver and verifier, debate, votes, best of n, map and reduce, and functions as members.

Each is made of the pieces of `aworld.core.agent`, so it steps, resumes, forks and nests like every team. What a pattern
needs to decide (accept, count, score) is a plain function, told nothing but what is in the log.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from aworld.core.agent.base import BaseAgent, Turn, plain
from aworld.core.agent.flow import Arrow, End, Flow, InTurn, Start, Topology, Turns, Unit, joined, readable, units_of
from aworld.core.agent.swarm import WorkflowSwarm
from aworld.core.agent.workflow import Map, WorkflowNode
from aworld.core.checks import Count, typed
from aworld.core.exceptions import AWorldError, ConfigError
from aworld.core.message import Content, Message, Text, content_text

ACCEPT = "ACCEPT"
"""The word with which a verifier begins when it has nothing to object to."""

_VERIFY = (
    f"Check the last result against the task. Begin with {ACCEPT} if it is complete and correct; otherwise say "
    "everything that is wrong or missing."
)
_IMPROVE = "The last result was not accepted. Do the task again, and mend what the remarks say."
_DEBATE = "These are the statements so far. Weigh them, then state your answer anew: keep it or change it, and say why."
_JUDGE = "These are the last statements of a debate. Decide, and give the answer to the task."
_SCORE = "How good is this result of the task? Begin with a number: the higher, the better."
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class FunctionAgent(BaseAgent):
    """A Python function as a member: text in, answer out, no model.

    `function(text)` or `function(text, context)`, plain or async; `context` is the state of the task. A plain one runs
    on the event loop, so one that waits should be async. Any JSON-able answer is kept as it is. It is named like the
    function when `name` is not given.
    """

    _named: ClassVar[frozenset[str]] = frozenset({"function"})

    @typed()
    def __init__(self, function: Callable[..., Any], name: str | None = None, desc: str | None = None) -> None:
        own_name: str = getattr(function, "__name__", type(function).__name__)
        super().__init__(name or ("function" if own_name == "<lambda>" else own_name), desc)
        self.function = function
        self._takes_context = _takes_context(function, self.name)

    async def decide(self, turn: Turn) -> Message:
        """Call the function. Raises AWorldError that names the agent when the function raises."""
        text = content_text(turn.observation.content)
        try:
            answer = self.function(text, turn.context) if self._takes_context else self.function(text)
            if inspect.isawaitable(answer):
                answer = await answer
        except AWorldError:
            raise
        except Exception as error:
            raise AWorldError(f"{self.name} raised {type(error).__name__}: {error}") from error
        if isinstance(answer, str):
            return Message("assistant", answer)
        # The text is what others read; the answer itself goes along, since "3" and 3 read the same.
        return Message("assistant", readable(answer), opaque={"answer": plain(answer)})

    def answer_of(self, message: Message) -> Any:
        """What the function returned."""
        return message.text if message.opaque is None else message.opaque.get("answer")


function_agent = FunctionAgent


def accepted(remarks: Any) -> bool:
    """Whether a verifier's answer accepts: True, a field `accepted` that is true, or text that begins with ACCEPT."""
    if isinstance(remarks, bool):
        return remarks
    if isinstance(remarks, str):
        return remarks.lstrip(" \n*#_`>").upper().startswith(ACCEPT)
    if isinstance(remarks, Mapping):
        return bool(remarks.get("accepted"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return bool(getattr(remarks, "accepted", False))


class Guard(Topology):
    """Lets a solver try until a verifier accepts. The answer is the accepted solution, not the verifier's words.

    From the second round on the solver is shown the task, its last solution and the verifier's remarks.
    `accept(answer)` reads the verifier's answer; see `accepted` for what it takes without one. When the rounds run out
    the run ends with `limit_reached`, the last solution being its answer, or well where not `must_hold`.
    """

    _named: ClassVar[frozenset[str]] = frozenset({"solver", "verifier", "accept"})

    @typed()
    def __init__(
        self,
        solver: Unit,
        verifier: Unit,
        *,
        accept: Callable[[Any], bool] = accepted,
        max_rounds: Count = 5,
        must_hold: bool = True,
        name: str | None = None,
        desc: str | None = None,
    ) -> None:
        if solver is verifier:
            raise ConfigError(
                f"solver_verifier: {solver.name!r} cannot verify itself; give a second agent, of the same model if "
                "need be."
            )
        super().__init__(name or f"{solver.name}-verified", desc)
        self.solver, self.verifier, self.accept = solver, verifier, accept
        self.max_rounds, self.must_hold = max_rounds, must_hold
        units_of(self)

    def members(self) -> list[Unit]:
        """The solver and the verifier."""
        return [self.solver, self.verifier]

    def arrows(self) -> list[Arrow]:
        """To the verifier, and back."""
        solver, verifier = self.solver.name, self.verifier.name
        return [Arrow(solver, verifier), Arrow(verifier, solver, "not accepted")]

    def flow(self) -> Flow:
        """A new run of the loop."""
        return InTurn(self._rounds)

    def _rounds(self, task: Content) -> Turns:
        content, solution = task, None
        for number in range(1, self.max_rounds + 1):
            result, _ = yield Start(f"solution-{number}", self.solver, content)
            if result.error is None:
                solution = result.answer
                shown = _prompt([(self.solver.name, solution)], task, _VERIFY)
                result, _ = yield Start(f"remarks-{number}", self.verifier, shown)
            if result.error is not None:
                return End(error=f"{result.agent!r} failed in round {number} of {self.name!r}: {result.error}")
            if self.accept(result.answer):
                return End(solution)
            tried = [("your last solution", solution), (f"remarks of {self.verifier.name}", result.answer)]
            content = _prompt(tried, task, _IMPROVE)
        error = f"No solution of {self.name!r} was accepted in max_rounds={self.max_rounds} rounds."
        return End(solution, error if self.must_hold else None, "limit_reached")


solver_verifier = Guard


@typed()
def debate(debaters: Sequence[Unit], judge: Unit, rounds: Count = 2, *, name: str | None = None) -> Topology:
    """Let several state their answers, hear each other, and state them anew; a judge decides after the last round."""
    if len(debaters) < 2:
        raise ConfigError(f"debate needs two debaters or more; got {[d.name for d in debaters]}.")

    def statements(last: int, ask: str) -> Callable[[dict[str, Any]], Content]:
        """The statements of a round, by the names of those who made them."""
        names = {f"{debater.name} {last}": debater.name for debater in debaters}
        return lambda outputs: _prompt(
            [(names[key], outputs[key]) for key in names if key in outputs], outputs["input"], ask
        )

    groups: list[Any] = [[WorkflowNode(debater, name=f"{debater.name} 1") for debater in debaters]]
    for number in range(2, rounds + 1):
        hear = statements(number - 1, _DEBATE)
        groups.append([WorkflowNode(debater, name=f"{debater.name} {number}", input=hear) for debater in debaters])
    decide = WorkflowNode(judge, input=statements(rounds, _JUDGE))
    return WorkflowSwarm(*groups, decide, name=name or f"debate-{judge.name}")


@typed()
def majority_vote(
    agents: Unit | Sequence[Unit],
    n: Count | None = None,
    *,
    key: Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> Topology:
    """Ask several agents, or one agent `n` times, side by side: the answer that most of them gave.

    Answers count as equal when `key(answer)` is; without it, texts are compared without case, spaces around and the
    full stop. The first of the equal ones is the answer; between equal counts, the earlier. Who fails does not vote.
    """

    def count(answers: Sequence[Any]) -> Any:
        return _most_common(answers, key or _normal)

    if isinstance(agents, BaseAgent | Topology):
        if n is None:
            raise ConfigError(f"majority_vote of {agents.name!r}: n, the number of its votes, is missing.")
        return Map(agents, times=n, reduce=count, on_error="skip", name=name or f"{agents.name}-vote")
    if n is not None or len(agents) < 2:
        raise ConfigError("majority_vote takes several agents, or one agent and n=, the number of its votes.")

    def elect(outputs: dict[str, Any]) -> Any:
        return count(list(outputs.values()))

    return WorkflowSwarm(list(agents), answer=elect, on_error="skip", name=name or "vote")


@typed()
def best_of_n(agent: Unit, n: Count, *, scorer: Callable[[Any], float] | Unit, name: str | None = None) -> Topology:
    """Let an agent try `n` times, side by side: the answer with the highest score, between equals the earliest.

    `scorer` is a function of an answer, or an agent that reads task and answer and replies with a number (or with text
    that has one). A try that fails is left out.
    """
    name = name or f"{agent.name}-best"
    if not isinstance(scorer, BaseAgent | Topology):
        return Map(agent, times=n, reduce=lambda tries: max(_some(tries), key=scorer), on_error="skip", name=name)

    def shown(outputs: dict[str, Any]) -> Content:
        return _prompt([(agent.name, outputs[agent.name])], outputs["input"], _SCORE)

    def pair(outputs: dict[str, Any]) -> Any:
        return [outputs[agent.name], _number(outputs[scorer.name], scorer.name)]

    scored = WorkflowSwarm(agent, WorkflowNode(scorer, input=shown), answer=pair, name=f"{name}-try")
    return Map(
        scored, times=n, reduce=lambda tries: max(_some(tries), key=lambda pair: pair[1])[0], on_error="skip", name=name
    )


def map_reduce(
    mapper: Unit,
    reducer: Callable[[list[Any]], Any] | Unit,
    *,
    over: Callable[[str], Sequence[Any]] | None = None,
    max_parallel: int | None = None,
    name: str | None = None,
) -> Map:
    """Give each part of the input to `mapper`, side by side, and all results to `reducer`, a function or an agent.

    `over(input)` gives the parts; without it the input is a JSON array.
    """
    return Map(mapper, over=over, reduce=reducer, max_parallel=max_parallel, name=name)


def _prompt(results: Sequence[tuple[str, Any]], task: Content, ask: str) -> Content:
    """The task, named results, and what is to be done with them."""
    content = joined(results, task)
    return f"{content}\n\n{ask}" if isinstance(content, str) else (*content, Text(ask))


def _most_common(answers: Sequence[Any], key: Callable[[Any], Any]) -> Any:
    counts: dict[str, int] = {}
    first: dict[str, Any] = {}
    for answer in _some(answers):
        # As JSON, so that lists and objects can be counted too.
        mark = msgspec.json.encode(plain(key(answer)), order="deterministic").decode()
        first.setdefault(mark, answer)
        counts[mark] = counts.get(mark, 0) + 1
    return first[max(counts, key=lambda mark: counts[mark])]


def _normal(answer: Any) -> Any:
    return answer.strip().rstrip(".").casefold() if isinstance(answer, str) else answer


def _some(answers: Sequence[Any]) -> Sequence[Any]:
    if not answers:
        raise AWorldError("every try failed, so there is nothing to choose from")
    return answers


def _number(answer: Any, scorer: str) -> float:
    """The score in a scorer's answer: a number, or the first one in its text."""
    if isinstance(answer, int | float):
        return float(answer)
    number = _NUMBER.search(readable(answer))
    if number is None:
        raise AWorldError(f"{scorer!r} gave no number as a score: {readable(answer)[:200]!r}")
    return float(number.group())


def _takes_context(function: Callable[..., Any], name: str) -> bool:
    """Whether a function wants the state of the task after the text. Raises ConfigError when neither call fits."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-ins do not say; they take the text
        return False
    if _binds(signature, 1):
        second = list(signature.parameters)[1:2]
        return second == ["context"]
    if _binds(signature, 2):
        return True
    raise ConfigError(f"The function of {name!r} must take (text) or (text, context); it takes {signature}.")


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
