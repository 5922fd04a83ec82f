"""Runs all requests of one event loop together: whoever comes joins the next step, whoever is done leaves.

The engine is a task that lives while there is work, so that no thread, timer or open loop is left behind. A step
computes on the loop's own thread, a few milliseconds at most, and then lets the loop go round once; results go to the
waiting coroutines in between. An engine belongs to one set of weights for good: a hot swap makes a new one, and what is
under way ends with the weights it began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aworld.core.exceptions import ModelError
from aworld.models.embedded.transformer import (
    Array,
    Cache,
    Ids,
    Past,
    Prefix,
    PromptCache,
    Transformer,
    padded,
)
from aworld.models.token_model import Draft

BATCH = 256
"""Requests that are decoded side by side; more wait for their turn."""
READ_AT_ONCE = 4096
"""Tokens of prompts that one step reads, so that no step holds the loop for long."""
PROMPT_CACHE = 96 * 2**20
"""Bytes of beginnings whose keys and values are kept."""

_PIECE = 256  # positions read in one go: the scores of a longer prompt would fill the processor's cache


@dataclass(slots=True, eq=False)
class DecodeRequest(Draft):
    """A draft that is written in the engine."""

    done: asyncio.Future[DecodeRequest] = field(kw_only=True)
    head: int = 0
    """Length of the beginning that other prompts are likely to share: what the system says."""
    turn: int = 0
    """Length of the beginning that an earlier turn of the same conversation has left; 0 at its first."""
    on_token: Callable[[list[int]], bool] | None = None
    """Told the ids after each token; True ends the answer."""
    finished: bool = False
    cached: int = 0
    """Prompt tokens that did not have to be read."""


class DecodingEngine:
    """The requests of one event loop over one set of weights.

    Args:
        transformer: The weights.
        batch: Most requests that are decoded side by side.
        memory: Bytes of beginnings that are kept.
        goes_on: A token after which the conversation will go on (the one that opens a tool call), so that the keys and
            values of an answer that has it are worth keeping.
    """

    def __init__(
        self, transformer: Transformer, *, batch: int = BATCH, memory: int = PROMPT_CACHE, goes_on: int | None = None
    ) -> None:
        self._transformer = transformer
        self._config = transformer.config
        self._batch = batch
        self._goes_on = goes_on
        self.memory = PromptCache(memory)
        self._waiting: list[DecodeRequest] = []
        self._active: list[DecodeRequest] = []
        self._cache = Cache(self._config, min(8, batch), 64)
        self._task: asyncio.Task[None] | None = None

    async def complete(self, request: DecodeRequest) -> DecodeRequest:
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
            self._make_room(rows, max(lengths) + 1)  # one column for what is read now
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
        read: dict[Prefix, Past] = {}
        for heads in (True, False):  # first what several prompts begin with
            wanted = {r.prompt[: r.head] if heads else r.prompt: r for r in came if r.head or not heads}
            self._read(wanted, read, heads)
        first = len(self._active)
        self._make_room(first + len(came), max(len(r.prompt) for r in came) + 1)
        hidden = np.empty((len(came), self._config.hidden_size), np.float32)
        for row, request in enumerate(came):
            past = read[request.prompt]
            assert past.hidden is not None  # `_read` leaves no prompt without
            self._cache.write(first + row, past)
            hidden[row] = past.hidden
        self._active += came
        self._sample(came, hidden)

    def _next(self) -> list[DecodeRequest]:
        """Those whose turn it is: as many as there are places, and not more than can be read at once."""
        most = self._batch - len(self._active)
        new: set[Prefix] = set()
        tokens = count = 0
        for request in self._waiting[:most]:
            if request.prompt not in new:
                new.add(request.prompt)
                tokens += len(request.prompt) - max(request.turn, request.head)
            if count and tokens > READ_AT_ONCE:  # the first is read however long it is
                break
            count += 1
        came, self._waiting = self._waiting[:count], self._waiting[count:]
        return came

    def _read(self, wanted: dict[Prefix, DecodeRequest], read: dict[Prefix, Past], heads: bool) -> None:
        """Compute what the cache lacks of these beginnings; `read` gets every one of them."""
        work: list[tuple[Prefix, Past | None]] = []
        for prompt, request in wanted.items():
            cached = self.memory.find(prompt)
            if cached is not None and cached.hidden is not None:
                past = read[prompt] = cached
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
                read[prompt] = computed
                if heads or not wanted[prompt].turn:  # a question may be asked again, a conversation only goes on
                    self.memory.keep(prompt, computed)

    def _longest(self, request: DecodeRequest) -> Past | None:
        """The longest cached beginning of a prompt."""
        for length in (request.turn, request.head):
            cached = self.memory.find(request.prompt[:length]) if length else None
            # The last token has to be read in any case: its hidden state is where the answer begins.
            if cached is not None and cached.length < len(request.prompt):
                return cached
        return None

    def _computed(self, work: list[tuple[Prefix, Past | None]]) -> list[Past]:
        """Read these beginnings behind what is cached of them, padded to the longest."""
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
        read = [cache.read(row, len(prompt)) for row, (prompt, _) in enumerate(work)]
        for row, (item, past) in enumerate(zip(work, read, strict=True)):
            past.hidden = hidden[row, _unread(item) - 1].copy()
        return read

    def _sample(self, requests: list[DecodeRequest], hidden: Array) -> None:
        chosen, logprobs = choose(self._transformer.logits(hidden), requests)
        end = self._config.eos_token_id
        for request, token, logprob in zip(requests, chosen.tolist(), logprobs.tolist(), strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            stopped = request.on_token is not None and request.on_token(request.ids)
            request.finished = stopped or token == end or len(request.ids) >= request.sampling.max_tokens

    def _leave(self) -> None:
        """Hand over the finished, from the last row to the first, so that rows that move have been looked at."""
        for row in reversed(range(len(self._active))):
            request = self._active[row]
            if not request.finished:
                continue
            if self._goes_on in request.ids:
                computed = len(request.prompt) + len(request.ids) - 1  # the last token was drawn, and not yet read
                self.memory.keep((*request.prompt, *request.ids), self._cache.read(row, computed))
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


def choose(logits: Array, drafts: Sequence[Draft]) -> tuple[Ids, Array]:
    """One token a row of `logits` (N, vocabulary), and its log-probability.

    The log-probability is of the distribution that was sampled from, temperature, top-p and top-k included; of a greedy
    choice (temperature 0) it is of the unmodified distribution. Raises `ModelError` when the logits are not finite.
    """
    temperatures = np.array([draft.sampling.temperature for draft in drafts], np.float32)
    draws = np.array([draft.rng.random() for draft in drafts])
    greedy = temperatures == 0.0
    scaled = logits / np.where(greedy, np.float32(1.0), temperatures)[:, None]
    scaled -= scaled.max(-1, keepdims=True)
    weights: NDArray[np.float64] = np.exp(scaled.astype(np.float64))  # doubles: a sum of 400 must not lose the tail
    for row, draft in enumerate(drafts):
        if not greedy[row] and (draft.sampling.top_p < 1.0 or draft.sampling.top_k):
            _cut(weights[row], draft.sampling.top_p, draft.sampling.top_k)
    sums = np.cumsum(weights, axis=-1)
    total = sums[:, -1]
    if not np.isfinite(total).all():
        raise ModelError(
            "The policy's weights give no finite probabilities; training has diverged, or the file is bad."
        )
    chosen: Ids = (sums <= (draws * total)[:, None]).sum(-1, dtype=np.int64)
    chosen[greedy] = logits[greedy].argmax(-1)
    picked = weights[np.arange(len(chosen)), chosen]
    return chosen, (np.log(picked) - np.log(total)).astype(np.float32)


def _cut(weights: NDArray[np.float64], top_p: float, top_k: int) -> None:
    """Set to zero all but the likeliest tokens: those that together have at least `top_p`, and at most `top_k`."""
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order])
    kept = int((sums < top_p * sums[-1]).sum()) + 1
    weights[order[min(kept, top_k or kept) :]] = 0.0
