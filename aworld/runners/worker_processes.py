"""Worker processes: they share a SQLite store with their parent, which hands them tasks and replaces those that die.

Tasks travel as references: code is named by where it is imported from, and found by its identity (whatever a module
holds under a name can travel as `module:name`); everything else is data. A worker is this module, run: it takes a task
a line from standard input, and says of each how it ended. Its parent owns it: an empty line means that what runs is to
be cancelled. When standard input closes without one, the parent was killed, and its runs are left as a killed process
leaves them: unfinished, so that they can be resumed. What tools print goes to standard error.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial, reduce
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import msgspec
from msgspec import Struct

from aworld.agents.definitions import secrets_of, travels, unit_of
from aworld.config.conf import RunConfig, TaskConfig
from aworld.core.agent.base import plain
from aworld.core.agent.flow import Unit
from aworld.core.bounded import own_failure
from aworld.core.definition import AgentDefinition, TeamDefinition
from aworld.core.event import Status, TaskInfo
from aworld.core.exceptions import (
    AWorldError,
    BudgetUsed,
    ConfigError,
    LimitReached,
    StoreError,
    TaskError,
    UsageUnknown,
)
from aworld.core.message import Content, Message, Usage
from aworld.core.run_environment import Travelling
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.runners.budget import Share
from aworld.runners.dependencies import FUNCTIONS
from aworld.runners.driver import Episode, run_to_end, write_end
from aworld.runners.journal import Journal
from aworld.runners.local import Executor, load, rare_collection, store_of
from aworld.trajectory.query import Query
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.store import TrajectoryStore

ATTEMPTS = 3
"""Workers that a task may outlive: one that takes its process down each time is given up."""

LEAVING = 1.5
"""Seconds that workers have to cancel what they run and to end, before they are killed."""


class ProcessExecutor(Executor):
    """Runs tasks in worker processes that share a SQLite store."""

    def __init__(self, store: TrajectoryStore, conf: RunConfig) -> None:
        if conf.store is None:  # nobody named one: it lives as long as its responses
            folder = tempfile.mkdtemp(prefix="aworld-")
            store = SQLiteStore(os.path.join(folder, "runs.db"))
            weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
        if not isinstance(store, SQLiteStore):
            raise ConfigError(
                f"engine_name='processes' needs a store that processes share, as sqlite:///runs.db is; got {store.url}",
                setting="store",
            )
        super().__init__(store, conf)
        self._workers: list[_Worker] = []
        self._begins: dict[str, Begin] = {}
        """Those that were checked and have not begun."""
        self._restarts = 0
        """Workers that were replaced since the last run that ended."""
        self._starting = asyncio.Lock()

    def check(self, task: Task) -> None:
        """See `Executor.check`. Raises TaskError for a task that cannot travel."""
        super().check(task)
        self._begins[task.id] = reference_to(task)

    @asynccontextmanager
    async def _at_work(self, limit: int) -> AsyncGenerator[None]:
        number = min(self._conf.worker_num, limit)
        try:
            self._workers = list(await asyncio.gather(*(self._start() for _ in range(number))))
            yield
        finally:
            await asyncio.shield(self._leave())

    async def _start(self) -> _Worker:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "aworld.runners.worker_processes", self.store.url, str(os.getpid()),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment, limit=1 << 24,
            )  # fmt: skip
        except OSError as error:
            raise TaskError(
                f"A worker process could not be started with {sys.executable!r}: {error}. What was done is kept; run "
                "the rest with engine 'local', or with fewer workers."
            ) from error
        return _Worker(process)

    async def _run_one(self, task: Task, record: Trajectory | None) -> TaskResponse:
        begin = self._begins.pop(task.id, None) or reference_to(task)
        for attempt in range(ATTEMPTS):
            worker = await self._free()
            again = record is not None or attempt > 0
            ended = await worker.execute(msgspec.structs.replace(begin, again=again), task.share)
            if ended is None:
                continue
            if ended.misuse is not None:
                raise TaskError(ended.misuse)
            self._restarts = 0
            try:
                episode = Episode(task, self.store, await self._record(task.id))
            except StoreError as broken:  # the store is gone: the run says so, and ends no others
                return TaskResponse(Trajectory(task.id), "interrupted", error=str(broken), store=self.store)
            return episode.recorded_response(ended.status, ended.error, ended.seconds)
        record = await self._record(task.id)
        why = f"Task {task.id!r} was given up: {ATTEMPTS} worker processes died while they ran it."
        if task.environment is not None and record.events:  # it cannot be resumed: a loss, and data like any other
            journal = Journal(record, self.store)
            await journal.claim()
            write_end(journal, "failed", why, lost=True)
            await journal.commit()
            journal.release()
            return Episode(task, self.store, record).recorded_response("failed", why, 0.0)
        return TaskResponse(record, "interrupted", error=why, store=self.store)

    async def _free(self) -> _Worker:
        """The worker with the least to do; one that died is replaced."""
        async with self._starting:
            for place, worker in enumerate(self._workers):
                if worker.gone:
                    self._restarts += 1
                    if self._restarts > ATTEMPTS * self._conf.worker_num:
                        code = worker.process.returncode
                        raise TaskError(
                            f"Worker processes died {self._restarts} times in a row, the last with exit code {code}; "
                            "standard error has their words. What was done is kept: go on with Runners.resume_all."
                        )
                    self._workers[place] = await self._start()
        return min(self._workers, key=lambda worker: len(worker.waiting))

    async def _record(self, id: str) -> Trajectory:
        try:
            return await load(id, self.store)
        except TaskError:  # it never began
            return Trajectory(id)

    async def _leave(self) -> None:
        for worker in self._workers:
            worker.leave()
        for worker in self._workers:
            await worker.end()


class _Worker:
    """A process that runs tasks, and who waits for them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None  # it was started with pipes
        assert process.stdout is not None
        self.process, self._orders, self._answers = process, process.stdin, process.stdout
        self.waiting: dict[str, asyncio.Future[RunEnded | None]] = {}
        self.gone = False
        self._shares: dict[str, Share] = {}
        """What runs there may spend, by task."""
        self._granting: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read())

    async def execute(self, begin: Begin, share: Share | None = None) -> RunEnded | None:
        """Run a task there; None when the process died."""
        if self.gone:
            return None
        waiter = self.waiting[begin.task.id] = asyncio.get_running_loop().create_future()
        if share is not None:
            begin = msgspec.structs.replace(begin, shares=True)
            self._shares[begin.task.id] = share
        try:
            self._say(begin)
            with suppress(BrokenPipeError, ConnectionResetError):
                await self._orders.drain()
            return await waiter
        finally:
            self.waiting.pop(begin.task.id, None)
            if (left := self._shares.pop(begin.task.id, None)) is not None:
                left.leave()

    def _say(self, order: Begin | BudgetCall | None) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._orders.write((b"" if order is None else msgspec.json.encode(order)) + b"\n")

    async def _grant(self, call: BudgetCall, share: Share) -> None:
        try:
            call.usage = await share.reserve()
        except LimitReached as reached:
            call.refused = isinstance(reached, UsageUnknown), reached.limit, str(reached)
        if self._shares.get(call.id) is share:
            self._say(call)
        elif call.refused is None:  # the run ended meanwhile
            share.settle(None)

    async def _read(self) -> None:
        decoder: msgspec.json.Decoder[RunEnded | BudgetCall] = msgspec.json.Decoder(RunEnded | BudgetCall)
        while line := await self._answers.readline():
            ended = decoder.decode(line)
            if isinstance(ended, BudgetCall):
                if ended.over and ended.id in self._shares:
                    self._shares[ended.id].settle(ended.usage, ended.who, ended.step)
                elif ended.id in self._shares:
                    task = asyncio.create_task(self._grant(ended, self._shares[ended.id]))
                    self._granting.add(task)
                    task.add_done_callback(self._granting.discard)
                continue
            waiter = self.waiting.get(ended.id)
            if waiter is not None and not waiter.done():
                waiter.set_result(ended)
        await self.process.wait()
        self.gone = True
        for waiter in self.waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    def leave(self) -> None:
        """Let it cancel what it runs, and end."""
        self._say(None)
        self._orders.close()

    async def end(self) -> None:
        """Return when it has ended, at most after `LEAVING` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVING):
                await asyncio.shield(self._reading)
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
        await self._reading


MAIN = "__aworld_main__"
"""The name under which a worker imports the program's own file: what stands behind `if __name__ == "__main__":` does
not run there."""


class Begin(Struct, omit_defaults=True, tag=True):
    """A task on its way to a worker. Code stands as `module:name` or `file.py:name`."""

    task: TaskInfo
    input: Content
    unit: str
    conf: dict[str, Any] = {}
    history: tuple[Message, ...] = ()
    context: dict[str, Any] = {}
    tools: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    after: str | None = None
    deps: str | None = None
    by: str | None = None
    """The function that makes the task, where it has an environment; see `Remake`."""
    arguments: dict[str, Any] = {}
    again: bool = False
    """Whether another worker may have begun it."""
    shares: bool = False
    """Whether it shares a budget with others."""


class BudgetCall(Struct, omit_defaults=True, tag=True):
    """A call of a model within a budget, whose books the parent keeps. A worker asks for it, and says when it is over;
    the parent answers with the same number."""

    id: str
    """Of the task."""
    number: int
    over: bool = False
    usage: Usage | None = None
    """What was set aside, or used."""
    who: str = ""
    step: int = 0
    refused: tuple[bool, str, str] | None = None
    """Whether usage is unknown, the limit, and the words."""


class RunEnded(Struct, omit_defaults=True, tag=True):
    """How a run ended in a worker; its log is in the store."""

    id: str
    status: Status = "running"
    error: str | None = None
    seconds: float = 0.0
    misuse: str | None = None
    """Why it could not be begun."""


def reference_to(task: Task) -> Begin:
    """A task as it travels. Raises TaskError that names what cannot."""
    environment = task.environment
    stays = environment is not None and not isinstance(environment, Travelling)
    if stays or task.prefix is not None:
        what = "has an environment that only its own process has" if stays else "is a fork"
        raise TaskError(f"Task {task.id!r} {what}: run it with engine 'local'.")
    remake = environment.remake() if isinstance(environment, Travelling) else None
    bare = task if remake is None else remake
    after = task.after.trajectory_id if isinstance(task.after, TaskResponse) else task.after
    try:
        context = plain(task.context)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TaskError(f"The context of task {task.id!r} cannot travel to another process: {error}.") from error
    return Begin(
        task.info,
        task.input if remake is None else "",
        _unit_path(bare.agent),
        task.conf.model_dump(mode="json", exclude_defaults=True),
        task.history,
        context,
        _paths(bare.tools, "tool"),
        _paths(bare.hooks, "hooks"),
        after.id if isinstance(after, Trajectory) else after,
        _deps_path(task),
        None if remake is None else remake.by,
        {} if remake is None else remake.arguments,
    )


def task_of(begin: Begin) -> Task:
    """The task of a reference. Raises TaskError when code is not where it should be."""
    content = begin.input if isinstance(begin.input, str) else list(begin.input)
    make: Callable[..., Task] = (
        partial(Task, content) if begin.by is None else partial(object_at(begin.by), begin.arguments)
    )
    task = make(
        swarm=_unit_at(begin.unit),
        conf=TaskConfig(**begin.conf),
        after=begin.after,
        tools=[object_at(path) for path in begin.tools],
        context=begin.context,
        hooks=[object_at(path) for path in begin.hooks],
        deps=None if begin.deps is None else object_at(begin.deps),
        **msgspec.structs.asdict(begin.task),
    )
    task.history = task.history or begin.history
    return task


DEFINED = "definition:"
"""How a reference begins that is a definition, and the keys that it leaves out: over a pipe, and never in a log."""


_paths_found: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
"""Where objects were last time: to look through all modules for each of many tasks would take milliseconds."""


def _unit_path(unit: Unit) -> str:
    """Where an agent or a team is imported from; or its definition, where no module has it."""
    try:
        return path_of(unit, f"agent {unit.name!r}")
    except TaskError as nowhere:
        try:
            definition = travels(unit)
        except ConfigError as unnamed:
            raise TaskError(f"{nowhere} It cannot be written as a definition either: {unnamed}") from unnamed
        described = [isinstance(definition, TeamDefinition), definition.model_dump(mode="json"), secrets_of(unit)]
        path = _paths_found[unit] = DEFINED + msgspec.json.encode(described).decode()
        return path


@lru_cache(maxsize=64)
def _unit_at(path: str) -> Any:
    if not path.startswith(DEFINED):
        return object_at(path)
    team, fields, secrets = msgspec.json.decode(path.removeprefix(DEFINED))
    return unit_of((TeamDefinition if team else AgentDefinition).model_validate(fields), secrets=secrets)


def _paths(objects: Sequence[Any], what: str) -> tuple[str, ...]:
    return tuple(path_of(item, f"{what} {getattr(item, 'name', item)!r}") for item in objects)


def _deps_path(task: Task) -> str | None:
    """Where the function that makes the dependencies is imported from. Raises TaskError for any that are made."""
    if task.deps is None or isinstance(task.deps, str):
        return task.deps
    if isinstance(task.deps, FUNCTIONS):
        return path_of(task.deps, f"deps= of task {task.id!r}, {getattr(task.deps, '__name__', 'a partial')!r},")
    raise TaskError(
        f"deps= of task {task.id!r} is a {type(task.deps).__name__}, which cannot travel to another process: give a "
        "function that makes one there, at the top of a module or as \"module:function\", or run with engine 'local'."
    )


def path_of(item: object, what: str) -> str:
    """Where an object is imported from. Raises TaskError when no module has it."""
    with suppress(TypeError):  # some cannot be keys
        if item in _paths_found:
            return _paths_found[item]
        _paths_found[item] = path = _looked_up(item, what)
        return path
    return _looked_up(item, what)


def _looked_up(item: object, what: str) -> str:
    origin = getattr(item, "function", None)  # a tool made of a function may be named by the function
    modules = sorted(sys.modules.items(), key=lambda entry: entry[0] == "__main__")  # the program's own file last
    for module_name, module in modules:
        for name, value in list(getattr(module, "__dict__", {}).items()):  # some put other objects there
            if value is item or (origin is not None and value is origin):
                return f"{_importable(module_name, module, what)}:{name}"
    raise TaskError(
        f"{what[:1].upper()}{what[1:]} cannot travel to another process: no module has it under a name. Put it at the "
        "top of a module, so that it is module:name there, or run with engine 'local'."
    )


def _importable(name: str, module: ModuleType, what: str) -> str:
    if name != "__main__":
        return name
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    if spec is not None:  # python -m module
        return spec.name
    if file is None:
        raise TaskError(f"{what} was made at a prompt; put it into a file for engine 'processes', or use 'local'.")
    return str(Path(file).resolve())


def object_at(path: str) -> Any:
    """What an import path names. Raises TaskError when it is not there."""
    where, _, name = path.rpartition(":")
    try:
        module = _main(where) if where.endswith(".py") else importlib.import_module(where)
        return reduce(getattr, name.split("."), module)
    except AWorldError:
        raise
    except Exception as error:
        guard = ' What a program does belongs behind `if __name__ == "__main__":`.' if where.endswith(".py") else ""
        raise TaskError(
            f"A worker process could not import {path!r}: {type(error).__name__}: {error}.{guard}"
        ) from error


def _main(path: str) -> ModuleType:
    """The program's own file, imported once."""
    if MAIN not in sys.modules:
        spec = importlib.util.spec_from_file_location(MAIN, path)
        assert spec is not None  # a path that ends in .py has one
        assert spec.loader is not None
        module = sys.modules[MAIN] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[MAIN]


