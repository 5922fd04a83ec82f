"""Environments over HTTP: the same episodes as at home, apart from each other; what happens when something dies."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.message import Content, ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.environments import Environment, Problem
from aworld.environments.remote import RemoteEnvironment
from aworld.environments.rollout import rollouts
from aworld.models.doubles import FunctionModel, Said, call
from aworld.runner import Runners
from aworld.server import EnvironmentServer
from aworld.server.environment_server import ClientMessage, RequestRefused
from tests.environments.served import DIGITS, Vault, correct, fixed, vault

Policy = Callable[[ModelRequest], Said | Awaitable[Said]]


@contextlib.contextmanager
def serving(environment: Environment = vault, **given: Any) -> Generator[EnvironmentServer, None, None]:
    """A server on a thread with a loop of its own: clients ask some things with blocking calls."""
    started: Future[EnvironmentServer] = Future()
    done = threading.Event()

    async def serve() -> None:
        async with EnvironmentServer(environment, port=0, **given) as server:
            started.set_result(server)
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield started.result(20)
    finally:
        done.set()
        thread.join()


async def emptied(server: EnvironmentServer) -> None:
    """Wait until nobody has a place on a server, which lives on another loop."""
    async with asyncio.timeout(20):
        while server.places:  # noqa: ASYNC110 - an event of another loop cannot be awaited
            await asyncio.sleep(0.01)


@pytest.fixture
def server() -> Iterator[EnvironmentServer]:
    with serving() as server:
        yield server


def seen(request: ModelRequest) -> list[Any]:
    """What the tools have answered so far."""
    return [
        json.loads(message.text) for message in request.messages if message.role == "tool" and message.text[0] == "{"
    ]


def burglar(request: ModelRequest) -> Said:
    """Opens one door after the other, and says the code."""
    digits = "".join(answer["digit"] for answer in seen(request))
    return call("look", door=len(digits)) if len(digits) < DIGITS else digits


def agent(policy: Policy = burglar) -> Agent:
    return Agent("burglar", model=FunctionModel(policy))


async def play(environment: Environment, policy: Policy = burglar, problem: Problem | None = None) -> TaskResponse:
    problem = problem or environment.problems("test", 1)[0]
    task = environment.task(problem, agent(policy), seed=1)
    return (await Runners.run_task(task))[task.id]


def kept(response: TaskResponse) -> Any:
    """What must be the same at home and away."""
    rewards = [(r.name, r.value, r.weight, r.step, r.error is None, r.detail) for r in response.record.rewards]
    messages = [(m.role, m.text) for m in response.record.path(response.record.activations[0].leaf)]
    return response.status, response.answer, response.record.score, rewards, messages


POLICIES: dict[str, Policy] = {
    "one door at a time": burglar,
    "all doors at once": lambda r: (
        [ToolCall(f"c{n}", "look", json.dumps({"door": n})) for n in range(DIGITS)] if r.turn == 0 else "123"
    ),
    "a wrong answer first": lambda r: "I do not know" if r.turn == 0 else "000",
    "wrong calls": lambda r: [call("look", door=7), call("look", door="x"), call("open"), "1"][r.turn],
    "ends by a tool": lambda r: [ToolCall("a", "shut", '{"code": "123"}')],
    "never ends": lambda r: call("look", door=0),
    "says nothing": lambda r: "",
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
async def test_an_episode_away_is_the_episode_at_home(server: EnvironmentServer, policy: Policy) -> None:
    remote = await asyncio.to_thread(RemoteEnvironment, server.url)
    away = await play(remote, policy)
    home = await play(vault, policy)
    assert kept(away) == kept(home)
    assert away.trajectory[0]["state"]["tools"] == home.trajectory[0]["state"]["tools"]
    assert away.trajectory[0]["state"]["messages"][0] == home.trajectory[0]["state"]["messages"][0], "the system prompt"


async def test_what_a_problem_hides_stays_on_the_server(server: EnvironmentServer) -> None:
    remote = RemoteEnvironment(server.url)
    for split in ("train", "test"):
        there, here = remote.problems(split, 300, 5), vault.problems(split, 300, 5)
        assert [(p.id, p.input) for p in there] == [(p.id, p.input) for p in here]
        assert not any(here[n].data["code"] in json.dumps([p.answer, p.data["split"]]) for n, p in enumerate(there))
        assert there[0].data == {"split": split, "order": 5, "index": 0}
    assert remote.described["splits"] == {"train": {"size": None}, "test": {"size": None}}
    assert [tool["name"] for tool in remote.described["tools"]] == ["look", "wait", "shut"]
    assert remote.conf == vault.conf
    assert not {p.input for p in remote.problems("train", 300)} & {p.input for p in remote.problems("test", 300)}


async def test_200_episodes_at_once_do_not_mix(server: EnvironmentServer) -> None:
    """All hold a place at the same time: nobody opens its second door before everybody has opened the first."""
    remote = RemoteEnvironment(server.url)
    problems = remote.problems("train", 200)
    arrived, everybody = 0, asyncio.Event()
    most = 0

    async def together(request: ModelRequest) -> Said:
        nonlocal arrived, most
        if request.turn == 1:
            arrived += 1
            most = max(most, len(server.places))
            if arrived == len(problems):
                everybody.set()
            await asyncio.wait_for(everybody.wait(), 60)
        return burglar(request)

    tasks = [remote.task(problem, agent(together)) for problem in problems]
    responses = await Runners.run_task(tasks)
    codes = {problem.id: problem.answer for problem in vault.problems("train", 200)}
    assert most == 200
    for task, problem in zip(tasks, problems):
        response = responses[task.id]
        assert response.answer == codes[problem.id]
        assert response.record.score == 2.0 + DIGITS * 0.25
        last = [row["observation"][0]["content"] for row in response.trajectory if row["observation"]][-1]
        assert json.loads(last)["opened"] == list(range(DIGITS)), "no door that somebody else opened"


async def test_places_are_given_back(server: EnvironmentServer) -> None:
    remote = RemoteEnvironment(server.url)
    for _ in range(3):
        await play(remote)
    await emptied(server)


async def test_an_episode_that_dies_there_is_a_failure_of_the_surroundings(server: EnvironmentServer) -> None:
    remote = RemoteEnvironment(server.url)
    response = await play(remote, lambda r: call("look", door=99))
    assert response.status == "failed"
    assert response.record.surroundings_failed
    assert "the building has burnt down" in response.msg


async def test_an_idle_episode_expires_and_is_begun_anew() -> None:
    with serving(idle=0.15) as server:
        remote = RemoteEnvironment(server.url)
        waited = 0

        async def slow_once(request: ModelRequest) -> Said:
            nonlocal waited
            if request.turn == 1 and not waited:
                waited += 1
                await emptied(server)
            return burglar(request)

        found = [r async for r in rollouts(remote, agent(slow_once), remote.problems("train", 1), retries=1)]
        assert (found[0].attempts, found[0].status, found[0].score) == (2, "finished", 2.75)
        waited = 0
        response = await play(remote, slow_once)
        assert response.record.surroundings_failed
        assert "expired" in response.msg


async def test_one_client_cannot_take_all_places() -> None:
    with serving(max_episodes=4) as server:
        async with aiohttp.ClientSession() as http:
            sockets = [await http.ws_connect(f"{server.url}/ws") for _ in range(4)]
            for socket in sockets:
                await socket.send_str('{"type": "state"}')
            answers = [json.loads(await socket.receive_str()) for socket in sockets]
            assert [answer["type"] for answer in answers] == ["state", "state", "state", "error"]
            assert answers[3]["data"]["code"] == "CAPACITY_REACHED"
            assert "127.0.0.1 has 3 places, all it may have" in answers[3]["data"]["message"]
    with serving(max_episodes=4, per_client=4) as server:
        async with aiohttp.ClientSession() as http:
            for _ in range(4):
                socket = await http.ws_connect(f"{server.url}/ws")
                await socket.send_str('{"type": "state"}')
                assert json.loads(await socket.receive_str())["type"] == "state"


async def test_a_request_that_takes_long_stops_no_other() -> None:
    """A stream whose maker waits holds up who asks for what it has not made, and nobody else."""
    go_on = threading.Event()

    def numbers(seed: int) -> Iterator[Problem]:
        for number in count():
            if seed == 1 and number == 3:
                go_on.wait(20)
            yield Problem(f"{seed}-{number}", f"{number}?")

    with serving(Environment("slow", train=numbers, rubric=correct)) as server:
        async with aiohttp.ClientSession() as http, asyncio.timeout(15):

            async def ids(**wanted: Any) -> list[str]:
                async with http.post(f"{server.url}/problems", json=wanted) as answer:
                    return [problem["id"] for problem in (await answer.json())["problems"]]

            assert await ids(order=1, n=3) == ["1-0", "1-1", "1-2"]
            waiting = [asyncio.create_task(ids(order=1, n=10)) for _ in range(2)]
            assert await ids(order=2, n=2000) == [f"2-{number}" for number in range(2000)]
            assert await ids(order=1, n=2) == ["1-0", "1-1"]
            socket = await http.ws_connect(f"{server.url}/ws")
            await socket.send_str('{"type": "reset", "data": {"order": 1, "index": 2}}')
            assert json.loads(await socket.receive_str())["data"]["metadata"]["problem_id"] == "1-2"
            assert not any(task.done() for task in waiting)
            go_on.set()
            assert await asyncio.gather(*waiting) == [[f"1-{number}" for number in range(10)]] * 2


async def test_what_lies_far_ahead_is_refused_and_what_is_kept_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Environment(
        "numbers", train=lambda seed: (Problem(f"{seed}-{n}", f"{n}?") for n in count()), rubric=correct
    )
    with serving(numbers) as server:
        async with aiohttp.ClientSession() as http, asyncio.timeout(20):

            async def asked(**wanted: Any) -> tuple[int, str]:
                async with http.post(f"{server.url}/problems", json=wanted) as answer:
                    return answer.status, await answer.text()

            status, text = await asked(first=999_990, n=10)
            assert status == 404
            assert "Problem 999,999 of a stream was asked for, and 0 are made; at most 100,000 more" in text
            monkeypatch.setattr("aworld.server.environment_server._KEPT", 25)
            for order in range(4):
                assert (await asked(order=order, n=10))[0] == 200
            assert [order for _, order in server.book._streams] == [2, 3]
            assert (await asked(order=0, n=10))[0] == 200, "made again"


async def test_when_all_places_are_taken_the_next_one_is_refused_and_tried_again() -> None:
    with serving(max_episodes=2) as server:
        remote = RemoteEnvironment(server.url)
        problems = remote.problems("train", 6)
        found = [r async for r in rollouts(remote, agent(), problems, retries=8)]
        assert [rollout.score for rollout in found] == [2.75] * 6


async def test_what_is_asked_for_wrongly_is_said(server: EnvironmentServer) -> None:
    remote = RemoteEnvironment(server.url)
    known = remote.problems("test", 1)[0]
    for wrong, why in (
        (Problem("other", "?", data=known.data), "no problem 'other' here"),
        (Problem(known.id, "?", data={**known.data, "index": 10**9}), "at most 100,000 more"),
        (Problem(known.id, "?", data={}), "missing required field `index`"),
    ):
        response = await play(remote, problem=wrong)
        assert response.record.surroundings_failed
        assert why in response.msg
    with pytest.raises(ConfigError, match="makes problems without end"):
        remote.problems("train")
    with pytest.raises(ConfigError, match="split='dev' is not known"):
        remote.problems("dev", 1)  # pyright: ignore[reportArgumentType]
    async with aiohttp.ClientSession() as http:
        for body, status in (({"split": "dev"}, 400), ({"n": 10_001}, 400), ({"n": 1, "first": 10**6}, 404)):
            async with http.post(f"{server.url}/problems", json=body) as refused:
                assert refused.status == status


def test_an_address_without_http_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"'127.0.0.1:8137'.: an address begins with http:// .*, as http://127.0.0.1:8137"
    ):
        RemoteEnvironment("127.0.0.1:8137")


async def test_finite_splits_are_whole_lists() -> None:
    with serving(fixed()) as server:
        remote = RemoteEnvironment(server.url)
        assert [p.id for p in remote.problems("test")] == ["b"]
        assert not callable(remote.train)
        assert [p.id for p in remote.train] == ["a"]
        with pytest.raises(ConfigError, match="train of environment 'fixed' has 1 problem; 5 were asked for"):
            remote.problems("train", 5)
        assert (await play(remote, lambda r: "Hm.")).record.score == 0.0


async def test_many_problems_are_fetched_page_by_page_and_as_far_as_they_are_looked_at() -> None:
    numbers = Environment("numbers", train=[{"id": str(n), "input": f"{n}?"} for n in range(12_000)], rubric=correct)
    with serving(numbers) as server:
        remote = RemoteEnvironment(server.url)
        assert not callable(remote.train)
        assert (len(remote.train), remote.test) == (12_000, [])
        assert not server.book._streams, "nobody has looked at them yet"
        assert [p.id for p in remote.problems("train", 3)] == ["0", "1", "2"]
        for n, seed in ((11_000, None), (11_000, 7), (None, 7)):
            there, here = remote.problems("train", n, seed), numbers.problems("train", n, seed)
            assert [p.id for p in there] == [p.id for p in here]
        assert (await play(remote, lambda r: "?", remote.problems("train", 5, 7)[4])).success
        assert len(RemoteEnvironment(server.url).problems("train")) == 12_000


async def test_a_place_that_json_rpc_has_closed_begins_no_other_episode() -> None:
    """The last question is on its way while the place is closed."""
    sessions: list[Vault] = []

    class Counted(Vault):
        async def start(self) -> Content:
            sessions.append(self)
            return await super().start()

        async def close(self) -> None:
            self.closed = True

    environment = Environment("counted", train=vault.train, test=vault.test, session=Counted)
    async with EnvironmentServer(environment, port=0) as server, aiohttp.ClientSession() as http:

        async def rpc(method: str, **params: Any) -> dict[str, Any]:
            body = {"jsonrpc": "2.0", "id": 1, "method": f"openenv/session/{method}", "params": params}
            async with http.post(f"{server.url}/mcp", json=body) as response:
                return (await response.json())["result"]

        id = (await rpc("create"))["session_id"]
        place = server.places[id]
        async with http.ws_connect(f"{server.url}/ws?session_id={id}") as ws:
            await ws.send_str('{"type": "reset"}')
            await ws.receive_str()
            assert await rpc("close", session_id=id) == {"session_id": id, "closed": True}
            await ws.send_str('{"type": "reset"}')
            assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING)
        with pytest.raises(RequestRefused, match="has been closed") as refused:
            await place.answer(ClientMessage("reset"))
        assert refused.value.code == "SESSION_ERROR"
        assert not server.places
    assert [session.closed for session in sessions] == [True]


async def test_only_who_shows_the_token_is_let_in() -> None:
    with serving(token="s3cret") as server:
        for token in (None, "wrong"):
            with pytest.raises(ConfigError, match="HTTP 401: Show the token"):
                RemoteEnvironment(server.url, token=token)
        remote = RemoteEnvironment(server.url, token="s3cret")
        assert (await play(remote)).record.score == 2.75
        remote.server.headers = {}
        response = await play(remote, problem=Problem("a", "?"))
        assert response.record.surroundings_failed
        assert "401" in response.msg
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/health") as health:
            assert health.status == 200
    with pytest.raises(ConfigError, match="others can reach it there"):
        EnvironmentServer(vault, "0.0.0.0")


async def test_a_web_page_may_not_use_a_server_without_token(server: EnvironmentServer) -> None:
    async with aiohttp.ClientSession(headers={"Origin": "https://example.org"}) as http:
        async with http.get(f"{server.url}/describe", headers={"Origin": "", "Host": "evil.example"}) as refused:
            assert refused.status == 400, "a name that was bound anew to this machine"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await http.ws_connect(f"{server.url}/ws")
        async with http.post(f"{server.url}/problems", data=b"{}") as refused:
            assert refused.status == 403


async def test_messages_that_are_none_are_answered_and_the_place_stays(server: EnvironmentServer) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{server.url}/ws") as ws:
        for text, why in (
            ("not json", "INVALID_JSON"),
            ("[]", "VALIDATION_ERROR"),
            ('{"a":' * 50_000, "INVALID_JSON"),
            ('{"type": "dance"}', "UNKNOWN_TYPE"),
            ('{"type": "step", "data": {"type": "message", "content": "?"}}', "VALIDATION_ERROR"),
            ('{"type": "reset", "data": {"seed": "x"}}', "VALIDATION_ERROR"),
            ('{"type": "reset", "data": {"index": "x"}}', "VALIDATION_ERROR"),
            ('{"type": "reset", "data": {"problem": 7}}', "VALIDATION_ERROR"),
            ('{"type": "reset", "data": 7}', "VALIDATION_ERROR"),
        ):
            await ws.send_str(text)
            answer = json.loads(await ws.receive_str())
            assert (answer["type"], answer["data"]["code"]) == ("error", why), text
        await ws.send_str('{"type": "reset", "data": {"seed": 3}}')
        assert json.loads(await ws.receive_str())["data"]["observation"]["content"].endswith("doors.")
    async with aiohttp.ClientSession() as http, http.post(f"{server.url}/problems", data=b"\xff{") as refused:
        assert refused.status == 400
    large = b" " * (9 * 1024 * 1024)
    async with aiohttp.ClientSession() as http, http.post(f"{server.url}/problems", data=io.BytesIO(large)) as refused:
        assert refused.status == 413


async def test_a_call_that_is_cut_off_here_does_not_shift_the_answers(server: EnvironmentServer) -> None:
    """The tool's own limit runs out there, and its answer is read before the next question is asked."""
    short = Environment("short", train=vault.train, test=vault.test, session=vault.session, conf={"tool_timeout": 0.1})
    with serving(short) as other:
        remote = RemoteEnvironment(other.url)
        response = await play(
            remote, lambda r: [call("wait"), call("look", door=0), "Done 1"][r.turn] if r.turn < 3 else "1"
        )
        told = [row["observation"][0]["content"] for row in response.trajectory[:2]]
        assert "failed" in told[0]
        assert json.loads(told[1])["opened"] == [0]


