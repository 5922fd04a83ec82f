"""Keys and headers never enter the log, an error, an export, or what is printed of a setting."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, ModelConfig, RunConfig
from aworld.core.task import TaskResponse
from aworld.runner import Runners
from aworld.trajectory import TrajectoryStore
from tests.runners.scenes import add

KEY = "sk-live-3f9a8b7c6d5e4f3a2b1c"
HEADER = "tenant-secret-77aa55cc"
SECRETS = (KEY, HEADER)


@pytest.fixture
async def echoing() -> AsyncIterator[str]:
    """A server that says in its error what it was sent, headers included; its address."""

    async def complain(request: web.Request) -> web.Response:
        told = " ".join(f"{name}: {value}" for name, value in request.headers.items())
        status = 401 if "hard" in request.path else 503
        body = {"error": {"message": f"You sent {told} to {request.url}", "type": "echo", "param": told}}
        return web.json_response(body, status=status, headers={"X-Echo": told.replace("\n", " ")})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", complain)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def config(url: str) -> AgentConfig:
    return AgentConfig(
        llm_base_url=url, llm_model_name="m", llm_api_key=KEY, llm_headers={"X-Tenant": HEADER},
        llm_max_retries=1, llm_retry_wait=0.001,
    )  # fmt: skip


def everything_shown(response: TaskResponse) -> str:
    """All that a run leaves where others may read it."""
    events = b"\n".join(msgspec.json.encode(event) for event in response.record.events).decode()
    return "\n".join([events, json.dumps(response.trajectory), response.msg, repr(response), str(response.answer)])


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openai-responses", "gemini"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_server_that_echoes_them_in_its_errors(
    echoing: str, provider: str, kind: str, streamed: bool, store: TrajectoryStore, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    conf = config(f"{echoing}/{kind}")
    conf.llm_provider = provider
    agent = Agent("a", conf, tools=[add])
    seen = ""
    response: TaskResponse | None = None
    if streamed:
        async for output in Runners.streaming_run("x", agent, run_conf=RunConfig(store=store)):
            seen += repr(output)
            response = getattr(output, "response", None)
    else:
        response = await Runners.run("x", agent, run_conf=RunConfig(store=store))
    assert response is not None
    assert response.status == "failed"
    assert "You sent" in response.msg
    seen += everything_shown(response) + caplog.text + repr(await store.query())
    await store.flush()
    for file in tmp_path.iterdir():
        seen += file.read_bytes().decode(errors="replace")
    for secret in SECRETS:
        assert secret not in seen


async def test_exports_hold_none(echoing: str, store: TrajectoryStore) -> None:
    from aworld.trajectory import export

    await Runners.run("x", Agent("a", config(f"{echoing}/hard")), run_conf=RunConfig(store=store))
    for summary, events in store.scan():
        text = repr(summary) + repr(events)
        assert not any(secret in text for secret in SECRETS)
    assert export is not None


def test_what_is_printed_of_settings() -> None:
    conf = config("http://localhost/v1")
    for shown in (conf, conf.llm_config, Agent("a", conf), ModelConfig(llm_api_key=KEY, llm_headers={"X": HEADER})):
        text = repr(shown) + str(shown)
        assert not any(secret in text for secret in SECRETS)
    out = io.StringIO()
    print(conf, [conf], {"conf": conf}, file=out)
    assert KEY not in out.getvalue()


def test_errors_of_settings_do_not_show_values() -> None:
    with pytest.raises(ValueError) as error:
        ModelConfig(llm_api_key=[KEY])  # pyright: ignore[reportArgumentType]
    assert KEY not in str(error.value)


async def test_a_key_in_the_address_is_not_logged(store: TrajectoryStore, echoing: str) -> None:
    url = echoing.replace("http://", f"http://user:{KEY}@") + "/hard"
    agent = Agent("a", AgentConfig(llm_base_url=url, llm_model_name="m", llm_max_retries=0))
    response = await Runners.run("x", agent, run_conf=RunConfig(store=store))
    assert KEY not in everything_shown(response)


def test_a_key_in_the_query_of_the_address_is_not_among_the_settings_that_are_logged() -> None:
    conf = AgentConfig(llm_base_url=f"http://localhost/v1?api_key={KEY}", llm_model_name="m")
    assert Agent("a", conf).settings()["llm_config"]["llm_base_url"] == "http://localhost/v1"