_numbers = count()
_Wanted: TypeAlias = "dict[int, asyncio.Future[BudgetCall]]"
"""Calls that wait for the parent, by number."""


class FarShare:
    """A run's part in a budget, in a worker. Stands where `Share` does; the parent keeps the books."""

    conf: ClassVar = RunConfig()  # prices were looked at by the parent

    def __init__(self, id: str, say: Callable[[BudgetCall], None], wanted: _Wanted) -> None:
        self._id = id
        self._say = say
        self._wanted = wanted

    async def reserve(self) -> Usage:
        """See `Budget.reserve`."""
        number = next(_numbers)
        answer = self._wanted[number] = asyncio.get_running_loop().create_future()
        self._say(BudgetCall(self._id, number))
        granted = await answer
        if granted.refused is not None:
            unknown, limit, text = granted.refused
            raise (UsageUnknown if unknown else BudgetUsed)(limit, text)
        return granted.usage or Usage()

    def settle(self, used: Usage | None, who: str = "", step: int = 0) -> None:
        """See `Budget.settle`."""
        self._say(BudgetCall(self._id, 0, True, used, who, step))


async def serve(url: str, orders: int, answers: int) -> None:
    """Run what comes until nothing more can; `orders` and `answers` are the descriptors of the pipes to the parent."""
    loop, store = asyncio.get_running_loop(), store_of(url)
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(orders, "rb"))
    decoder: msgspec.json.Decoder[Begin | BudgetCall] = msgspec.json.Decoder(Begin | BudgetCall)
    wanted: _Wanted = {}
    running: set[asyncio.Task[None]] = set()
    line = b""

    def say(answer: RunEnded | BudgetCall) -> None:
        os.write(answers, msgspec.json.encode(answer) + b"\n")

    async def execute(begin: Begin) -> None:
        say(await _execute(begin, store, FarShare(begin.task.id, say, wanted) if begin.shares else None))

    with rare_collection():
        while (line := await reader.readline()).strip():
            order = decoder.decode(line)
            if isinstance(order, BudgetCall):
                if not (answer := wanted.pop(order.number)).cancelled():
                    answer.set_result(order)
                elif order.refused is None:
                    say(BudgetCall(order.id, 0, over=True))
                continue
            task = asyncio.create_task(execute(order))
            running.add(task)
            task.add_done_callback(running.discard)
        if not line:  # the parent was killed: what runs is stopped, and no end of it is written
            await store.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    await store.close()


async def _execute(begin: Begin, store: TrajectoryStore, share: FarShare | None = None) -> RunEnded:
    record: Trajectory | None = None
    try:
        task = task_of(begin)
        task.share = share
        if begin.again and await store.count(Query(ids=(begin.task.id,))):
            record = await load(begin.task.id, store)
            if record.finished is not None:  # its worker died after the end, before it could say so
                return RunEnded(begin.task.id, record.status, record.error)
            if task.environment is not None:  # its state died with its worker: begun anew
                await store.delete(begin.task.id, forks=True)
                record = None
        response = await run_to_end(task, store, record)
    except AWorldError as error:
        return RunEnded(begin.task.id, misuse=str(error))
    except BaseException as error:  # noqa: BLE001 - the function that makes a task may exit; the parent waits for a word
        return RunEnded(begin.task.id, misuse=f"A worker process could not begin the task: {own_failure(error)}")
    return RunEnded(begin.task.id, response.status, response.error, response.time_cost)


def main(arguments: list[str]) -> Any:
    """`python -m aworld.runners.worker_processes STORE PARENT`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    orders, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a program that a tool starts would read the tasks of others
    asyncio.run(serve(arguments[0], orders, answers))


if __name__ == "__main__":
    main(sys.argv[1:])