@contextlib.contextmanager
def command(*more: str, port: int = 0, **env: str) -> Generator[tuple[subprocess.Popen[str], str], None, None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "aworld", "env", "serve", "tests.environments.served:vault", "--port", str(port), *more],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **env}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"vault at (http://\S+)", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.stderr.close()
        process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def test_a_server_killed_in_mid_episode_and_started_again_costs_an_attempt_and_nothing_else() -> None:
    port = free_port()
    with command(port=port) as (first, url):
        remote = RemoteEnvironment(url)
        with contextlib.ExitStack() as second:

            async def policy(request: ModelRequest) -> Said:
                if request.turn == 1 and first.poll() is None:
                    first.send_signal(signal.SIGKILL)
                    await asyncio.to_thread(first.wait)
                    await asyncio.to_thread(second.enter_context, command(port=port))
                return burglar(request)

            found = [r async for r in rollouts(remote, agent(policy), remote.problems("test", 1, 7), retries=3)]
    assert (found[0].status, found[0].score) == ("finished", 2.75)
    assert found[0].attempts == 2


async def test_the_command_serves_until_it_is_asked_to_end() -> None:
    with command(AWORLD_TOKEN="t0ken") as (process, url):
        assert (await play(RemoteEnvironment(url, token="t0ken"))).success
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    with pytest.raises(ConfigError, match="no environment is served there"):
        RemoteEnvironment(url)


async def test_a_token_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-a-file\n")
    with command("--token-file", str(path)) as (_, url):
        assert (await play(RemoteEnvironment(url, token="from-a-file"))).success
        with pytest.raises(ConfigError, match="HTTP 401"):
            RemoteEnvironment(url)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["tests.environments.served:vault", "--token-file", "/nothing/there"], "cannot be read"),
        (["tests.environments.served:vault", "--token-file", os.devnull], "the file is empty"),
        (["tests.environments.served:vault", "--token-file", __file__, "--token", "x"], "give one of the two"),
        (["tests.environments.served:vault", "--host", "0.0.0.0"], "others can reach it there"),
        (["tests.environments.served:nothing"], "has no 'nothing'"),
        (["tests.environments.served:DIGITS"], "name an Environment"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    from aworld.cmd.main import main

    assert main(["env", "serve", *arguments]) == 2
    assert why in capsys.readouterr().err
