"""People in the loop: a run asks, waits, and goes on with the answer, whichever process gives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.exceptions import TaskError
from aworld.core.tool.func_to_tool import tool
from aworld.models import ScriptedModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.tools.human import human_tools
from aworld.trajectory import MemoryStore, TrajectoryStore, open_store


def asking(*said: Said, tools: Any = human_tools) -> Agent:
    return Agent("asker", model=ScriptedModel([*said, "done"]), tools=tools)


async def told(answer: str, *said: Said) -> Any:
    """What the model sees when a person answers its one question."""
    agent = asking(*said)
    waiting = await Runners.run("x", agent)
    assert waiting.status == "waiting"
    await Runners.answer(waiting, answer)
    response = await Runners.resume(waiting, agent)
    assert response.success, response.msg
    return response.trajectory[0]["observation"][0]["content"]


async def test_a_person_is_asked_and_the_model_reads_the_answer() -> None:
    assert await told(" Ghent ", call("ask", question="Where to?")) == "Ghent"


@pytest.mark.parametrize(
    ("answer", "confirmed"), [("yes", True), ("Yes!", True), ("yes, but not now", False), ("no", False)]
)
async def test_only_a_plain_yes_confirms(answer: str, confirmed: bool) -> None:
    seen = json.loads(await told(answer, call("confirm", question="Delete all?")))
    assert seen == {"confirmed": confirmed, "said": answer}


@pytest.mark.parametrize(
    ("answer", "choice"), [("2", "green"), ("GREEN.", "green"), ("3", "7"), ("7", "7"), ("4", None), ("none", None)]
)
async def test_one_of_several_is_chosen_by_number_or_by_name(answer: str, choice: str | None) -> None:
    seen = json.loads(await told(answer, call("choose", question="Which?", options=["red", "green", "7"])))
    assert seen == {"choice": choice, "said": answer}


async def test_questions_that_cannot_be_answered_are_not_asked() -> None:
    agent = asking([call("ask", question=" "), call("choose", question="Which?", options=["only"])])
    response = await Runners.run("x", agent)
    assert response.success
    assert all(seen["error"] for seen in response.trajectory[0]["observation"])


async def test_with_several_open_questions_the_answer_names_one(store: TrajectoryStore) -> None:
    agent = asking([call("ask", question="Where?"), call("ask", question="When?")])
    waiting = await Runners.run("x", agent, run_conf=RunConfig(store=store))
    with pytest.raises(TaskError, match=r"(?s)Several.*call_0_0: Where\?.*call_0_1: When\?"):
        await Runners.answer(waiting.id, "Ghent", store=store)
    with pytest.raises(TaskError, match="no open question 'nobody'"):
        await Runners.answer(waiting.id, "Ghent", question="nobody", store=store)
    left = await Runners.answer(waiting.id, "Monday", question="call_0_1", store=store)
    assert [asked.question for asked in left.open_questions()] == ["Where?"]
    with pytest.raises(TaskError, match="answered already: 'Monday'"):
        await Runners.answer(waiting.id, "Tuesday", question="call_0_1", store=store)
    assert (await Runners.resume(waiting.id, agent, store=store)).status == "waiting"
    await Runners.answer(waiting.id, "Ghent", store=store)
    response = await Runners.resume(waiting.id, agent, store=store)
    assert [seen["content"] for seen in response.trajectory[0]["observation"]] == ["Ghent", "Monday"]
    with pytest.raises(TaskError, match="asks nothing; its status is finished"):
        await Runners.answer(waiting.id, "late", store=store)


@pytest.mark.parametrize("nothing", ["", " \n"])
async def test_an_empty_answer_is_refused_and_the_question_stays_open(nothing: str) -> None:
    agent = asking(call("ask", question="Where to?"))
    waiting = await Runners.run("x", agent)
    with pytest.raises(TaskError, match=r"question 'call_0_0' is empty, and was not recorded.*such as \"none\""):
        await Runners.answer(waiting, nothing)
    with pytest.raises(TaskError, match="'call_0_0' is empty"):
        await Runners.resume(waiting, agent, answers={"call_0_0": nothing})
    number: Any = 5
    with pytest.raises(TaskError, match=r"text=5; give text"):
        await Runners.answer(waiting, number)
    with pytest.raises(TaskError, match="text"):
        await Runners.resume(waiting, agent, answers={"call_0_0": number})
    await Runners.answer(waiting, "none")
    assert (await Runners.resume(waiting, agent)).trajectory[0]["observation"][0]["content"] == "none"


async def test_an_answer_that_comes_while_another_call_is_at_work_is_kept() -> None:
    """One call asks while another of the same turn is still running: the answer is a note, and breaks no log."""

    @tool(inline=True)
    def pay() -> str:
        """Pay."""
        return "paid"

    agent = asking([call("ask", question="Where?"), call("pay")], tools=[*human_tools, pay])
    waiting = await Runners.run("x", agent, id="run", run_conf=RunConfig(store=MemoryStore()))
    paid = next(e.seq for e in waiting.record.events if isinstance(e, ev.MessageAdded) and e.origin == "tool")
    store = MemoryStore()
    await store.append("run", waiting.record.events[:paid])
    await Runners.answer("run", "Ghent", store=store)
    with pytest.raises(TaskError, match=r"asks nothing|answered"):
        await Runners.answer("run", "Bruges", store=store)
    response = await Runners.resume("run", agent, store=store)
    assert response.success, response.msg
    assert "Ghent" in str(response.trajectory[0]["observation"])


AGENTS = '''
import os
from pathlib import Path
from aworld.agents.llm_agent import Agent
from aworld.core.tool.func_to_tool import tool
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.tools.human import ask


@tool(inline=True)
def pay(amount: int) -> str:
    """Has an effect that must not happen twice."""
    with Path("effects").open("a") as file:
        file.write(f"{os.getpid()} {amount}\\n")
    return f"paid {amount}"


script = [call("ask", question="Who pays?"), call("pay", amount=5), "All paid."]
payer = Agent("payer", model=ScriptedModel(script), tools=[ask, pay])
'''


TRIPS = """
from aworld.agents.llm_agent import Agent
from aworld.models import ScriptedModel
from aworld.tools.human import human_tools

