"""A worker process: runs the tasks that come on standard input, a line each, and says how each ended.

Its parent owns it: when standard input closes, also because the parent was killed, what runs is cancelled and the
process ends. What tools print goes to standard error, so that it cannot be taken for an answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import msgspec

from aworld.core.exceptions import AWorldError
from aworld.core.trajectory import Trajectory
from aworld.runners.driver import run_to_end
from aworld.runners.local import load, store_of
from aworld.runners.schedule import rare_collection
from aworld.runners.task_references import Begin, RunEnded, task_of
from aworld.trajectory.query import Query
from aworld.trajectory.store import TrajectoryStore


async def serve(url: str, answers: int) -> None:
    """Run what comes until nothing more can; `answers` is the descriptor of the pipe to the parent."""
    loop, store = asyncio.get_running_loop(), store_of(url)
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    decoder = msgspec.json.Decoder(Begin)
    running: set[asyncio.Task[None]] = set()

    async def execute(begin: Begin) -> None:
        ended = await _execute(begin, store)
        os.write(answers, msgspec.json.encode(ended) + b"\n")

    with rare_collection():
        while line := await reader.readline():
            task = asyncio.create_task(execute(decoder.decode(line)))
            running.add(task)
            task.add_done_callback(running.discard)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    await store.close()


async def _execute(begin: Begin, store: TrajectoryStore) -> RunEnded:
    record: Trajectory | None = None
    try:
        task = task_of(begin)
        if begin.again and await store.count(Query(ids=(begin.id,))):
            record = await load(begin.id, store)
            if record.finished is not None:  # its worker died after the end, before it could say so
                return RunEnded(begin.id, record.status, record.error)
            if task.environment is not None:  # its state died with its worker: begun anew
                await store.delete(begin.id, forks=True)
                record = None
        response = await run_to_end(task, store, record)
    except AWorldError as error:
        return RunEnded(begin.id, misuse=str(error))
    return RunEnded(begin.id, response.status, response.error, response.time_cost)


def main(arguments: list[str]) -> Any:
    """`python -m aworld.runners.task_worker STORE PARENT`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    answers = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(serve(arguments[0], answers))


if __name__ == "__main__":
    main(sys.argv[1:])
