"""MCP servers as they are written down: the JSON of `mcpServers`, checked, and its placeholders filled in.

What is written is checked when an agent is made; `${NAME}` and `${NAME:-default}` are read from the environment when a
session starts, so that a configuration can be kept in a file without the keys.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, field_validator

from aworld.config.conf import Settings
from aworld.config.errors import ConfigError
from aworld.core.checks import nearest

Kind = Literal["stdio", "sse", "streamable-http"]

_KINDS: tuple[Kind, ...] = ("stdio", "sse", "streamable-http")
_ALIASES = {"http": "streamable-http", "streamable_http": "streamable-http", "streamableHttp": "streamable-http"}
"""Words for it in the configurations of other clients."""
_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_NO_PLACEHOLDER = re.compile(r"\$\{(?![A-Za-z_][A-Za-z0-9_]*(?::-(?:(?!\$\{)[^}])*)?\})\w*")
"""What begins like one and is none: shells know more forms, and passed on as it is it would be a strange value."""
_SECRET_NAME = re.compile(
    r"(key|token|secret|password|passwd|pwd|auth|authorization|credentials?|cookie|signature)($|[_-])", re.IGNORECASE
)
_OPEN_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
_SECRET_LENGTH = 4  # shorter values are not secrets, and hiding them would garble the text
_INHERITED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "USER")
"""What a server's process gets of the environment without being named: where things are, and in which language."""


class SamplingLimits(Settings):
    """What a server may ask of the agent's model, besides the limits of the run."""

    most: int = Field(default=8, ge=1)
    """Answers that it may have during one call of a tool."""
    max_tokens: int = Field(default=4096, ge=1)
    """Tokens of one answer; a server that wants more gets so many."""


