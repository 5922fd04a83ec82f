"""Carries the exchanges of `OutsideRollouts` between processes: one TCP connection each, a line of JSON either way.

Bound to loopback unless told otherwise. Every line must hold the token, which the trainer's process finds in its
environment. A line is `{"token", "op", ...}` and is answered by the fields of the answer, or `{"error"}`:

    begin  id, problem                                              -> messages, tools | end
    said   id, text, prompt_ids, completion_ids, logprobs, ...      -> messages, tools | end
    log    step, figures                                            -> nothing
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from aworld.core.exceptions import AWorldError, ConfigError
from aworld.training.outside import OutsideEnd, OutsidePrompt, OutsideReply, OutsideRollouts

logger = logging.getLogger(__name__)

LINE = 64 * 1024 * 1024
"""Most bytes of one line."""

_encode = msgspec.json.encode


class Bridge:
    """Serves the rollouts. `on_log` is told of each step's number and figures.

    `port=0` takes a free one; `address` is known when it has started.
    """

    def __init__(
        self, rollouts: OutsideRollouts, on_log: Callable[[int, dict[str, float]], None],
        *, host: str = "127.0.0.1", port: int = 0, token: str | None = None,
    ) -> None:  # fmt: skip
        self._rollouts, self._on_log = rollouts, on_log
        self._host, self._port = host, port
        self.token = token or secrets.token_urlsafe(24)
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self._host}:{self._port}"

    @property
    def variables(self) -> dict[str, str]:
        """What the trainer's process must find in its environment."""
        return {"AWORLD_BRIDGE": self.address, "AWORLD_BRIDGE_TOKEN": self.token}

    async def __aenter__(self) -> Bridge:
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=LINE, backlog=4096)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await self._rollouts.close()
        for task in list(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            line = await reader.readline()
            if line:
                writer.write(_encode(await self._answered(line)) + b"\n")
                await writer.drain()
        except (OSError, ValueError) as error:  # who asked is gone, or the line is too long
            logger.warning("error=%s | an exchange with the trainer broke", error)
        finally:
            self._busy.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answered(self, line: bytes) -> dict[str, Any]:
        try:
            asked: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            if not hmac.compare_digest(str(asked.pop("token", "")), self.token):
                return {"error": "the token is wrong; give the trainer the AWORLD_BRIDGE_TOKEN of this run"}
            return await self._do(asked.pop("op", None), asked)
        except KeyError as error:
            return {"error": f"the field {error} is missing"}
        except (AWorldError, msgspec.MsgspecError) as error:
            return {"error": str(error)}

    async def _do(self, op: Any, fields: dict[str, Any]) -> dict[str, Any]:
        match op:
            case "begin":
                return _news(await self._rollouts.begin(str(fields["id"]), str(fields["problem"])))
            case "said":
                id = str(fields.pop("id"))
                return _news(await self._rollouts.say(id, msgspec.convert(fields, OutsideReply)))
            case "log":
                self._on_log(int(fields["step"]), dict(fields["figures"]))
                return {}
            case _:
                raise ConfigError(f"{op!r} is no operation of the bridge; the plugin is of another version of AWorld.")


def _news(news: OutsidePrompt | OutsideEnd) -> dict[str, Any]:
    fields = msgspec.to_builtins(news)
    return {"end": fields} if isinstance(news, OutsideEnd) else fields
