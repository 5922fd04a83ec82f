"""What a notebook shows of responses, trajectories and reports: small tables, in which strangers' text is text."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.core.notebook import CUT, MOST, html
from aworld.environments import Environment, Problem, Report, rollouts
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.training.evaluation import Comparison
from aworld.training.result import TrainingResult

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(text: str) -> str:
    """Repeats what it hears."""
    return text


def page_of(value: Any) -> Page:
    shown = str(value._repr_html_())
    page = Page(shown)
    assert set(page.tags) <= {"div", "b", "table", "tr", "th", "td", "br", "svg", "rect", "text", "line"}, shown
    assert "color:" not in shown  # those of the page, light or dark
    return page


async def test_a_run_is_shown_step_by_step_and_what_strangers_wrote_is_text() -> None:
    model = ScriptedModel([call("hostile", text=HOSTILE), HOSTILE])
    response = await Runners.run(HOSTILE, Agent(HOSTILE[:8], model=model, tools=[hostile]))
    for value in (response, response.record):
        page = page_of(value)
        assert page.text.startswith(f"finished · {response.trajectory_id}answer {HOSTILE}")
        assert page.tags.count("tr") == 3  # the head, and two steps
        assert "hostile(" in page.text


async def test_a_run_that_failed_says_why() -> None:
    response = await Runners.run("a", Agent("a", model=ScriptedModel([ValueError("<b>no</b>")])))
    page = page_of(response)
    assert page.text.startswith("failed")
    assert "<b>no</b>" in page.text


async def test_many_runs_and_reports_are_tables() -> None:
    agent = Agent("a", model=ScriptedModel([HOSTILE]))
    many = await Runners.run_many([str(number) for number in range(MOST + 10)], agent, run="survey")
    page = page_of(many)
    assert page.text.startswith("60 finished, 0 failed, 0 left")
    assert (page.tags.count("tr"), page.text.endswith("and 10 more")) == (MOST + 1, True)
    problems = [Problem(str(number), "a", HOSTILE) for number in range(4)]
    environment = Environment(HOSTILE, train=problems, rubric=lambda episode: episode.text == HOSTILE)
    report = Report(environment)
    async for rollout in rollouts(environment, agent, problems):
        report.add(rollout)
    page = page_of(report)
    assert page.text.startswith(f"{HOSTILE}pass@1 1.000 (95 %: 0.510–1.000) · problems 4 · episodes 4 finished")
    comparison = Comparison(mode="greedy", tasks=9, before=0.1, after=0.9, gained=8, lost=0, p_value=0.01)
    page = page_of(TrainingResult(engine="embedded", policy="p", run_path=HOSTILE, comparisons=(comparison,)))
    assert "greedy10.0%90.0%0.01" in page.text


def test_a_cell_is_cut_and_nothing_known_is_nothing_shown() -> None:
    text = Page(html("t", {"long": "x" * 1000, "none": None})).text
    assert text == f"tlong {'x' * CUT}…"


def test_it_costs_nothing_where_nobody_looks() -> None:
    program = "import sys, aworld.runner, aworld.environments; print('aworld.core.notebook' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
