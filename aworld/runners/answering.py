"""A person's answer, put on record from outside of the run, so that whoever goes on with it finds it there."""

from __future__ import annotations

from aworld.core import event as ev
from aworld.core.exceptions import TaskError
from aworld.core.trajectory import Activation, Trajectory
from aworld.runners.journal import Journal
from aworld.trajectory.store import TrajectoryStore


async def put_answer(record: Trajectory, store: TrajectoryStore, text: str, question: str | None = None) -> None:
    """Add the answer to the log; durable when this returns.

    Raises `TaskError` when the answer is empty, when the question is not open, when several are and none is named, and
    while the run is at work: its log has one writer, and that is the process that runs it.
    """
    asked = _picked(record, question)
    refuse_empty(asked.id, text)
    busy = next((a for a in record.activations.values() if a.finished is None and not _rests(record, a)), None)
    if busy is not None:
        raise TaskError(
            f"Run {record.id} has asked, but {busy.agent!r} is still at work. Answer when it waits; if its process has "
            "ended, resume the run first."
        )
    journal = Journal(record, store)
    store.attach(record)
    journal.add(ev.Answered, id=asked.id, answer=text)
    await journal.commit()


def refuse_empty(question: str, text: str) -> None:
    """Raise `TaskError` for an answer without a word: an answer is final, and this one was hardly meant."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TaskError(
            f"The answer to question {question!r} must be text, as a person says it; got {text!r:.100}. Give "
            f"{str(text)!r:.100} for that."
        )
    if not text.strip():
        raise TaskError(
            f'The answer to question {question!r} is empty, and was not recorded: answers are final. If "nothing" is '
            'what you mean, say it in words, such as "none" or "no".'
        )


def _picked(record: Trajectory, question: str | None) -> ev.Asked:
    """The question that is meant: the named one, or the only one."""
    still = record.open_questions()
    if question is not None and (said := record.answers.get(question)) is not None:
        raise TaskError(f"Question {question!r} of run {record.id} has been answered already: {said!r}.")
    if not still:
        raise TaskError(f"Run {record.id} asks nothing; its status is {record.status}.")
    found = [asked for asked in still if asked.id == question] if question is not None else still
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"  {asked.id}: {asked.question}" for asked in still)
    wrong = "Several questions are open" if question is None else f"There is no open question {question!r}"
    raise TaskError(f"{wrong}; name one of\n{listed}")


def _rests(record: Trajectory, activation: Activation) -> bool:
    """Whether an agent or team that has not ended waits for others: people, or members at work of their own."""
    below = [a for a in record.activations.values() if a.caller == activation.id and a.finished is None]
    if any(member.call_id is None for member in below):
        return True
    members = {member.call_id for member in below}
    still = activation.open_calls
    return bool(still) and all(call.call_id in members or _waits(record, call) for call in still)


def _waits(record: Trajectory, called: ev.ToolCalled) -> bool:
    """Whether a call waits for a person, or for somebody to go on with the answer."""
    asked = record.questions_of(called)
    return any(q.id not in record.answers or record.answered_at[q.id] > called.seq for q in asked)
