"""Worker processes: they share a SQLite store with their parent, which hands them tasks and replaces those that die."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import msgspec

from aworld.config.conf import RunConfig
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.runners.driver import recorded, write_end
from aworld.runners.executors import Executor
from aworld.runners.journal import Journal
from aworld.runners.task_references import Begin, RunEnded, reference_to
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
        """Raise TaskError for a task that cannot travel."""
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
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aworld.runners.task_worker", self.store.url, str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment, limit=1 << 24,
        )  # fmt: skip
        return _Worker(process)

    async def run_one(self, task: Task) -> TaskResponse:
        """See `Executor.run_one`. Raises TaskError for a task that cannot travel."""
        begin = self._begins.pop(task.id, None) or reference_to(task)
        for attempt in range(ATTEMPTS):
            worker = await self._free()
            ended = await worker.execute(msgspec.structs.replace(begin, again=attempt > 0))
            if ended is not None:
                return await self._response(task, ended)
        record = await self._record(task.id)
        why = f"Task {task.id!r} was given up: {ATTEMPTS} worker processes died while they ran it."
        if task.environment is not None and record.events:  # it cannot be resumed: a loss, and data like any other
            journal = Journal(record, self.store)
            await journal.claim()
            write_end(journal, "failed", why, lost=True)
            await journal.commit()
            journal.release()
            return recorded(task, self.store, record, "failed", why, 0.0)
        return TaskResponse(record, "interrupted", error=why, store=self.store)

    async def _free(self) -> _Worker:
        """The worker with the least to do; one that died is replaced."""
        async with self._starting:
            for place, worker in enumerate(self._workers):
                if worker.gone:
                    self._restarts += 1
                    if self._restarts > ATTEMPTS * self._conf.worker_num:
                        raise TaskError(
                            f"Worker processes died {self._restarts} times in a row, the last with exit code "
                            f"{worker.exit_code}; standard error has their words. What was done is kept: go on with "
                            "Runners.resume_all."
                        )
                    self._workers[place] = await self._start()
        return min(self._workers, key=lambda worker: len(worker.waiting))

    async def _response(self, task: Task, ended: RunEnded) -> TaskResponse:
        if ended.misuse is not None:
            raise TaskError(ended.misuse)
        self._restarts = 0
        record = await self._record(task.id)
        return recorded(task, self.store, record, ended.status, ended.error, ended.seconds)

    async def _record(self, id: str) -> Trajectory:
        try:
            return Trajectory.of(id, await self.store.read(id), await self.store.notes(id))
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
        self._process = process
        self.waiting: dict[str, asyncio.Future[RunEnded | None]] = {}
        self.gone = False
        self._reading = asyncio.create_task(self._read())

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it works."""
        return self._process.returncode

    async def execute(self, begin: Begin) -> RunEnded | None:
        """Run a task there; None when the process died."""
        if self.gone:
            return None
        waiter = self.waiting[begin.id] = asyncio.get_running_loop().create_future()
        try:
            assert self._process.stdin is not None  # it was started with a pipe
            with suppress(BrokenPipeError, ConnectionResetError):
                self._process.stdin.write(msgspec.json.encode(begin) + b"\n")
                await self._process.stdin.drain()
            return await waiter
        finally:
            self.waiting.pop(begin.id, None)

    async def _read(self) -> None:
        assert self._process.stdout is not None  # it was started with a pipe
        decoder = msgspec.json.Decoder(RunEnded)
        while line := await self._process.stdout.readline():
            ended = decoder.decode(line)
            waiter = self.waiting.get(ended.id)
            if waiter is not None and not waiter.done():
                waiter.set_result(ended)
        await self._process.wait()
        self.gone = True
        for waiter in self.waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    def leave(self) -> None:
        """Let it cancel what it runs, and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def end(self) -> None:
        """Return when it has ended, at most after `LEAVING` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVING):
                await asyncio.shield(self._reading)
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._reading
