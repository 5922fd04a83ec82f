"""What calls cost: the table that comes with the package, files of one's own, and what is on record of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, TaskConfig
from aworld.config.errors import ConfigError
from aworld.core.message import Usage
from aworld.models.doubles import ScriptedModel
from aworld.models.prices import PriceTable, price_of
from aworld.runner import Runners

from .provider import Provider, answer, chat

MILLION = {
    "prompt_tokens": 1_000_000,
    "completion_tokens": 100_000,
    "prompt_tokens_details": {"cached_tokens": 400_000},
}


def agent_at(provider: Provider, name: str, **settings: object) -> Agent:
    conf = AgentConfig(llm_model_name=name, llm_api_key="k", llm_base_url=provider.base_url, **settings)
    return Agent("a", conf)


async def test_a_known_model_has_a_cost_that_says_what_it_was_computed_from() -> None:
    async with Provider(answer({**chat(), "usage": MILLION})) as provider:
        response = await Runners.run("x", agent_at(provider, "gpt-4o-2024-08-06"), conf={"max_cost": 100})
    assert response.success
    assert response.usage.cost == pytest.approx(0.6 * 2.5 + 0.4 * 1.25 + 0.1 * 10)
    price = price_of("openai", "gpt-4o")
    assert price is not None
    assert response.usage.prices == price.source == response.trajectory[0]["model"]["usage"]["prices"]


async def test_max_cost_ends_a_run_of_a_known_model() -> None:
    tool_call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    body = {**chat(message={"tool_calls": [tool_call]}), "usage": MILLION}

    def look() -> str:
        """Look."""
        return "seen"

    async with Provider(*[answer(body)] * 5) as provider:
        agent = Agent("a", agent_at(provider, "gpt-4o").conf, tools=[look])
        response = await Runners.run("x", agent, conf=TaskConfig(max_cost=5.0))
    assert (response.status, len(response.record.calls)) == ("limit_reached", 2)
    assert response.msg == "max_cost=5.0 reached: 6.000000 US dollars spent."


async def test_a_file_comes_before_the_table_and_the_settings_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    own.write_text(json.dumps({"date": "today", "prices": {"openai": {"m-*": {"input": 1, "output": 1}}}}))
    other.write_text(json.dumps({"date": "then", "prices": {"openai": {"m-2": {"input": 3, "output": 0}}}}))
    monkeypatch.setenv("AWORLD_PRICES", str(own))
    costs: list[tuple[float | None, str | None]] = []
    async with Provider(*[answer({**chat(), "usage": MILLION})] * 4) as provider:
        for name, settings in (
            ("m-2", {}), ("m-2", {"prices": str(other)}), ("m-1", {"prices": str(other)}),
            ("m-2", {"llm_input_price": 0.0, "llm_output_price": 0.0}),
        ):  # fmt: skip
            usage = (await Runners.run("x", agent_at(provider, name, **settings), conf={"max_cost": 99})).usage
            costs.append((usage.cost, usage.prices))
    assert costs == [(1.1, "table of today"), (3.0, "table of then"), (1.1, "table of today"), (0.0, "settings")]
    assert price_of("openai", "gpt-4o") is not None  # what no file names is as it was


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "is no table of prices"),
        ('{"prices": {}}', "missing required field `date`"),
        ('{"date": "d", "prices": {"openai": {"m": {"input": -1}}}}', "Expected `float` >= 0"),
        ('{"date": "d", "prices": {"openai": {"m": {"in": 1}}}}', "unknown field `in`"),
    ],
)
async def test_a_file_that_is_no_table_is_told_before_the_first_call(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / f"{abs(hash(text))}.json"
    if text is not None:
        path.write_text(text)
    async with Provider() as provider:
        agent = agent_at(provider, "m", prices=str(path))
        with pytest.raises(ConfigError, match=message):
            await Runners.run("x", agent, conf={"max_cost": 1})
        response = await Runners.run("x", agent)
        assert (response.status, provider.requests) == ("failed", [])
        assert message.replace("`", "") in response.msg.replace("`", "")


def test_the_table_is_dated_and_names_its_sources() -> None:
    import msgspec

    from aworld.models import prices

    table = msgspec.json.decode(Path(prices.__file__).with_name("prices.json").read_bytes(), type=PriceTable)
    named = {name.strip() for names in table.sources for name in names.split(",")}
    assert named == table.prices.keys()
    assert len(table.date) == 10


def test_names_of_snapshots_and_long_prompts() -> None:
    assert price_of("anthropic", "claude-opus-4-5-20251101") == price_of("anthropic", "claude-opus-4-5")
    assert price_of("litellm", "openai/o3") == price_of("openai", "o3")
    assert price_of("openai", "gpt-4o-mini") != price_of("openai", "gpt-4o")
    assert price_of("openai", "gpt-99") is None
    haiku = price_of("anthropic", "claude-haiku-5-5")
    assert haiku is not None
    assert haiku.priced(Usage(100_000, 1000)).cost == pytest.approx(0.0105)
    assert haiku.priced(Usage(200_000, 1000)).cost == pytest.approx(0.1025)
    assert haiku.priced(Usage(100_000)).cost is None


async def test_models_in_this_process_cost_nothing() -> None:
    response = await Runners.run("x", Agent("a", model=ScriptedModel(["done"])), conf={"max_cost": 0.01})
    assert (response.success, response.usage.cost, response.usage.prices) == (True, 0.0, None)
