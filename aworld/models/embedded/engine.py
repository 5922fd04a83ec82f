"""Runs all requests of one event loop together: whoever comes joins the next step, whoever is done leaves.

The engine is a task that lives while there is work, so that no thread, timer or open loop is left behind. A step
computes on the loop's own thread, a few milliseconds at most, and then lets the loop go round once; results go to the
waiting coroutines in between. An engine belongs to one set of weights for good: a hot swap makes a new one, and what is
under way ends with the weights it began with.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from aworld.core.exceptions import ModelError
from aworld.models.embedded.memory import Known, Prefix, PrefixMemory
from aworld.models.embedded.sampling import Sampling, choose
from aworld.models.embedded.transformer import Array, Cache, Past, Transformer, padded

BATCH = 256
"""Requests that are decoded side by side; more wait for their turn."""
READ_AT_ONCE = 4096
"""Tokens of prompts that one step reads, so that no step holds the loop for long."""
MEMORY = 96 * 2**20
"""Bytes of beginnings that are remembered."""

_PIECE = 256  # positions read in one go: the scores of a longer prompt would fill the processor's cache


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, how it is sampled, and what came of it so far."""

    prompt: Prefix
    sampling: Sampling
    draws: random.Random
    done: asyncio.Future[Request]
    head: int = 0
    """Length of the beginning that other prompts are likely to share: what the system says."""
    turn: int = 0
    """Length of the beginning that an earlier turn of the same conversation has left; 0 at its first."""
    on_token: Callable[[Request], bool] | None = None
    """Told of each token; True ends the answer."""
    goes_on: Callable[[list[int]], bool] | None = None
    """Whether the conversation will go on after this answer, so that its keys and values are worth keeping."""
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    finish: str = ""
    cached: int = 0
    """Prompt tokens that did not have to be read."""


