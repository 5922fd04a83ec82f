"""Token sequences for training, derived from the calls of a trajectory.

A call extends a row if and only if its whole prompt begins with all of that row's ids; otherwise it starts a new
row. So a plain conversation is one row whatever its length, and retries, sub-agents, compaction or a parser that
dropped text each begin another. Nothing is tokenised here: every id was sent or sampled. The mask marks exactly the
sampled ids, in the order of sampling.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from aworld.core.event import ModelCalled
from aworld.core.message import Tokens
from aworld.core.trajectory import Trajectory, score_of


class TokenSequence(Struct, frozen=True, kw_only=True):
    """One row of ids, as one agent saw and wrote them. `ids`, `mask` and `logprobs` have one entry a token."""

    trajectory_id: str
    agent: str
    activation: int
    """The agent's activation whose call began the row."""
    ids: tuple[int, ...]
    mask: tuple[int, ...]
    """1 for a sampled token, 0 for one that was read."""
    logprobs: tuple[float | None, ...]
    """Natural logarithms, of the distribution that was sampled from; None where nothing was sampled or told."""
    steps: tuple[int, ...]
    """The calls that the row is made of."""
    score: float | None
    """Sum of weight times value of all rewards of the trajectory; None until one is given, and while one that counts
    could not be computed."""
    step_scores: tuple[float | None, ...]
    """The same of the rewards of each step in `steps`."""
    policy_versions: tuple[str | None, ...]
    """The policy that sampled, one a step."""

    @property
    def policy_version(self) -> str | None:
        """The policy that sampled; None when the server did not say or it changed within the row."""
        return self.policy_versions[0] if len(set(self.policy_versions)) == 1 else None

    @property
    def prompt_length(self) -> int:
        """Ids before the first sampled one."""
        return self.mask.index(1) if 1 in self.mask else len(self.mask)


class Sequences(Struct, frozen=True, kw_only=True):
    """All rows of a trajectory, and what a trainer must know of how good they are."""

    rows: tuple[TokenSequence, ...]
    drift: int
    """Calls that did not extend a row although their activation had one."""
    without_tokens: int
    """Calls of a model that were answered without the server telling the ids: they are in no row."""
    complete: bool
    """Whether the log has every call. Train on complete trajectories only."""


class _Row:
    __slots__ = ("activation", "agent", "ids", "last", "logprobs", "mask", "steps", "versions")

    def __init__(self, call: ModelCalled) -> None:
        self.agent, self.activation, self.last = call.agent, call.activation, -1
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float | None] = []
        self.steps: list[int] = []
        self.versions: list[str | None] = []

    def begins(self, prompt: tuple[int, ...]) -> bool:
        return len(prompt) >= len(self.ids) and prompt[: len(self.ids)] == tuple(self.ids)

    def extend(self, step: int, read: tuple[int, ...], tokens: Tokens) -> None:
        sampled = tokens.completion_ids or ()
        complete = tokens.logprobs is not None and len(tokens.logprobs) == len(sampled)
        self.ids += read
        self.ids += sampled
        self.mask += [0] * len(read) + [1] * len(sampled)
        self.logprobs += [None] * len(read)
        self.logprobs += tokens.logprobs if complete and tokens.logprobs is not None else [None] * len(sampled)
        self.steps.append(step)
        self.versions.append(tokens.policy_version)
        self.last = step


def sequences(trajectory: Trajectory, agents: Collection[str] | None = None) -> Sequences:
    """The token sequences of a trajectory; `agents` names those that count, None takes all."""
    rows: list[_Row] = []
    drift = without = 0
    for step in sorted(trajectory.calls):
        call = trajectory.calls[step]
        tokens = call.tokens
        if agents is not None and call.agent not in agents:
            continue
        if tokens is None or tokens.level != "tokens":
            without += call.model is not None and call.reply is not None
            continue
        row, read = _row_for(trajectory, rows, call, tokens)
        if row is None:
            drift += any(row.activation == call.activation for row in rows)
            row = _Row(call)
            rows.append(row)
        row.extend(step, read, tokens)
    return Sequences(
        rows=tuple(_finished(trajectory, row) for row in rows),
        drift=drift,
        without_tokens=without,
        complete=trajectory.complete,
    )


def _row_for(
    trajectory: Trajectory, rows: list[_Row], call: ModelCalled, tokens: Tokens
) -> tuple[_Row | None, tuple[int, ...]]:
    """The row that a call extends and the ids that were read since; no row and the whole prompt if it begins one."""
    candidates = [row for row in reversed(rows) if row.agent == call.agent]
    for row in candidates:
        # A delta is written only against the call whose prompt and completion it begins with: nothing to compare.
        if tokens.base is not None and row.last == tokens.base:
            return row, tokens.prompt_ids or ()
    whole = trajectory.tokens(call)
    prompt = (whole and whole.prompt_ids) or ()
    longest = max((row for row in candidates if row.begins(prompt)), key=lambda row: len(row.ids), default=None)
    return longest, prompt if longest is None else prompt[len(longest.ids) :]


def _finished(trajectory: Trajectory, row: _Row) -> TokenSequence:
    rewards = trajectory.rewards
    return TokenSequence(
        trajectory_id=trajectory.id,
        agent=row.agent,
        activation=row.activation,
        ids=tuple(row.ids),
        mask=tuple(row.mask),
        logprobs=tuple(row.logprobs),
        steps=tuple(row.steps),
        score=trajectory.score,
        step_scores=tuple(score_of(r for r in rewards if r.step == step) for step in row.steps),
        policy_versions=tuple(row.versions),
    )
