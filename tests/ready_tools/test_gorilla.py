"""The BFCL file system: what the benchmark documents, served over MCP by the official SDK."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

mcp = pytest.importorskip("mcp", reason="the MCP SDK is not installed (pip install 'mcp>=2.3')")

SERVER = Path(__file__).parents[2] / "examples/BFCL/mcp_tools/gorilla_file_system.py"

SCENARIO: dict[str, Any] = {
    "root": {
        "alex": {
            "type": "directory",
            "contents": {
                "a.txt": {"type": "file", "content": "one\ntwo three\none"},
                "b.txt": {"type": "file", "content": "one\nTWO\n"},
                "docs": {"type": "directory", "contents": {"x.md": {"type": "file", "content": "deep"}}},
                ".hidden": {"type": "file", "content": "h"},
            },
        }
    }
}


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("gorilla_file_system", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gorilla = _module()


@pytest.fixture
def files() -> Any:
    return gorilla.GorillaFileSystem(SCENARIO)


@pytest.mark.parametrize(
    ("call", "arguments", "result"),
    [
        ("pwd", {}, {"current_working_directory": "/alex"}),
        ("ls", {}, {"current_directory_content": ["a.txt", "b.txt", "docs"]}),
        ("ls", {"a": True}, {"current_directory_content": ["a.txt", "b.txt", "docs", ".hidden"]}),
        ("cd", {"folder": "docs"}, {"current_working_directory": "docs"}),
        ("cd", {"folder": ".."}, {"error": "Current directory is already the root. Cannot go back."}),
        ("cd", {"folder": "a.txt"}, {"error": "cd: 'a.txt': No such file or directory"}),
        ("cat", {"file_name": "a.txt"}, {"file_content": "one\ntwo three\none"}),
        ("cat", {"file_name": "docs"}, {"error": "cat: 'docs': Is a directory"}),
        ("cat", {"file_name": "docs/x.md"}, {"error": "cat: 'docs/x.md': Invalid character"}),
        ("mkdir", {"dir_name": "new"}, None),
        ("mkdir", {"dir_name": "docs"}, {"error": "mkdir: cannot create directory 'docs': File exists"}),
        ("touch", {"file_name": "new"}, None),
        ("touch", {"file_name": "a.txt"}, {"error": "touch: cannot touch 'a.txt': File exists"}),
        ("echo", {"content": "hi"}, {"terminal_output": "hi"}),
        ("echo", {"content": "hi", "file_name": "a.txt"}, None),
        ("echo", {"content": "hi", "file_name": "n"}, {"error": "echo: cannot write to 'n': No such file"}),
        ("grep", {"file_name": "a.txt", "pattern": "one"}, {"matching_lines": ["one", "one"]}),
        ("grep", {"file_name": "a.txt", "pattern": "o.e"}, {"matching_lines": []}),
        ("sort", {"file_name": "a.txt"}, {"sorted_content": "one\none\ntwo three"}),
        ("tail", {"file_name": "a.txt", "lines": 2}, {"last_lines": "two three\none"}),
        ("tail", {"file_name": "no"}, {"error": "tail: no: No such file or directory"}),
        ("diff", {"file_name1": "a.txt", "file_name2": "b.txt"}, {"diff_lines": "- two three\n+ TWO"}),
        ("wc", {"file_name": "a.txt"}, {"count": 3, "type": "lines"}),
        ("wc", {"file_name": "a.txt", "mode": "c"}, {"count": 17, "type": "characters"}),
        ("wc", {"file_name": "a.txt", "mode": "z"}, {"error": "wc: invalid mode 'z'"}),
        ("du", {}, {"disk_usage": "30 bytes"}),
        ("du", {"human_readable": True}, {"disk_usage": "30.00 B"}),
        ("find", {}, {"matches": ["./a.txt", "./b.txt", "./docs", "./docs/x.md", "./.hidden"]}),
        ("find", {"path": "docs", "name": "x"}, {"matches": ["docs/x.md"]}),
        ("find", {"path": "no"}, {"error": "find: 'no': No such file or directory"}),
        ("rm", {"file_name": "docs"}, {"result": "'docs' removed"}),
        ("rm", {"file_name": "no"}, {"error": "rm: cannot remove 'no': No such file or directory"}),
        ("rmdir", {"dir_name": "docs"}, {"error": "rmdir: cannot remove 'docs': Directory not empty"}),
        ("rmdir", {"dir_name": "a.txt"}, {"error": "rmdir: cannot remove 'a.txt': Not a directory"}),
        ("mv", {"source": "a.txt", "destination": "docs"}, {"result": "'a.txt' moved to 'docs/a.txt'"}),
        ("mv", {"source": "a.txt", "destination": "n"}, {"result": "'a.txt' moved to 'n'"}),
        (
            "mv",
            {"source": "a.txt", "destination": "b.txt"},
            {"error": "mv: cannot move 'a.txt' to 'b.txt': Not a directory"},
        ),
        (
            "mv",
            {"source": "a.txt", "destination": "x/y"},
            {"error": "mv: path not allowed in destination. Provide only a file or directory name."},
        ),
        ("cp", {"source": "a.txt", "destination": "docs"}, {"result": "'a.txt' copied to 'docs/a.txt'"}),
        ("cp", {"source": "no", "destination": "x"}, {"error": "cp: cannot copy 'no': No such file or directory"}),
    ],
)
def test_each_function_answers_as_the_benchmark_does(
    files: Any, call: str, arguments: dict[str, Any], result: Any
) -> None:
    assert getattr(files, call)(**arguments) == result


def test_the_session_stands_in_a_folder_and_remembers(files: Any) -> None:
    files.cd("docs")
    files.mkdir("inner")
    files.cd("inner")
    assert files.pwd() == {"current_working_directory": "/alex/docs/inner"}
    files.cd("..")
    files.mv("x.md", "..")
    files.cd("/")
    assert files.cat("x.md") == {"file_content": "deep"}


def test_a_copy_is_a_copy(files: Any) -> None:
    files.cp("docs", "mine")
    files.cd("mine")
    files.echo("changed", "x.md")
    assert files.pwd() == {"current_working_directory": "/alex/mine"}
    files.cd("..")
    files.cd("docs")
    assert files.cat("x.md") == {"file_content": "deep"}


@pytest.mark.parametrize("call", ["mv", "cp"])
def test_a_folder_does_not_go_into_itself(files: Any, call: str) -> None:
    assert "inside itself" in getattr(files, call)("docs", "docs")["error"]
    assert files.ls()["current_directory_content"] == ["a.txt", "b.txt", "docs"]
    assert files.mv("a.txt", ".") == {"result": "'a.txt' moved to '.'"}
    assert files.cat("a.txt")["file_content"].startswith("one")


async def test_the_script_is_a_server_for_the_official_client(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.json"
    scenario.write_text(json.dumps({"GorillaFileSystem": SCENARIO}))
    server = mcp.StdioServerParameters(command=sys.executable, args=[str(SERVER), "--scenario", str(scenario)])
    async with mcp.Client(server) as client:
        tools = (await client.list_tools()).tools
        assert sorted(tool.name for tool in tools) == sorted(gorilla.FUNCTIONS)
        assert len(tools) == 18
        first = await client.call_tool("echo", {"content": "AWorld", "file_name": "b.txt"})
        assert not first.is_error
        seen = await client.call_tool("cat", {"file_name": "b.txt"})
        assert json.loads(seen.content[0].text) == {"file_content": "AWorld"}
        assert (await client.call_tool("cat", {})).is_error
