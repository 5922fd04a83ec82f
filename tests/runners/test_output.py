"""Answers with a shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, computed_field

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, RunConfig
from aworld.core.exceptions import ConfigError
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import TrajectoryStore
from tests.runners.scenes import assert_sound, scripted, server_of


class Colour(Enum):
    RED = "red"


class City(BaseModel):
    """A city."""

    name: str
    people: int = Field(ge=0)
    founded: date | None = None


@dataclass
class Point:
    x: float
    y: float = 0.0


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Aliased(BaseModel):
    first_name: str = Field(alias="firstName")


class Area(BaseModel, extra="forbid"):
    side: int

    @computed_field
    @property
    def size(self) -> int:
        return self.side**2


CASES: list[Any] = [
    (City, '{"name": "G", "people": 2, "founded": "0630-01-01"}', City(name="G", people=2, founded=date(630, 1, 1))),
    (Point, '{"x": 1.5}', Point(1.5)),
    (list[int], '{"result": [1, 2]}', [1, 2]),
    (int, '{"result": 5}', 5),
    (bool, '{"result": false}', False),
    (tuple[int, str], '{"result": [1, "a"]}', (1, "a")),
    (set[int], '{"result": [1, 1]}', {1}),
    (dict[str, City], '{"a": {"name": "b", "people": 1}}', {"a": City(name="b", people=1)}),
    (list[City], '{"result": [{"name": "b", "people": 1}]}', [City(name="b", people=1)]),
    (Node, '{"result": {"value": 1, "children": [{"value": 2}]}}', Node(value=1, children=[Node(value=2)])),
    (Literal["yes", "no"], '{"result": "no"}', "no"),
    (Colour, '{"result": "red"}', Colour.RED),
    (City | Point, '{"result": {"x": 2}}', Point(2.0)),
    (date, '{"result": "2026-11-21"}', date(2026, 11, 21)),
    (City, '```json\n{"name": "Ghent", "people": 1}\n```', City(name="Ghent", people=1)),
    pytest.param(Aliased, '{"firstName": "Ada"}', Aliased(firstName="Ada"), id="alias"),
    pytest.param(Area, '{"side": 3}', Area(side=3), id="computed"),
]  # fmt: skip


@pytest.mark.parametrize(("output_type", "said", "answer"), CASES)
async def test_an_answer_of_any_type_now_and_after_a_resume(
    output_type: Any, said: str, answer: Any, store: TrajectoryStore
) -> None:
    agent = scripted(said, tools=(), output_type=output_type)
    response = await Runners.run("x", agent, run_conf=RunConfig(store=store))
    assert response.success, response.msg
    assert response.answer == answer
    assert type(response.answer) is type(answer)
    assert_sound(response.record)
    again = await Runners.resume(response.id, agent, store=store)
    assert again.answer == answer
    assert type(again.answer) is type(answer)
    json.dumps(again.record.answer)


async def test_an_answer_that_does_not_fit_is_sent_back_with_the_error() -> None:
    async with server_of('{"name": "Ghent"}', call("add", a=1, b=2), '{"name": "Ghent", "people": 3}') as server:
        response = await Runners.run("x", server.agent(output_type=City))
        assert response.answer == City(name="Ghent", people=3)
        server.assert_exact(response.record)
        correction = server.bodies[1]["messages"][-1]
        assert correction["role"] == "user"
        assert "- people: Field required" in correction["content"]
        assert server.bodies[0]["response_format"]["json_schema"]["schema"]["required"] == ["name", "people"]
    assert_sound(response.record)
    assert [row["action"]["is_agent_finished"] for row in response.trajectory] == [False, False, True]


DEEP = '{"result": ' + "[" * 5000 + "]" * 5000 + "}"


@pytest.mark.parametrize(
    "said", ["five", '{"result": "five"}', "5", "[5]", "", '{"answer": 5}', '{"result": null}', DEEP, "1" * 5000]
)
async def test_wrong_forms_are_told_in_words(said: str) -> None:
    response = await Runners.run("x", scripted(said, '{"result": 5}', output_type=int, tools=()))
    assert response.answer == 5
    assert len(response.trajectory) == 2
    assert "Answer again" in response.trajectory[1]["state"]["messages"][-1]["content"]


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_an_answer_that_never_fits_fails_the_run_with_everything_kept(retries: int) -> None:
    agent = scripted(*["five"] * (retries + 1), conf=AgentConfig(output_retries=retries), output_type=int, tools=())
    response = await Runners.run("x", agent)
    assert response.status == "failed"
    assert f"no valid answer after {retries} corrections" in response.msg
    assert "not JSON" in response.msg
    assert [row["action"]["content"] for row in response.trajectory] == ["five"] * (retries + 1)
    assert_sound(response.record)
    assert response.answer is None


async def test_text_is_no_schema() -> None:
    response = await Runners.run("x", scripted("plain", output_type=str, tools=()))
    assert response.answer == "plain"


def test_a_type_that_cannot_be_validated_is_refused_when_the_agent_is_made() -> None:
    class Strange:
        pass

    with pytest.raises(ConfigError, match="output_type of agent 'agent'"):
        Agent("agent", output_type=Strange)


async def test_a_failing_validator_of_the_user_is_a_correction_not_a_crash() -> None:
    from pydantic import field_validator

    class Even(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def even(cls, value: int) -> int:
            if value % 2:
                raise ValueError(f"{value} is odd")
            return value

    response = await Runners.run("x", scripted('{"number": 3}', '{"number": 4}', output_type=Even, tools=()))
    assert response.answer == Even(number=4)
    assert "3 is odd" in response.trajectory[1]["state"]["messages"][-1]["content"]