asker = Agent("asker", model=ScriptedModel(["done"]), tools=human_tools)
"""


class Desk:
    """Runs `aworld` in a folder with the agents above, each command in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "people.py").write_text(AGENTS)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_", "OPENAI_", "AWORLD_"))}

    def __call__(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "aworld", *words], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


async def test_one_process_asks_another_answers_and_a_third_goes_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    code, _, err = desk("run", "pay", "--agent", "people:payer", "--id", "bill")
    assert code == 3, err
    assert "it asks: Who pays?" in err
    assert 'aworld answer bill "..."' in err

    code, out, _ = desk("answer", "bill", "The lion's share: me")
    assert code == 0
    assert out.startswith("Nothing is left to answer; go on with: aworld resume bill (with the --agent, --tool, --mcp")
    code, out, _ = desk("resume", "bill", "--agent", "people:payer")
    assert (code, "All paid." in out) == (0, True)
    assert len((tmp_path / "effects").read_text().splitlines()) == 1

    store = open_store(f"sqlite:///{tmp_path}/.aworld/trajectories.db")
    events = await store.read("bill")
    await store.close()
    assert [e.question for e in events if isinstance(e, ev.Asked)] == ["Who pays?"]
    assert [e.answer for e in events if isinstance(e, ev.Answered)] == ["The lion's share: me"]
    assert [e.seq for e in events] == list(range(len(events)))


async def test_the_command_shows_what_is_open_and_takes_an_answer_once(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/.aworld/trajectories.db")
    agent = asking([call("ask", question="Where?"), call("ask", question="When?")])
    await Runners.run("x", agent, id="trip", run_conf=RunConfig(store=store))
    await store.close()
    desk = Desk(tmp_path)
    code, out, _ = desk("answer", "last", "--json")
    assert code == 0
    assert json.loads(out) == {
        "id": "trip",
        "status": "waiting",
        "questions": [{"id": "call_0_0", "question": "Where?"}, {"id": "call_0_1", "question": "When?"}],
    }
    (tmp_path / "trips.py").write_text(TRIPS)
    code, out, err = desk("resume", "trip", "--agent", "trips:asker")  # asks again: what, and how to answer
    assert (code, out) == (3, "")
    assert err.splitlines()[:4] == [
        "aworld: waiting", "aworld: it asks: Where?", "aworld: it asks: When?",
        'Answer with: aworld answer trip "..."',
    ]  # fmt: skip
    code, _, err = desk("answer", "trip", "Monday")
    assert code == 2
    assert "Several questions are open" in err
    assert desk("answer", "trip", "Monday", "--question", "call_0_1")[1] == "call_0_0: Where?\n"