class Engine:
    """The requests of one event loop over one set of weights."""

    def __init__(self, transformer: Transformer, *, batch: int = BATCH, memory: int = MEMORY) -> None:
        self._transformer = transformer
        self._config = transformer.config
        self._batch = batch
        self.memory = PrefixMemory(memory)
        self._waiting: list[Request] = []
        self._active: list[Request] = []
        self._cache = Cache(self._config, min(8, batch), 64)
        self._task: asyncio.Task[None] | None = None

    async def complete(self, request: Request) -> Request:
        """Answer one request. Cancelling the caller takes the request out of the batch."""
        self._waiting.append(request)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return await request.done

    async def _run(self) -> None:
        try:
            while True:
                await asyncio.sleep(0)  # first let everybody ask who is about to
                if not self._waiting and not self._active:
                    return
                self.step()
        except BaseException as error:
            for request in (*self._waiting, *self._active):
                if not request.done.done():
                    request.done.set_exception(ModelError(f"The embedded model broke: {type(error).__name__}: {error}"))
            self._waiting, self._active = [], []
            if not isinstance(error, Exception):
                raise
        finally:
            self._task = None

    def step(self) -> None:
        """Read the prompts of those who came, and sample one token for everybody else."""
        self._drop_cancelled()
        rows = len(self._active)
        if rows:
            lengths = [len(r.prompt) + len(r.ids) - 1 for r in self._active]
            self._make_room(rows, max(lengths) + 1)
            last = np.array([[r.ids[-1]] for r in self._active])
            hidden = self._transformer.forward(last, np.array(lengths), self._cache)
            self._sample(self._active, hidden[:, 0])
            self._leave()
        if self._waiting and len(self._active) < self._batch:
            self._admit()
            self._leave()

    def _drop_cancelled(self) -> None:
        self._waiting = [r for r in self._waiting if not r.done.cancelled()]
        for row in reversed(range(len(self._active))):
            if self._active[row].done.cancelled():
                self._free(row)

    def _admit(self) -> None:
        """Read the prompts of waiting requests, each distinct one once, and sample their first tokens."""
        came = self._next()
        known: dict[Prefix, Known] = {}
        for heads in (True, False):  # first what several prompts begin with
            wanted = {r.prompt[: r.head] if heads else r.prompt: r for r in came if r.head or not heads}
            self._read(wanted, known, heads)
        first = len(self._active)
        self._make_room(first + len(came), max(len(r.prompt) for r in came) + 1)
        hidden = np.empty((len(came), self._config.hidden_size), np.float32)
        for row, request in enumerate(came):
            found = known[request.prompt]
            assert found.hidden is not None  # `_read` leaves no prompt without
            self._cache.write(first + row, found.past)
            hidden[row] = found.hidden
        self._active += came
        self._sample(came, hidden)

    def _next(self) -> list[Request]:
        """Those whose turn it is: as many as there are places, and not more than can be read at once."""
        most = self._batch - len(self._active)
        new: set[Prefix] = set()
        tokens = count = 0
        for request in self._waiting[:most]:
            if request.prompt not in new:
                new.add(request.prompt)
                tokens += len(request.prompt) - max(request.turn, request.head)
            if count and tokens > READ_AT_ONCE:
                break
            count += 1
        came, self._waiting = self._waiting[:count], self._waiting[count:]
        return came

    def _read(self, wanted: dict[Prefix, Request], known: dict[Prefix, Known], heads: bool) -> None:
        """Compute what is not known of these beginnings; `known` gets every one of them."""
        work: list[tuple[Prefix, Past | None]] = []
        for prompt, request in wanted.items():
            found = self.memory.find(prompt)
            if found is not None and found.hidden is not None:
                past = found.past
                known[prompt] = found
            else:
                past = None if heads else self._longest(request)
                work.append((prompt, past))
            if not heads:
                request.cached = past.length if past is not None else 0
        work.sort(key=_unread)  # what is padded together is of similar length
        while work:
            together = max(1, READ_AT_ONCE // max(1, _unread(work[-1])))
            piece, work = work[-together:], work[:-together]
            for (prompt, _), computed in zip(piece, self._computed(piece), strict=True):
                known[prompt] = computed
                if heads or not wanted[prompt].turn:  # a question may be asked again, a conversation only goes on
                    self.memory.keep(prompt, computed)

    def _longest(self, request: Request) -> Past | None:
        """The longest known beginning of a prompt."""
        for length in (request.turn, request.head):
            found = self.memory.find(request.prompt[:length]) if length else None
            if found is not None and found.past.length < len(request.prompt):
                return found.past
        return None

    def _computed(self, work: list[tuple[Prefix, Past | None]]) -> list[Known]:
        """Read these beginnings behind what is known of them, padded to the longest."""
        starts = [past.length if past is not None else 0 for _, past in work]
        span = max(map(_unread, work))
        cache = Cache(self._config, len(work), max(starts) + span)
        ids = np.zeros((len(work), span), np.int64)
        for row, ((prompt, past), start) in enumerate(zip(work, starts, strict=True)):
            ids[row, : len(prompt) - start] = prompt[start:]
            if past is not None:
                cache.write(row, past)
        pieces = [
            self._transformer.forward(ids[:, begin : begin + _PIECE], np.array(starts) + begin, cache)
            for begin in range(0, span, _PIECE)
        ]
        hidden = np.concatenate(pieces, axis=1)
        return [
            Known(cache.read(row, len(item[0])), hidden[row, _unread(item) - 1].copy()) for row, item in enumerate(work)
        ]

    def _sample(self, requests: list[Request], hidden: Array) -> None:
        logits = self._transformer.logits(hidden)
        temperatures = np.array([r.sampling.temperature for r in requests], np.float32)
        top_ps = np.array([r.sampling.top_p for r in requests])
        draws = np.array([r.draws.random() for r in requests])
        chosen, logprobs = choose(logits, temperatures, top_ps, draws)
        end, limit = self._config.eos_token_id, self._config.max_position_embeddings
        for request, token, logprob in zip(requests, chosen.tolist(), logprobs.tolist(), strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            stopped = request.on_token is not None and request.on_token(request)
            if token == end or stopped:
                request.finish = "stop"
            elif len(request.ids) >= request.sampling.max_tokens or len(request.prompt) + len(request.ids) >= limit:
                request.finish = "length"

    def _leave(self) -> None:
        """Hand over the finished, from the last row to the first, so that rows that move have been looked at."""
        for row in reversed(range(len(self._active))):
            request = self._active[row]
            if not request.finish:
                continue
            if request.goes_on is not None and request.goes_on(request.ids):
                computed = len(request.prompt) + len(request.ids) - 1
                whole = (*request.prompt, *request.ids)
                self.memory.keep(whole, Known(self._cache.read(row, computed)))
            self._free(row)
            if not request.done.done():
                request.done.set_result(request)

    def _free(self, row: int) -> None:
        """Take a row out; the last one moves into its place, so that the batch stays one piece."""
        last = len(self._active) - 1
        moved = self._active.pop()
        if row != last:
            self._cache.move(last, row, len(moved.prompt) + len(moved.ids))
            self._active[row] = moved

    def _make_room(self, rows: int, length: int) -> None:
        cache = self._cache
        if rows > cache.rows or length > cache.length:
            self._cache = cache.grown(self._config, padded(rows, 32), padded(length, 64))


def _unread(item: tuple[Prefix, Past | None]) -> int:
    prompt, past = item
    return len(prompt) - (past.length if past is not None else 0)
