"""Sandboxes for many runs at once: a bounded number of them, some prepared ahead, each destroyed after its run."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aworld.config.errors import ConfigError
from aworld.core.context.base import RunScope
from aworld.core.sandbox import Sandbox, SandboxError
from aworld.sandbox.reaper import reap

logger = logging.getLogger(__name__)


class SandboxPool:
    """Gives each run a sandbox of its own. A `SandboxSource`; belongs to one event loop while it has sandboxes.

    `make` opens a sandbox, for example `lambda: open_sandbox("local")`. At most `size` exist at a time, prepared ones
    included; who comes later waits, in the order of coming. `warm` are prepared ahead. A sandbox is never used twice.
    What dead runtimes left behind is destroyed when the pool is first used.

    While a run waits for a person, its sandbox stays as it is, and goes with this process. With `keep`, a folder, its
    files are put there instead and the sandbox is destroyed; whichever process goes on with the run has them again,
    but not what was running in it.
    """

    def __init__(
        self, make: Callable[[], Awaitable[Sandbox]], *, size: int = 16, warm: int = 0, keep: str | Path | None = None
    ) -> None:
        if type(size) is not int or type(warm) is not int or size < 1 or not 0 <= warm <= size:
            raise ConfigError(
                f"size={size!r}, warm={warm!r} | a pool needs whole numbers with size >= 1 and 0 <= warm <= size"
            )
        self._make = make
        self._keep = None if keep is None else Path(keep)
        self._size = size
        self._warm_wanted = warm
        self._slots = asyncio.Semaphore(size)
        self._held = 0
        """Slots taken: leases that have a sandbox, or are about to."""
        self._warm: deque[asyncio.Task[Sandbox]] = deque()
        self._leases: set[asyncio.Task[Sandbox]] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def for_run(self, scope: RunScope) -> PooledSandbox:
        """The run's sandbox; nothing is made before it is opened."""
        file = None
        if self._keep is not None:
            file = self._keep / f"{hashlib.sha256(scope.trajectory_id.encode()).hexdigest()[:32]}.tar"
        return PooledSandbox(self, scope, file)

    def _lease(self, file: Path | None) -> asyncio.Task[Sandbox]:
        """Begin to get a sandbox, filled with what was put aside in a file, if it is there."""
        task = self._spawn(self._acquire(file))
        self._leases.add(task)
        task.add_done_callback(self._look_at)
        return task

    def _look_at(self, task: asyncio.Task[Sandbox]) -> None:
        """A lease that failed has given back its slot; who asked is told, or was cancelled."""
        if task.cancelled() or task.exception() is not None:
            self._leases.discard(task)

    async def _end_lease(self, task: asyncio.Task[Sandbox]) -> None:
        if task in self._leases:  # else the pool was closed
            self._leases.discard(task)
            await asyncio.shield(self._spawn(self._end(task)))

    async def close(self) -> None:
        """Destroy all sandboxes, also those in use. No more can be had."""
        self._closed = True
        while self._leases:
            self._spawn(self._end(self._leases.pop()))
        while self._warm:
            self._spawn(self._discard(self._warm.popleft()))
        while self._background:
            await asyncio.wait(self._background)

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.create_task(self.close()))

    def _start(self) -> None:
        """Check the use; the first time, reap and prepare."""
        if self._closed:
            raise SandboxError("the pool of sandboxes is closed")
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._leases or self._warm:
            raise SandboxError("a pool of sandboxes belongs to one event loop; make one for each sync_run or thread")
        self._loop, self._slots, self._held = loop, asyncio.Semaphore(self._size), 0
        self._background.clear()  # of a loop before, such as that of a sync_run
        self._spawn(self._reap())
        self._prepare()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run apart from the caller, whose cancellation must not leave half a sandbox."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _prepare(self) -> None:
        """Begin to make as many as are wanted ahead."""
        while not self._closed and len(self._warm) < min(self._warm_wanted, self._size - self._held):
            task = self._spawn(self._made())
            task.add_done_callback(_retrieve)  # its error is logged when the sandbox is wanted
            self._warm.append(task)

    async def _made(self) -> Sandbox:
        return await self._make()

    async def _acquire(self, kept: Path | None) -> Sandbox:
        """Wait for a slot, take a prepared sandbox or make one, and put back what was kept for the run."""
        await self._slots.acquire()
        self._held += 1
        try:
            sandbox = await self._any()
            if kept is None or not kept.exists():
                return sandbox
            try:
                await sandbox.restore(await asyncio.to_thread(kept.read_bytes))
                kept.unlink()
            except BaseException:
                await asyncio.shield(self._spawn(self._destroy(sandbox)))
                raise
            return sandbox
        except BaseException:
            self._release()
            raise
        finally:
            self._prepare()

    async def _any(self) -> Sandbox:
        """A prepared sandbox, or a new one."""
        while self._warm:
            sandbox = await self._taken(self._warm.popleft())
            if sandbox is not None:
                return sandbox
        return await self._make_own()

    async def _make_own(self) -> Sandbox:
        task = self._spawn(self._made())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._discard(task)
            raise

    async def _taken(self, task: asyncio.Task[Sandbox]) -> Sandbox | None:
        """A prepared sandbox; None if it could not be made, or has died meanwhile."""
        try:
            sandbox = await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._discard(task)
            raise
        except (SandboxError, OSError) as error:
            logger.warning("a sandbox could not be prepared | %s", error)
            return None
        if not sandbox.alive:
            await self._destroy(sandbox)
            return None
        return sandbox

    async def _end(self, lease: asyncio.Task[Sandbox]) -> None:
        """End a lease in whatever state it is."""
        lease.cancel()
        await asyncio.wait([lease])
        if lease.cancelled() or lease.exception() is not None:
            return  # it gave back its slot itself
        try:
            await self._destroy(lease.result())
        finally:
            self._release()
            self._prepare()

    async def _discard(self, making: asyncio.Task[Sandbox]) -> None:
        """Destroy a sandbox that may still be in the making."""
        making.cancel()
        await asyncio.wait([making])
        if not making.cancelled() and making.exception() is None:
            await self._destroy(making.result())

    async def _destroy(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.close()
        except (SandboxError, OSError) as error:
            # Its record is kept, so that the reaper of a later runtime tries again.
            logger.warning("sandbox=%s | cannot be destroyed: %s", sandbox.id, error)

    def _release(self) -> None:
        self._held -= 1
        self._slots.release()

    async def _reap(self) -> None:
        try:
            await reap()
        except (SandboxError, OSError) as error:
            logger.warning("orphaned sandboxes cannot be looked for | %s", error)


class PooledSandbox:
    """The sandbox that a pool has for one run. A `RunSandbox`."""

    def __init__(self, pool: SandboxPool, scope: RunScope, file: Path | None) -> None:
        self.lost = bool(scope.used) and not (file is not None and file.exists())
        """Whether the run went on here without what it may have had in a sandbox before."""
        self._pool = pool
        self._trajectory_id = scope.trajectory_id
        self._file = file
        """Where its files are put aside."""
        self._task: asyncio.Task[Sandbox] | None = None

    async def open(self) -> Sandbox:
        """The sandbox; the same one until `end_run`. Waits while the pool is full.

        Who is cancelled while waiting still ends with `end_run`. Raises `SandboxError`.
        """
        self._pool._start()
        task = self._task
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._task = self._pool._lease(self._file)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._task is not task:
                raise SandboxError("the run ended while it waited for a sandbox") from None
            raise

    async def rest(self) -> None:
        """The run waits: put its files aside and destroy its sandbox, if there is a folder for that."""
        if self._file is None or self._task is None or self._pool._closed:
            return
        try:
            snapshot = await (await asyncio.shield(self._task)).snapshot()
            await asyncio.to_thread(_write, self._file, snapshot)
        except (SandboxError, OSError) as error:
            logger.warning(
                "trajectory=%s | its sandbox stays, its files cannot be kept: %s", self._trajectory_id, error
            )
            return
        await self._end()

    async def end_run(self) -> None:
        """The run is over: destroy its sandbox, also when it is still being made."""
        await self._end()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    async def _end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await self._pool._end_lease(task)


def _write(place: Path, data: bytes) -> None:
    """Write a file that only this user reads, all of it or nothing."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = place.with_suffix(f".{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(place)


def _retrieve(task: asyncio.Task[Sandbox]) -> None:
    """Take note of an error, so that it is not reported as never retrieved."""
    if not task.cancelled():
        task.exception()
