"""Carries the exchanges of `OutsideRollouts` between processes: HTTP, served by the shell of all servers.

Bound to loopback unless told otherwise. Every request shows the token, which the trainer's process finds in its
environment beside the address. The body is a JSON object, and so is the answer:

    POST /begin  id, problem                                              -> messages, tools | end
    POST /said   id, text, prompt_ids, completion_ids, logprobs, ...      -> messages, tools | end
    POST /log    step, figures                                            -> nothing
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from importlib import import_module
from typing import Any

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response

from aworld.core.exceptions import AWorldError
from aworld.training.outside import OutsideEnd, OutsidePrompt, OutsideReply, OutsideRollouts

MAX_BODY = 64 * 1024 * 1024
"""Most bytes of one exchange; far above any conversation."""


class Bridge:
    """Serves the rollouts. `on_log` is told of each step's number and figures.

    `port=0` takes a free one; `url` is known when it has started. On an address that other machines reach they may
    call this one by its host name.
    """

    def __init__(
        self, rollouts: OutsideRollouts, on_log: Callable[[int, dict[str, float]], None],
        *, host: str = "127.0.0.1", port: int = 0, token: str | None = None,
    ) -> None:  # fmt: skip
        router = APIRouter()
        router.add_route("/{op}", self._exchange, methods=["POST"])
        self._rollouts, self._on_log = rollouts, on_log
        self.token = token or secrets.token_urlsafe(24)
        # By its address, as engines are: the shell is in a room above this one.
        self._server: Any = import_module("aworld.server.shell").Serving(
            router, host=host, port=port, token=self.token, host_names=[socket.gethostname()], max_body=MAX_BODY,
            grace=0.1,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Such as `http://127.0.0.1:4242`."""
        return self._server.url

    @property
    def variables(self) -> dict[str, str]:
        """What the trainer's process must find in its environment."""
        return {"AWORLD_BRIDGE": self.url, "AWORLD_BRIDGE_TOKEN": self.token}

    async def __aenter__(self) -> Bridge:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()
        await self._rollouts.close()

    async def _exchange(self, request: Request) -> Response:
        op, body = request.path_params["op"], await request.body()
        try:
            fields = msgspec.json.decode(body, type=dict[str, Any])
            return Response(msgspec.json.encode(await self._do(op, fields)), media_type="application/json")
        except KeyError as error:
            raise HTTPException(400, f"the field {error} is missing") from error
        except (AWorldError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise HTTPException(400, str(error)) from error

    async def _do(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
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
                raise HTTPException(
                    404, f"{op!r} is no operation of the bridge; the plugin is of another version of AWorld."
                )


def _news(news: OutsidePrompt | OutsideEnd) -> dict[str, Any]:
    fields = msgspec.to_builtins(news)
    return {"end": fields} if isinstance(news, OutsideEnd) else fields