class McpServerConfig(Settings):
    """One server: how it is reached, and which of its tools are offered."""

    type: Kind
    """Left out, it is `stdio` where there is a `command` and `streamable-http` where there is a `url`."""
    command: str | None = None
    """The program of a stdio server. Inside a virtual environment, `python` is that environment's."""
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    """All that the program finds in its environment, besides PATH, HOME, user, shell, terminal and language."""
    cwd: str | None = None
    url: str | None = Field(default=None, repr=False)
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to start and be asked for its tools, and for one HTTP exchange that is not a stream."""
    sse_read_timeout: float = Field(default=300.0, gt=0)
    """Seconds that a stream may be silent."""
    call_timeout: float | None = Field(default=None, gt=0)
    """Seconds that one call of a tool may take; None takes the task's `tool_timeout`."""
    disabled: bool = False
    allowed_tools: list[str] | None = None
    """The only tools that are offered; None offers all."""
    denied_tools: list[str] = Field(default_factory=list)
    stateful: bool = False
    """Whether each run gets a session of its own, since the server keeps state between calls."""
    sampling: SamplingLimits | None = None
    """Whether the server may ask the agent's model: true, or limits such as `{"most": 8}`. It is asked only during a
    call, and only for what the limits of the run have left."""
    elicitation: bool = False
    """Whether the server may ask people: the run waits for the answer, and then the call is made again, with it. So a
    tool should ask before it acts. Without it, what a server asks is declined."""

    @field_validator("sampling", mode="before")
    @classmethod
    def _sampling(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value


class Resolved:
    """A server's configuration with its placeholders filled in, and what of it may never be shown."""

    def __init__(self, name: str, conf: McpServerConfig) -> None:
        """Raises ConfigError that names a variable which is not set."""
        self.name = name
        self.conf = conf
        secrets: set[str] = set()

        def fill(text: str, where: str) -> str:
            return _filled(text, f"MCP server {name!r}: {where}", secrets)

        self.command = fill(conf.command or "", "command")
        self.args = [fill(arg, "args") for arg in conf.args]
        self.env = {key: fill(value, f"env {key!r}") for key, value in conf.env.items()}
        self.cwd = fill(conf.cwd, "cwd") if conf.cwd else None
        self.url = fill(conf.url or "", "url")
        self.headers = {key: fill(value, f"header {key!r}") for key, value in conf.headers.items()}
        secrets |= {value for key, value in self.env.items() if _SECRET_NAME.search(key)}
        for key, value in self.headers.items():
            if key.lower() not in _OPEN_HEADERS:
                secrets |= {value, value.rpartition(" ")[2]}  # `Bearer abc`: abc alone too
        secrets |= _url_secrets(self.url)
        # The longest first: one secret may hold another.
        self._secrets = sorted((s for s in secrets if len(s) >= _SECRET_LENGTH), key=len, reverse=True)

    def redact(self, text: str) -> str:
        """`text` without this server's keys, whoever wrote it."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "***")
        return text

    def environment(self) -> dict[str, str]:
        """The environment of the server's process: what was named for it, and where programs are found."""
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        if sys.prefix != sys.base_prefix:  # as if the virtual environment were activated
            inherited["PATH"] = os.pathsep.join(filter(None, (os.path.dirname(sys.executable), inherited.get("PATH"))))
        return {**inherited, **self.env}


def read_servers(
    mcp_config: Mapping[str, Any] | str | Path, names: Iterable[str] | None = None
) -> dict[str, McpServerConfig]:
    """The servers of a configuration, those named in `names` or all, without the disabled ones.

    `mcp_config` is the mapping with `mcpServers`, or the path of a JSON file of it. Raises ConfigError that names the
    server and the setting.
    """
    table = _table(mcp_config)
    if isinstance(names, str):
        raise ConfigError(f"mcp_servers: {names!r} is one name; give a collection, such as [{names!r}].")
    chosen = list(dict.fromkeys(table if names is None else names))
    for name in chosen:
        if name not in table:
            near = nearest(name, table)
            hint = f"Did you mean {near!r}? " if near else ""
            raise ConfigError(
                f"mcp_servers: there is no server {name!r} in mcp_config. {hint}Known: {', '.join(table) or 'none'}."
            )
    servers = {name: _server(name, table[name]) for name in chosen}
    return {name: conf for name, conf in servers.items() if not conf.disabled}


def _table(mcp_config: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(mcp_config, str | Path):
        mcp_config = _read_file(Path(mcp_config))
    if "mcpServers" not in mcp_config:
        raise ConfigError(f'mcp_config must be {{"mcpServers": {{name: {{...}}}}}}; its keys are: {list(mcp_config)}.')
    table: Any = mcp_config["mcpServers"]
    if not isinstance(table, Mapping):
        raise ConfigError(f"mcp_config: mcpServers must be an object of servers by name; got {type(table).__name__}.")
    return {str(name): entry for name, entry in cast("Mapping[Any, Any]", table).items()}


def _read_file(path: Path) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"mcp_config {str(path)!r}: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"mcp_config {str(path)!r} is not a JSON object: {error}.") from error


def _server(name: str, entry: Any) -> McpServerConfig:
    owner = f"MCP server {name!r}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{owner} must be an object of settings; got {type(entry).__name__}.")
    settings: dict[str, Any] = {str(key): value for key, value in cast("Mapping[Any, Any]", entry).items()}
    kind: Any = settings.get("type")
    if kind is None:
        kind = "stdio" if "command" in settings else "streamable-http"
    kind = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in _KINDS:
        raise ConfigError(f"{owner}: type must be one of {', '.join(_KINDS)}; got {kind!r}.")
    if settings.get("type") is None and not settings.keys() & {"command", "url"}:
        raise ConfigError(f"{owner} has neither a 'command' nor a 'url'{_meant(settings)}")
    if settings.get("command") and settings.get("url"):
        raise ConfigError(
            f"{owner} has both a 'command', to start it here, and a 'url', where it runs already; give the one that is "
            "meant."
        )
    wanted = "command" if kind == "stdio" else "url"
    if not settings.get(wanted):
        raise ConfigError(f"{owner} is of type {kind} and misses {wanted!r}.")
    try:
        settings["type"] = kind
        conf = McpServerConfig(**settings)
        _check_placeholders(conf)
        return conf
    except ConfigError as wrong:
        raise ConfigError(f"{owner}: {wrong}") from None


def _check_placeholders(conf: McpServerConfig) -> None:
    """Refuse what begins like a placeholder and is none; only its name is shown, as the rest may be a key."""
    written = {
        "command": conf.command, "cwd": conf.cwd, "url": conf.url, "args": "\n".join(conf.args),
        **{f"env {key!r}": value for key, value in conf.env.items()},
        **{f"header {key!r}": value for key, value in conf.headers.items()},
    }  # fmt: skip
    for where, text in written.items():
        if (match := _NO_PLACEHOLDER.search(text or "")) is not None:
            raise ConfigError(f"{where}: '{match[0]}…' is no placeholder; write ${{NAME}} or ${{NAME:-default}}.")


def _meant(settings: Mapping[str, Any]) -> str:
    """The setting that was probably meant by one that is not known."""
    for key in settings:
        if near := nearest(key, ("command", "url"), 0.6):
            return f"; did you mean {near!r} by {key!r}?"
    return "."


def _filled(text: str, where: str, secrets: set[str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        text = os.environ.get(name) or default
        if text is None:
            raise ConfigError(f"{where} needs the environment variable {name}, which is not set.")
        if _SECRET_NAME.search(name):
            secrets.add(text)
        return text

    return _PLACEHOLDER.sub(value, text)


def _url_secrets(url: str) -> set[str]:
    parts = urlsplit(url)
    secrets = {value for key, value in parse_qsl(parts.query) if _SECRET_NAME.search(key)}
    if parts.password:
        secrets |= {parts.password, unquote(parts.password)}
    return secrets
