"""The MCP SDK, as we use it: a connection to a server, and calls over it. Nothing else talks to the SDK's client.

It is imported when the first server is started. A connection is opened and closed by one task, its owner
(`aworld.tools.mcp_session`); calls come from any task. A call writes its message into the connection's queue and waits
for its own answer, so a call that is cancelled takes nobody with it, and the server is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import httpx2
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.session import ClientRequestContext
from mcp_types.methods import validate_server_result
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from aworld import __version__
from aworld.core.exceptions import AWorldError, ToolError
from aworld.core.message import Content, Text, Usage
from aworld.core.tool.base import Question, ToolContext
from aworld.tools.mcp_config import Resolved, SamplingLimits
from aworld.tools.mcp_content import answer_of, asked_again, content_of, question_of, reply_of, request_of
from aworld.tools.mcp_process import ServerProcess
from aworld.tools.mcp_session import McpServer, McpToolInfo, SessionLost
from aworld.tools.mcp_transport import Transport

logger = logging.getLogger(__name__)

MAX_PAGES = 1000
"""Pages of a list of tools that are asked for: a server that never ends its list cannot hang a run."""
MOST_TOOLS = 1000
"""Tools of a server: all go to the model, at its price."""
BYTES_PER_TOKEN = 3
"""Of a text that a model has not read yet; rather too few than too many."""
MOST_BYTES = 64 << 20
"""Of a whole list of tools."""

_caller: ContextVar[_McpCall | None] = ContextVar("mcp_caller", default=None)
"""The call that a message belongs to, where the transport carries it: streamable HTTP and the newest protocol."""


class _ConnectionRefused(Exception):
    """The server does not take the connection; in its words."""


class _McpCall:
    """A call that is under way."""

    def __init__(self, context: ToolContext) -> None:
        self.context = context
        self.asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """What the server wants a person to answer."""
        self.samples = 0
        """Answers of the model that the server had."""
        self.over = asyncio.Event()


class Link(AbstractAsyncContextManager["Link"]):
    """A connection to a server, open within `async with`.

    A class, as are the transports of stdio: the generator of an `@asynccontextmanager` would be closed with the loop's
    other generators, out of turn and by the wrong task.
    """

    def __init__(
        self, resolved: Resolved, server: McpServer, tools_changed: Callable[[], None], process: ServerProcess | None
    ) -> None:
        self._transport = Transport(resolved, process)
        self.ended = self._transport.ended
        """The connection is of no more use, or is to be closed."""
        self._resolved = resolved
        self._server = server
        self._tools_changed = tools_changed
        self._process = process
        self._calls: dict[int, _McpCall] = {}
        self._number = 0
        self._modern = False
        self.client = Client(
            self._transport,
            client_info=types.Implementation(name="aworld", version=__version__),
            sampling_callback=self._sample if server.sample else None,
            elicitation_callback=self._elicit,
            logging_callback=self._log,
            message_handler=self._on_message,
            cache=None,  # lists are kept, shared and renewed by the hub
        )

    async def __aenter__(self) -> Self:
        """Open the connection. Raises whatever the server and the SDK make of it."""
        try:
            await self.client.__aenter__()
        except (MCPError, ExceptionGroup) as error:
            inner = _innermost(error)
            if isinstance(inner, MCPError):
                old = self._transport.status == 405 and self._resolved.conf.type == "streamable-http"
                hint = '; if it is a server of the older kind, say "type": "sse" in its configuration' if old else ""
                raise _ConnectionRefused(self._said(inner) + hint) from None
            raise
        version = self.client.protocol_version
        self._modern = version in MODERN_PROTOCOL_VERSIONS
        self._transport.check_tool = partial(validate_server_result, "tools/list", version)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, in the task that opened it."""
        await self.client.__aexit__(kind, error, trace)

    async def list_tools(self) -> list[McpToolInfo]:
        """What the server offers, page after page. Raises ToolError."""
        tools: dict[str, McpToolInfo] = {}  # a list that changes between its pages can have a tool twice
        cursor: str | None = None
        size = 0
        try:
            for _ in range(MAX_PAGES):
                page = await self.client.list_tools(cursor=cursor)
                size += len(page.model_dump_json())
                tools |= {tool.name: _listed(tool) for tool in page.tools}
                if len(tools) > MOST_TOOLS or size > MOST_BYTES:
                    raise ToolError(
                        f"MCP server {self._resolved.name!r} lists more than {MOST_TOOLS:,} tools or "
                        f"{MOST_BYTES >> 20} MB of them, which no model can be shown. Use one that has fewer."
                    )
                cursor = page.next_cursor
                if cursor is None:
                    return list(tools.values())
        except (MCPError, ValidationError, RuntimeError) as error:
            raise await self._failure(error, "its tools could not be listed") from None
        raise ToolError(f"MCP server {self._resolved.name!r}: its list of tools has no end.")

    async def call(self, tool: str, arguments: dict[str, Any], context: ToolContext) -> Content:
        """Call a tool; cancelling tells the server.

        Raises ToolError, SessionLost when it was not called, and Question when the server asks for a person's answer:
        then the server is told that this call is cancelled, and is to be called again when there is one.
        """
        number = self._number = self._number + 1
        call = self._calls[number] = _McpCall(context)
        _caller.set(call)
        meta: Any = None
        progress = None
        if context.notify is not None:
            progress = self._progress(context)
            meta = {types.LOG_LEVEL_META_KEY: "info"} if self._modern else None
        working = self.client.call_tool(tool, arguments, progress_callback=progress, meta=meta)
        try:
            result = await (self._or_question(working, call) if self._resolved.conf.elicitation else working)
        except (MCPError, ValidationError, RuntimeError) as error:
            raise await self._failure(error, "the call failed") from None
        finally:
            self._calls.pop(number, None)
            call.over.set()
        content = self._redacted(content_of(result))
        if result.is_error:
            text = content if isinstance(content, str) else "".join(p.text for p in content if isinstance(p, Text))
            raise ToolError(text or f"MCP server {self._resolved.name!r} reports an error without saying which.")
        return content

    async def _or_question(self, working: Any, call: _McpCall) -> types.CallToolResult:
        """The result of a call. Raises Question when the server wants a person's answer first."""
        task = asyncio.ensure_future(working)
        try:
            await asyncio.wait((task, call.asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        if call.asked.done() and task.cancelled():
            raise Question(call.asked.result())
        return task.result()

    def last_words(self) -> str:
        """What the server's process had to say at its end, behind a comma; nothing of one elsewhere."""
        words = self._process.last_words if self._process is not None else ""
        return f", {words}" if words else ""

    def _said(self, error: MCPError) -> str:
        status = self._transport.status
        return error.message + (f" (HTTP {status})" if status is not None else "")

    async def _failure(self, error: Exception, what: str) -> AWorldError:
        name = self._resolved.name
        if isinstance(error, MCPError):
            if error.code == types.INVALID_REQUEST and error.message == "Session terminated":
                return SessionLost(f"MCP server {name!r} has forgotten the session.")
            if error.code == types.CONNECTION_CLOSED and error.message == "Connection closed":  # not one stream of many
                self.ended.set()
                if self._process is not None:
                    await self._process.settle()
                return ToolError(
                    f"MCP server {name!r} ended before it answered{self.last_words()}. "
                    "The call may or may not have taken effect."
                )
            return ToolError(self._resolved.redact(f"MCP server {name!r}: {self._said(error)}"))
        if isinstance(error, ValidationError):
            return ToolError(f"MCP server {name!r}: {what}; its answer is not what the protocol says.")
        return ToolError(self._resolved.redact(f"MCP server {name!r}: {what}: {error}"))

    def _redacted(self, content: Content) -> Content:
        redact = self._resolved.redact
        if isinstance(content, str):
            return redact(content)
        return tuple(Text(redact(part.text)) if isinstance(part, Text) else part for part in content)

    # What the server tells and asks while it works

    def _origin(self) -> _McpCall | None:
        """The call that the server speaks of: the last one of the only run that has any under way.

        None when it might be one of several runs: nobody hears of another's, nor pays for it.
        """
        if (caller := _caller.get()) is not None:
            return None if caller.over.is_set() else caller
        calls = list(self._calls.values())
        return calls[-1] if len({call.context.trajectory_id for call in calls}) == 1 else None

    def _asking(self) -> _McpCall | None:
        """The call for which the server asks a person; None when it might be one of several, of one run too."""
        return self._origin() if _caller.get() is not None or len(self._calls) == 1 else None

    def _note(self, kind: str, data: dict[str, Any]) -> None:
        call = self._origin()
        if call is not None and call.context.notify is not None:
            call.context.notify(kind, {"server": self._resolved.name, **data})

    def _progress(self, context: ToolContext) -> Any:
        async def progress(progress: float, total: float | None, message: str | None) -> None:
            if context.notify is not None:
                text = message and self._resolved.redact(message)
                data = {"server": self._resolved.name, "progress": progress, "total": total, "message": text}
                context.notify("progress", data)

        return progress

    async def _log(self, params: types.LoggingMessageNotificationParams) -> None:
        data: Any = params.data
        text = self._resolved.redact(data if isinstance(data, str) else str(data))
        logger.debug("server=%s level=%s | %s", self._resolved.name, params.level, text)
        self._note("log", {"level": params.level, "logger": params.logger, "message": text})

    async def _on_message(self, message: types.ServerNotification | Exception) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._tools_changed()
        elif isinstance(message, Exception):
            logger.warning(
                "server=%s | sent what is not MCP: %s", self._resolved.name, self._resolved.redact(reason_of(message))
            )

    async def _elicit(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        schema = params.requested_schema if isinstance(params, types.ElicitRequestFormParams) else None
        answer: dict[str, Any] | None = None
        why: str | None = None
        if self._server.elicit is not None and schema is not None:
            try:
                call = self._origin()
                answer = await self._server.elicit(params.message, schema, call.context if call is not None else None)
            except Exception as error:  # the callback's; the server is told, and the call goes on
                logger.exception("server=%s | its question could not be asked", self._resolved.name)
                return types.ErrorData(code=types.INTERNAL_ERROR, message=f"Nobody could be asked: {error}")
        elif not self._resolved.conf.elicitation:
            why = 'this server may not ask people; "elicitation": true in its configuration allows it'
        elif (call := self._asking()) is None:
            why = 'several calls are under way, and nobody knows which of them asks; "stateful": true keeps runs apart'
        else:
            url = params.url if isinstance(params, types.ElicitRequestURLParams) else None
            try:
                answer = self._said_by_person(call.context, params.message, schema, url)
            except Question as question:
                if not call.asked.done():
                    call.asked.set_result(question.text)
                await call.over.wait()  # the call is being cancelled
                return types.ElicitResult(action="cancel")
        action = "decline" if answer is None else "accept"
        reason = {} if why is None else {"reason": why}
        self._note("elicitation", {"message": self._resolved.redact(params.message), "action": action, **reason})
        return types.ElicitResult(action=action, content=answer)

    def _said_by_person(
        self, context: ToolContext, message: str, schema: dict[str, Any] | None, url: str | None
    ) -> dict[str, Any] | None:
        """What a person answered, None when they declined. Raises Question while nobody has."""
        question = self._resolved.redact(question_of(self._resolved.name, message, schema, url))
        while question in context.answers:
            words = context.answers[question]
            try:
                return answer_of(words, schema)
            except ValueError as wrong:
                question = asked_again(question, words, str(wrong))
        raise Question(question)

    async def _sample(
        self, context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult | types.ErrorData:
        try:
            return await self._ask_model(params)
        except Exception as error:  # noqa: BLE001 - the model's, the request's, or a limit; the server is told
            logger.warning("server=%s | its question to the model failed: %s", self._resolved.name, error)
            return types.ErrorData(code=types.INTERNAL_ERROR, message=f"The model was not asked: {error}")

    async def _ask_model(self, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        """The model's answer, paid by the run whose call the server is at. Raises AWorldError."""
        assert self._server.sample is not None  # else this was not given to the client
        limits = self._resolved.conf.sampling or SamplingLimits()
        call = self._origin()
        if call is None:
            raise ToolError('no call is under way that it belongs to; "stateful": true keeps runs apart.')
        if call.samples >= limits.most:
            raise ToolError(f'a call may have {limits.most} answers; "sampling": {{"most": …}} allows more.')
        call.samples += 1
        account, spent = call.context.account, call.context.spent
        question = request_of(params, limits.max_tokens)
        size = sum(len(message.text.encode()) for message in question.messages)
        granted = Usage(size // BYTES_PER_TOKEN + 1, question.params["max_tokens"])
        if account is not None:
            granted = await account.reserve(granted)
            question.params["max_tokens"] = granted.output_tokens
        used: Usage | None = granted  # of one that is cut off, nobody knows what it cost
        data: dict[str, Any] = {"error": "it did not answer"}
        try:
            reply = await self._server.sample(question, call.context)
            answer, used = reply_of(reply, "model"), reply.usage or Usage()
            data = {"model": answer.model, "input_tokens": used.input_tokens, "output_tokens": used.output_tokens}
        except Exception:
            used = None
            raise
        finally:
            if account is not None:
                account.settle(granted, used, f"mcp:{self._resolved.name}", data)
            elif used is not None:
                spent.append(used)
        self._note("sampling", {key: value for key, value in data.items() if value is not None})
        return answer


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def _listed(tool: types.Tool) -> McpToolInfo:
    hints = tool.annotations
    again = hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)
    return McpToolInfo(tool.name, tool.description or tool.title or "", tool.input_schema, again)


def reason_of(error: BaseException) -> str:
    """The innermost error of groups and chains that says something."""
    error = _innermost(error)
    if isinstance(error, _ConnectionRefused):
        return str(error)
    if isinstance(error, httpx2.HTTPStatusError):
        return f"it answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
