"""What may stand in `mcpServers`, and under which names tools reach a model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.models import ScriptedModel
from aworld.runner import Runners
from aworld.tools.mcp import _names, mcp_tools
from aworld.tools.mcp_config import Resolved, read_servers
from tests.tools_mcp.conftest import config, rough, tools_of

VALID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Names of tools that every provider takes."""


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "its keys are"),
        ({"mcpServers": []}, "must be an object of servers"),
        (config(s={"comand": "x"}), "'s' has neither a 'command' nor a 'url'; did you mean 'command' by 'comand'?"),
        (config(s={"command": "x", "arguments": []}), "no setting 'arguments'; did you mean 'args'"),
        (config(s={"command": "x", "timeout": 0}), "'s': McpServerConfig: timeout: Input should be greater than 0"),
        (config(s={"command": "x", "args": "one"}), "'s': McpServerConfig: args: Input should be a valid list"),
        (config(s={"type": "websocket", "url": "x"}), "one of stdio, sse, streamable-http; got 'websocket'"),
        (config(s={"type": "sse", "command": "x"}), "of type sse and misses 'url'"),
        (config(s={"command": "x", "url": "http://x"}), "'s' has both a 'command', to start it here, and a 'url'"),
        (config(s={"command": "x", "args": ["a", "${FSP"]}), "'s': args: '${FSP…' is no placeholder; write ${NAME} or"),
        (config(s={"url": "http://${FSP:=x}/mcp"}), "'s': url: '${FSP…' is no placeholder"),
        (config(s={"url": "u", "headers": {"K": "${A}${B:-${C}}"}}), "'s': header 'K': '${B…' is no placeholder"),
        (config(s={"command": "x", "env": {"K": "${} ${A}"}}), "'s': env 'K': '${…' is no placeholder"),
        ({"mcpServers": {"s": "python server.py"}}, "must be an object of settings; got str"),
    ],
)
def test_mistakes_name_the_server_the_setting_and_the_remedy(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        Agent("bob", mcp_config=written)
    assert message in str(wrong.value)
    assert str(wrong.value).startswith("Agent 'bob': ")


def test_unknown_servers_and_servers_without_a_configuration() -> None:
    with pytest.raises(
        ConfigError, match=r"no server 'file' in mcp_config\. Did you mean 'files'\? Known: files, web\."
    ):
        Agent("bob", mcp_servers=["file"], mcp_config=config(files=rough(), web=rough()))
    with pytest.raises(ConfigError, match=r"mcp_servers=\['files'\] says which, but there is no mcp_config"):
        Agent("bob", mcp_servers=["files"])


def test_any_iterable_of_names_or_none_for_all() -> None:
    written = config(a=rough(), b=rough(), off=rough(disabled=True))
    table = written["mcpServers"]
    for names in (table.keys(), list(table), tuple(table), iter(table), None):
        assert list(read_servers(written, names)) == ["a", "b"]
    assert Agent("bob", mcp_servers=(name for name in ["b"]), mcp_config=written).toolkit.given
    assert not Agent("bob", mcp_servers=[], mcp_config=written).toolkit.given
    assert mcp_tools(config(off=rough(disabled=True))) == []


def test_a_file_is_read_and_the_kind_is_inferred(tmp_path: Path) -> None:
    written = config(a={"command": "x"}, b={"url": "http://x"}, c={"type": "http", "url": "http://x"})
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps(written))
    assert [conf.type for conf in read_servers(path).values()] == ["stdio", "streamable-http", "streamable-http"]
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not a JSON object"):
        read_servers(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_servers(str(tmp_path / "other.json"))


async def test_placeholders_are_filled_when_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent("bob", model=ScriptedModel(["ok"]), mcp_config=config(s=rough(env={"A": "${NOT_SET_YET}"})))
    with pytest.raises(ConfigError, match="'s': env 'A' needs the environment variable NOT_SET_YET, which is not set"):
        await Runners.run("go", agent)
    monkeypatch.setenv("NOT_SET_YET", "now it is")
    assert (await Runners.run("go", agent)).success


def test_what_is_filled_in_and_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_TOKEN", "tok-12345")
    monkeypatch.setenv("SITE", "example.org")
    written = {
        "url": "https://user:pa%20ss@${SITE}/mcp?key=abcd-efgh&page=${PAGE:-first}",
        "headers": {"Authorization": "Bearer ${SITE_TOKEN}", "Accept": "text/plain"},
    }
    resolved = Resolved("s", read_servers(config(s=written))["s"])
    assert resolved.url == "https://user:pa%20ss@example.org/mcp?key=abcd-efgh&page=first"
    assert resolved.headers["Authorization"] == "Bearer tok-12345"
    shown = resolved.redact(f"{resolved.url} {resolved.headers} tok-12345, pa ss")
    assert not any(secret in shown for secret in ("tok-12345", "pa%20ss", "pa ss", "abcd-efgh"))
    assert "example.org" in shown
    assert "text/plain" in shown
    assert "tok-" not in repr(resolved.conf)


def test_a_program_finds_the_virtual_environment_it_is_started_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123")
    monkeypatch.setenv("HOME", "/home/bob")
    conf = read_servers(config(s={"command": "python", "env": {"MODE": "x"}}))["s"]
    environment = Resolved("s", conf).environment()
    inherited = {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "SHELL", "TERM", "USER"}
    assert environment.keys() <= {"MODE", *inherited}
    assert environment["MODE"] == "x"
    if sys.prefix != sys.base_prefix:
        assert environment["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)


async def test_only_some_tools_are_offered() -> None:
    assert list(await tools_of(s=rough(allowed_tools=["echo", "log", "none"], denied_tools=["log"]))) == ["echo"]


async def test_names_that_a_server_does_not_have_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    server = rough(allowed_tools=["ehco", "nope"], denied_tools=["lgo", "log"])
    assert not await tools_of(s=server, other=rough(allowed_tools=[]))
    assert not await tools_of(s=server)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(
        "server=s | it has no 'ehco' in allowed_tools (did you mean 'echo'?), no 'nope' in allowed_tools, "
        "no 'lgo' in denied_tools (did you mean 'log'?); its tools are ['echo', "
    )


async def test_names_are_unique_over_servers_and_keep_what_they_can() -> None:
    tools = await tools_of(
        one=rough(allowed_tools=["echo", "log"]), two=rough("babble", allowed_tools=["echo", "crash"])
    )
    assert list(tools) == ["one_echo", "log", "two_echo", "crash"]


def test_names_are_valid_and_stable() -> None:
    names = _names([("s", "a.b"), ("s", "a/b"), ("s", "a_b"), ("s", "x" * 90), ("t", "x" * 90), ("t", "ok")])
    assert names[2] == "a_b", "a valid name stays"
    assert names[5] == "ok"
    assert len(set(names)) == len(names)
    assert all(len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() for name in names)
    assert names == _names([("s", "a.b"), ("s", "a/b"), ("s", "a_b"), ("s", "x" * 90), ("t", "x" * 90), ("t", "ok")])


def test_a_name_with_a_prefix_yields_to_the_tool_whose_own_it_is() -> None:
    names = _names([("git", "status"), ("git", "log"), ("svn", "status"), ("hub", "git_status")])
    assert names[1:] == ["log", "svn_status", "git_status"]
    assert re.fullmatch("git_status_[0-9a-f]{8}", names[0])


# Few letters and short words, so that names meet often; beside them names of any kind.
_words = st.one_of(st.text("ab_./", max_size=5), st.text("a_", min_size=62, max_size=66), st.text(max_size=3))


@given(st.lists(st.tuples(_words, _words), unique=True, max_size=12))
@example([("git", "status"), ("svn", "status"), ("hub", "git_status")])
@example([("a/b", "c"), ("a", "b/c"), ("x", "c"), ("x", "b/c"), ("y", "a_b_c")])
@example([("s", "a.b"), ("s", "a_b"), ("t", "s_a_b"), ("t", "a.b")])
def test_any_tools_have_different_and_valid_names_and_keep_their_own(tools: list[tuple[str, str]]) -> None:
    names = _names(tools)
    assert len(set(names)) == len(names) == len(tools)
    assert all(VALID.fullmatch(name) for name in names)
    plain = [tool for _, tool in tools]
    for name, tool in zip(names, plain):
        if plain.count(tool) == 1 and VALID.fullmatch(tool):
            assert name == tool


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigError, match=r'pip install "mcp>=2\.3"'):
        mcp_tools(config(s=rough()))


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    code = (
        "import sys; from aworld.agents.llm_agent import Agent; import aworld.runner, aworld.cmd.main;"
        "Agent('a'); names = ('mcp', 'aworld.tools.mcp', 'anyio', 'uvicorn');"
        "assert not [m for m in sys.modules if m.startswith(names)];"
        "Agent('a', mcp_config={'mcpServers': {'s': {'command': 'x'}}}); assert 'mcp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
